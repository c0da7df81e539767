"""The library's front door: runs that the platform's own process writes.

    async with Runs("nats://127.0.0.1:4222") as runs:
        async with runs.open(agent_id=agent_id, conversation_id=conversation_id) as run:
            seq_id = await run.publish(AssistantMessage(content="Hello"))

How the block ends is how the run ends:

the block                      its run ends                                         the block raises
is left                        as was published, `end_turn` if nothing was          nothing
raises                         with `error`, as `agents.failures.outcome_of` says   the same
is cancelled by others         with `error`, `stream_task_cancelled`                `CancelledError`
is not through at a cancel     with `cancelled`, at once                            `RunCancelled`
is not through when fenced     as whoever took it over says                         `Fenced`

The last two interrupt the block wherever it waits, a model's answer included: it sees a `CancelledError`, as within
`asyncio.timeout`, and the end of the block makes the reason of it. So they are caught around the block; and, as there,
no generator yields within it, as it is then another's code that is interrupted.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Self

import msgspec

from runstream.broker.agents.failures import outcome_of
from runstream.broker.auth.principal import is_tenant
from runstream.broker.common_metrics import LibraryMetrics
from runstream.broker.connection import Connection
from runstream.broker.ending import Outcome, end_run, failed, first_message
from runstream.broker.errors import (
    BrokerError,
    Draining,
    Fenced,
    NotStored,
    RunCancelled,
    StoreRefused,
    StoreUnavailable,
    TopologyError,
    Unavailable,
)
from runstream.broker.findings import Findings
from runstream.broker.fullness import Room, announce_stuck
from runstream.broker.index import Index
from runstream.broker.interruption import Interruption
from runstream.broker.jetstream import JetStream
from runstream.broker.lease import Lease
from runstream.broker.logs import get_logger
from runstream.broker.opening import begin, claim_to_write, record_to_write
from runstream.broker.publisher import Publisher
from runstream.broker.queue import WorkQueue
from runstream.broker.recording import Recording
from runstream.broker.repair import Repair
from runstream.broker.settings import BrokerSettings, resolved
from runstream.broker.sigterm import BeforeSigterm
from runstream.broker.topology import INDEX_STREAM, WORK_STREAM, LogAddress, check_server
from runstream.schemas import (
    DEFAULT_TENANT,
    status_of,
    trace_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from prometheus_client import CollectorRegistry

    from runstream.schemas import (
        Chunk,
        RunRecord,
        Trace,
    )

__all__ = ["RUN_TYPE", "Run", "Runs"]

log = get_logger(__name__)

RUN_TYPE = "library"
"""What clients see as the `metadata.run_type` of a run that was opened here."""
NOT_ENTERED = "Runs are opened and entered within `async with Runs(…)`."
DRAIN_SECONDS = 5.0
"""How long open runs may take to end by themselves after SIGTERM. With the ends of those that do not, this is within
the ten seconds after which Docker kills, and well within the thirty of Kubernetes."""
FAREWELL_SECONDS = 5.0
"""How long the end of a run may take when its block is to be left soon: the run was cancelled, or its task."""


class Runs:
    """A platform's connection to runstream. Use as an async context manager, one for the whole process.

    SIGTERM: if nobody in the process handles it when this is entered, in the main thread, the open runs are given
    `drain_seconds` to end (see `drain`), and then the signal ends the process, as it would have at once; a second one
    does so at once. A handler of the process's own, as servers have one, is left alone, and so is the signal if
    `drain_seconds` is None: then whoever handles it leaves this, or calls `drain` first.

    Whose the runs are says `tenant`: who asks a gateway for them has to be of it. Raises `ValueError` for a name that
    none can have.

    Settings that are not given are those of the environment, `RUNSTREAM_…`, which should be the brokers'; the lease is
    the brokers' own if that is shorter. Entering raises `Unavailable` when NATS cannot be reached, `ServerTooOld`,
    `TopologyError` when no broker has made the streams yet, and `InvalidSettings`.

    Leaving it ends the runs that are still open, as `stream_task_cancelled`, and cancels the tasks in their blocks; one
    that is only being opened is ended by a broker, a lease later.
    """

    def __init__(
        self,
        nats_url: str,
        *,
        settings: BrokerSettings | None = None,
        drain_seconds: float | None = DRAIN_SECONDS,
        tenant: str = DEFAULT_TENANT,
    ) -> None:
        if not is_tenant(tenant):
            raise ValueError(f"A tenant has up to 64 letters, digits, -, _ and =, and is not {tenant!r}.")
        self._tenant = tenant
        self._drain_seconds = drain_seconds
        self._ending: asyncio.Task[None] | None = None
        given = {} if settings is None else settings.model_dump()
        self._settings = resolved(BrokerSettings, {**given, "nats_url": nats_url})
        self._store: _Store | None = None
        self._metrics = LibraryMetrics(self._settings.metrics_tenants)
        self._stack = contextlib.AsyncExitStack()

    @property
    def registry(self) -> CollectorRegistry:
        """What this counts (docs/metrics.md), to be shown with the process's own metrics."""
        return self._metrics.registry

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            access = self._settings.nats_access("writer")
            connection = await stack.enter_async_context(
                Connection(self._settings.nats_url, name="library", access=access)
            )
            check_server(connection.server_version)
            jetstream = JetStream(
                connection,
                timeout_seconds=self._settings.request_timeout_seconds,
                findings=Findings(self._metrics.broken),
            )
            stack.push_async_callback(jetstream.close)
            lease_seconds = min(self._settings.lease_seconds, await _provisioned(jetstream, self._settings))
            index = Index(jetstream)
            repair = Repair(jetstream, self._settings, index, observe=self._metrics.repaired)
            self._store = store = _Store(jetstream, index, repair, self._settings, lease_seconds, self._metrics)
            self._metrics.watch_nats(jetstream)
            self._metrics.watch_live_runs(lambda: len(store.open))
            if self._drain_seconds is not None:
                await stack.enter_async_context(BeforeSigterm(partial(self.drain, self._drain_seconds)))
            # Left before the signal is given back: one that comes now waits for the ends that are being stored.
            stack.push_async_callback(self._end_open_runs)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def drain(self, seconds: float) -> None:
        """Open no further runs, let the open ones end by themselves for so long, then end the rest as leaving does.

        Whoever has been refused, with `Draining`, leaves its work to another process.
        """
        store = self._store
        if store is not None:
            store.is_draining = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await store.all_left()
        await self._end_open_runs()

    async def _end_open_runs(self) -> None:
        """End what is still open, once, however many ask for it: who leaves this, and a signal meanwhile."""
        if self._ending is None and self._store is not None:
            self._ending = asyncio.create_task(self._store.end_all(asyncio.current_task()), name="library-end")
        if self._ending is not None:
            await asyncio.shield(self._ending)

    def open(
        self,
        *,
        agent_id: str,
        conversation_id: str | None = None,
        otids: Sequence[str] = (),
        background: bool = True,
        traceparent: str | None = None,
        tracestate: str | None = None,
    ) -> Run:
        """Open a run of an agent's, in a conversation, which is made if it is not there, or in none.

        `otids` are those of the messages that the run answers, if they have any: no second run will have one of them.
        Only clients of a `background` run can resume it. `traceparent` and `tracestate` are W3C's, of the request that
        it answers; malformed they are passed over. Raises `ValueError` for ids that are none; entering the run
        raises `Conflict`, with the `run_id` that is in the way, when the conversation is busy or an otid is taken,
        `ConversationDeleted` when a client has deleted it, `WrongAgent` when it is another agent's, `RecordTooLarge`
        when the otids are too long for the server's `max_payload`, and `Unavailable`. Raises `Draining` once this
        process is to stop.
        """
        if self._store is None:
            raise RuntimeError(NOT_ENTERED)
        self._store.check_open()
        record = record_to_write(
            tenant=self._tenant,
            agent_id=agent_id,
            conversation_id=conversation_id,
            otids=otids,
            background=background,
            run_type=RUN_TYPE,
            shards=self._settings.shards,
        )
        sent = [[] if value is None else [value] for value in (traceparent, tracestate)]
        return Run(self._store, record, trace_of(*sent))


