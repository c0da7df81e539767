"""What whoever meets a run does when the index says that it goes on: ask its log, which is right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runstream.broker.ending import failed
from runstream.broker.errors import BrokenRecord, Fenced
from runstream.broker.log import kind_of
from runstream.broker.logs import get_logger
from runstream.broker.takeover import TakeOver
from runstream.schemas import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from runstream.broker.index import Index
    from runstream.broker.jetstream import JetStream
    from runstream.broker.settings import BrokerSettings
    from runstream.schemas import RunRecord

__all__ = ["Repair", "watch_over"]

log = get_logger(__name__)


async def watch_over(index: Index, record: RunRecord, observe: Callable[[str], None]) -> None:
    """Give a run that has not ended a lease if it has none: without one no watchdog ever looks at it."""
    if record.is_terminal or await index.lease_revision(record.id) is not None:
        return
    # Read again: a record is made terminal before its lease is deleted, so one that is not yet will never be.
    stored = await index.run(record.tenant, record.id)
    if stored is not None and not stored.value.is_terminal:
        await index.restore_lease(record.tenant, record.id)
        observe("lease_missing")
        log.warning("lease_restored", run_id=record.id)


class Repair:
    """Makes the index agree with the logs, run by run. `observe` is told the kind of each repair."""

    def __init__(
        self, jetstream: JetStream, settings: BrokerSettings, index: Index, *, observe: Callable[[str], None]
    ) -> None:
        self._take_over = TakeOver(jetstream, settings, index)
        self._index = index
        self._observe = observe

    async def ended(self, tenant: str, run_id: str) -> bool:
        """See whether a run that is in the way has ended; makes its record terminal if only its log says so.

        One that has not, and has no lease, is given one, so that a watchdog finds out what became of its writer.
        """
        try:
            stored = await self._index.run(tenant, run_id)
        except BrokenRecord:
            if await self._index.lease_revision(run_id) is None:
                await self._index.restore_lease(tenant, run_id)
                self._observe("lease_missing")
            return False
        if stored is None or stored.value.is_terminal:
            return True
        record = stored.value
        last = await self._take_over.last_of(record)
        if last is not None and kind_of(last) is Kind.END:
            return await self._finished(record)
        await watch_over(self._index, record, self._observe)
        return False

    async def watch_over(self, record: RunRecord) -> None:
        """See that a run which a client comes back to is looked after: one that goes on has a lease."""
        await watch_over(self._index, record, self._observe)

    async def _finished(self, record: RunRecord) -> bool:
        """Make the record of a run agree with its log, which has its end."""
        # Read again: a writer stores the end right after it has made the record terminal.
        stored = await self._index.run(record.tenant, record.id)
        if stored is None or stored.value.is_terminal:
            return True
        last = await self._take_over.last_of(record)
        try:
            await self._take_over.end(stored.value, last, failed(record.id, "run_lost"))
        except Fenced:
            return False
        self._observe("record_not_terminal")
        log.warning("record_made_terminal", run_id=record.id)
        return True
