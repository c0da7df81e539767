"""Runs that are written over HTTP: opened, found again by any broker, kept alive, and ended.

What a broker remembers of them it could read at any time, and remembers to save a request: which shard a run is in
never changes, and a sign of life that was just given need not be given again.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from runstream.broker.ending import Outcome
from runstream.broker.errors import BrokerError, Fenced, StoreFull, Unavailable, WrongLastSequence
from runstream.broker.fullness import announce_stuck
from runstream.broker.index import Index
from runstream.broker.ingest.errors import IngestError, translated
from runstream.broker.leaders import Leaders
from runstream.broker.log import ENDING, kind_of, place_of
from runstream.broker.logs import get_logger
from runstream.broker.messages import StoredMessage
from runstream.broker.opening import begin, claim_to_write, record_to_write
from runstream.broker.publisher import Publisher
from runstream.broker.repair import Repair, watch_over
from runstream.broker.survey import stored_at
from runstream.broker.takeover import TakeOver
from runstream.broker.topology import LogAddress
from runstream.schemas import Kind, RunRecord, status_of

if TYPE_CHECKING:
    from datetime import datetime

    from runstream.broker.auth.principal import Principal
    from runstream.broker.bucket import Stored
    from runstream.broker.jetstream import JetStream
    from runstream.broker.metrics import BrokerMetrics
    from runstream.broker.settings import BrokerSettings
    from runstream.schemas import (
        OpenRunRequest,
        Trace,
    )

__all__ = ["PATIENCE_SECONDS", "RUN_TYPE", "IngestedRuns", "Standing", "over"]

log = get_logger(__name__)

RUN_TYPE = "ingest"
"""What clients see as the `metadata.run_type` of a run that was opened here."""
PATIENCE_SECONDS = 10.0
"""How long a single request waits for NATS: its writer waits meanwhile, and may send it again at no risk."""
MOST_KNOWN = 10_000
"""Runs that are remembered, a kilobyte each; those that were heard of longest ago are forgotten first."""
SIGNS_PER_LEASE = 10
"""A writer of many small requests gives no more signs of life than that: each is a write."""
RACES = 10
"""How often the end of a run is tried against a writer that goes on, before this is left to the writer to settle."""


class Standing(msgspec.Struct, frozen=True):
    """Where a run's log stands: its record, and its last message as the leader has it."""

    record: RunRecord
    last: StoredMessage

    @property
    def address(self) -> LogAddress:
        """Where its log is."""
        return LogAddress(self.record.id, self.record.shard)

    @property
    def index(self) -> int:
        """How many chunks are stored: the ping before them has the log's index 0, and nothing else is in between."""
        return place_of(self.last)


class _Known(msgspec.Struct):
    """What is remembered of a run that goes on: its record, and the sign of life that was last given here."""

    record: RunRecord
    lease_revision: int = 0
    signed_at: float = float("-inf")


def over(record: RunRecord, stop_reason: str | None = None) -> IngestError:
    """Make the refusal of whatever comes after a run's end."""
    stopped = stop_reason or record.stop_reason or "error"
    status = status_of(stopped)
    facts = {"run_id": record.id, "status": status, "stop_reason": stopped}
    if status == "cancelled":
        return IngestError("run_cancelled", "This run was cancelled, and has ended: stop writing it.", **facts)
    why = f", {record.error.get('error_type')}" if record.error is not None else ""
    return IngestError("run_ended", f"This run has ended ({stopped}{why}): nothing more is stored.", **facts)


