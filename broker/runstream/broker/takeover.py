"""Ending a run that its writer does not end: its writer is dead, or does not obey.

The new writer is fenced like any other, so of any number of brokers that take a run over, and its own writer, exactly
one ends it; the others are refused, and find the end when they look again.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import msgspec

from runstream.broker.ending import end_run, ended, finish_run, first_message, told
from runstream.broker.errors import Fenced, StoreFull, Unavailable
from runstream.broker.keys import run_key
from runstream.broker.log import ENDING, first_of, kind_of, last_of, place_of
from runstream.broker.publisher import Publisher
from runstream.broker.survey import outcome_of, stored_at
from runstream.broker.topology import LogAddress
from runstream.schemas import InvalidRecord, Kind, decode_run

if TYPE_CHECKING:
    from datetime import datetime

    from runstream.broker.ending import Outcome
    from runstream.broker.index import Index
    from runstream.broker.jetstream import JetStream
    from runstream.broker.messages import StoredMessage
    from runstream.broker.settings import BrokerSettings
    from runstream.schemas import RunRecord

__all__ = ["MOST_ATTEMPTS", "Ended", "TakeOver", "is_executable"]

MOST_ATTEMPTS = 5
"""Workers that may die over one run before its first chunk: what kills five of them kills the sixth, too."""


def is_executable(record: RunRecord, last: StoredMessage | None) -> bool:
    """Tell by its log's last message whether a run may be executed by another worker: its agent has said nothing."""
    if last is None:
        # Begun, it had a log, and retention has removed what was said in it.
        return record.first_seq is None
    kind = kind_of(last)
    # The first message aside, there is nothing before an attempt but attempts.
    return kind is Kind.PING or (kind is Kind.ATTEMPT and place_of(last) < MOST_ATTEMPTS)


class Ended(msgspec.Struct, frozen=True):
    """What a run that was taken over came to."""

    stop_reason: str
    was_told: bool
    """Whether somebody else had told its end before, and only did not finish it."""
    is_last: bool
    """Whether what was stored last, its log's end, was stored here: of all who end a run one counts it."""
    error_type: str | None = None
    """What kind of error its end was told with, if that was stored or read here."""


def _error_type(outcome: Outcome) -> str | None:
    return None if outcome.error is None else outcome.error.error_type


class TakeOver:
    """Ends runs in place of their writers."""

    def __init__(self, jetstream: JetStream, settings: BrokerSettings, index: Index) -> None:
        self._jetstream = jetstream
        self._settings = settings
        self._index = index

    async def last_of(self, record: RunRecord) -> StoredMessage | None:
        """Return the last message of a run's log, as its leader has it."""
        address = LogAddress(record.id, record.shard)
        return await last_of(self._jetstream, address)

    async def end(
        self,
        record: RunRecord,
        last: StoredMessage | None,
        outcome: Outcome,
        *,
        first_chunk_at: datetime | None = None,
    ) -> Ended:
        """Bring a run to its end from `last`, its log's last message: with `outcome`, or as its writer had begun to.

        `first_chunk_at`: when its first chunk was stored, said by whoever ends it in its writer's name. Raises `Fenced`
        when the log has moved on since `last`, or the run was removed, and what `Publisher` and `Index` raise.
        """
        address = LogAddress(record.id, record.shard)
        if last is not None and kind_of(last) is Kind.END and ENDING in last.headers and not record.is_terminal:
            return await self._agree(record, last)
        if last is None and record.first_seq is not None:
            # Retention, or an operator, has removed the log. An end of what is gone is stored all the same: whoever
            # follows the run is told by it that there is a hole. It is not the log's first message, and never was.
            if (over := await self._over(record)) is not None:
                await self._index.forget(record.id)
                return Ended(over, was_told=True, is_last=False)
            async with Publisher(self._jetstream, address, self._settings, next_index=1) as publisher:
                await end_run(publisher, self._index, record, outcome)
            return Ended(outcome.stop_reason, was_told=False, is_last=True, error_type=_error_type(outcome))
        async with Publisher.after(last, self._jetstream, address, self._settings) as publisher:
            publisher.first_chunk_at = first_chunk_at
            if last is None:
                last_seq = await publisher.publish_marked(first_message(record))
                record = msgspec.structs.replace(record, first_seq=last_seq)
            elif record.first_seq is None:
                first = await self._jetstream.first_message(address.stream, address.subject)
                record = msgspec.structs.replace(record, first_seq=first.seq if first is not None else None)
            if last is not None and ENDING in last.headers:
                was = await finish_run(publisher, self._index, record, last)
                is_last = kind_of(last) is not Kind.END
                return Ended(was.stop_reason, was_told=True, is_last=is_last, error_type=_error_type(was))
            await end_run(publisher, self._index, record, outcome)
            return Ended(outcome.stop_reason, was_told=False, is_last=True, error_type=_error_type(outcome))

    async def _agree(self, record: RunRecord, end: StoredMessage) -> Ended:
        """Have the record of a run that goes on say what its log does, which has its end."""
        address = LogAddress(record.id, record.shard)
        first = await first_of(self._jetstream, address)
        if first is None or place_of(first) == place_of(end):
            outcome = told(end.headers[ENDING], end)  # Retention has removed what was told with it.
        else:
            outcome = await outcome_of(self._jetstream, address, end)
        if record.first_seq is None and first is not None:
            record = msgspec.structs.replace(record, first_seq=first.seq)
        await self._index.release(ended(record, outcome, at=stored_at(end)))
        with contextlib.suppress(Unavailable, StoreFull):  # A watchdog does what is left.
            await self._index.forget(record.id)
        return Ended(outcome.stop_reason, was_told=True, is_last=False, error_type=_error_type(outcome))

    async def _over(self, record: RunRecord) -> str | None:
        """Return the stop reason of a run that has ended since `record` was read; raises `Fenced` if it was removed.

        Without a log there is nothing else that would tell, and an ending would bring back what a client has removed.
        """
        stored = await self._index.stored(run_key(record.tenant, record.id))
        if stored.value is None:
            if stored.revision:
                raise Fenced("It was removed.", run_id=record.id)
            return None
        try:
            current = decode_run(stored.value)
        except InvalidRecord:
            return None  # Nobody can tell: the end is stored, whoever may have told one.
        return (current.stop_reason or "error") if current.is_terminal else None
