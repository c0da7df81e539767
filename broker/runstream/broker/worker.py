"""Executes run requests: takes one from the queue, runs the agent, writes what it says into the run's log.

A worker first stores an invisible `attempt`. Only a run with nothing but attempts in its log is executed; one that
holds an agent's chunk lost its worker after it, and ends as `run_lost`, because executing it again would say
everything twice.

That a message came proves nothing about the worker that had it before: an outage brings messages back whose workers
live, and a run may be enqueued twice. So a run that somebody has begun is taken over only when its lease has lapsed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Self

import structlog

from runstream.broker.agents.failures import outcome_of
from runstream.broker.ending import Outcome, end_run, failed, finish_run, first_message
from runstream.broker.errors import (
    BrokerError,
    Fenced,
    StoreFull,
    StoreRefused,
    Unavailable,
)
from runstream.broker.log import entry_of
from runstream.broker.publisher import Publisher, Write
from runstream.broker.topology import LogAddress
from runstream.schemas import (
    MESSAGE_TYPES,
    ErrorMessage,
    Kind,
    SchemaError,
    StopReason,
    UsageStatistics,
    decode_chunk,
    encode_chunk,
    kind_of,
    message_type_of,
    status_of,
)

if TYPE_CHECKING:
    from types import TracebackType

    from runstream.broker.agents import Agent
    from runstream.broker.index import Index
    from runstream.broker.jetstream import JetStream, StoredMessage
    from runstream.broker.log import Entry
    from runstream.broker.metrics import BrokerMetrics
    from runstream.broker.queue import Task, WorkQueue
    from runstream.broker.settings import BrokerSettings
    from runstream.schemas import Chunk, RunRecord, RunRequest

__all__ = ["Worker"]

log = structlog.get_logger(__name__)

RETRY_SECONDS = 1.0
RENEWALS_PER_LEASE = 3
MOST_ATTEMPTS = 5
"""Workers that may die over one run before its first chunk: what kills five of them kills the sixth, too."""

_ERROR_TYPE_OF: Mapping[str, str] = {
    "llm_api_error": "llm_error",
    "context_window_overflow_in_system_prompt": "context_window_overflow_in_system_prompt",
}
"""What a stop reason alone proves. `invalid_llm_response` is not here: an invalid response need not be an empty one."""


class Worker:
    """Executes runs with one agent, many at a time. Use as an async context manager; leaving it abandons them.

    What it abandons another worker finds on the queue a lease later.
    """

    def __init__(
        self,
        jetstream: JetStream,
        settings: BrokerSettings,
        *,
        index: Index,
        queue: WorkQueue,
        agent: Agent,
        metrics: BrokerMetrics,
    ) -> None:
        self._jetstream = jetstream
        self._index = index
        self._queue = queue
        self._settings = settings
        self._agent = agent
        self._metrics = metrics
        self._running: set[asyncio.Task[None]] = set()
        self._slot_freed = asyncio.Event()
        self.hold_seconds = settings.lease_seconds
        """How long a run may go without a sign of life from here before another worker gets it."""
        self._taker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        # A queue made under another lease keeps the one it was made with.
        self.hold_seconds = min(self._settings.lease_seconds, await self._queue.hold_seconds())
        self._taker = asyncio.create_task(self._take(), name="worker")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [*self._running, *([self._taker] if self._taker is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def count(self) -> int:
        """Return how many runs are being executed."""
        return len(self._running)

    def _free_slots(self) -> int:
        return self._settings.worker_concurrency - len(self._running)

    async def _take(self) -> None:
        while True:
            try:
                async with aclosing(self._queue.tasks(self._free_slots, self._slot_freed)) as tasks:
                    async for task in tasks:
                        running = asyncio.create_task(self._execute(task), name=f"run-{task.run_id}")
                        self._running.add(running)
                        running.add_done_callback(self._finished)
            except Unavailable as error:
                log.warning("work_queue_unreachable", error=str(error))
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:
                # A defect: taking goes on all the same, as a broker that takes nothing looks like one with no work.
                log.exception("worker_crashed")
                await asyncio.sleep(RETRY_SECONDS)

    def _finished(self, running: asyncio.Task[None]) -> None:
        self._running.discard(running)
        self._slot_freed.set()

    async def _execute(self, task: Task) -> None:
        """Execute one run to its end, or leave it to another worker; never raises but on cancellation."""
        with structlog.contextvars.bound_contextvars(run_id=task.run_id):
            try:
                async with _Hold(task, self._index, self.hold_seconds) as hold:
                    over = await self._carry_out(task, hold)
                if over:
                    await task.done()
            except Fenced as error:
                # Whoever fenced this worker has the run, and the message with it.
                log.warning("run_fenced", error=str(error))
            except BrokerError as error:
                log.warning("run_put_back", error=str(error))
                with contextlib.suppress(Unavailable):
                    await task.give_back()
            except Exception:
                # A defect: the queue brings the run to another worker, and the log says what happened here.
                log.exception("run_crashed")

    async def _carry_out(self, task: Task, hold: _Hold) -> bool:
        """Bring a run to its end, from wherever it stands; False when that is the business of a worker that lives."""
        stored = await self._index.run(task.tenant, task.run_id)
        if stored is None:
            log.warning("run_unknown", tenant=task.tenant)
            return True
        record = stored.value
        address = LogAddress(record.id, record.shard)
        last = await self._jetstream.last_message(address.stream, address.subject)
        if last is not None and entry_of(last).kind not in {Kind.PING, Kind.END}:
            if not await self._is_abandoned(record.id):
                # Its worker keeps the message, too; the second one of a run that has two comes back a lease later.
                log.info("run_left_to_its_worker")
                return False
            last = await self._jetstream.last_message(address.stream, address.subject)
        hold.renew_lease()
        async with self._publisher(address, last) as publisher:
            if last is None or not await finish_run(publisher, self._index, record, last):
                await self._execute_or_end(publisher, record, last)
        return True

    async def _execute_or_end(self, publisher: Publisher, record: RunRecord, last: StoredMessage | None) -> None:
        if last is not None and _is_lost(entry_of(last)):
            await self._end(publisher, record, failed(record.id, "run_lost"))
        else:
            await self._attempt(publisher, record, is_empty=last is None)

    async def _is_abandoned(self, run_id: str) -> bool:
        """Whether the run's lease stays as it is for as long as a lease lasts, on this worker's clock.

        Raises `Unavailable` when the index cannot be read meanwhile: then its worker could not renew it either.
        """
        lease = await self._index.lease(run_id)
        lapses_at = time.monotonic() + self._settings.lease_seconds
        while (remaining := lapses_at - time.monotonic()) > 0:
            await asyncio.sleep(min(remaining, self._settings.lease_seconds / RENEWALS_PER_LEASE))
            if await self._index.lease(run_id) != lease:
                return False
        return True

    def _publisher(self, address: LogAddress, last: StoredMessage | None) -> Publisher:
        position = (0, 0) if last is None else (last.seq, entry_of(last).index + 1)
        return Publisher(
            self._jetstream,
            address,
            self._settings,
            last_seq=position[0],
            next_index=position[1],
            observe=self._metrics.published,
        )

    async def _attempt(self, publisher: Publisher, record: RunRecord, *, is_empty: bool) -> None:
        request = await self._index.request(record.tenant, record.id)
        if is_empty:
            await publisher.publish_marked(first_message(record))
        await publisher.publish_marked(Write(Kind.ATTEMPT, b""))
        first_seq = record.first_seq or await self._first_seq(publisher.address)
        record = await self._index.begin(record, first_seq=first_seq)
        if request is None:
            outcome = failed(record.id, "internal_error", detail="What this run was asked is no longer known.")
        else:
            self._metrics.run_started()
            outcome = await self._run_agent(request, publisher)
        await self._end(publisher, record, outcome)

    async def _first_seq(self, address: LogAddress) -> int:
        first = await self._jetstream.first_message(address.stream, address.subject)
        return 0 if first is None else first.seq

    async def _end(self, publisher: Publisher, record: RunRecord, outcome: Outcome) -> None:
        await end_run(publisher, self._index, record, outcome)
        self._metrics.run_ended(status_of(outcome.stop_reason))
        log.info("run_ended", stop_reason=outcome.stop_reason, messages=publisher.next_index)

    async def _run_agent(self, request: RunRequest, publisher: Publisher) -> Outcome:
        """Write what the agent says into the log; returns what it came to. Raises when the log cannot be written."""
        try:
            return await self._record(request, publisher)
        except StoreFull as error:
            return outcome_of(error, request.run_id)
        except (Unavailable, StoreRefused, Fenced):
            raise
        except asyncio.CancelledError as error:
            if (executing := asyncio.current_task()) is None or executing.cancelling():
                raise
            # Nobody stops this worker: something that the agent waited for was cancelled.
            return outcome_of(error, request.run_id)
        except Exception as error:
            if not isinstance(error, (BrokerError, SchemaError)):
                log.exception("agent_crashed")
            return outcome_of(error, request.run_id)

    async def _record(self, request: RunRequest, publisher: Publisher) -> Outcome:
        stop: StopReason | None = None
        usage: UsageStatistics | None = None
        error: ErrorMessage | None = None
        unwanted = _unwanted_types(request)
        async with aclosing(self._agent(request)) as chunks:
            async for chunk in chunks:
                body, kind = encode_chunk(chunk, run_id=request.run_id), kind_of(chunk)
                if kind is Kind.DATA:
                    if message_type_of(chunk) not in unwanted:
                        await publisher.enqueue(body)
                    continue
                # Held back: they belong to the ending, which is stored as one. An agent's pings are dropped.
                held = decode_chunk(body)
                stop = held if isinstance(held, StopReason) else stop
                usage = held if isinstance(held, UsageStatistics) else usage
                error = _error_of(held, request.run_id) if kind is Kind.ERROR else error
        await publisher.flush()
        if error is not None:
            is_honest = stop is not None and status_of(stop.stop_reason) == "failed"
            return Outcome(stop.stop_reason if stop is not None and is_honest else "error", error=error)
        if stop is None:
            return failed(request.run_id, "stream_incomplete")
        if (status := status_of(stop.stop_reason)) == "failed":
            return Outcome(stop.stop_reason, error=_missing_error(stop.stop_reason, request.run_id))
        return Outcome(stop.stop_reason, usage=(usage or UsageStatistics()) if status == "completed" else None)


def _unwanted_types(request: RunRequest) -> frozenset[str]:
    """Return the message types that the client asked to be spared; what is no message of Letta's is never one."""
    wanted = request.include_return_message_types
    return frozenset() if wanted is None else frozenset(MESSAGE_TYPES).difference(wanted)


