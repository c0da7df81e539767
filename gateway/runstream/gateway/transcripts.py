"""What a run has said so far, as whole messages, read from its log."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from runstream.broker.errors import CursorExpired, Unavailable
from runstream.broker.log import ENDING
from runstream.broker.tasks import Turns
from runstream.broker.topology import LogAddress
from runstream.gateway.errors import NOT_AGAIN, SHOULD_RETRY, ApiError, UnavailableRefusal
from runstream.schemas import Kind, Merging

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from runstream.broker.messages import StoredMessage
    from runstream.broker.reader import LogReader
    from runstream.broker.settings import BrokerSettings
    from runstream.gateway.settings import GatewaySettings
    from runstream.schemas import Merged, RunRecord

__all__ = ["TooLong", "Transcripts", "in_turns"]

RETRY_SECONDS = 0.1
"""How long to wait before a leader that lags is asked again."""

T = TypeVar("T")


async def in_turns(items: Iterable[T]) -> AsyncGenerator[T]:
    """Yield the items; others on the event loop get their turn in between."""
    turns = Turns()
    for item in items:
        await turns.give()
        yield item


class TooLong(ApiError):
    """The messages of a run are more than fit into one body."""

    status = 507
    shapes = (UnavailableRefusal,)
    sends = (SHOULD_RETRY,)


class Transcripts:
    """Reads what runs have said. A few at one time, as each takes the event loop's time, and memory.

    `turn` is to be held from before a run is read until its messages are no longer needed.
    """

    def __init__(self, reader: LogReader, settings: GatewaySettings, broker_settings: BrokerSettings) -> None:
        self._reader = reader
        self._settings = settings
        self._patience_seconds = broker_settings.read_patience_seconds
        self.turn = asyncio.Semaphore(settings.concurrent_answers)

    async def of(self, record: RunRecord) -> list[Merged]:
        """Return a run's messages, those that have begun and not ended included.

        Raises `CursorExpired` when retention has removed any of it, `TooLong`, `Unavailable`.
        """
        address = LogAddress(record.id, record.shard)
        tip = await self._reader.leaders.sure(partial(self._tip, record, address), CursorExpired)
        if tip is None:
            return []
        merging = Merging()
        async with aclosing(self._reader.read(address, 0, tip.seq, after_index=-1)) as batches:
            async for entries in batches:
                async for entry in in_turns(entries):
                    if entry.kind is Kind.DATA:
                        merging.add(entry.body)
                self._check_size(record, merging)
        return [message async for message in in_turns(merging.messages())]

    async def _tip(self, record: RunRecord, address: LogAddress) -> StoredMessage | None:
        """Return the log's last message, None if the run has just been claimed; of one that has ended, its ending's."""
        deadline = time.monotonic() + self._patience_seconds
        while True:
            tip = await self._reader.last(address)
            if tip is None:
                if record.status == "created":
                    return None
                raise CursorExpired(run_id=record.id)
            if not record.is_terminal or ENDING in tip.headers:
                return tip
            # The record was written after the ending was stored: this leader is new, and does not have it yet.
            if time.monotonic() > deadline:
                raise Unavailable(f"The log of {record.id} does not show its ending.")
            await asyncio.sleep(RETRY_SECONDS)

    def _check_size(self, record: RunRecord, merging: Merging) -> None:
        limit = self._settings.max_answer_bytes
        if merging.size > limit:
            detail = f"The messages of run {record.id} have more than {limit} bytes: stream them instead."
            raise TooLong(detail, extra={"run_id": record.id}, headers=NOT_AGAIN)
