"""The watchdog: no run without a writer, and no writer that does not obey.

It hears each lease and each wish to cancel as the server republishes them, and keeps the time on its own clock. A
lease has lapsed when it has not been renewed for as long as a lease lasts *while the watchdog itself could write to
the index and heard of it*: it writes a pulse, and waits to hear it. Where a pulse does not come back, all counts start
anew, so an outage, in which nobody can renew anything, ends no run. A time-to-live would end them all.

Before it takes a run over it reads its log's last message, and *then* the lease, both from the leader. A writer has its
lease before it writes: one that had written that message had renewed it, and is seen; one that writes after it has the
take-over fenced (`takeover.py`). Read the other way round, a run that another worker begins in between is ended. Nor
can two watchdogs, or a watchdog and a writer that was only slow, both win.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from typing import TYPE_CHECKING, Self

from runstream.broker.bucket import Stored
from runstream.broker.ending import Outcome, failed
from runstream.broker.errors import Broken, BrokenRecord, BrokerError, Fenced, StoreFull
from runstream.broker.fullness import announce_stuck
from runstream.broker.keys import KV_OPERATION, LEASE_SECONDS, cancel_key, key_of, lease_key, live_subject, pulse_key
from runstream.broker.lease import RENEWALS_PER_LEASE
from runstream.broker.log import kind_of
from runstream.broker.logs import get_logger
from runstream.broker.settings import LONGEST_LEASE_SECONDS
from runstream.broker.survey import logged_run
from runstream.broker.takeover import TakeOver, is_executable
from runstream.broker.tasks import cancel_all, end_task, spread
from runstream.schemas import Kind, status_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from runstream.broker.connection import Message
    from runstream.broker.index import Index
    from runstream.broker.jetstream import JetStream
    from runstream.broker.messages import StoredMessage
    from runstream.broker.metrics import BrokerMetrics
    from runstream.broker.queue import WorkQueue
    from runstream.broker.settings import BrokerSettings
    from runstream.schemas import RunRecord

__all__ = ["Watchdog"]

log = get_logger(__name__)

LOST = "run_lost"
"""The error type of a run whose writer has died."""

PULSE_SECONDS = 0.25
"""How often the watchdog looks: what a cancel and a lapse come late by. A write each time, for a whole broker."""
PULSES_PER_LEASE = 10
OBEDIENCE_SECONDS = 0.5
"""How long a writer may take to end the run it is to end, before a broker does."""
RACES = 50
"""How often the end of a run is tried against a writer that goes on talking."""
RETRY_SECONDS = 0.25
RELIST_SECONDS = 30.0
"""How often leases and wishes are listed, in case that one was not heard of."""
RUNS_AT_A_TIME = 32
"""Runs looked after at the same time: a broker that dies may leave a thousand."""
SPREAD_SECONDS = 0.1
"""Brokers see a lapse in the same moment; each waits up to this long, so that mostly one has the work."""
LONGEST_LOOK_FACTOR = 8
"""A run that waits for a worker is looked at ever more rarely, up to this many leases apart."""


class _Watched:
    """A lease as last heard of: the revision it had, how long it is, and when that was."""

    def __init__(self, revision: int, seconds: float) -> None:
        self.looks = 0
        self.look_at = 0.0
        self.hear(revision, seconds)

    def hear(self, revision: int, seconds: float) -> None:
        self.revision = revision
        self.seconds = seconds
        self.start_anew(time.monotonic())

    def has_lapsed(self, now: float) -> bool:
        return now - self.heard_at >= self.seconds

    def start_anew(self, now: float) -> None:
        self.heard_at, self.looks, self.look_at = now, 0, 0.0


class Watchdog:
    """Looks after every run there is. Use as an async context manager."""

    def __init__(
        self,
        jetstream: JetStream,
        settings: BrokerSettings,
        *,
        index: Index,
        queue: WorkQueue,
        metrics: BrokerMetrics,
    ) -> None:
        self._jetstream = jetstream
        self._index = index
        self._queue = queue
        self._metrics = metrics
        self._seconds = settings.lease_seconds
        self._take_over = TakeOver(jetstream, settings, index)
        self._id = secrets.token_hex(8)
        self._leases: dict[str, _Watched] = {}
        self._cancels: dict[str, float] = {}
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Semaphore(RUNS_AT_A_TIME)
        self._urgent = asyncio.Semaphore(RUNS_AT_A_TIME)
        """For cancels: they must not wait behind a thousand runs of a broker that has died."""
        self._is_left = False
        self._seen_at = time.monotonic()
        """When it last could write to the index and heard of it: up to then, and no further, leases are judged."""
        self._pulse = 0
        self._pulsed = asyncio.Event()
        self._relist = asyncio.Event()
        self._relist.set()
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            connection = self._jetstream.connection
            for key, heard in (
                (lease_key("*"), self._on_lease),
                (cancel_key("*"), self._on_cancel),
                (pulse_key(self._id), self._on_pulse),
            ):
                subscription = await connection.subscribe(live_subject(key), heard)
                stack.push_async_callback(subscription.close)
            stack.callback(connection.on_reconnect(self._relist.set))
            stack.push_async_callback(self._stop_looking)
            for work in (self._keep_time(), self._keep_list()):
                stack.push_async_callback(end_task, asyncio.create_task(work, name="watchdog"))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _stop_looking(self) -> None:
        self._is_left = True
        await cancel_all(*self._busy.values())

    async def has_lapsed(self, run_id: str) -> bool:
        """Tell whether a run's lease has lapsed, and is still as it was then. Raises `Unavailable`.

        After an outage the queue may ask for a run before the first pulse has come back: nobody could renew it so far.
        """
        lease = self._leases.get(run_id)
        if lease is None or not lease.has_lapsed(self._seen_at):
            return False
        return await self._lapsed(run_id) is not None

    # -- hearing ------------------------------------------------------------------------------------------------

    async def _on_lease(self, message: Message) -> None:
        run_id, revision, is_deleted = _heard(message)
        if is_deleted:
            self._leases.pop(run_id, None)
            self._cancels.pop(run_id, None)
        else:
            self._hear(run_id, revision, message.headers or {})

    async def _on_cancel(self, message: Message) -> None:
        run_id, _, is_deleted = _heard(message)
        if is_deleted:
            self._cancels.pop(run_id, None)
        else:
            self._hear_wish(run_id)

    def _hear_wish(self, run_id: str) -> None:
        if run_id not in self._cancels:
            self._cancels[run_id] = time.monotonic() + OBEDIENCE_SECONDS
            self._see_to(run_id, self._cancel_unbegun, self._urgent)
            # Not left to the next pulse: a client waits.
            asyncio.get_running_loop().call_later(OBEDIENCE_SECONDS, self._judge_cancels)

    async def _on_pulse(self, message: Message) -> None:
        self._pulse = _heard(message)[1]
        self._pulsed.set()

    def _hear(self, run_id: str, revision: int, headers: Mapping[str, str]) -> None:
        seconds = self._length(headers.get(LEASE_SECONDS, ""))
        lease = self._leases.get(run_id)
        if lease is None:
            self._leases[run_id] = _Watched(revision, seconds)
        elif revision > lease.revision:
            lease.hear(revision, seconds)

    def _length(self, told: str) -> float:
        """Give how long a lease is by what its writer says of it, which may be nothing; 0 for one that was let go."""
        if told == "0":
            return 0.0
        # Of two that differ the longer one: a writer that renews as often as its own lease demands is alive.
        return max(self._seconds, _seconds(told))

    async def _keep_list(self) -> None:
        """List what there is, at first, after each reconnect, and now and then."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RELIST_SECONDS):
                    await self._relist.wait()
            self._relist.clear()
            try:
                await self._list()
            except Exception as error:
                if isinstance(error, BrokerError):
                    log.warning("leases_not_listed", error=str(error))
                else:
                    log.exception("watchdog_crashed")
                await asyncio.sleep(RETRY_SECONDS)
                self._relist.set()

    async def _list(self) -> None:
        listed_from = await self._index.newest_revision()
        wished = await self._index.cancel_wishes()
        leases = await self._index.leases()
        for run_id, found in leases.items():
            self._hear(run_id, found.seq, found.headers)
        # What is newer than the listing was heard of since; what is older and not in it is gone.
        for run_id in [run_id for run_id, lease in self._leases.items() if lease.revision <= listed_from]:
            if run_id not in leases:
                del self._leases[run_id]
        for run_id in wished:
            self._hear_wish(run_id)

    # -- time ---------------------------------------------------------------------------------------------------

    async def _keep_time(self) -> None:
        """Judge leases after each pulse that came back in time; start every count anew after one that did not."""
        interval = min(PULSE_SECONDS, self._seconds / PULSES_PER_LEASE)
        patience = self._seconds / RENEWALS_PER_LEASE
        is_blind, self._seen_at = False, time.monotonic()
        while True:
            try:
                async with asyncio.timeout(patience):
                    await self._feel_pulse()
            except (BrokerError, TimeoutError) as error:
                say = log.debug if is_blind else log.warning
                say("watchdog_blind", error=str(error) or "A pulse was not heard in time.")
                is_blind = True
            except Exception:
                # A defect: the watch goes on all the same, as nobody else would notice that there is none.
                log.exception("watchdog_crashed")
            else:
                previous, self._seen_at = self._seen_at, time.monotonic()
                if self._seen_at - previous > patience + interval:
                    for lease in self._leases.values():
                        lease.start_anew(self._seen_at)
                if is_blind:
                    log.warning("watchdog_sees_again", after_seconds=round(self._seen_at - previous, 3))
                is_blind = False
                self._judge(self._seen_at)
            await asyncio.sleep(interval)

    async def _feel_pulse(self) -> None:
        revision = await self._index.pulse(self._id)
        while self._pulse < revision:
            self._pulsed.clear()
            await self._pulsed.wait()

    def _judge_cancels(self) -> None:
        now = time.monotonic()
        for run_id, due in list(self._cancels.items()):
            if now >= due and self._see_to(run_id, self._enforce_cancel, self._urgent):
                self._cancels[run_id] = now + OBEDIENCE_SECONDS  # Again, should this come to nothing.

    def _judge(self, now: float) -> None:
        self._judge_cancels()
        lapsed = [run_id for run_id, lease in self._leases.items() if lease.has_lapsed(now) and now >= lease.look_at]
        # Each broker in an order of its own: what one has done when another comes to it costs that one nothing.
        random.shuffle(lapsed)
        for run_id in lapsed:
            self._see_to(run_id, self._look_after, self._room)

    def _see_to(self, run_id: str, action: Callable[[str], Awaitable[None]], room: asyncio.Semaphore) -> bool:
        """Act on a run; False if that is done to it already, or the watchdog is being left."""
        if run_id in self._busy or self._is_left:
            return False
        task = asyncio.create_task(self._carefully(run_id, action, room), name=f"watchdog-{run_id}")
        self._busy[run_id] = task
        task.add_done_callback(lambda _: self._busy.pop(run_id, None))
        return True

    async def _carefully(self, run_id: str, action: Callable[[str], Awaitable[None]], room: asyncio.Semaphore) -> None:
        await asyncio.sleep(spread(SPREAD_SECONDS))
        async with room:
            try:
                await action(run_id)
            except Fenced as error:
                # Its writer, or another broker, was faster: what is left to do shows when it is looked at again.
                log.info("run_moved_on", run_id=run_id, error=str(error))
            except Broken:
                # Noted where it was found. Whoever can mend it, or read it, will; until then it is looked at rarely.
                self._postpone(run_id)
            except StoreFull as error:
                log.warning("run_not_looked_after", run_id=run_id, error=str(error))
                self._look_soon(run_id)
                await announce_stuck(self._jetstream.connection, run_id, error)
            except BrokerError as error:
                log.warning("run_not_looked_after", run_id=run_id, error=str(error))
            except Exception:
                log.exception("watchdog_crashed", run_id=run_id)

    def _postpone(self, run_id: str) -> None:
        """Look at a run ever more rarely, up to a bound: also at a thousand of them whose end cannot be stored."""
        now, lease = time.monotonic(), self._leases.get(run_id)
        if lease is not None:
            lease.looks += 1
            lease.look_at = now + self._seconds * min(2 ** (lease.looks - 1), LONGEST_LOOK_FACTOR)
        if run_id in self._cancels:
            self._cancels[run_id] = now + self._seconds

    def _look_soon(self, run_id: str) -> None:
        """Look at a run again a lease later: it waits for room, and whoever has come to follow it is told so."""
        later = time.monotonic() + self._seconds
        if (lease := self._leases.get(run_id)) is not None:
            lease.looks, lease.look_at = 0, later
        if run_id in self._cancels:
            self._cancels[run_id] = later

    # -- acting -------------------------------------------------------------------------------------------------

    async def _cancel_unbegun(self, run_id: str) -> None:
        """End a run at once that is to end and that nobody has begun: there is no writer who could do it."""
        tenant = await self._wished_by(run_id)
        stored = None if tenant is None else await self._index.run(tenant, run_id)
        if stored is None or stored.value.status != "created":
            return
        last = await self._take_over.last_of(stored.value)
        if last is None or kind_of(last) is Kind.PING:
            await self._end(stored.value, last, Outcome("cancelled"), "nobody_had_begun")

    async def _enforce_cancel(self, run_id: str) -> None:
        """End a run that is to end, and has not."""
        tenant = await self._wished_by(run_id)
        if tenant is None:
            self._cancels.pop(run_id, None)
            return
        for _ in range(RACES):
            # A writer that goes on talking may be faster, and be so again: it is to lose within the second.
            with contextlib.suppress(Fenced):
                record, last, _ = await self._found(tenant, run_id)
                if record is None:
                    await self._forget(run_id)
                else:
                    await self._end(record, last, Outcome("cancelled"), "writer_did_not_obey")
                return

    async def _look_after(self, run_id: str) -> None:
        """Do for a run whose lease has lapsed what its writer cannot: have it executed again, or end it."""
        tenant = await self._lapsed(run_id)
        if tenant is None:
            return
        record, last, is_made = await self._found(tenant, run_id)
        if await self._lapsed(run_id) is None:
            return
        lease = self._leases[run_id]
        self._postpone(run_id)
        if record is None:
            await self._forget(run_id)
        elif is_made or not await self._enqueued(record, last):  # No worker finds, or can read, what it would execute.
            try:
                await self._end(record, last, failed(run_id, LOST), "writer_lost")
            except Fenced:
                lease.look_at = 0.0
                raise

    async def _lapsed(self, run_id: str) -> str | None:
        """Read whose run it is from its lapsed lease; None when that is gone, or was renewed, heard of here or not."""
        found = await self._lease(run_id)
        lease = self._leases.get(run_id)
        if lease is None or found is None:
            self._leases.pop(run_id, None)
            return None
        if found.revision > lease.revision:
            lease.hear(found.revision, max(self._seconds, lease.seconds))
        return found.value if lease.has_lapsed(self._seen_at) else None

    async def _lease(self, run_id: str) -> Stored[str] | None:
        """Read a lease; one that does not tell whose it is, is its log's run's, and without a log nobody's."""
        with contextlib.suppress(BrokenRecord):
            return await self._index.lease(run_id)
        tenant, revision = await self._tenant_of(run_id), await self._index.lease_revision(run_id)
        return None if tenant is None or revision is None else Stored(tenant, revision)

    async def _wished_by(self, run_id: str) -> str | None:
        """Read whose wish it is that a run end, None when it is nobody's."""
        with contextlib.suppress(BrokenRecord):
            return await self._index.cancel_wish(run_id)
        return await self._tenant_of(run_id)

    async def _tenant_of(self, run_id: str) -> str | None:
        found = await logged_run(self._jetstream, run_id)
        if found is None:
            await self._forget(run_id)
            return None
        return found.known.tenant

    async def _found(self, tenant: str, run_id: str) -> tuple[RunRecord | None, StoredMessage | None, bool]:
        """Read a run's record, its log's last message, and whether the record had to be made from that log.

        No record: there is no log either. Raises `BrokenRecord` for one that a newer runstream wrote.
        """
        stored: Stored[RunRecord] | None = None
        try:
            stored = await self._index.run(tenant, run_id)
        except BrokenRecord as error:
            if error.is_newer:
                raise
        record = stored.value if stored is not None else await self._recovered(run_id)
        return record, None if record is None else await self._take_over.last_of(record), stored is None

    async def _enqueued(self, record: RunRecord, last: StoredMessage | None) -> bool:
        """See that a run which nobody has begun is on the work queue; False when none of it can be executed."""
        if record.is_terminal or not is_executable(record, last):
            return False
        request = await self._index.request(record.tenant, record.id)
        if request is None:
            return False
        if await self._queue.put(record.tenant, record.id, request.trace):
            self._metrics.repaired("not_enqueued")
            log.info("run_enqueued_again", run_id=record.id)
        return True

    async def _forget(self, run_id: str) -> None:
        await self._index.forget(run_id)
        self._metrics.repaired("lease_without_run")
        log.warning("lease_without_run", run_id=run_id)

    async def _end(self, record: RunRecord, last: StoredMessage | None, outcome: Outcome, why: str) -> None:
        run_id = record.id
        ended = await self._take_over.end(record, last, outcome)
        if ended.is_last:
            self._metrics.run_ended(status_of(ended.stop_reason), record.tenant)
            if ended.error_type == LOST:
                self._metrics.run_lost(record.tenant)
        if not ended.was_told:
            log.warning("run_ended_by_watchdog", run_id=run_id, why=why, stop_reason=ended.stop_reason)
        elif ended.is_last:
            self._metrics.repaired("half_ended")
            log.warning("run_ending_finished", run_id=run_id, stop_reason=ended.stop_reason)
        elif not record.is_terminal:
            self._metrics.repaired("record_not_terminal")
            log.warning("record_made_terminal", run_id=run_id, stop_reason=ended.stop_reason)
        else:
            # A wish that came late, or a lease whose deletion was lost.
            log.info("run_had_ended", run_id=run_id)

    async def _recovered(self, run_id: str) -> RunRecord | None:
        """Make the record of a run that has none from its log, which is right; None if there is no log either."""
        found = await logged_run(self._jetstream, run_id)
        if found is None:
            return None
        self._metrics.repaired("record_missing")
        log.warning("record_recovered", run_id=run_id)
        return found.record(found.last)


def _seconds(text: str) -> float:
    """Read how long a lease is; what is no such time says nothing."""
    with contextlib.suppress(ValueError):
        seconds = float(text)
        return seconds if 0 <= seconds <= LONGEST_LEASE_SECONDS else 0.0
    return 0.0


def _heard(message: Message) -> tuple[str, int, bool]:
    """Read from a republished key of one run or broker: whose it is, its revision, whether it is deleted."""
    headers = message.headers or {}
    name = key_of(message.subject).partition(".")[2]
    return name, int(headers["Nats-Sequence"]), KV_OPERATION in headers
