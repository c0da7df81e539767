"""What clients authenticated themselves with, for workers that call the platform in their name: in memory only.

Nothing of it is ever stored. A run request names a subject of this gateway's own, and the worker that has the run asks
there. A gateway that is gone has taken its clients' credentials with it; their runs then end as `credential_lost`,
unless their worker had asked before.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING

from runstream.broker.credentials import CREDENTIAL_HEADERS, CREDENTIALS, encode_credentials

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runstream.broker.connection import Connection, Message

__all__ = ["Credentials"]

KEPT_SECONDS = 600.0
"""How long a worker may ask: a run may wait in the queue, and be tried again after its worker died."""
MOST_KEPT = 100_000


class Credentials:
    """Keeps what a client sent until a worker may no longer ask for it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._subject = f"{CREDENTIALS}.{secrets.token_hex(16)}"
        self._kept: dict[str, tuple[float, Mapping[str, str]]] = {}
        self._listening: asyncio.Task[None] | None = None

    async def keep(self, run_id: str, headers: Mapping[str, str]) -> str | None:
        """Keep the credentials among a request's `headers`; returns where a worker may ask, None when there are none.

        Raises `Unavailable`.
        """
        found = {name: headers[name] for name in CREDENTIAL_HEADERS if name in headers}
        if not found:
            return None
        await self._listen()
        self._forget_old()
        self._kept[run_id] = (time.monotonic(), found)
        return self._subject

    async def _listen(self) -> None:
        if self._listening is None or (self._listening.done() and self._listening.exception() is not None):
            self._listening = asyncio.create_task(self._subscribe(), name="credentials")
        await asyncio.shield(self._listening)

    async def _subscribe(self) -> None:
        await self._connection.subscribe(self._subject, self._asked)

    async def _asked(self, message: Message) -> None:
        _, found = self._kept.get(message.data.decode(errors="replace"), (0.0, {}))
        await self._connection.publish(message.reply, encode_credentials(found))

    def _forget_old(self) -> None:
        """Drop what is too old, and the oldest beyond the bound; the oldest come first."""
        oldest = time.monotonic() - KEPT_SECONDS
        while self._kept:
            run_id, (kept_at, _) = next(iter(self._kept.items()))
            if kept_at > oldest and len(self._kept) < MOST_KEPT:
                return
            del self._kept[run_id]