class IngestedRuns:
    """The runs of the ingest API. Every call raises `IngestError`, and `BrokerError` for what the store refuses."""

    def __init__(self, jetstream: JetStream, settings: BrokerSettings, metrics: BrokerMetrics) -> None:
        self.index = Index(jetstream)
        self.leaders = Leaders.of_all(settings, jetstream)
        self._jetstream = jetstream
        self._settings = settings
        self._metrics = metrics
        self._repair = Repair(jetstream, settings, self.index, observe=metrics.repaired)
        self._take_over = TakeOver(jetstream, settings, self.index)
        self._known: OrderedDict[str, _Known] = OrderedDict()

    async def open(self, who: Principal, wanted: OpenRunRequest, trace: Trace | None) -> Standing:
        """Open a run: from here on any gateway serves it, and its lease wants signs of life.

        Not to be cancelled half-way: a claim that is given up may be stored all the same.
        """
        who.check_opening(wanted.agent_id, wanted.conversation_id)
        record = record_to_write(
            tenant=who.tenant,
            agent_id=wanted.agent_id,
            conversation_id=wanted.conversation_id,
            otids=wanted.otids,
            background=wanted.background,
            run_type=RUN_TYPE,
            shards=self._settings.shards,
        )
        await claim_to_write(self.index, self._repair, record)
        try:
            standing = await self._begun(record, None, trace)
            await self.keep_alive(standing.record, at_once=True)
        except BrokerError as error:
            refused = translated(error)
            refused.facts["run_id"] = record.id
            refused.detail = f"Run {record.id} was opened, but not begun: go on with it. {refused.detail}"
            raise refused from error
        log.info("run_opened", run_id=record.id)
        return standing

    async def standing(self, who: Principal, run_id: str) -> Standing:
        """Find a run that goes on, and where its log stands.

        One that is to be cancelled is ended here. One whose opening was broken off is begun: its claim is all there is.
        """
        known = self._known.get(run_id)
        if known is not None and not who.reaches_run(known.record):
            known = None
        record = known.record if known is not None else await self.record(who, run_id)
        if record.is_terminal:
            raise over(record)
        last, is_wished = await asyncio.gather(self._take_over.last_of(record), self.index.is_wished_cancelled(run_id))
        if last is not None and ENDING in last.headers:
            self.forget(run_id)
            raise over((await self.record(who, run_id)), last.headers[ENDING])
        if is_wished:
            raise await self.cancelled(record, last)
        if last is None and known is not None:
            self.forget(run_id)
            return await self.standing(who, run_id)
        if last is None and record.first_seq is not None:
            await self.check_last(record, last)
            raise IngestError("expired", "This run's log was removed by retention: open another run.", run_id=run_id)
        if last is None or record.first_seq is None:
            return await self._begun(record, last)
        if known is None:
            self._remember(record)
        return Standing(record, last)

    async def record(self, who: Principal, run_id: str) -> RunRecord:
        """Read a run's record. Raises `IngestError` if it is not one of this API's, or not there for `who`."""
        stored = await self.leaders.sure(partial(self._stored, who, run_id), IngestError)
        if stored.value.run_type != RUN_TYPE:
            raise IngestError(
                "not_ingested",
                "This run was not opened by POST /ingest/v1/runs, and has a writer of its own.",
                run_id=run_id,
                run_type=stored.value.run_type,
            )
        return stored.value

    async def _stored(self, who: Principal, run_id: str) -> Stored[RunRecord]:
        stored = await self.index.run(who.tenant, run_id)
        if stored is None or not who.reaches_run(stored.value):
            raise IngestError("run_not_found", f"There is no run {run_id}: open one.", run_id=run_id)
        return stored

    async def check_last(self, record: RunRecord, last: StoredMessage | None) -> None:
        """Raise `Unavailable` unless `last` is the log's last message for certain: by it a writer is refused."""
        await self.leaders.confirm()
        found = await self._take_over.last_of(record)
        if (found and found.seq) != (last and last.seq):
            raise Unavailable("Its log was read where it was not whole.", run_id=record.id)

    async def _begun(self, record: RunRecord, last: StoredMessage | None, trace: Trace | None = None) -> Standing:
        address = LogAddress(record.id, record.shard)
        after = Publisher.after(last, self._jetstream, address, self._settings, patience_seconds=PATIENCE_SECONDS)
        async with after as publisher:
            begun = await begin(self._jetstream, self.index, publisher, record, trace=trace)
        stored = await self._take_over.last_of(begun)
        if stored is None or begun.is_terminal:
            raise over(begun)
        self._remember(begun)
        return Standing(begun, stored)

    def _remember(self, record: RunRecord) -> None:
        self._known[record.id] = _Known(record)
        while len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)

    def forget(self, run_id: str) -> None:
        """Read what there is of a run anew when it is next asked for."""
        self._known.pop(run_id, None)

    # -- signs of life --------------------------------------------------------------------------------------------

    async def keep_alive(self, record: RunRecord, *, at_once: bool = False) -> None:
        """Give a sign of life, unless one was just given here; `at_once`: in any case."""
        known = self._known.get(record.id) or _Known(record)
        now = time.monotonic()
        if not at_once and now - known.signed_at < self._settings.lease_seconds / SIGNS_PER_LEASE:
            return
        for _ in range(RACES):
            if not known.lease_revision:
                revision = await self.index.lease_revision(record.id)
                if revision is None:
                    # It has ended meanwhile, or the index has lost it.
                    await watch_over(self.index, record, self._metrics.repaired)
                    revision = await self.index.lease_revision(record.id)
                if revision is None:
                    return
                known.lease_revision = revision
            try:
                known.lease_revision = await self.index.renew_lease(
                    record.tenant, record.id, known.lease_revision, seconds=self._settings.lease_seconds
                )
            except WrongLastSequence:
                known.lease_revision = 0  # Another broker, or an open upload, has given one.
                continue
            known.signed_at = now
            if record.id in self._known:
                self._known.move_to_end(record.id)
            return

    # -- endings --------------------------------------------------------------------------------------------------

    async def cancelled(self, record: RunRecord, last: StoredMessage | None) -> IngestError:
        """End a run that is to end, unless another is faster; returns what its writer is told."""
        try:
            await self._end(record, last, Outcome("cancelled"))
        except Fenced:
            # A broker's watchdog was faster, or its writer with an end of its own.
            log.info("run_moved_on", run_id=record.id)
            stored = await self.index.run(record.tenant, record.id)
            if stored is not None and stored.value.is_terminal:
                return over(stored.value)
        return over(record, "cancelled")

    async def end(self, who: Principal, run_id: str, outcome: Outcome, expected_index: int | None) -> dict[str, object]:
        """End a run with `outcome`, or find that it was ended so; returns what its writer is told.

        `expected_index`: how many chunks have to be stored; of a run that has ended it is not asked.
        """
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                for _ in range(RACES):
                    record = await self.record(who, run_id)
                    if record.is_terminal:
                        return await self._ended(record, outcome)
                    await self._end_once(record, outcome, expected_index)
        except TimeoutError:
            raise Unavailable(run_id=run_id) from None
        raise Fenced(run_id=run_id)

    async def _end_once(self, record: RunRecord, outcome: Outcome, expected_index: int | None) -> None:
        """Bring a run to its end, whoever has begun to end it. Nothing happens if its log has moved on meanwhile."""
        last, is_wished = await asyncio.gather(
            self._take_over.last_of(record), self.index.is_wished_cancelled(record.id)
        )
        if last is None or ENDING not in last.headers:
            if is_wished:
                raise await self.cancelled(record, last)
            if last is not None and expected_index is not None and (index := place_of(last)) != expected_index:
                await self.check_last(record, last)
                raise IngestError(
                    "wrong_index",
                    f"{expected_index} chunks are expected to be stored, and {index} are: the run was not ended.",
                    last_seq_id=last.seq,
                    index=index,
                )
        try:
            await self._end(record, last, outcome)
        except Fenced:
            log.info("run_moved_on", run_id=record.id)

    async def _end(self, record: RunRecord, last: StoredMessage | None, outcome: Outcome) -> None:
        self.forget(record.id)
        spoke_at = await self.first_chunk_at(record)
        try:
            ended = await self._take_over.end(record, last, outcome, first_chunk_at=spoke_at)
        except StoreFull as full:
            await announce_stuck(self._jetstream.connection, record.id, full)
            raise
        if ended.is_last:
            self.count_end(record, ended.stop_reason)
            log.info("run_ended", run_id=record.id, stop_reason=ended.stop_reason)

    async def first_chunk_at(self, record: RunRecord) -> datetime | None:
        """Say when a run's first chunk was stored, by whichever request; None if there is none."""
        if record.first_seq is None:
            return None
        address = LogAddress(record.id, record.shard)
        first = await self._jetstream.first_message(address.stream, address.subject, seq=record.first_seq + 1)
        if first is None or kind_of(first) is not Kind.DATA or place_of(first) != 1:
            return None  # Or retention has removed it.
        return stored_at(first)

    def count_end(self, record: RunRecord, stop_reason: str) -> None:
        """Count a run whose log's end was stored here."""
        self._metrics.run_ended(status_of(stop_reason), record.tenant)

    async def _ended(self, record: RunRecord, outcome: Outcome) -> dict[str, object]:
        """Tell a writer how its run has ended. Raises `IngestError` if that is not as it says."""
        error_type = None if outcome.error is None else outcome.error.error_type
        if (record.stop_reason, (record.error or {}).get("error_type")) != (outcome.stop_reason, error_type):
            raise over(record)
        last = await self._take_over.last_of(record)
        return {
            "run_id": record.id,
            "status": record.status,
            "stop_reason": record.stop_reason,
            "last_seq_id": None if last is None else last.seq,
        }