class _Store(msgspec.Struct):
    """What runs are written with, for as long as their `Runs` is not left, and those that are being written."""

    jetstream: JetStream
    index: Index
    repair: Repair
    settings: BrokerSettings
    lease_seconds: float
    metrics: LibraryMetrics
    open: set[Run] = msgspec.field(default_factory=set)
    opening: set[Run] = msgspec.field(default_factory=set)
    changed: asyncio.Event = msgspec.field(default_factory=asyncio.Event)
    is_draining: bool = False
    is_left: bool = False

    def check_open(self) -> None:
        """Raise what keeps a further run from being opened."""
        if self.is_draining:
            raise Draining
        if self.is_left:
            raise RuntimeError(NOT_ENTERED)

    async def end_all(self, leaving: asyncio.Task[None] | None) -> None:
        """End the open runs, whatever goes on in their blocks; a block that `leaving` is in is not interrupted."""
        self.is_left = True
        await asyncio.gather(*(run.abandon(leaving) for run in self.open))

    async def all_left(self) -> None:
        """Wait until no run is open, nor being opened."""
        while self.open or self.opening:
            self.changed.clear()
            await self.changed.wait()

    def leave(self, run: Run) -> None:
        """Note that a run is open no longer."""
        self.open.discard(run)
        self.changed.set()


