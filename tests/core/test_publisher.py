"""A run's writer: in order, without holes, exactly once, or told why not."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from runstream.broker.connection import Message
from runstream.broker.errors import (
    BrokerError,
    ChunkTooLarge,
    Fenced,
    NotSent,
    RunTooLong,
    StoreFull,
    StoreUnavailable,
    Unavailable,
    WrongLastSequence,
)
from runstream.broker.jetstream import BATCHES_AT_A_TIME, BatchWrite, JetStream
from runstream.broker.log import ENDING, WRITER, entry_of
from runstream.broker.messages import StoredMessage
from runstream.broker.publisher import ENDING_ROOM_MESSAGES, Publisher, Write, chunk_limit
from runstream.broker.topology import LogAddress, provision
from runstream.schemas import Kind, new_run_id
from tests.support.core import END, Core, chunk
from tests.support.faults import FaultyJetStream, lost, turns
from tests.support.nats import NatsServer
from tests.support.outages import paused, stopped
from tests.support.standstill import check_timely, measured_again
from tests.support.waiting import wait_until

SMALL_SHARD_BYTES = 64 * 1024
SMALL_RUN_MESSAGES = 20
TELLING = [Write(Kind.PLAIN, b'{"stop"'), Write(Kind.PLAIN, b'{"usage"')]


@pytest_asyncio.fixture
async def small_shard(core: Core) -> AsyncIterator[LogAddress]:
    """A log in a shard that takes 64 KiB, and 20 messages a run."""
    settings = core.settings.model_copy(
        update={"shards": 2, "max_log_bytes": SMALL_SHARD_BYTES, "max_run_messages": SMALL_RUN_MESSAGES}
    )
    await provision(core.jetstream, settings)
    await core.jetstream.api("STREAM.PURGE.RUNS_1", {})
    yield LogAddress(new_run_id(), 1)


async def publish_all(publisher: Publisher, count: int) -> list[int]:
    """Publish chunks 0 to `count`, handing each in before the ones before it are stored."""
    waiting = [await publisher.enqueue(chunk(number)) for number in range(count)]
    return list(await asyncio.gather(*waiting))


def chunks(count: int) -> list[bytes]:
    return [chunk(number) for number in range(count)]


# -- order, indexes, sequences ------------------------------------------------------------------------------------


async def test_chunks_are_stored_in_order(core: Core) -> None:
    """What was published is stored in that order, under the sequences returned, with indexes without a gap."""
    address = core.address()
    async with core.publisher(address) as publisher:
        seqs = [await publisher.publish(chunk(number)) for number in range(50)]
        assert (publisher.last_seq, publisher.next_index) == (seqs[-1], 50)
    found = await core.stored(address)
    assert [message.seq for message in found] == seqs
    assert [message.body for message in found] == chunks(50)
    assert [message.headers[WRITER] for message in found] == [f"{publisher.writer}:{index}" for index in range(50)]
    assert [entry_of(message).kind for message in found] == [Kind.DATA] * 50


@pytest.mark.parametrize("room", [1, 4, 1024])
async def test_concurrent_callers_keep_their_order(core: Core, room: int) -> None:
    """Calls that overlap are stored in the order in which they were made, also when they wait for room."""
    address = core.address()
    numbers = itertools.count()
    seqs: dict[int, int] = {}

    async def call(publisher: Publisher) -> None:
        while (number := next(numbers)) < 300:
            seqs[number] = await publisher.publish(chunk(number))
            await asyncio.sleep(random.random() / 1000)

    async with core.publisher(address, writer_queue_chunks=room) as publisher:
        await asyncio.gather(*(call(publisher) for _ in range(20)))
    assert await core.bodies(address) == chunks(300)
    assert [seqs[number] for number in range(300)] == sorted(seqs.values())


async def test_parts_of_an_ending_are_stored_next_to_each_other(core: Core) -> None:
    """`publish_together` stores all its parts in one piece, marked with the stop reason; the end follows."""
    address, other = core.address(), core.address()
    async with core.publisher(address) as publisher, core.publisher(other) as noise:
        await publisher.publish(chunk(0))
        told, _ = await asyncio.gather(
            publisher.publish_together(TELLING, stop_reason="end_turn"), publish_all(noise, 20)
        )
        end = await publisher.publish_marked(END)
    found = await core.stored(address)
    assert [message.body for message in found] == [chunk(0), *(write.body for write in TELLING), b""]
    assert [message.seq for message in found][1:] == [told - 1, told, end]
    assert [message.headers.get(ENDING) for message in found] == [None, "end_turn", "end_turn", None]
    assert [entry_of(message).index for message in found] == [0, 1, 2, 3]


async def test_the_writer_goes_on_where_a_log_stands(core: Core) -> None:
    """A writer that is told the last sequence and the next index continues a log without a gap."""
    address = core.address()
    (*_, last) = await core.write(address, chunks(3))
    async with core.publisher(address, last_seq=last, next_index=3) as publisher:
        await publisher.publish(chunk(3))
    assert await core.bodies(address) == chunks(4)


async def test_flush_returns_when_all_is_stored(core: Core) -> None:
    """After `flush` the log holds everything that was queued, and an empty queue flushes at once."""
    address = core.address()
    async with core.publisher(address) as publisher:
        await publisher.flush()
        for number in range(100):
            await publisher.enqueue(chunk(number))
        await publisher.flush()
        assert await core.bodies(address) == chunks(100)


async def test_each_stored_publish_is_observed(core: Core) -> None:
    """`observe` hears, for each publish, how long it took."""
    seconds: list[float] = []
    async with core.publisher(core.address(), observe=seconds.append) as publisher:
        await publish_all(publisher, 10)
    assert len(seconds) == 10
    assert all(0 < each < 5 for each in seconds)


# -- size ---------------------------------------------------------------------------------------------------------


async def test_every_size_around_the_limit(core: Core) -> None:
    """A chunk up to the limit is stored, a larger one refused before it is sent; the connection outlives each."""
    address = core.address()
    payload = core.connection.max_payload
    limit = chunk_limit(payload)
    stored: list[int] = []
    async with core.publisher(address) as publisher:
        for size in range(limit - 2, payload + 2):
            body = b"x" * size
            if size <= limit:
                stored.append(await publisher.publish(body))
            else:
                with pytest.raises(ChunkTooLarge) as refused:
                    await publisher.publish(body)
                assert (refused.value.size, refused.value.limit) == (size, limit)
            stored.append(await publisher.publish(b"alive"))
    assert core.connection.reconnects == 0
    assert [len(body) for body in await core.bodies(address) if body != b"alive"] == [limit - 2, limit - 1, limit]
    assert len(stored) == payload + 4 - limit + 3


# -- fencing ------------------------------------------------------------------------------------------------------


async def test_a_second_writer_is_fenced(core: Core) -> None:
    """A writer that believes the log empty, when another has written, stores nothing and is told so."""
    address = core.address()
    async with core.publisher(address) as first, core.publisher(address) as second:
        await first.publish(chunk(0))
        for attempt in (second.publish(b"no"), second.publish_together(TELLING, stop_reason="x")):
            with pytest.raises(Fenced):
                await attempt
        assert isinstance(second.failure, Fenced)
        await first.publish(chunk(1))
    assert await core.bodies(address) == chunks(2)


async def test_the_writer_that_was_taken_over_is_fenced(core: Core) -> None:
    """After a takeover nothing of the first writer is stored, queued or new, chunk or ending."""
    address = core.address()
    async with core.publisher(address) as zombie:
        await publish_all(zombie, 3)
        async with core.publisher(address, last_seq=zombie.last_seq, next_index=3) as heir:
            await heir.publish(chunk(3))
        queued = [await zombie.enqueue(b"no") for _ in range(5)]
        outcomes = await asyncio.gather(*queued, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Fenced] * 5
        for late in (
            zombie.publish(b"no"),
            zombie.publish_marked(END),
            zombie.publish_together(TELLING, stop_reason="error"),
            zombie.flush(),
        ):
            with pytest.raises(Fenced):
                await late
    assert await core.bodies(address) == chunks(4)


@pytest.mark.parametrize("has_some", [True, False])
async def test_a_leader_that_lags_fences_nobody(
    core: Core, monkeypatch: pytest.MonkeyPatch, has_some: bool
) -> None:  # a parameter of the test
    """A new leader may refuse a chunk, and show less than was acknowledged, or nothing: it is asked again."""
    address = core.address()
    async with core.publisher(address) as publisher:
        await publish_all(publisher, 1)
        old = await core.jetstream.last_message(address.stream, address.subject) if has_some else None
        await publish_all(publisher, 1)
        publish, last_message = core.jetstream.publish, core.jetstream.last_message
        refusals, answers = iter([1, 2]), iter([old, old])

        async def refusing(*message: Any) -> int:
            if next(refusals, None):
                raise WrongLastSequence("by a leader that lags", code=10071)
            return await publish(*message)

        async def lagging(*asked: Any) -> StoredMessage | None:
            try:
                return next(answers)
            except StopIteration:
                return await last_message(*asked)

        monkeypatch.setattr(core.jetstream, "publish", refusing)
        monkeypatch.setattr(core.jetstream, "last_message", lagging)
        await publish_all(publisher, 1)
    assert await core.bodies(address) == [chunk(0)] * 3


async def test_whose_log_was_removed_is_fenced(core: Core) -> None:
    """Nobody has anything of it any more."""
    address = core.address()
    async with core.publisher(address) as publisher:
        await publish_all(publisher, 2)
        await core.jetstream.purge(address.stream, address.subject, through=publisher.last_seq)
        with pytest.raises(Fenced, match="gone"):
            await publisher.publish(chunk(2))


async def test_of_two_heirs_one_wins(core: Core) -> None:
    """Two writers that take a log over at the same moment: one stores, the other is fenced, every time."""
    for _ in range(30):
        address = core.address()
        (seq,) = await core.write(address, [b"0"])
        async with (
            core.publisher(address, last_seq=seq, next_index=1) as one,
            core.publisher(address, last_seq=seq, next_index=1) as other,
        ):
            outcomes = await asyncio.gather(
                one.publish_together(TELLING, stop_reason="error"),
                other.publish(b"1"),
                return_exceptions=True,
            )
        assert sum(isinstance(outcome, int) for outcome in outcomes) == 1
        assert sum(isinstance(outcome, Fenced) for outcome in outcomes) == 1
        assert len(await core.bodies(address)) in {2, 3}


# -- outages ------------------------------------------------------------------------------------------------------


async def test_a_killed_server_costs_nothing(core: Core, nats_server: NatsServer) -> None:
    """The server is killed in the middle of a run, twice: every chunk is stored once, in order."""
    address = core.address()
    async with core.publisher(address) as publisher:
        writing = asyncio.create_task(publish_all(publisher, 6000))
        for reached in (1000, 3000):
            await wait_until(lambda reached=reached: publisher.next_index >= reached)  # type: ignore[misc]
            assert not writing.done()
            await nats_server.kill()
        seqs = await writing
    assert core.connection.reconnects >= 2
    found = await core.stored(address)
    assert [message.body for message in found] == chunks(6000)
    assert [message.seq for message in found] == seqs


async def test_what_a_paused_server_stores_late_is_stored_once(core: Core, nats_server: NatsServer) -> None:
    """Publishes time out and are repeated while the server is paused; it then carries all of them out, once."""
    address = core.address()
    impatient = FaultyJetStream(core.jetstream, timeout_seconds=0.1)
    async with core.publisher(address, impatient) as publisher:
        await publish_all(publisher, 10)
        async with paused(nats_server):
            before = impatient.writes
            late = [asyncio.create_task(publisher.publish(chunk(number))) for number in range(10, 20)]
            await wait_until(lambda: impatient.writes >= before + 3)
        await asyncio.gather(*late)
        told = asyncio.create_task(publisher.publish_together(TELLING, stop_reason="end_turn"))
        await told
    assert await core.bodies(address) == [*chunks(20), *(write.body for write in TELLING)]


async def test_an_ending_that_a_paused_server_stores_late_is_stored_once(core: Core, nats_server: NatsServer) -> None:
    """The parts of an ending, repeated while the server is paused, are stored in one piece, once."""
    address = core.address()
    impatient = FaultyJetStream(core.jetstream, timeout_seconds=0.1)
    async with core.publisher(address, impatient) as publisher:
        await publisher.publish(chunk(0))
        async with paused(nats_server):
            before = impatient.writes
            telling = asyncio.create_task(publisher.publish_together(TELLING, stop_reason="end_turn"))
            await wait_until(lambda: impatient.writes >= before + 3)
        await telling
        await publisher.publish_marked(END)
    assert await core.bodies(address) == [chunk(0), *(write.body for write in TELLING), b""]


@pytest.mark.parametrize("every", [2, 3])
async def test_lost_answers_are_settled(core: Core, every: int) -> None:
    """Publishes that were stored, and whose answers are lost, are found in the log and not repeated."""
    address = core.address()
    losing = FaultyJetStream(core.jetstream, after=lost(every=every))
    async with core.publisher(address, losing) as publisher:
        seqs = await publish_all(publisher, 10)
        last = await publisher.publish_together(TELLING, stop_reason="end_turn")
    assert losing.writes > 11
    found = await core.stored(address)
    assert [message.seq for message in found] == [*seqs, last - 1, last]
    assert await core.bodies(address) == [*chunks(10), *(write.body for write in TELLING)]


async def test_the_lost_answer_of_an_ending_is_settled(core: Core) -> None:
    """An ending that was stored, and whose answer is lost, is found in the log and not repeated."""
    address = core.address()
    losing = FaultyJetStream(core.jetstream, after=lost())
    async with core.publisher(address, losing) as publisher:
        last = await publisher.publish_together(TELLING, stop_reason="end_turn")
        assert losing.writes == 2
        assert (publisher.last_seq, publisher.next_index) == (last, 2)
    assert [message.seq for message in await core.stored(address)] == [last - 1, last]


async def test_lost_requests_are_repeated(core: Core) -> None:
    """Publishes that never reached the server are sent again."""
    address = core.address()
    losing = FaultyJetStream(core.jetstream, before=lost())
    async with core.publisher(address, losing) as publisher:
        await publish_all(publisher, 10)
        await publisher.publish_together(TELLING, stop_reason="end_turn")
    assert losing.writes > 11
    assert await core.bodies(address) == [*chunks(10), *(write.body for write in TELLING)]


async def test_patience_ends(core: Core, nats_server: NatsServer) -> None:
    """A store that stays away longer than the writer's patience fails every caller, and every later call."""
    address = core.address()
    impatient = FaultyJetStream(core.jetstream, timeout_seconds=0.1)
    async with core.publisher(address, impatient, patience_seconds=0.5) as publisher:
        async with stopped(nats_server):
            waiting = [await publisher.enqueue(chunk(number)) for number in range(3)]
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 3
        for late in (publisher.publish(b"no"), publisher.publish_marked(END), publisher.flush()):
            with pytest.raises(StoreUnavailable):
                await late
    # The chunk that was tried may have been stored late, as its outcome was unknown; nothing behind it was.
    assert await core.bodies(address) in ([], chunks(1))


