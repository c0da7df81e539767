"""Runs for brokers to execute: scripted agents, what a follower sees, and what a run leaves behind."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec

from runstream.broker.agents import Agent
from runstream.broker.ending import first_message
from runstream.broker.errors import BrokerError
from runstream.broker.log import Entry
from runstream.broker.queue import WorkQueue
from runstream.broker.tail import LiveTail, TailCounters
from runstream.broker.topology import WORK_STREAM, LogAddress
from runstream.schemas import Chunk, Kind, RunRecord, RunRequest, StopReason, UsageStatistics, new_conversation_id
from tests.support.core import Core, record_of, request_of, said
from tests.support.waiting import wait_until

Line = Chunk | Mapping[str, object] | BaseException | asyncio.Event
"""What a scripted agent does next: say a chunk, fail, or wait for an event."""

GOOD_END: Sequence[Line] = (StopReason(stop_reason="end_turn"), UsageStatistics(total_tokens=7))


def scripted(*lines: Line) -> Agent:
    """An agent that does the same for every run, line by line."""

    async def agent(_: RunRequest) -> AsyncGenerator[Chunk | Mapping[str, object], None]:
        for line in lines:
            if isinstance(line, asyncio.Event):
                await line.wait()
            elif isinstance(line, BaseException):
                raise line
            else:
                yield line

    return agent


def answer(count: int) -> list[Line]:
    """An answer of that many chunks that ends well."""
    return [*(said(number) for number in range(count)), *GOOD_END]


async def submit(core: Core, *, said: str = "hello", **facts: Any) -> RunRecord:
    """Start a run as a gateway does: claimed, its log begun, enqueued. In a conversation of its own unless told."""
    record = record_of(**{"conversation_id": new_conversation_id(), **facts})
    claimed = await core.index.claim(record, request_of(record, said))
    assert claimed.is_new
    async with core.publisher(LogAddress(record.id, record.shard)) as publisher:
        await publisher.publish_marked(first_message(record))
    await WorkQueue(core.jetstream).put(record.tenant, record.id)
    return record


async def enqueue_again(core: Core, run: RunRecord) -> None:
    """Put one more message for a run on the queue, past the duplicate check: as if an answer had been lost."""
    body = msgspec.json.encode({"tenant": run.tenant, "run_id": run.id})
    await core.jetstream.publish(f"work.{run.tenant}.{run.id}", body, {})


async def empty_queue(core: Core) -> None:
    """Drop what tests have left on the work queue."""
    await core.jetstream.api(f"STREAM.PURGE.{WORK_STREAM}", {})


async def over(core: Core, run: RunRecord, timeout: float = 20) -> RunRecord:
    """Wait until nothing is left to do for a run: its log has its end, and only its record is left of it."""

    async def left() -> list[str]:
        keys = [f"lease.{run.id}", f"cancel.{run.id}", f"request.{run.tenant}.{run.id}"]
        found = [key for key in keys if await core.holds(key)]
        return found if await core.is_over(run) else [*found, "the log has no end"]

    async def nothing_left() -> bool:
        return not await left()

    try:
        await wait_until(nothing_left, timeout)
    except AssertionError as error:
        complaint = f"{run.id} is not over: {await left()}, {await core.record(run)}"
        raise AssertionError(complaint) from error
    return await core.record(run)


async def queue_empty(core: Core, timeout: float = 10) -> None:
    """Wait until every run request is done."""

    async def empty() -> bool:
        return await core.queued() == 0

    await wait_until(empty, timeout, "a run request is left on the queue")


async def request_done(core: Core, run: RunRecord) -> None:
    """Wait until a run's request is done, whatever else is on the queue."""

    async def gone() -> bool:
        return await core.jetstream.last_message(WORK_STREAM, f"work.{run.tenant}.{run.id}") is None

    await wait_until(gone, message=f"the request of {run.id} is left on the queue")


async def active_run(core: Core, run: RunRecord) -> str | None:
    """The active run of the run's conversation."""
    stored = await core.index.conversation(run.tenant, run.conversation_id or "")
    assert stored is not None
    return stored.value.active_run


class Follower:
    """What one who follows a run from its first message has seen."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.failures: list[BrokerError] = []

    def kinds(self) -> list[Kind]:
        return [entry.kind for entry in self.entries]

    def said(self, kind: Kind = Kind.DATA) -> int:
        """How many entries of that kind there were."""
        return self.kinds().count(kind)

    @property
    def ended(self) -> bool:
        return Kind.END in self.kinds()


@contextlib.asynccontextmanager
async def following(core: Core, run: RunRecord) -> AsyncIterator[Follower]:
    """A follower of the run for as long as the block lasts."""
    async with tailing(core, LogAddress(run.id, run.shard)) as follower:
        yield follower


@contextlib.asynccontextmanager
async def tailing(core: Core, address: LogAddress) -> AsyncIterator[Follower]:
    """A follower of the log's live tail, from its first message on, for as long as the block lasts."""
    follower = Follower()

    async def from_the_start(tip: Entry | None) -> int:
        first = await core.reader.first(address)
        return 0 if tip is None or first is None else first.seq - 1

    tail = LiveTail(
        core.jetstream,
        core.reader,
        core.settings,
        address,
        counters=TailCounters(),
        on_entries=follower.entries.extend,
        on_failure=follower.failures.append,
    )
    try:
        await tail.open(from_the_start)
        yield follower
    finally:
        await tail.close()
