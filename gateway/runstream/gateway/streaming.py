"""One run as one response: position, headers, followers' service, and how the response ends."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog
from aiohttp import ClientConnectionResetError, web

from runstream.broker.errors import BrokerError, CursorExpired
from runstream.gateway.errors import TryLater
from runstream.gateway.follower import Follower
from runstream.gateway.response import EventResponse
from runstream.gateway.sse import Style, cut_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runstream.gateway.fanout import Hub
    from runstream.schemas import RunRecord

__all__ = ["seat", "stream_run"]

log = structlog.get_logger(__name__)


@contextmanager
def seat(hub: Hub) -> Iterator[None]:
    """Count a follower while the block lasts; raises `TryLater` while the gateway has all it may have.

    Taken before anything is awaited: counted at its first event, a burst of followers would pass the bound.
    """
    if hub.is_full:
        raise TryLater("This gateway serves as many streams as it may. Try again.")
    hub.followers += 1
    try:
        yield
    finally:
        hub.followers -= 1


async def stream_run(
    request: web.Request, hub: Hub, record: RunRecord, *, starting_after: int, include_pings: bool, kind: str
) -> web.StreamResponse:
    """Stream a run to its end. Raises `BrokerError` before the headers are out; after them nothing but a disconnect.

    The response ends complete only after the run's own end. Ended for any other reason it says so in one
    `event: error` and is cut, so that no client takes it for the run's end.
    """
    async with hub.tail(record) as tail:
        cursor = await hub.position(tail, starting_after)
        response = EventResponse(request)
        follower = Follower(
            response,
            run_id=record.id,
            cursor=cursor,
            style=Style.BACKGROUND if record.background else Style.FOREGROUND,
            include_pings=include_pings,
        )
        try:
            await response.open()
            hub.metrics.stream_begun(kind)
            await hub.serve(tail, follower)
            if follower.is_done:
                await response.finish(hub.settings.write_deadline_seconds)
        except BrokerError as error:
            # What NATS said, with its subjects, is for the log; the client gets what it can act on.
            log.warning("stream_cut", run_id=record.id, error=str(error))
            hub.metrics.stream_cut("store")
            error_type = "expired" if isinstance(error, CursorExpired) else "store_unavailable"
            response.write_event(cut_error(record.id, error_type))
            response.cut()
        except TimeoutError:
            hub.metrics.stream_cut("blocked")
            response.abort()
        except ClientConnectionResetError:
            pass  # The client has left: before the first byte, or with all it wanted, as letta-client at `[DONE]`.
        return response.prepared