# -- callers that go away -----------------------------------------------------------------------------------------


async def test_a_cancelled_caller_does_not_harm_the_writer(core: Core, nats_server: NatsServer) -> None:
    """Cancelled while its chunk is in flight or queued, a caller leaves it behind, and the next goes on."""
    address = core.address()
    counting = FaultyJetStream(core.jetstream)
    async with core.publisher(address, counting) as publisher:
        async with paused(nats_server):
            calls = [asyncio.create_task(publisher.publish(chunk(number))) for number in range(3)]
            await wait_until(lambda: counting.writes)
            for call in calls:
                call.cancel()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        await publisher.publish(chunk(3))
    assert await core.bodies(address) == chunks(4)


async def test_leaving_fails_who_still_waits(core: Core, nats_server: NatsServer) -> None:
    """A writer that is left drops what is queued, and each of its callers hears it, also who waits for room."""
    async with stopped(nats_server):
        async with core.publisher(core.address(), writer_queue_chunks=2) as publisher:
            calls = [asyncio.create_task(publisher.publish(chunk(number))) for number in range(4)]
            await turns()
        async with asyncio.timeout(5):
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Fenced] * 4


# -- bounds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", [{"writer_queue_chunks": 4}, {"writer_queue_bytes": 2**20}])
async def test_a_full_queue_makes_callers_wait(core: Core, nats_server: NatsServer, bounds: dict[str, Any]) -> None:
    """While the server is away four chunks are queued, the fifth waits, and goes on when the server is back."""
    address = core.address()
    bodies = [chunk(number, size=2**18) for number in range(6)]
    counting = FaultyJetStream(core.jetstream, timeout_seconds=0.1)
    async with core.publisher(address, counting, **bounds) as publisher:
        async with stopped(nats_server):
            queued = [await publisher.enqueue(body) for body in bodies[:4]]
            more = [asyncio.create_task(publisher.enqueue(body)) for body in bodies[4:]]
            await wait_until(lambda: counting.writes >= 3)
            assert not any(each.done() for each in more)
            assert not any(each.done() for each in queued)
        queued += await asyncio.gather(*more)
        await asyncio.gather(*queued)
    assert await core.bodies(address) == bodies


