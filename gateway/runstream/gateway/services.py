"""What every route works with, gathered once at start."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractContextManager

    from runstream.broker.auth.admissions import Admissions
    from runstream.broker.auth.principal import Principal
    from runstream.broker.auth.sessions import Sessions
    from runstream.broker.auth.tickets import Tickets
    from runstream.broker.index import Index
    from runstream.broker.leaders import Leaders
    from runstream.broker.limits.limiter import Limits
    from runstream.broker.removal import Remover
    from runstream.broker.repair import Repair
    from runstream.broker.tracing import Tracing
    from runstream.gateway.answering import Answers
    from runstream.gateway.cancelling import Canceller
    from runstream.gateway.checkup import Checkup
    from runstream.gateway.conversations import Conversations
    from runstream.gateway.fanout import Hub
    from runstream.gateway.figures import Figures
    from runstream.gateway.listing import Lists
    from runstream.gateway.lookup import Lookup
    from runstream.gateway.passthrough import PassThrough
    from runstream.gateway.start import Starter

__all__ = ["SERVICES", "Services", "json_response", "raw_json_response"]


class Services(msgspec.Struct, frozen=True, kw_only=True):
    """The gateway's parts, as its routes see them."""

    hub: Hub
    index: Index
    admissions: Admissions
    limits: Limits
    lookup: Callable[[Principal], Lookup]
    """What whoever asks may find; so with the next two."""
    lists: Callable[[Principal], Lists]
    conversations: Callable[[Principal], Conversations]
    tickets: Tickets
    sessions: Sessions
    has_console: bool
    """Whether a page is served that has sessions."""
    figures: Figures
    checkup: Checkup
    starter: Starter
    repair: Repair
    canceller: Canceller
    remover: Remover
    answers: Answers
    tracing: Tracing
    passthrough: PassThrough | None
    """Who answers what runstream does not: None without a platform."""
    body_limit: Callable[[], int]
    """Bytes a request body may have: what fits into one message of the index, as NATS says."""
    body_seconds: float
    unready: Callable[[], Awaitable[str | None]]
    leaders: Leaders

    def seat(self, who: Principal) -> AbstractContextManager[None]:
        """Give `who` a place for a response that stays open, while the block lasts. Raises `LimitReached`, `TryLater`.

        Before anything is started for it.
        """
        return _Seat(self.limits.stream(who), self.hub.seats.take())


class _Seat:
    """Two places in one. Not made of a generator: thousands of them are taken at one time."""

    __slots__ = ("_here", "_of_theirs")

    def __init__(self, of_theirs: AbstractContextManager[None], here: AbstractContextManager[None]) -> None:
        self._of_theirs = of_theirs
        self._here = here

    def __enter__(self) -> None:
        self._of_theirs.__enter__()
        try:
            self._here.__enter__()
        except BaseException:
            self._of_theirs.__exit__(None, None, None)
            raise

    def __exit__(self, *_: object) -> None:
        self._here.__exit__(None, None, None)
        self._of_theirs.__exit__(None, None, None)


SERVICES = web.AppKey("services", Services)


def raw_json_response(body: bytes) -> web.Response:
    """Answer with what is JSON already."""
    return web.Response(body=body, content_type="application/json")


def json_response(data: object, *, status: int = 200) -> web.Response:
    """Answer with compact JSON."""
    try:
        body = msgspec.json.encode(data)
    except UnicodeEncodeError:
        # A refusal quotes what was sent, and what was sent is no text: it can go out escaped.
        body = json.dumps(data, separators=(",", ":")).encode()
    return web.Response(body=body, status=status, content_type="application/json")
