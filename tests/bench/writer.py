"""What the writing load process does: it is a platform that writes runs through the library, not through a gateway."""

import asyncio
import heapq
import secrets
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AsyncExitStack
from itertools import count, islice
from typing import Self

from runstream.broker.connection import Connection
from runstream.broker.ending import Outcome, end_run
from runstream.broker.index import Index
from runstream.broker.jetstream import BatchWrite, JetStream
from runstream.broker.lease import Lease
from runstream.broker.log import KIND, WRITER, writer_header
from runstream.broker.opening import begin, record_to_write
from runstream.broker.publisher import Publisher
from runstream.broker.runs import RUN_TYPE
from runstream.broker.settings import BrokerSettings
from runstream.broker.topology import LogAddress
from runstream.schemas import DEFAULT_TENANT, Kind, RunRecord, UsageStatistics, new_agent_id
from tests.bench.chunks import chunk, due
from tests.bench.exchange import quiet

BATCH = 500
"""Messages that are filled in at once; the server takes 1,000."""
OPENING = 50
"""Runs that are begun at one time."""
TICK_SECONDS = 0.002
"""The shortest sleep: at ten thousand chunks a second, one for twenty of them."""
FARTHEST = 50
"""How many chunks before the end a client may have been that comes back."""


class _Run:
    """One run that this process writes."""

    def __init__(self, record: RunRecord, publisher: Publisher, stack: AsyncExitStack) -> None:
        self.record = record
        self.publisher = publisher
        self.stack = stack
        self.chunks = 0
        self.seqs: deque[int] = deque(maxlen=FARTHEST + 1)

    async def say(self) -> int:
        """Publish one chunk; returns the nanoseconds until it was stored."""
        began = time.monotonic_ns()
        seq = await self.publisher.publish(chunk(self.chunks, began))
        took = time.monotonic_ns() - began
        self.wrote(seq)
        return took

    async def pour(self, count: int) -> None:
        """Publish chunks as fast as they are stored, one after the other."""
        for _ in range(count):
            await self.publisher.enqueue(chunk(self.chunks, time.monotonic_ns()))
            self.chunks += 1
        await self.publisher.flush()

    def wrote(self, seq: int) -> None:
        self.chunks += 1
        self.seqs.append(seq)

    def to_fill_in(self) -> BatchWrite:
        """The run's next chunk as a message for a batch; the publisher goes on behind it."""
        publisher = self.publisher
        headers = {KIND: Kind.DATA, WRITER: writer_header(publisher.writer, publisher.next_index)}
        publisher.next_index += 1
        return BatchWrite(publisher.address.subject, chunk(self.chunks, 0), headers)