async def test_a_full_store_fails_at_once(core: Core, small_shard: LogAddress) -> None:
    """A chunk that the stream has no room for is refused without a retry, and so is all behind it; an ending is not."""
    counting = FaultyJetStream(core.jetstream)
    async with core.publisher(small_shard, counting) as publisher:
        await publisher.publish(chunk(0, size=50_000))
        waiting = [await publisher.enqueue(body) for body in (chunk(1, size=50_000), b"small", b"small")]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [StoreFull] * 3
        assert counting.writes == 2
        assert counting.times_full == 1
        with pytest.raises(StoreFull):
            await publisher.publish(b"small")
        with pytest.raises(StoreFull):
            await publisher.flush()
        assert isinstance(publisher.failure, StoreFull)
        await publisher.publish_together(TELLING, stop_reason="error")
        await publisher.publish_marked(END)
    assert await core.bodies(small_shard) == [chunk(0, size=50_000), *(write.body for write in TELLING), b""]


async def test_nobody_slips_in_behind_a_refused_chunk(core: Core, small_shard: LogAddress) -> None:
    """Callers that wait for room when a chunk is refused are refused with it: theirs would leave a hole."""
    bodies = [chunk(0, size=50_000), chunk(1, size=50_000), b"small", b"small"]
    async with core.publisher(small_shard, writer_queue_chunks=1) as publisher:
        calls = [asyncio.create_task(publisher.publish(body)) for body in bodies]
        outcomes: Sequence[int | BaseException] = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [int, StoreFull, StoreFull, StoreFull]
    assert await core.bodies(small_shard) == bodies[:1]


