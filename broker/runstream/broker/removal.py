"""Removes an ended run for good: its log first, then what the index knows of it.

In this order a removal that is broken off leaves a run without a log, which can be removed again, and never a log that
nobody knows of: that one would be in the way of nobody, and found by nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from runstream.broker.ending import failed
from runstream.broker.errors import Fenced, Unavailable
from runstream.broker.log import ENDING, kind_of
from runstream.broker.logs import get_logger
from runstream.broker.tasks import Shielded
from runstream.broker.topology import LogAddress
from runstream.schemas import Kind

if TYPE_CHECKING:
    from runstream.broker.index import Index
    from runstream.broker.jetstream import JetStream
    from runstream.broker.messages import StoredMessage
    from runstream.broker.takeover import TakeOver
    from runstream.schemas import RunRecord

__all__ = ["Remover"]

log = get_logger(__name__)

SEAL_SECONDS = 1.0
"""How long a run's writer may take from the terminal record to the log's end, milliseconds mostly, before the end is
stored here: it may be dead."""
SEAL_LOOK_SECONDS = 0.02
GIVE_UP_SECONDS = 5.0
"""How long that is tried: a leader that lags may take a moment to show what was stored, and a client waits."""
CLOSE_SECONDS = 5.0
"""How long removals are waited for at the end: one that is broken off can be asked for again."""


class Remover:
    """Removes runs. Who follows one is told that it has expired."""

    def __init__(self, jetstream: JetStream, index: Index, take_over: TakeOver) -> None:
        self._jetstream = jetstream
        self._index = index
        self._take_over = take_over
        self._removing = Shielded()

    async def close(self) -> None:
        """Wait for the runs that are being removed: whoever asked for it may have left."""
        await self._removing.close(CLOSE_SECONDS)

    async def remove(self, record: RunRecord) -> bool:
        """Remove a run; False if it goes on. Raises `Unavailable`.

        Who is cancelled meanwhile has left, and the run is removed all the same: without its log it would still be
        listed, and could not be read.
        """
        return await self._removing.do(self._remove(record), name=f"remove-{record.id}")

    async def _remove(self, record: RunRecord) -> bool:
        if not record.is_terminal:
            return False
        last = await self._end_of(record)
        if last is not None and kind_of(last) is not Kind.END:
            return False
        if last is not None:
            address = LogAddress(record.id, record.shard)
            await self._jetstream.api(f"STREAM.PURGE.{address.stream}", {"filter": address.subject})
        await self._index.remove_run(record)
        log.info("run_removed", run_id=record.id)
        return True

    async def _end_of(self, record: RunRecord) -> StoredMessage | None:
        """Return the last message of an ended run's log, None if that is gone.

        A run's record is terminal before its log has its end. That is waited for, and then stored for its writer.
        """
        begun_at = time.monotonic()
        while True:
            last = await self._take_over.last_of(record)
            if last is None or kind_of(last) is Kind.END or ENDING not in last.headers:
                return last
            waited = time.monotonic() - begun_at
            if waited > GIVE_UP_SECONDS:
                raise Unavailable(f"The log of {record.id} does not come to its end.")
            if waited > SEAL_SECONDS:
                with contextlib.suppress(Fenced):  # Its writer was faster.
                    await self._take_over.end(record, last, failed(record.id, "run_lost"))
            await asyncio.sleep(SEAL_LOOK_SECONDS)
