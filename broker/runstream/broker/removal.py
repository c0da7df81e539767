"""Removes an ended run for good: its log first, then what the index knows of it.

In this order a removal that is broken off leaves a run without a log, which can be removed again, and never a log that
nobody knows of: that one would be in the way of nobody, and found by nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runstream.broker.log import entry_of
from runstream.broker.logs import get_logger
from runstream.broker.topology import LogAddress
from runstream.schemas import Kind

if TYPE_CHECKING:
    from runstream.broker.index import Index
    from runstream.broker.jetstream import JetStream
    from runstream.schemas import RunRecord

__all__ = ["Remover"]

log = get_logger(__name__)


class Remover:
    """Removes runs. Who follows one is told that it has expired."""

    def __init__(self, jetstream: JetStream, index: Index) -> None:
        self._jetstream = jetstream
        self._index = index

    async def remove(self, record: RunRecord) -> bool:
        """Remove a run; False if it goes on, or is just being ended. Raises `Unavailable`."""
        address = LogAddress(record.id, record.shard)
        last = await self._jetstream.last_message(address.stream, address.subject)
        if not record.is_terminal or (last is not None and entry_of(last).kind is not Kind.END):
            return False
        if last is not None:
            await self._jetstream.api(f"STREAM.PURGE.{address.stream}", {"filter": address.subject})
        await self._index.remove_run(record)
        log.info("run_removed", run_id=record.id)
        return True