def _is_lost(last: Entry) -> bool:
    """Tell whether a log that ends with `last`, and not with an ending, lost its worker for good."""
    if last.kind is Kind.ATTEMPT:
        return last.index >= MOST_ATTEMPTS  # The first message aside, there is nothing before it but attempts.
    return last.kind is not Kind.PING


def _error_of(held: Chunk | dict[str, object], run_id: str) -> ErrorMessage:
    """Read an agent's own error, or make one of what it gave in place of it."""
    if isinstance(held, ErrorMessage):
        return held
    made = failed(run_id, "internal_error", detail=encode_chunk(held, run_id=run_id).decode()).error
    return made or ErrorMessage(run_id=run_id, error_type="internal_error", message="")


def _missing_error(stop_reason: str, run_id: str) -> ErrorMessage | None:
    """Make the error of an agent that ended with a failing stop reason and gave none."""
    said = f"The agent ended with the stop reason '{stop_reason}', and gave no error."
    if (error_type := _ERROR_TYPE_OF.get(stop_reason)) is not None:
        return failed(run_id, error_type, detail=said).error
    return failed(run_id, "internal_error", message=said).error


class _Hold:
    """Signs of life every third of a lease: the run's message kept and, once the run is its own, the lease renewed."""

    def __init__(self, task: Task, index: Index, seconds: float) -> None:
        self._held = task
        self._index = index
        self._interval = seconds / RENEWALS_PER_LEASE
        self._renewing: asyncio.Task[None] | None = None
        self._owns_run = False

    async def __aenter__(self) -> Self:
        self._renewing = asyncio.create_task(self._renew(), name=f"lease-{self._held.run_id}")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._renewing

    def renew_lease(self) -> None:
        """Renew the lease from now on, too."""
        self._owns_run = True

    async def _renew(self) -> None:
        due = time.monotonic() + self._interval
        while True:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due = time.monotonic() + self._interval
            try:
                # No longer: a try that was lost in an outage must not keep the next one from coming before whoever
                # watches the lease since the outage's end sees it lapse.
                async with asyncio.timeout(self._interval):
                    await self._held.extend()
                    if self._owns_run:
                        await self._index.renew_lease(self._held.run_id)
            except (BrokerError, TimeoutError) as error:
                # Nothing to do but try again: a watchdog that cannot reach the index ends no run either.
                log.warning("lease_not_renewed", error=str(error) or "It took too long.")