class Writer:
    """Runs, opened, held and written with the parts that the library makes its own of."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._runs: dict[str, _Run] = {}
        self._pacing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.disconnect()

    async def disconnect(self) -> None:
        """Leave NATS, before it is stopped; runs that have not been ended are left as they are."""
        await self._stop_pacing()
        for run in self._runs.values():
            await run.stack.aclose()
        self._runs = {}
        await self._stack.aclose()

    async def connect(self, nats_url: str) -> str:
        """Connect to NATS; gives the server's version."""
        self._settings = BrokerSettings(nats_url=nats_url)
        connection = await self._stack.enter_async_context(Connection(nats_url, name="bench"))
        self._jetstream = JetStream(connection, timeout_seconds=self._settings.request_timeout_seconds)
        self._stack.push_async_callback(self._jetstream.close)
        self._index = Index(self._jetstream)
        return ".".join(map(str, connection.server_version))

    async def open(self) -> str:
        """Begin a run; gives its id."""
        settings = self._settings
        record = record_to_write(
            agent_id=new_agent_id(),
            conversation_id=None,
            otids=(),
            background=True,
            run_type=RUN_TYPE,
            shards=settings.shards,
            tenant=DEFAULT_TENANT,
        )
        await self._index.claim(record, None)
        async with AsyncExitStack() as stack:
            publisher = Publisher(self._jetstream, LogAddress(record.id, record.shard), settings)
            await stack.enter_async_context(publisher)
            lease = Lease(self._jetstream, self._index, publisher, tenant=record.tenant, seconds=settings.lease_seconds)
            await stack.enter_async_context(lease)
            begun = await begin(self._jetstream, self._index, publisher, record)
            self._runs[record.id] = _Run(begun, publisher, stack.pop_all())
        return record.id

    async def open_many(self, count: int) -> list[str]:
        """Begin so many runs; gives their ids."""
        run_ids: list[str] = []
        while len(run_ids) < count:
            more = min(OPENING, count - len(run_ids))
            run_ids += await asyncio.gather(*(self.open() for _ in range(more)))
        return run_ids

    async def publish(self, run_id: str, chunks: int, per_second: float | None = None) -> list[int]:
        """Publish chunks one at a time, at that pace or without a pause; gives the nanoseconds each took."""
        run = self._runs[run_id]
        with quiet():
            begun = time.monotonic()
            took: list[int] = []
            for number in range(chunks):
                if per_second is not None:
                    await asyncio.sleep(due(begun, number, per_second))
                took.append(await run.say())
        return took

    async def pour(self, run_id: str, count: int) -> None:
        """Publish chunks as fast as they are stored, one after the other."""
        with quiet():
            await self._runs[run_id].pour(count)

    async def publish_over(self, run_ids: list[str], count: int, per_second: float) -> float:
        """Publish chunks, one to each run in turn, at that pace in all; gives the seconds until all are stored."""
        runs = [self._runs[run_id] for run_id in run_ids]
        with quiet():
            begun = time.monotonic()
            for number in range(count):
                if wait := due(begun, number, per_second):
                    await asyncio.sleep(max(wait, TICK_SECONDS))
                run = runs[number % len(runs)]
                await run.publisher.enqueue(chunk(run.chunks, time.monotonic_ns()))
                run.chunks += 1
            await asyncio.gather(*(run.publisher.flush() for run in runs))
            return time.monotonic() - begun

    async def publish_at_once(self, run_ids: list[str], count: int) -> float:
        """Publish so many chunks to each of the runs, all at once; gives the seconds until all are stored."""
        with quiet():
            begun = time.monotonic()
            await asyncio.gather(*(self._runs[run_id].pour(count) for run_id in run_ids))
            return time.monotonic() - begun

    async def pace(self, run_id: str, per_second: float) -> None:
        """Publish chunks at that pace until the run is ended; returns at once."""
        self._pacing = asyncio.create_task(self._keep_saying(self._runs[run_id], per_second), name=run_id)

    async def _keep_saying(self, run: _Run, per_second: float) -> None:
        begun = time.monotonic()
        for number in count():
            await asyncio.sleep(due(begun, number, per_second))
            await run.say()

    async def cursors(self, run_id: str, distances: list[int]) -> list[int]:
        """The sequences of the chunks that are so many before the newest."""
        return [self._runs[run_id].seqs[-1 - distance] for distance in distances]

    async def fill(self, lengths: list[int]) -> list[str]:
        """Begin runs of that many chunks, spread evenly over the same stretch of the log's stream; gives their ids.

        In atomic batches, past the publishers: a hundred thousand chunks one at a time would be most of the bench.
        """
        runs = [self._runs[await self.open()] for _ in lengths]
        order = _spread(lengths)
        while batch := [runs[which] for which in islice(order, BATCH)]:
            writes = []
            for run in batch:
                writes.append(run.to_fill_in())
                run.chunks += 1
            last = await self._jetstream.publish_batch(writes, secrets.token_hex(16))
            for seq, run in enumerate(batch, start=last - len(batch) + 1):
                run.publisher.last_seq = seq
                run.seqs.append(seq)
        return [run.record.id for run in runs]

    async def end_many(self, run_ids: list[str]) -> None:
        """End those runs."""
        for at in range(0, len(run_ids), OPENING):
            await asyncio.gather(*map(self.end, run_ids[at : at + OPENING]))

    async def end(self, run_id: str) -> None:
        """End a run as a worker does."""
        if self._pacing is not None and self._pacing.get_name() == run_id:
            await self._stop_pacing()
        run = self._runs.pop(run_id)
        await run.publisher.flush()
        await end_run(run.publisher, self._index, run.record, Outcome("end_turn", usage=UsageStatistics()))
        await run.stack.aclose()

    async def _stop_pacing(self) -> None:
        if self._pacing is not None:
            self._pacing.cancel()
            await asyncio.gather(self._pacing, return_exceptions=True)
            self._pacing = None


def _spread(lengths: list[int]) -> Iterator[int]:
    """For each message of all runs together, in the order in which they are stored: whose it is."""
    places = [[((at + 0.5) / length, which) for at in range(length)] for which, length in enumerate(lengths)]
    return (which for _, which in heapq.merge(*places))
