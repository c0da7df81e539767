"""Catch-up: all that follows a cursor, in order, without a hole, and nothing left behind on the server."""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any

import pytest

from runstream.broker.errors import CursorExpired, Unavailable
from runstream.broker.headers import Headers
from runstream.broker.jetstream import DIRECT_GET_BATCH, JetStream
from runstream.broker.log import KIND, WRITER, Entry, writer_header
from runstream.broker.messages import StoredMessage
from runstream.broker.publisher import chunk_limit
from runstream.broker.reader import LogReader
from runstream.broker.receiving import Heard
from runstream.broker.topology import LogAddress
from runstream.schemas import Kind
from tests.support.core import Core, chunk
from tests.support.nats import NatsServer
from tests.support.outages import stopped


def reader(core: Core, **settings: object) -> LogReader:
    return LogReader(core.jetstream, core.settings.model_copy(update=settings))


async def read(
    core: Core, address: LogAddress, after: int, until: int, *, after_index: int | None = None, **settings: object
) -> list[Entry]:
    """Everything that a read yields."""
    async with aclosing(reader(core, **settings).read(address, after, until, after_index=after_index)) as batches:
        return [entry async for entries in batches for entry in entries]


class Saboteur:
    """Sees every request that leaves on a connection, and cancels a task at a chosen one."""

    def __init__(self, core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self._moment = 0
        self._victim: asyncio.Task[list[Entry]] | None = None
        for name in ("publish", "request", "subscribe", "listen"):
            monkeypatch.setattr(core.connection, name, self._watched(getattr(core.connection, name)))

    async def cancelled(self, reading: Coroutine[None, None, list[Entry]], moment: int) -> list[Entry] | None:
        """Run a read and cancel it at its `moment`th request; what it read if it has fewer, else None."""
        self.asked.clear()
        self._moment = moment
        self._victim = asyncio.create_task(reading)
        await asyncio.wait([self._victim])
        return None if self._victim.cancelled() else self._victim.result()

    def _watched(self, ask: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
        async def asking(subject: str, *args: Any, **options: Any) -> object:
            self.asked.append(subject)
            if len(self.asked) == self._moment and self._victim is not None:
                asyncio.get_running_loop().call_soon(self._victim.cancel)
            return await ask(subject, *args, **options)

        return asking


# -- whole logs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, DIRECT_GET_BATCH, DIRECT_GET_BATCH + 1, 600, 5000])
async def test_a_log_of_any_length_is_read_whole(core: Core, length: int) -> None:
    """From 0 to the tip comes every entry once, in order, as it was stored; no consumer is left."""
    address = core.address()
    log = (await core.fill([address] * length))[address]
    assert await read(core, address, 0, log[-1].seq) == log
    await core.no_consumers()


@pytest.mark.parametrize("length", [3, 300, 1300])
async def test_every_kind_of_cursor(core: Core, length: int) -> None:
    """Below the log, at its first message, inside, at another run's message, before the tip: what follows, comes."""
    address, other = core.address(), core.address()
    logs = await core.fill([address, other] * length)
    log = logs[address]
    tip, middle = log[-1], log[length // 2]
    for cursor in (0, 1, log[0].seq - 1, log[0].seq, middle.seq, logs[other][length // 2].seq, log[-2].seq):
        expected = [entry for entry in log if entry.seq > cursor]
        assert await read(core, address, cursor, tip.seq) == expected
    assert await read(core, address, tip.seq, tip.seq) == []
    assert await read(core, address, middle.seq, tip.seq, after_index=middle.index) == log[length // 2 + 1 :]
    assert await read(core, address, 0, tip.seq, after_index=-1) == log
    await core.no_consumers()


async def test_a_read_up_to_the_middle_gets_there(core: Core) -> None:
    """`until` bounds what must come: the read reaches it, in order, and may go beyond."""
    address = core.address()
    log = (await core.fill([address] * 700))[address]
    for until in (log[0], log[255], log[256], log[400], log[699]):
        found = await read(core, address, 0, until.seq)
        assert found == log[: len(found)]
        assert found[-1].seq >= until.seq


async def test_many_runs_are_read_at_the_same_time(core: Core) -> None:
    """Thirty readers on one connection, of logs that are mixed in one stream, get each their own."""
    addresses = [core.address() for _ in range(30)]
    logs = await core.fill(addresses * 400)
    slots = reader(core, concurrent_catchups=4)

    async def whole(address: LogAddress) -> list[Entry]:
        async with aclosing(slots.read(address, 0, logs[address][-1].seq)) as batches:
            return [entry async for entries in batches for entry in entries]

    found = await asyncio.gather(*(whole(address) for address in addresses))
    assert found == [logs[address] for address in addresses]
    await core.no_consumers()


@pytest.mark.parametrize("count", [1, 2, 9])
async def test_chunks_larger_than_a_batch(core: Core, count: int) -> None:
    """Chunks of a mebibyte, each larger than a batch may be, are read nevertheless, from every cursor."""
    address = core.address()
    largest = chunk_limit(core.connection.max_payload) - 1024
    bodies = [chunk(number, size=largest) for number in range(count)]
    seqs = await core.write(address, bodies)
    for start, cursor in enumerate([0, *seqs[:-1]]):
        found = await read(core, address, cursor, seqs[-1], catchup_bytes=2**16)
        assert [entry.body for entry in found] == bodies[start:]
    await core.no_consumers()


async def test_large_and_small_chunks_mixed(core: Core) -> None:
    """Sizes from nothing to the largest, in any order, come as they were stored, whatever a batch may hold."""
    address = core.address()
    largest = chunk_limit(core.connection.max_payload)
    sizes = [random.choice([0, 20, 300, 5000, 70_000, 300_000, largest]) for _ in range(60)] + [0] * 300
    bodies = [chunk(number, size=size) for number, size in enumerate(sizes)]
    seqs = await core.write(address, bodies)
    for catchup_bytes in (2**10, 2**18, 2**20):
        found = await read(core, address, 0, seqs[-1], catchup_bytes=catchup_bytes)
        assert [entry.body for entry in found] == bodies
    await core.no_consumers()


async def test_small_slots_read_whole_logs(core: Core) -> None:
    """A log is complete also when each read of it takes few chunks, or few bytes."""
    address = core.address()
    log = (await core.fill([address] * 1500))[address]
    assert await read(core, address, 0, log[-1].seq, catchup_chunks=100) == log
    assert await read(core, address, 0, log[-1].seq, catchup_bytes=2**10) == log


# -- leaving ------------------------------------------------------------------------------------------------------


async def test_a_read_left_early_leaves_nothing(core: Core) -> None:
    """Closed after any of its batches, a read leaves no consumer, no subscription, and its slot to the next."""
    address = core.address()
    log = (await core.fill([address] * 3000))[address]
    await core.jetstream.direct_batch(address.stream, address.subject, after=0, limit=1)
    held = len(core.connection._subscriptions)
    one = reader(core, concurrent_catchups=1, catchup_chunks=500)
    for batches_taken in (1, 2, 3):
        async with aclosing(one.read(address, 0, log[-1].seq)) as batches:
            for _ in range(batches_taken):
                assert await anext(batches)
    assert len(core.connection._subscriptions) == held
    await core.no_consumers()
    async with asyncio.timeout(5), aclosing(one.read(address, 0, log[-1].seq)) as batches:
        assert [entry async for entries in batches for entry in entries] == log


async def test_a_cancelled_read_leaves_nothing(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled at whichever request, a read leaves no consumer and no subscription."""
    address = core.address()
    log = (await core.fill([address] * 1000))[address]
    await core.jetstream.direct_batch(address.stream, address.subject, after=0, limit=1)
    held = len(core.connection._subscriptions)
    # A deletion that is sent on the heels of the creation may overtake it: then the idle threshold does it.
    monkeypatch.setattr("runstream.broker.jetstream.CONSUMER_IDLE_SECONDS", 1.0)
    saboteur = Saboteur(core, monkeypatch)
    last = await core.reader.newest_sequence(address)
    for cancel_at in itertools.count(1):
        found = await saboteur.cancelled(read(core, address, 0, last, catchup_chunks=300), cancel_at)
        if found is not None:
            break
    assert any("CONSUMER.CREATE" in subject for subject in saboteur.asked)
    assert cancel_at > len(saboteur.asked) >= 7
    assert found == log
    assert len(core.connection._subscriptions) == held
    await core.no_consumers()


# -- retention ----------------------------------------------------------------------------------------------------


async def test_retention_that_overtakes_a_read_is_said(core: Core) -> None:
    """Messages that are removed in front of a reader are a `CursorExpired`, after the entries before the hole."""
    address = core.address()
    log = (await core.fill([address] * 3000))[address]
    found: list[Entry] = []
    async with aclosing(reader(core, catchup_chunks=400).read(address, 0, log[-1].seq)) as batches:
        found += await anext(batches)
        found += await anext(batches)
        await core.purge_before(address, log[2000].seq)
        with pytest.raises(CursorExpired):
            await anext(batches)
    assert found == log[:656]
    await core.no_consumers()


@pytest.mark.parametrize("after", [-1, 0, 9, 400])
async def test_a_hole_right_after_the_cursor_is_said(core: Core, after: int) -> None:
    """A reader that knows its index notices that what followed it directly is gone, the beginning too."""
    address = core.address()
    log = (await core.fill([address] * 1000))[address]
    await core.purge_before(address, log[after + 2].seq)
    cursor = log[after].seq if after >= 0 else 0
    with pytest.raises(CursorExpired):
        await read(core, address, cursor, log[-1].seq, after_index=after)


async def test_what_follows_a_purge_is_read(core: Core) -> None:
    """Retention that removed only what the reader has already is none of its concern."""
    address = core.address()
    log = (await core.fill([address] * 1000))[address]
    await core.purge_before(address, log[500].seq)
    assert await read(core, address, log[499].seq, log[-1].seq, after_index=499) == log[500:]


async def test_a_log_that_is_gone_is_said(core: Core) -> None:
    """When the whole log has been removed, the reader hears it, and does not wait for it to come back."""
    address = core.address()
    log = (await core.fill([address] * 300))[address]
    await core.purge(address)
    async with asyncio.timeout(5):
        with pytest.raises(CursorExpired):
            await read(core, address, log[10].seq, log[-1].seq)
        with pytest.raises(CursorExpired):
            await read(core, address, 0, log[-1].seq, after_index=-1)


async def test_a_log_that_goes_during_the_read_is_said(core: Core) -> None:
    """When all the rest is removed while the reader has its first batch, it hears it."""
    address = core.address()
    log = (await core.fill([address] * 1000))[address]
    async with asyncio.timeout(5), aclosing(core.reader.read(address, 0, log[-1].seq)) as batches:
        assert await anext(batches) == log[:256]
        await core.purge(address)
        with pytest.raises(CursorExpired):
            await anext(batches)


# -- outages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_batches", [1, 2, 4])
async def test_a_server_killed_during_a_read(core: Core, nats_server: NatsServer, after_batches: int) -> None:
    """A read goes on where it was when the server is back: every entry once, in order."""
    address = core.address()
    log = (await core.fill([address] * 4000))[address]
    found: list[Entry] = []
    async with aclosing(reader(core, catchup_chunks=500).read(address, 0, log[-1].seq)) as batches:
        for taken in itertools.count(1):
            entries = await anext(batches, None)
            if entries is None:
                break
            found += entries
            if taken == after_batches:
                await nats_server.kill()
    assert found == log
    # A consumer whose deletion was lost with the server lived in its memory, and went with it.
    await core.no_consumers()


async def test_patience_ends(core: Core, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader whose server stays away longer than its patience gives up."""
    address = core.address()
    log = (await core.fill([address] * 10))[address]
    async with stopped(nats_server):
        monkeypatch.setattr(core.jetstream, "_seconds", 0.1)
        with pytest.raises(Unavailable):
            await read(core, address, 0, log[-1].seq, read_patience_seconds=0.3)
        monkeypatch.undo()
    assert await read(core, address, 0, log[-1].seq) == log


async def test_lost_answers_are_asked_for_again(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that get lost on the way, anywhere in a batch, are no hole: the read repeats what it lacks."""
    address = core.address()
    log = (await core.fill([address] * 2000))[address]
    jetstream = core.jetstream
    take = jetstream.next_answer
    lost = 0

    async def losing(queue: asyncio.Queue[object], what: str) -> object:
        nonlocal lost
        if random.random() < 0.001:
            lost += 1
            await take(queue, what)  # type: ignore[arg-type]
        return await take(queue, what)  # type: ignore[arg-type]

    monkeypatch.setattr(jetstream, "_seconds", 0.2)
    monkeypatch.setattr(jetstream, "next_answer", losing)
    async with asyncio.timeout(30):
        while lost < 5:
            assert await read(core, address, 0, log[-1].seq, catchup_chunks=300) == log
    await core.no_consumers()


# -- small questions ----------------------------------------------------------------------------------------------


async def test_the_first_entry(core: Core) -> None:
    """The oldest entry left, None for a log without messages."""
    address = core.address()
    assert await core.reader.first(address) is None
    log = (await core.fill([address] * 5))[address]
    assert await core.reader.first(address) == log[0]
    await core.purge_before(address, log[3].seq)
    assert await core.reader.first(address) == log[3]


async def test_which_entry_is_at_a_sequence(core: Core) -> None:
    """Its index; that of no entry of this log, as long as anything is there; until retention has come past it."""
    address, other = core.address(), core.address()
    logs = await core.fill([address, other] * 5)
    for entry in logs[address]:
        assert await core.reader.index_at(address, entry.seq) == entry.index
    for entry in logs[other]:
        assert await core.reader.index_at(address, entry.seq) is None
    await core.purge_before(address, logs[other][2].seq)
    with pytest.raises(CursorExpired):
        await core.reader.index_at(address, logs[address][2].seq)
    assert await core.reader.index_at(address, logs[other][2].seq) is None
    assert await core.reader.index_at(address, logs[address][3].seq) == 3


async def test_the_newest_sequence(core: Core) -> None:
    """The last sequence the stream has issued, to whichever run."""
    address, other = core.address(), core.address()
    logs = await core.fill([address, other])
    assert await core.reader.newest_sequence(address) == logs[other][-1].seq
    await core.purge(other)
    assert await core.reader.newest_sequence(address) == logs[other][-1].seq


# -- a cursor near the tip ----------------------------------------------------------------------------------------


def evenly(a: LogAddress, b: LogAddress) -> list[LogAddress]:
    return [a, b, b] * 1500


def in_a_burst_at_the_end(a: LogAddress, b: LogAddress) -> list[LogAddress]:
    return [a] + [b] * 3000 + [a] * 1500


def in_a_burst_at_the_beginning(a: LogAddress, b: LogAddress) -> list[LogAddress]:
    return [a] * 1500 + [b] * 3000 + [a]


def in_bursts(a: LogAddress, b: LogAddress) -> list[LogAddress]:
    return ([a] * 150 + [b] * 450) * 8


def ever_faster(a: LogAddress, b: LogAddress) -> list[LogAddress]:
    return [each for gap in range(80, -1, -1) for each in [*[b] * gap, *[a] * (80 - gap)]]


def alone(a: LogAddress, b: LogAddress) -> list[LogAddress]:
    return [b, *[a] * 2000]


PLANS = [evenly, in_a_burst_at_the_end, in_a_burst_at_the_beginning, in_bursts, ever_faster, alone]


@pytest.mark.parametrize("plan", PLANS)
async def test_a_cursor_before_the_tip(
    core: Core, plan: Callable[[LogAddress, LogAddress], Sequence[LogAddress]]
) -> None:
    """However a run lies among others, the cursor has at least one and at most twice as many entries behind it."""
    address, other = core.address(), core.address()
    log = (await core.fill(plan(address, other)))[address]
    for count in (1, 10, 256, 1000):
        cursor = await core.reader.cursor_before(address, log[-1], log[0].seq, count, most_sequences=log[-1].seq)
        behind = [entry for entry in log if entry.seq > cursor]
        assert 1 <= len(behind) <= 2 * count
        assert cursor >= log[0].seq
    if plan is evenly:
        assert len(behind) == pytest.approx(1000, rel=0.1)


@pytest.mark.parametrize("length", [2, 3, 10])
async def test_a_cursor_before_the_tip_of_a_short_run(core: Core, length: int) -> None:
    """A run with fewer entries than are asked for has a cursor with all of them but the first behind it."""
    address = core.address()
    log = (await core.fill([address] * length))[address]
    cursor = await core.reader.cursor_before(address, log[-1], log[0].seq, 10, most_sequences=100)
    assert cursor == log[0].seq


async def test_a_cursor_before_the_tip_of_a_run_that_is_far_spread(core: Core) -> None:
    """Where a run's entries are rare in their stream, no more of that is gone back than may be."""
    address, other = core.address(), core.address()
    log = (await core.fill([*[address, *[other] * 50] * 20, address]))[address]
    cursor = await core.reader.cursor_before(address, log[-1], log[0].seq, 10, most_sequences=120)
    assert cursor == log[-1].seq - 120


async def test_a_batch_says_how_many_follow(core: Core) -> None:
    """`pending` counts the messages of the run behind each one."""
    address, other = core.address(), core.address()
    await core.fill([address, other] * 20)
    found: list[StoredMessage] = await core.jetstream.direct_batch(address.stream, address.subject, after=0, limit=5)
    assert [message.pending for message in found] == [19, 18, 17, 16, 15]
    assert all(message.headers["Rs-Kind"] == Kind.DATA for message in found)


@pytest.mark.parametrize("plan", PLANS)
async def test_a_cursor_at_an_entry(
    core: Core, plan: Callable[[LogAddress, LogAddress], Sequence[LogAddress]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However a run lies among others, the cursor is right before the entry, and is found in few requests."""
    address, other = core.address(), core.address()
    log = (await core.fill(plan(address, other)))[address]
    first_message = core.jetstream.first_message
    asked = 0

    async def counted(stream: str, subject: str, *, seq: int = 0) -> StoredMessage | None:
        nonlocal asked
        asked += 1
        return await first_message(stream, subject, seq=seq)

    monkeypatch.setattr(core.jetstream, "first_message", counted)
    for entry in [*random.sample(log, 20), log[0], log[-1]]:
        asked = 0
        cursor = await core.reader.cursor_at(address, entry.index, log[-1])
        assert max((each.seq for each in log if each.seq < entry.seq), default=0) <= cursor < entry.seq
        assert asked <= 30


async def test_a_cursor_at_an_entry_that_is_gone(core: Core) -> None:
    """Retention has removed it: that is said, and not guessed at."""
    address = core.address()
    log = (await core.fill([address] * 20))[address]
    await core.purge_before(address, log[5].seq)
    assert await core.reader.cursor_at(address, 5, log[-1]) == log[5].seq - 1
    with pytest.raises(CursorExpired):
        await core.reader.cursor_at(address, 4, log[-1])


@pytest.mark.parametrize("said", ["Server Shutdown", "Leadership Change", "Consumer Deleted"])
async def test_a_page_that_a_server_breaks_off_is_not_taken_for_whole(core: Core, said: str) -> None:
    """It has the same status as a page that is full: what it did not bring is there all the same."""
    jetstream = Breaking(core, said)
    address = core.address()
    await core.fill([address] * 20)
    with pytest.raises(Unavailable, match=said):
        await jetstream.consume(address.stream, address.subject, after=0, limit=100, max_bytes=2**20)
    whole = await core.jetstream.consume(address.stream, address.subject, after=0, limit=100, max_bytes=2**20)
    assert len(whole) == 20
    assert len(await core.jetstream.consume(address.stream, address.subject, after=0, limit=100, max_bytes=500)) < 20


class Breaking(JetStream):
    """JetStream whose server breaks off what is pulled after ten messages, and says why."""

    def __init__(self, core: Core, said: str) -> None:
        super().__init__(core.connection, timeout_seconds=2)
        self._said = said
        self._answers = 0

    async def next_answer(self, queue: Any, what: str, *, seconds: float | None = None) -> Any:
        self._answers += 1
        if self._answers > 10:
            inbox = next(each.subject for each in self.connection._subscriptions if each.subject.startswith("_INBOX"))
            return Heard(inbox, "", b"", Headers(f"NATS/1.0 409 {self._said}\r\n\r\n".encode()))
        return await super().next_answer(queue, what, seconds=seconds)


STATUS_LINES = [b"404 No Messages", b"409 Batch Completed", b"204 EOB", b"503", b"100 Idle Heartbeat", b"", b" 1"]


@pytest.mark.parametrize("before", [100, 400], ids=["by direct get", "by consumer"])
@pytest.mark.parametrize(
    "head",
    [
        *(b"NATS/1.0 %b\r\n\r\n" % line for line in STATUS_LINES),
        b"NATS/1.0\r\nStatus: 404\r\n\r\n",
        b"NATS/1.0 1\r\n\xff: x\r\nNats-Last-Sequence: x\r\nNats-Subject: x\r\n\r\n",
        b"NATS/1.0\r\nA: b",
        b"NATS/1.0",
    ],
)
async def test_nobody_ends_a_read_in_the_servers_name(core: Core, before: int, head: bytes) -> None:
    """Who may publish to a run's subject writes above it what he likes: it is passed over, as all that is no entry."""
    address = core.address()
    log = (await core.fill([address] * before))[address]
    transport = core.connection._client._transport
    assert transport is not None
    transport.write(b"HPUB %b %d %d\r\n%b{}\r\n" % (address.subject.encode(), len(head), len(head) + 2, head))
    for number in range(before, before + 200):
        headers = {KIND: Kind.DATA, WRITER: writer_header("test", number)}
        seq = await core.jetstream.publish(address.subject, chunk(number), headers)
        log.append(Entry(seq, Kind.DATA, chunk(number), number))
    assert log[-1].seq - log[0].seq == len(log), "the server has not stored it"
    async with asyncio.timeout(10):
        assert await read(core, address, 0, log[-1].seq) == log
    assert not core.connection.reconnects
