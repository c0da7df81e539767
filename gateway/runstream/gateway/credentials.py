"""What clients authenticated themselves with, for workers that call the platform in their name: in memory only.

Nothing of it is ever stored. A run request names a subject of this gateway's own, and the worker that has the run asks
there. A gateway that is gone has taken its clients' credentials with it; their runs then end as `credential_lost`,
unless their worker had asked before.
"""

from __future__ import annotations

import asyncio
import secrets
from contextvars import Context
from typing import TYPE_CHECKING

from runstream.broker.credentials import CREDENTIAL_HEADERS, CREDENTIALS, NONE_SENT, encode_credentials
from runstream.gateway.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runstream.broker.connection import Connection, Message

__all__ = ["Credentials", "credentials_in"]

KEPT_SECONDS = 600.0
"""How long a worker may ask: a run may wait in the queue, and be tried again after its worker died."""
MOST_KEPT = 100_000
"""Runs whose credentials are kept: some kilobytes each. Beyond, the oldest one's are dropped."""


def credentials_in(headers: Mapping[str, str]) -> dict[str, str]:
    """Return what a client authenticated itself with. Raises `BadRequest` for what could not be sent on."""
    found = {name: headers[name] for name in CREDENTIAL_HEADERS if name in headers}
    for name, value in found.items():
        if not (value.isascii() and value.isprintable()):
            raise BadRequest(f"The header {name} has to be printable ASCII.")
    return found


class Credentials:
    """Keeps what a client sent until a worker may no longer ask for it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._subject = f"{CREDENTIALS}.{secrets.token_hex(16)}"
        self._kept: dict[str, Mapping[str, str]] = {}
        self._expiries: dict[str, asyncio.TimerHandle] = {}
        self._listening: asyncio.Task[None] | None = None

    async def keep(self, run_id: str, headers: Mapping[str, str]) -> str:
        """Keep the credentials among a request's `headers`; returns where a worker may ask, `NONE_SENT` without any.

        Raises `Unavailable`, and `BadRequest` for what could not be sent on.
        """
        found = credentials_in(headers)
        if not found:
            return NONE_SENT
        await self._listen()
        while len(self._kept) >= MOST_KEPT:
            self.drop(next(iter(self._kept)))
        self._kept[run_id] = found
        self._expiries[run_id] = asyncio.get_running_loop().call_later(KEPT_SECONDS, self.drop, run_id)
        return self._subject

    def drop(self, run_id: str) -> None:
        """Forget the credentials of a run, if they are kept."""
        if self._kept.pop(run_id, None) is not None:
            self._expiries.pop(run_id).cancel()

    def close(self) -> None:
        """Forget all of them."""
        for run_id in list(self._kept):
            self.drop(run_id)

    async def _listen(self) -> None:
        if self._listening is None or (self._listening.done() and self._listening.exception() is not None):
            self._listening = asyncio.create_task(self._subscribe(), name="credentials", context=Context())
        await asyncio.shield(self._listening)

    async def _subscribe(self) -> None:
        # Until the connection is closed: the gateway's last breath.
        await self._connection.subscribe(self._subject, self._asked)

    async def _asked(self, message: Message) -> None:
        found = self._kept.get(message.data.decode(errors="replace"), {})
        await self._connection.publish(message.reply, encode_credentials(found))