async def _provisioned(jetstream: JetStream, settings: BrokerSettings) -> float:
    """Return the lease that the brokers made the work queue with. Raises `TopologyError` when they have made nothing.

    The streams are theirs to make: a platform's process does not decide how many copies there are.
    """
    stream = WORK_STREAM
    try:
        lease_seconds = await WorkQueue(jetstream).hold_seconds()
        for stream in (INDEX_STREAM, *(f"RUNS_{shard}" for shard in range(settings.shards))):
            await jetstream.api(f"STREAM.INFO.{stream}", None)
    except NotStored as absent:
        raise TopologyError(
            f"{stream} is not there. A broker makes the streams when it starts: start one first, with as many shards "
            f"as are set here, {settings.shards}."
        ) from absent
    return lease_seconds


class Run:
    """One run, written by this process. `Runs.open` makes it; use as an async context manager, once."""

    def __init__(self, store: _Store, record: RunRecord, trace: Trace | None) -> None:
        self.run_id = record.id
        self._trace = trace
        self._store = store
        self._record = record
        self._publisher = Publisher(
            store.jetstream,
            LogAddress(record.id, record.shard),
            store.settings,
            observe=store.metrics.published,
        )
        self._recording = Recording(self._publisher, record.id, default_stop="end_turn")
        self._is_used = False
        self._block: Interruption | None = None
        self._lease: Lease | None = None
        self._stopped: BrokerError | None = None
        self._ending: asyncio.Task[None] | None = None
        self._stack = contextlib.AsyncExitStack()

    async def publish(self, chunk: Chunk | Mapping[str, object]) -> int | None:
        """Store one chunk, a struct of `runstream.schemas` or a mapping; returns its seq_id when it is stored.

        Returns None for what has none: a stop reason, the usage and an error are held back for the run's end, the
        last of each counts; a ping is dropped. Many may call at once: chunks are stored in the order of the calls.

        Raises `InvalidChunk` and `ChunkTooLarge` (nothing was stored, the run goes on), `RunTooLong` (there is room
        for the ending), `StoreFull` and `StoreUnavailable` (nothing more is taken), `Fenced`, `RunCancelled`.
        A call that is cancelled leaves its chunk on its way: it may still be stored.
        """
        if self._stopped is not None:
            raise _again(self._stopped)
        if self._block is None or self._ending is not None:
            raise RuntimeError(f"{self.run_id} is not open: chunks are published within its block.")
        stored = await self._recording.take(chunk)
        return None if stored is None else await stored

    async def __aenter__(self) -> Self:
        if self._is_used:
            raise RuntimeError(f"{self.run_id} was opened before: call `open` for each run.")
        self._store.check_open()
        self._is_used = True
        self._store.opening.add(self)
        try:
            await self._enter()
        finally:
            self._store.opening.discard(self)
            self._store.changed.set()
        return self

    async def _enter(self) -> None:
        await self._stack.enter_async_context(self._publisher)
        # A claim that is given up half-way may be stored all the same, and would hold its conversation for a lease.
        claiming = asyncio.create_task(self._claim(), name=f"claim-{self.run_id}")
        try:
            await asyncio.shield(claiming)
            await self._begin()
        except BaseException:
            await asyncio.wait([claiming])
            if claiming.exception() is None:
                await self._leave(asyncio.CancelledError())
            await self._stack.aclose()
            raise

    async def _claim(self) -> None:
        await claim_to_write(self._store.index, self._store.repair, self._record)

    async def _begin(self) -> None:
        index, tenant = self._store.index, self._record.tenant
        self._lease = Lease(
            self._store.jetstream,
            index,
            self._publisher,
            tenant=tenant,
            seconds=self._store.lease_seconds,
            repaired=self._store.metrics.repaired,
        )
        await self._stack.enter_async_context(self._lease)
        self._record = await begin(self._store.jetstream, index, self._publisher, self._record, trace=self._trace)
        self._store.open.add(self)
        self._block = Interruption()
        self._lease.over.add_done_callback(self._stop)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_interrupted = self._block is not None and self._block.leave(error)
        failure = await self._leave(error)
        if self._stopped is not None and (is_interrupted or error is None or isinstance(error, Exception)):
            # Whatever else the block came to, it came to it because it was stopped, or nobody will ever see it.
            if not self._is_told(error):
                raise _again(self._stopped) from error
        elif failure is not None and error is None:
            raise failure
        elif failure is not None and not isinstance(failure, Fenced):
            log.warning("run_not_ended", run_id=self.run_id, error=str(failure))

    def _is_told(self, error: BaseException | None) -> bool:
        """Tell whether `error` says by itself that this run was stopped."""
        return isinstance(error, (RunCancelled, Fenced)) and error.facts.get("run_id") == self.run_id

    async def abandon(self, leaving: asyncio.Task[None] | None) -> None:
        """End the run before its block is left, and cancel the block's task, unless it is `leaving`."""
        ending = self._end_soon(asyncio.CancelledError())
        if self._block is not None:
            self._block.abandon(leaving)
        await asyncio.wait([ending], timeout=FAREWELL_SECONDS)
        await self._stack.aclose()

    def _stop(self, over: asyncio.Future[BrokerError]) -> None:
        """Interrupt the block, as its run is over; what it does then is its own affair, so nobody waits for it."""
        if self._ending is not None or self._block is None:
            return
        self._stopped = reason = over.result()
        if isinstance(reason, RunCancelled):
            self._publisher.cancel(reason)
        self._end_soon(reason)
        self._block.ask()

    async def _leave(self, error: BaseException | None) -> BrokerError | None:
        """See the run ended, as `error` says unless that is settled; returns why its end could not be stored."""
        ending = self._end_soon(error)
        try:
            await asyncio.wait([ending])
        except asyncio.CancelledError:
            await asyncio.wait([ending], timeout=FAREWELL_SECONDS)
            raise
        finally:
            self._store.leave(self)
            ending.cancel()
            await self._stack.aclose()
        failure = ending.exception()
        if failure is None or isinstance(failure, BrokerError):
            return self._told(failure)
        raise failure

    def _told(self, failure: BrokerError | None) -> BrokerError | None:
        """Say why the run is another's, if that came out while it was being ended."""
        over = None if self._lease is None else self._lease.over
        return over.result() if isinstance(failure, Fenced) and over is not None and over.done() else failure

    def _end_soon(self, error: BaseException | None) -> asyncio.Task[None]:
        """Begin to end the run, unless that is under way. Returns the task that does it, in bounded time."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end_in_time(error), name=f"end-{self.run_id}")
            self._ending.add_done_callback(lambda ending: ending.cancelled() or ending.exception())
        return self._ending

    async def _end_in_time(self, error: BaseException | None) -> None:
        is_urgent = isinstance(error, RunCancelled) or not (error is None or isinstance(error, Exception))
        room = Room(self._store.jetstream.connection, self.run_id)
        try:
            async with asyncio.timeout(FAREWELL_SECONDS if is_urgent else self._store.settings.write_patience_seconds):
                await self._end(error, room)
        except StoreUnavailable as stuck:
            await announce_stuck(self._store.jetstream.connection, self.run_id, stuck)
            raise
        except (Unavailable, TimeoutError) as away:
            if room.refused is not None:
                raise room.refused from away
            raise StoreUnavailable(
                "It is not known that its end is stored: a broker will end it, as run_lost if it is not.",
                run_id=self.run_id,
            ) from away

    async def _end(self, error: BaseException | None, room: Room) -> None:
        """End the run as `error` says. Raises what keeps its end, or any of its chunks, from being stored."""
        if isinstance(error, Fenced):
            return
        if self._publisher.next_index == 0:
            await room.found(partial(self._publisher.publish_marked, first_message(self._record)))
        refused: StoreRefused | None = None
        try:
            outcome = await self._outcome(error)
        except StoreRefused as found:
            # The block was left as if all were well, but a chunk of it is missing.
            refused, outcome = found, outcome_of(found, self.run_id)
        await end_run(self._publisher, self._store.index, self._record, outcome, room=room)
        self._store.metrics.run_ended(status_of(outcome.stop_reason), self._record.tenant)
        if refused is not None:
            raise refused

    async def _outcome(self, error: BaseException | None) -> Outcome:
        if error is None:
            return await self._recording.outcome()
        if isinstance(error, RunCancelled) and error.facts.get("run_id", self.run_id) == self.run_id:
            return Outcome("cancelled")
        if not isinstance(error, Exception):
            return failed(self.run_id, "stream_task_cancelled")
        while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        return outcome_of(error, self.run_id)


def _again(reason: BrokerError) -> BrokerError:
    """Make the same error anew: one that is raised in many places, or caused by itself, is no use to a reader."""
    return type(reason)(reason.detail, **reason.facts)
