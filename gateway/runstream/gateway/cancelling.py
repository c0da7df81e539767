"""Cancels a run for a client, and waits until that shows: whoever has the answer may post the next message."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import structlog

from runstream.broker.http_auth import PRINCIPAL
from runstream.broker.keys import live_subject, run_key
from runstream.gateway.admission import said_to_platform
from runstream.gateway.awaiting import is_over
from runstream.gateway.services import SERVICES
from runstream.schemas import REQUIRES_APPROVAL

if TYPE_CHECKING:
    from aiohttp import web

    from runstream.broker.connection import Connection, Message
    from runstream.broker.index import Index
    from runstream.schemas import RunRecord

__all__ = ["Canceller", "cancel_run"]

log = structlog.get_logger(__name__)

CANCEL_SECONDS = 2.0
"""How long the answer to a cancel waits for the run's end: a broker ends it after half a second if its writer does
not. When NATS is slower than that the wish is stored all the same, and the run will end."""


class Canceller:
    """Ends runs, each by its id: a wish that comes late finds its run ended, and never another."""

    def __init__(self, connection: Connection, index: Index) -> None:
        self._connection = connection
        self._index = index

    async def cancel(self, record: RunRecord) -> bool:
        """End a run unless it has ended; one that waits for approval waits no longer. Returns whether it did wait.

        Raises `Unavailable` if the wish could not be stored.
        """
        if record.is_terminal:
            return await self._withdraw(record)
        over = asyncio.Event()

        async def heard(message: Message) -> None:
            # A record that is removed has no body.
            if not message.data or is_over(message.data):
                over.set()

        # Heard of first, wished second: the record is terminal before the log has its end.
        subscription = await self._connection.subscribe(live_subject(run_key(record.tenant, record.id)), heard)
        try:
            await self._index.wish_cancelled(record.tenant, record.id)
            log.info("cancel_wished", run_id=record.id)
            stored = await self._index.run(record.tenant, record.id)
            if stored is not None and not stored.value.is_terminal:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CANCEL_SECONDS):
                        await over.wait()
            # The run may have asked for approval in the same moment.
            stored = await self._index.run(record.tenant, record.id)
            return stored is not None and await self._withdraw(stored.value)
        finally:
            await subscription.close()

    async def _withdraw(self, record: RunRecord) -> bool:
        if record.stop_reason != REQUIRES_APPROVAL:
            return False
        await self._index.withdraw_approval(record)
        return True


async def cancel_run(request: web.Request, run: RunRecord) -> None:
    """End a run for a client; a platform whose conversation waits for approval is told that it need not."""
    services = request.app[SERVICES]
    if await services.canceller.cancel(run):
        await services.conversations(request[PRINCIPAL]).stop_waiting(run, said_to_platform(request))