@pytest.mark.parametrize("room", [2, 1024])
async def test_a_run_that_is_too_long_can_still_end(core: Core, small_shard: LogAddress, room: int) -> None:
    """Near the limit of messages a run may have, chunks are refused while the ending has its room."""
    long_run = core.publisher(small_shard, max_run_messages=SMALL_RUN_MESSAGES, writer_queue_chunks=room)
    async with long_run as publisher:
        calls = [asyncio.create_task(publisher.publish(chunk(number))) for number in range(40)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        taken = SMALL_RUN_MESSAGES - ENDING_ROOM_MESSAGES
        assert [type(outcome) for outcome in outcomes] == [int] * taken + [RunTooLong] * (40 - taken)
        await publisher.publish_together(TELLING, stop_reason="error")
        await publisher.publish_marked(END)
    assert await core.bodies(small_shard) == [*chunks(taken), *(write.body for write in TELLING), b""]


async def test_a_defect_of_the_writer_reaches_its_callers(core: Core) -> None:
    """If sending itself is broken, nobody waits for ever: callers are told, and so are those who come later."""
    address = core.address()

    def broken() -> None:
        raise ZeroDivisionError("a defect, by a test")

    outcomes: list[object] = []

    async def story() -> None:
        faulty = FaultyJetStream(core.jetstream, before=broken)
        async with core.publisher(address, faulty, writer_queue_chunks=2) as publisher:
            calls = [asyncio.create_task(publisher.publish(chunk(number))) for number in range(4)]
            outcomes.extend(await asyncio.gather(*calls, return_exceptions=True))
            for late in (publisher.publish(b"no"), publisher.publish_marked(END), publisher.flush()):
                outcomes.extend(await asyncio.gather(late, return_exceptions=True))

    with capture_logs() as logs:
        async with asyncio.timeout(5):
            await story()
    assert [str(line["exc_info"]) for line in logs if line["event"] == "task_crashed"] == ["a defect, by a test"]
    assert [type(outcome) for outcome in outcomes] == [BrokerError] * 7
    assert all("a defect, by a test" in str(outcome) for outcome in outcomes)
    assert await core.bodies(address) == []


async def test_writers_do_not_wait_for_each_other(core: Core) -> None:
    """Many runs are written at one time, each in order."""
    addresses = [core.address() for _ in range(50)]

    async def write(address: LogAddress) -> None:
        async with core.publisher(address) as publisher:
            await publish_all(publisher, 20)

    await asyncio.gather(*(write(address) for address in addresses))
    logs = await asyncio.gather(*(core.bodies(address) for address in addresses))
    assert logs == list(itertools.repeat(chunks(20), 50))


async def test_endings_take_turns(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few of many are on their way at a time: a busy server would get none of them done in a request's time."""
    request = core.connection.request
    on_their_way, most = 0, 0

    async def counting(subject: str, body: bytes, **options: Any) -> Message:
        nonlocal on_their_way, most
        on_their_way += 1
        most = max(most, on_their_way)
        try:
            return await request(subject, body, **options)
        finally:
            on_their_way -= 1

    monkeypatch.setattr(core.connection, "request", counting)
    logs = [core.address() for _ in range(5 * BATCHES_AT_A_TIME)]

    async def tell(address: LogAddress) -> None:
        async with core.publisher(address) as publisher:
            await publisher.publish_together(TELLING, stop_reason="end_turn")

    await asyncio.gather(*(tell(address) for address in logs))
    assert most == BATCHES_AT_A_TIME
    assert [await core.bodies(address) for address in logs] == [[write.body for write in TELLING]] * len(logs)


@measured_again
async def test_who_waits_for_a_turn_waits_no_longer_than_for_an_answer(core: Core, nats_server: NatsServer) -> None:
    """While NATS is silent every ending hears so in the time of a request, however many there are."""
    seconds = 0.4
    jetstream = JetStream(core.connection, timeout_seconds=seconds)
    writes = [BatchWrite(core.address().subject, b"", {}) for _ in range(2)]
    async with paused(nats_server):
        began = time.monotonic()
        told = await asyncio.gather(
            *(jetstream.publish_batch(writes, f"batch-{n}") for n in range(5 * BATCHES_AT_A_TIME)),
            return_exceptions=True,
        )
        took = time.monotonic() - began
    assert {type(error) for error in told} == {Unavailable, NotSent}
    check_timely(took < 2 * seconds, took)
