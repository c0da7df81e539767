"""Executes run requests: takes one from the queue, runs the agent, writes what it says into the run's log.

A worker first stores an invisible `attempt`. Only a run with nothing but attempts in its log is executed; one that
holds an agent's chunk is left to its writer and to the watchdog, because executing it again would say everything
twice.

That a message came proves nothing about the worker that had it before: an outage brings messages back whose workers
live. So a run that somebody has begun is executed again only when the watchdog has seen its lease lapse.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import AsyncExitStack, aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import structlog

from runstream.broker.agents.failures import AGENT_CRASHED, outcome_of
from runstream.broker.ending import Outcome, end_run, failed, first_message
from runstream.broker.errors import (
    AgentFailed,
    BrokenRecord,
    BrokerError,
    Fenced,
    RunCancelled,
    StoreFull,
    StoreUnavailable,
    Unavailable,
)
from runstream.broker.fullness import Room, announce_stuck
from runstream.broker.lease import RENEWALS_PER_LEASE, Lease
from runstream.broker.log import kind_of, last_of
from runstream.broker.logs import get_logger
from runstream.broker.publisher import Publisher, Write
from runstream.broker.recording import Recording
from runstream.broker.repair import watch_over
from runstream.broker.takeover import is_executable
from runstream.broker.tasks import cancel_all, end_task
from runstream.broker.topology import LogAddress
from runstream.schemas import INTERNAL_ERROR, WAITING_FOR_APPROVAL, Kind, carries_approval, status_of

if TYPE_CHECKING:
    from types import TracebackType

    from runstream.broker.agents import Agent
    from runstream.broker.index import Index
    from runstream.broker.jetstream import JetStream
    from runstream.broker.metrics import BrokerMetrics
    from runstream.broker.queue import Task, WorkQueue
    from runstream.broker.settings import BrokerSettings
    from runstream.broker.tracing import Tracing
    from runstream.broker.watchdog import Watchdog
    from runstream.schemas import RunRecord, RunRequest

__all__ = ["Worker"]

log = get_logger(__name__)

RETRY_SECONDS = 1.0
SETTLE_SECONDS = 1.0
"""How long a broker that stops waits for word of a chunk that is on its way: it may be the first."""
LONGEST_RETURN_SECONDS = 1.0
"""When a run comes back of which it does not show yet whether its worker lives: sooner under a short lease."""
FAREWELL_SECONDS = 5.0
"""How long an agent may take to stop before it is named in the log; the broker, when it stops, waits no longer."""


class Worker:
    """Executes runs with one agent, many at a time. Use as an async context manager.

    Leaving it ends the runs that have said something, as interrupted; the others another worker begins a lease later.
    """

    def __init__(
        self,
        jetstream: JetStream,
        settings: BrokerSettings,
        *,
        index: Index,
        queue: WorkQueue,
        watchdog: Watchdog,
        agent: Agent,
        judges_approvals: bool,
        metrics: BrokerMetrics,
        tracing: Tracing,
    ) -> None:
        self._jetstream = jetstream
        self._index = index
        self._queue = queue
        self._watchdog = watchdog
        self._settings = settings
        self._agent = agent
        self._judges_approvals = judges_approvals
        self._metrics = metrics
        self._tracing = tracing
        self._running: dict[str, asyncio.Task[None]] = {}
        self._dismissed: set[asyncio.Task[Outcome]] = set()
        self._slot_freed = asyncio.Event()
        self.hold_seconds = settings.lease_seconds
        """How long a run may go without a sign of life from here before another worker gets it."""
        self._taker: asyncio.Task[None] | None = None
        self._leaving: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Self:
        # A queue made under another lease keeps the one it was made with.
        self.hold_seconds = min(self._settings.lease_seconds, await self._queue.hold_seconds())
        self._taker = asyncio.create_task(self._take(), name="worker")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._take_no_more()
        self._leaving.set_result(None)
        if running := [*self._running.values()]:
            await asyncio.wait(running, timeout=FAREWELL_SECONDS)
        await cancel_all(*running)
        if self._dismissed:
            await asyncio.wait(self._dismissed, timeout=FAREWELL_SECONDS)

    async def drain(self, seconds: float) -> None:
        """Take no further run, and wait so long for those that are being executed to end by themselves."""
        await self._take_no_more()
        if self._running:
            await asyncio.wait(self._running.values(), timeout=seconds)

    async def _take_no_more(self) -> None:
        taker, self._taker = self._taker, None
        if taker is not None:
            await end_task(taker)

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
                        if task.run_id in self._running:
                            # Executed here, and so slow that its message came back: it must not fence itself.
                            continue
                        running = asyncio.create_task(self._execute(task), name=f"run-{task.run_id}")
                        self._running[task.run_id] = running
                        running.add_done_callback(partial(self._finished, task.run_id))
            except Unavailable as error:
                log.warning("work_queue_unreachable", error=str(error))
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:
                # A defect: taking goes on all the same, as a broker that takes nothing looks like one with no work.
                log.exception("worker_crashed")
                await asyncio.sleep(RETRY_SECONDS)

    def _finished(self, run_id: str, _: asyncio.Task[None]) -> None:
        del self._running[run_id]
        self._slot_freed.set()

    async def _execute(self, task: Task) -> None:
        """Execute one run to its end, or leave it to another worker; never raises but on cancellation."""
        with structlog.contextvars.bound_contextvars(run_id=task.run_id):
            try:
                await self._carry_out(task)
            except Fenced as error:
                # Whoever fenced this worker has the run; when it has ended, the message comes back to be taken off.
                self._metrics.run_fenced()
                log.warning("run_fenced", error=str(error))
            except BrokerError as error:
                if isinstance(error, (StoreFull, StoreUnavailable)):
                    await announce_stuck(self._jetstream.connection, task.run_id, error)
                if self._leaving.done():
                    log.info("run_left_to_others")
                else:
                    log.warning("run_put_back", error=str(error))
                with contextlib.suppress(Unavailable):
                    await task.give_back()
            except Exception:
                # A defect: the queue brings the run to another worker, and the log says what happened here.
                log.exception("run_crashed")

    async def _carry_out(self, task: Task) -> None:
        """Bring a run that nobody has begun to its end. One that speaks is its writer's, and the watchdog's."""
        try:
            stored = await self._index.run(task.tenant, task.run_id)
        except BrokenRecord as error:
            # Its lease tells the watchdog, which ends it by what its log says; a newer broker can read it.
            log.warning("run_unreadable", error=str(error))
            await (task.give_back() if error.is_newer else task.done())
            return
        if stored is None:
            log.warning("run_unknown", tenant=task.tenant)
            await task.done()
            return
        record = stored.value
        address = LogAddress(record.id, record.shard)
        last = await last_of(self._jetstream, address)
        if not is_executable(record, last):
            await watch_over(self._index, record, self._metrics.repaired)
            await task.done()
            return
        if last is not None and kind_of(last) is Kind.ATTEMPT and not await self._watchdog.has_lapsed(record.id):
            # Its worker thinks, or has just died: the message waits for either to show.
            await watch_over(self._index, record, self._metrics.repaired)
            await task.give_back(min(LONGEST_RETURN_SECONDS, self.hold_seconds / RENEWALS_PER_LEASE))
            return
        request = await self._index.request(record.tenant, record.id)
        if request is None:
            # It has ended since, or is written by a process of the platform's: its lease tells the watchdog which.
            await task.done()
            return
        after = Publisher.after(last, self._jetstream, address, self._settings, observe=self._metrics.published)
        executing = self._tracing.span(
            "execute", "consumer", within=request.trace, run_id=record.id, tenant=record.tenant
        )
        with executing as span:
            async with after as publisher:
                outcome = await self._attempt(
                    task, publisher, record, request.within(span.trace), is_empty=last is None
                )
                span.note(stop_reason=outcome.stop_reason, messages=publisher.next_index)
        await task.done()

    async def _attempt(
        self, task: Task, publisher: Publisher, record: RunRecord, request: RunRequest, *, is_empty: bool
    ) -> Outcome:
        began = time.monotonic()
        room = Room(self._jetstream.connection, record.id, self._leaving)
        lease = Lease(
            self._jetstream,
            self._index,
            publisher,
            tenant=record.tenant,
            seconds=self.hold_seconds,
            alongside=task.extend,
            repaired=self._metrics.repaired,
        )
        if is_empty:
            await publisher.publish_marked(first_message(record, request.trace))
        await publisher.publish_marked(Write(Kind.ATTEMPT, b""))
        async with AsyncExitStack() as stack:
            # From here on it is this worker's: given back, it would be left alone until its lease lapses, and while
            # the index is full none does.
            await room.found(partial(stack.enter_async_context, lease))
            first_seq = record.first_seq or await self._first_seq(publisher.address)
            waiting = await self._waiting_for_approval(record)
            answers = waiting if carries_approval(request.body) else None
            begin = partial(self._index.begin, record, first_seq=first_seq, answers=answers)
            record = await room.found(begin)
            if record.is_terminal:
                raise Fenced("It has ended meanwhile.", run_id=record.id)
            if lease.over.done():
                # Cancelled before it was begun: its agent never hears of it.
                outcome = self._stopped(lease, publisher)
            elif waiting != answers:
                outcome = failed(record.id, INTERNAL_ERROR, message=WAITING_FOR_APPROVAL)
            else:
                self._metrics.run_started(record.tenant)
                outcome = await self._run_agent(request, publisher, lease)
            await self._end(publisher, record, outcome, room)
            self._metrics.run_executed(status_of(outcome.stop_reason), time.monotonic() - began)
            return outcome

    async def _waiting_for_approval(self, record: RunRecord) -> str | None:
        """Return the run that keeps the agent from taking another message; a platform judges that for itself."""
        if self._judges_approvals:
            return None
        return await self._index.waiting_for_approval(record.tenant, record.scope)

    async def _first_seq(self, address: LogAddress) -> int:
        first = await self._jetstream.first_message(address.stream, address.subject)
        return 0 if first is None else first.seq

    async def _end(self, publisher: Publisher, record: RunRecord, outcome: Outcome, room: Room) -> None:
        await end_run(publisher, self._index, record, outcome, room=room)
        self._metrics.run_ended(status_of(outcome.stop_reason), record.tenant)
        log.info("run_ended", stop_reason=outcome.stop_reason, messages=publisher.next_index)

    async def _run_agent(self, request: RunRequest, publisher: Publisher, lease: Lease) -> Outcome:
        """Write what the agent says into the log; returns what it came to. Raises when the log cannot be written.

        An agent that is to stop is not waited for: what it does with its cancellation is its own affair.
        """
        speaking = asyncio.create_task(self._listen(request, publisher), name=f"agent-{request.run_id}")
        try:
            begun_at = publisher.next_index
            ends: set[asyncio.Future[Any]] = {speaking, lease.over, publisher.failed, self._leaving}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if speaking.done():
                return self._heard(speaking, request, publisher)
            if lease.over.done():
                return self._stopped(lease, publisher)
            if publisher.failed.done():
                return _unstored(publisher.failed.result(), request)
            publisher.cancel(RunCancelled("This broker stops.", run_id=request.run_id))
            if await _has_settled(publisher) and publisher.next_index == begun_at:
                # Another worker need not find out that this one is gone.
                with contextlib.suppress(BrokerError, TimeoutError):
                    await lease.let_go()
                raise BrokerError("This broker stops, and the agent has not said anything yet.")
            return failed(request.run_id, "stream_task_cancelled")
        finally:
            self._dismiss(speaking)

    def _stopped(self, lease: Lease, publisher: Publisher) -> Outcome:
        """Return what a run that is to stop comes to; raises `Fenced` when it is another's."""
        reason = lease.over.result()
        if not isinstance(reason, RunCancelled):
            raise reason
        publisher.cancel(reason)
        return Outcome("cancelled")

    async def _listen(self, request: RunRequest, publisher: Publisher) -> Outcome:
        recording = Recording(publisher, request.run_id, wanted=request.include_return_message_types)
        try:
            async with aclosing(self._agent(request)) as chunks:
                async for chunk in chunks:
                    await recording.take(chunk)
        except Exception as error:
            if asyncio.current_task() in self._dismissed:
                # Not its text: what a platform said may be private.
                log.info("agent_left_with_error", error=type(error).__name__)
                return Outcome("cancelled")
            raise
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            # An agent that exits has ended itself; let through, it would end the event loop with all other runs.
            log.exception("agent_crashed")
            raise AgentFailed(INTERNAL_ERROR, message=AGENT_CRASHED) from error
        return await recording.outcome()

    def _heard(self, speaking: asyncio.Task[Outcome], request: RunRequest, publisher: Publisher) -> Outcome:
        """Return what an agent that has stopped came to; raises what kept its chunks from being stored.

        That is the publisher's own failure. One of the same kind that an agent raises is the agent's.
        """
        if speaking.cancelled():
            # Nobody stops this worker: something that the agent waited for was cancelled.
            return outcome_of(asyncio.CancelledError(), request.run_id)
        error = speaking.exception()
        match error:
            case None:
                return speaking.result()
            case BrokerError() if error is publisher.failure:
                return _unstored(error, request)
            case _:
                return outcome_of(error, request.run_id)

    def _dismiss(self, speaking: asyncio.Task[Outcome]) -> None:
        """Stop an agent without waiting for it; it is kept until it has stopped."""
        if speaking.done():
            # It may have failed for what ended the run, and asyncio complains of an error that nobody has looked at.
            _ = speaking.cancelled() or speaking.exception()
        else:
            speaking.cancel()
            self._dismissed.add(speaking)
            speaking.add_done_callback(self._dismissed.discard)
            asyncio.get_running_loop().call_later(FAREWELL_SECONDS, _complain, speaking)


async def _has_settled(publisher: Publisher) -> bool:
    """Wait until nothing is on its way to the log of a publisher that takes nothing more; False if that takes long."""
    try:
        async with asyncio.timeout(SETTLE_SECONDS):
            await publisher.flush()
    except (TimeoutError, Unavailable):
        return False
    except BrokerError:
        pass  # Why it takes nothing more.
    return True


def _unstored(error: BrokerError, request: RunRequest) -> Outcome:
    """Return what a run comes to of which something cannot be stored; raises what keeps even its end from being so."""
    if isinstance(error, StoreFull):
        return outcome_of(error, request.run_id)
    raise error


def _complain(dismissed: asyncio.Task[Outcome]) -> None:
    """Say that an agent is still there, which holds what it holds until the process ends."""
    if not dismissed.done():
        log.error("agent_does_not_stop", agent=dismissed.get_name())
