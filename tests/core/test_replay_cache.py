"""What was read of a log for one follower is there for the next: all of it, read once, within its bound."""

import asyncio
import random
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from runstream.broker.errors import CursorExpired, Unavailable
from runstream.broker.jetstream import DIRECT_GET_BATCH
from runstream.broker.log import Entry
from runstream.broker.publisher import Write
from runstream.broker.reader import Batch, LogReader
from runstream.broker.tasks import cancel_all
from runstream.broker.topology import LogAddress
from runstream.gateway.framing import FRAMINGS, Framing, framing_of
from runstream.gateway.replay_cache import AHEAD_BYTES, MOST_AHEAD, NEAR_SEQUENCES, ReplayCache, Wanted
from runstream.gateway.sse import Style
from runstream.schemas import Kind
from tests.support.core import END, Core, chunk
from tests.support.nats import NatsServer
from tests.support.outages import stopped
from tests.support.standstill import check_timely, measured_again
from tests.support.waiting import wait_until

LETTA = framing_of(Style.BACKGROUND, include_pings=True, is_chunked=True)
BOUND = 64 * 2**20


class Reader(LogReader):
    """A reader that waits where it is told to, and notes where it began."""

    def __init__(self, core: Core, **settings: object) -> None:
        super().__init__(core.jetstream, core.settings.model_copy(update=settings))
        self.begun: list[int] = []
        self.failures = 0
        """How many of the next reads fail."""
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def batch(self, address: LogAddress, after: int, *args: Any, **options: Any) -> Batch:
        self.begun.append(after)
        if self.failures:
            self.failures -= 1
            raise Unavailable("It is away.")
        batch = await super().batch(address, after, *args, **options)
        await self.may_go_on.wait()
        return batch


class Counting(ReplayCache):
    """A cache that counts what is read for it."""

    def __init__(self, reader: Reader, max_bytes: int = BOUND) -> None:
        super().__init__(reader, max_bytes, on_read=self._count)
        self.reader = reader
        self.read = 0

    def _count(self, entries: int) -> None:
        self.read += entries

    async def rest(
        self, address: LogAddress, until: int, cursor: int = 0, *, framing: Framing = LETTA, index: int | None = None
    ) -> bytes:
        """All that follows a cursor, block by block, as a follower takes it."""
        data, following, index = b"", None, -1 if cursor == 0 else index
        while cursor < until:
            block = await self.block(Wanted(address, framing, cursor, index, following, until))
            piece = block.piece(cursor, index)
            assert piece.seq > cursor
            data, cursor, index, following = data + piece.data, piece.seq, piece.at_index, piece.following
        return data


def framed(log: Sequence[Entry], cursor: int = 0, framing: Framing = LETTA) -> bytes:
    return b"".join(framing.frame(entry) for entry in log if entry.seq > cursor)


async def held(cache: ReplayCache, address: LogAddress, until: int) -> bool:
    """Whether all of a log is kept, which costs no read to find out."""
    before = len(cache.reader.begun)  # type: ignore[attr-defined]
    await cache.rest(address, until)  # type: ignore[attr-defined]
    return len(cache.reader.begun) == before  # type: ignore[attr-defined]


# -- sharing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_bytes", [BOUND, 0])
async def test_many_who_read_at_once_read_once(core: Core, max_bytes: int) -> None:
    """Fifty followers of a log of five thousand chunks cost as many reads as one, also where nothing is kept."""
    address = core.address()
    log = (await core.fill([address] * 5000))[address]
    cache = Counting(Reader(core), max_bytes)
    found = await asyncio.gather(*(cache.rest(address, log[-1].seq) for _ in range(50)))
    assert set(found) == {framed(log)}
    assert cache.read == len(log)
    assert (cache.bytes > 0) == (max_bytes > 0)
    await core.no_consumers()


async def test_who_comes_later_reads_nothing(core: Core) -> None:
    """From the beginning, or from any cursor, once somebody has read all of it; an index that is known is no matter."""
    address, other = core.address(), core.address()
    log = (await core.fill([address, other] * 1500))[address]
    cache = Counting(Reader(core))
    assert await cache.rest(address, log[-1].seq) == framed(log)
    assert cache.read == len(log)
    for at in [0, 1, 255, 256, 257, 1000, len(log) - 2]:
        cursor = log[at].seq
        for index in (None, at):
            assert await cache.rest(address, log[-1].seq, cursor, index=index) == framed(log, cursor)
        assert await cache.rest(address, log[-1].seq, cursor + 1) == framed(log, cursor + 1)
    assert cache.read == len(log)


@pytest.mark.parametrize("max_bytes", [BOUND, 0])
@pytest.mark.parametrize(("newest", "most"), [(200, 30), (5000, 200)])
async def test_of_many_who_come_with_cursors_of_their_own_few_read(
    core: Core, newest: int, most: int, max_bytes: int
) -> None:
    """Three hundred at once, each at another place of a log's end: each has what follows, and few of them read."""
    address = core.address()
    log = (await core.fill([address] * 6000))[address]
    cache = Counting(Reader(core), max_bytes)
    at = [random.randrange(6000 - newest, 5999) for _ in range(300)]
    found = await asyncio.gather(*(cache.rest(address, log[-1].seq, log[each].seq) for each in at))
    assert found == [framed(log[each + 1 :]) for each in at]
    # Who comes reads if nobody does so from before it: of so many in any order, as often as a new lowest is drawn.
    assert len(cache.reader.begun) < most


async def test_what_is_far_away_is_not_waited_for(core: Core) -> None:
    """A read that begins far before a cursor will not come to it; one that begins behind it holds nobody up either."""
    address, other = core.address(), core.address()
    logs = await core.fill([address, *[other] * (NEAR_SEQUENCES + 10), address, address, address])
    log = logs[address]
    cache = Counting(Reader(core))
    cache.reader.may_go_on.clear()
    first = asyncio.create_task(cache.rest(address, log[-1].seq, log[0].seq, index=0))
    last = asyncio.create_task(cache.rest(address, log[-1].seq, log[-2].seq, index=2))
    await wait_until(lambda: len(cache.reader.begun) == 2)
    between = asyncio.create_task(cache.rest(address, log[-1].seq, log[1].seq, index=1))
    await wait_until(lambda: len(cache.reader.begun) == 3)
    cache.reader.may_go_on.set()
    assert list(await asyncio.gather(first, between, last)) == [framed(log[at:]) for at in (1, 2, 3)]


async def test_framings_have_each_their_own(core: Core) -> None:
    """Whoever has a run in another way gets it in that, read for him."""
    address = core.address()
    log = (await core.fill([address] * 400))[address]
    cache = Counting(Reader(core))
    for _ in range(2):
        for framing in FRAMINGS.values():
            assert await cache.rest(address, log[-1].seq, framing=framing) == framed(log, 0, framing)
    assert cache.read == len(FRAMINGS) * len(log)


async def test_an_error_goes_out_with_the_end(core: Core) -> None:
    """letta-client stops reading at a run's error: a block that would end with one ends before it."""
    address = core.address()
    async with core.publisher(address) as publisher:
        for number in range(DIRECT_GET_BATCH - 1):
            await publisher.publish(chunk(number))
        await publisher.publish_marked(Write(Kind.ERROR, b'{"message_type":"error_message"}'))
        tip = await publisher.publish_marked(END)
    cache = Counting(Reader(core))
    first = (await cache.block(Wanted(address, LETTA, 0, -1, None, tip))).piece(0, -1)
    assert first.entries == DIRECT_GET_BATCH - 1
    rest = await cache.block(Wanted(address, LETTA, first.seq, first.at_index, None, tip))
    assert rest.piece(first.seq, first.at_index)[1:] == (tip, DIRECT_GET_BATCH, Kind.END, tip - 1, 2, 0)


# -- bounds -------------------------------------------------------------------------------------------------------


async def test_what_is_kept_is_bounded(core: Core) -> None:
    """Of many logs, large chunks and small, as much is kept as may be, and each is read whole all the same."""
    addresses = [core.address() for _ in range(12)]
    logs = await core.fill(addresses * 300)
    whole = Counting(Reader(core))
    await whole.rest(addresses[0], logs[addresses[0]][-1].seq)
    bound = 5 * whole.bytes
    cache = Counting(Reader(core), bound)
    for address in random.choices(addresses, k=60):
        log = logs[address]
        at = random.randrange(len(log) - 1)
        assert await cache.rest(address, log[-1].seq, log[at].seq) == framed(log[at + 1 :])
        assert 0 <= cache.bytes <= bound
    assert cache.bytes > bound / 2


async def test_what_was_used_last_stays(core: Core) -> None:
    """Room is made by letting go of what nobody has asked for the longest."""
    addresses = [core.address() for _ in range(4)]
    logs = await core.fill(addresses * 300)
    tips = {address: log[-1].seq for address, log in logs.items()}
    one = Counting(Reader(core))
    await one.rest(addresses[0], tips[addresses[0]])
    cache = Counting(Reader(core), int(3.5 * one.bytes))
    for address in addresses[:3]:
        await cache.rest(address, tips[address])
    assert await held(cache, addresses[0], tips[addresses[0]])
    await cache.rest(addresses[3], tips[addresses[3]])
    assert await held(cache, addresses[0], tips[addresses[0]])
    assert await held(cache, addresses[3], tips[addresses[3]])
    assert not await held(cache, addresses[1], tips[addresses[1]])


async def test_a_chunk_larger_than_the_bound_is_served_and_not_kept(core: Core) -> None:
    """A bound is one of what is kept, and not of what can be read."""
    address = core.address()
    seqs = await core.write(address, [chunk(number, size=300_000) for number in range(3)])
    cache = Counting(Reader(core), 100_000)
    assert (await cache.rest(address, seqs[-1])).count(b'"n":') == 3
    assert cache.bytes == 0


# -- leaving ------------------------------------------------------------------------------------------------------


async def test_who_leaves_takes_nothing_from_others(core: Core) -> None:
    """Those who wait for the same read have it, whoever of them began it."""
    address = core.address()
    log = (await core.fill([address] * 100))[address]
    cache = Counting(Reader(core))
    cache.reader.may_go_on.clear()
    waiting = [asyncio.create_task(cache.rest(address, log[-1].seq)) for _ in range(5)]
    await wait_until(lambda: len(cache.reader.begun) == 1)
    for task in waiting[:4]:
        task.cancel()
    await asyncio.wait(waiting[:4])
    cache.reader.may_go_on.set()
    assert await waiting[4] == framed(log)
    assert len(cache.reader.begun) == 1


async def test_a_read_that_nobody_waits_for_is_broken_off(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """When all have left nothing goes on, nothing is kept; who comes then reads for himself."""
    # A deletion that is sent on the heels of the creation may overtake it: then the idle threshold does it.
    monkeypatch.setattr("runstream.broker.jetstream.CONSUMER_IDLE_SECONDS", 1.0)
    address = core.address()
    log = (await core.fill([address] * 3000))[address]
    cache = Counting(Reader(core))
    before = asyncio.all_tasks()
    for _ in range(20):
        waiting = [asyncio.create_task(cache.rest(address, log[-1].seq)) for _ in range(3)]
        begun = len(cache.reader.begun)
        await wait_until(lambda begun=begun: len(cache.reader.begun) > begun)  # type: ignore[misc]  # a default binds
        for _ in range(random.randrange(30)):
            await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        again = asyncio.create_task(cache.rest(address, log[-1].seq))
        await asyncio.wait(waiting)
        assert await again == framed(log)
        cache.clear()
    assert asyncio.all_tasks() == before
    await core.no_consumers()


def beginning(address: LogAddress, until: int) -> Wanted:
    return Wanted(address, LETTA, 0, -1, None, until)


async def test_what_is_read_ahead_is_read_once(core: Core) -> None:
    """Whether it is asked for before it is there or after; and not again as long as it is on its way, or here."""
    address = core.address()
    log = (await core.fill([address] * 100))[address]
    wanted = beginning(address, log[-1].seq)
    for is_there in (True, False):
        cache = Counting(Reader(core))
        task = cache.ahead(wanted, None)
        assert task is not None
        assert cache.ahead(wanted, task) is task
        if is_there:
            await task
            assert cache.ahead(wanted, task) is task
        assert await cache.rest(address, log[-1].seq) == framed(log)
        await task
        assert cache.reader.begun == [0]


@pytest.mark.parametrize("max_bytes", [0, AHEAD_BYTES - 1])
async def test_what_may_not_be_kept_is_not_read_ahead(core: Core, max_bytes: int) -> None:
    """It would be read again when it is asked for."""
    cache = Counting(Reader(core), max_bytes)
    assert cache.ahead(beginning(core.address(), 10), None) is None


async def test_reads_ahead_are_bounded_in_number(core: Core) -> None:
    """However many follow; when one of them is over another may be begun."""
    cache = Counting(Reader(core))
    cache.reader.may_go_on.clear()
    addresses = [core.address() for _ in range(MOST_AHEAD + 1)]
    logs = await core.fill(addresses)
    tasks = [cache.ahead(beginning(address, logs[address][-1].seq), None) for address in addresses]
    *begun, refused = tasks
    assert refused is None
    assert None not in begun
    cache.reader.may_go_on.set()
    await asyncio.gather(*(task for task in begun if task is not None))
    last = cache.ahead(beginning(addresses[-1], logs[addresses[-1]][-1].seq), None)
    assert last is not None
    await last


async def test_what_fails_ahead_is_tried_again_when_it_is_asked_for(core: Core) -> None:
    """Nobody is told before he asks."""
    address = core.address()
    log = (await core.fill([address] * 10))[address]
    cache = Counting(Reader(core))
    cache.reader.failures = 1
    task = cache.ahead(beginning(address, log[-1].seq), None)
    assert task is not None
    await task
    assert cache.reader.begun == [0]
    assert await cache.rest(address, log[-1].seq) == framed(log)


async def test_a_read_ahead_is_broken_off_with_its_task(core: Core) -> None:
    """Who leaves while it goes on has nothing left behind."""
    address = core.address()
    log = (await core.fill([address] * 10))[address]
    cache, before = Counting(Reader(core)), asyncio.all_tasks()
    cache.reader.may_go_on.clear()
    task = cache.ahead(beginning(address, log[-1].seq), None)
    assert task is not None
    await wait_until(lambda: cache.reader.begun == [0])
    await cancel_all(task)
    assert asyncio.all_tasks() == before


async def test_what_fails_fails_for_all_who_wait_and_for_nobody_else(core: Core, nats_server: NatsServer) -> None:
    """Each is told why; the next one tries again."""
    address = core.address()
    log = (await core.fill([address] * 100))[address]
    core.jetstream._seconds = 0.1
    cache = Counting(Reader(core, read_patience_seconds=0.3))
    async with stopped(nats_server):
        found = await asyncio.gather(
            *(cache.rest(address, log[-1].seq) for _ in range(5)),
            cache.rest(address, log[-1].seq, log[50].seq),
            return_exceptions=True,
        )
        assert [type(each) for each in found] == [Unavailable] * 6
    core.jetstream._seconds = 2
    assert await cache.rest(address, log[-1].seq) == framed(log)


@measured_again
async def test_in_an_outage_nobody_waits_for_everybody_elses_patience(core: Core, nats_server: NatsServer) -> None:
    """Of many at cursors near each other each has his own, and somebody's who was there before him, and no more."""
    address = core.address()
    log = (await core.fill([address] * 100))[address]
    patience = 0.5
    core.jetstream._seconds = 0.1
    cache = Counting(Reader(core, read_patience_seconds=patience))
    async with stopped(nats_server):
        begun = time.monotonic()
        found = await asyncio.gather(
            *(cache.rest(address, log[-1].seq, log[at].seq) for at in range(0, 60, 2)), return_exceptions=True
        )
        took = time.monotonic() - begun
        check_timely(took < 5 * patience, took)
    assert {type(each) for each in found} == {Unavailable}


async def test_who_joins_late_has_patience_of_his_own(core: Core, nats_server: NatsServer) -> None:
    """When whoever began to read has lost his, it is read again for those who came later."""
    address = core.address()
    log = (await core.fill([address] * 100))[address]
    core.jetstream._seconds = 0.1
    cache = Counting(Reader(core, read_patience_seconds=1.0))
    async with stopped(nats_server):
        first = asyncio.create_task(cache.rest(address, log[-1].seq))
        await wait_until(lambda: len(cache.reader.begun) == 1)
        begun = time.monotonic()
        await wait_until(lambda: time.monotonic() > begun + 0.9)
        late = asyncio.create_task(cache.rest(address, log[-1].seq))
        with pytest.raises(Unavailable):
            await first
        assert not late.done()
    assert await late == framed(log)


async def test_who_has_waited_as_long_as_he_who_began_does_not_wait_again(core: Core, nats_server: NatsServer) -> None:
    """Whoever has it read ahead, and asks for it right after, has one patience and not two."""
    address = core.address()
    log = (await core.fill([address] * 100))[address]
    core.jetstream._seconds = 0.1
    cache = Counting(Reader(core, read_patience_seconds=0.5))
    wanted = beginning(address, log[-1].seq)
    async with stopped(nats_server):
        task = cache.ahead(wanted, None)
        assert task is not None
        await asyncio.sleep(0)  # It is its read that is asked for, and at once.
        with pytest.raises(Unavailable):
            await cache.block(wanted)
        await task
    assert cache.reader.begun == [0]


# -- what is no more ----------------------------------------------------------------------------------------------


async def test_a_hole_after_the_cursor_is_said(core: Core) -> None:
    """Where retention has removed what comes next, whoever had read it, or reads it without knowing of the hole."""
    address = core.address()
    log = (await core.fill([address] * 600))[address]
    await core.purge_before(address, log[400].seq)
    cache = Counting(Reader(core))
    for _ in range(2):
        with pytest.raises(CursorExpired):
            await cache.rest(address, log[-1].seq, log[300].seq, index=300)
        with pytest.raises(CursorExpired):
            await cache.rest(address, log[-1].seq)
        # Whoever stands behind it is not concerned, nor who does not know where he stands: that is looked at before.
        assert await cache.rest(address, log[-1].seq, log[400].seq, index=400) == framed(log[401:])
        assert await cache.rest(address, log[-1].seq, log[300].seq) == framed(log[400:])


async def test_a_cursor_of_another_run_is_as_good(core: Core) -> None:
    """Its message is there, so that nothing behind it is missing."""
    address, other = core.address(), core.address()
    logs = await core.fill([address, other] * 20)
    log = logs[address]
    cache = Counting(Reader(core))
    cursor = logs[other][4].seq
    assert await cache.rest(address, log[-1].seq, cursor) == framed(log, cursor)


async def test_what_was_read_before_it_was_removed_is_whole(core: Core) -> None:
    """Retention that has removed what is kept here takes it from nobody who is on his way through it."""
    address = core.address()
    log = (await core.fill([address] * 600))[address]
    cache = Counting(Reader(core))
    await cache.rest(address, log[-1].seq)
    await core.purge_before(address, log[500].seq)
    assert await cache.rest(address, log[-1].seq, log[100].seq, index=100) == framed(log[101:])


@pytest.mark.parametrize("how", ["forget", "clear"])
async def test_what_is_let_go_of_is_gone(core: Core, how: str) -> None:
    """Of one run, or of all: nothing is kept, and what is just being read is its reader's only."""
    address, other = core.address(), core.address()
    logs = await core.fill([address, other] * 400)
    log, tip = logs[address], logs[address][-1].seq
    cache = Counting(Reader(core))
    await cache.rest(other, logs[other][-1].seq)
    kept = cache.bytes
    event_source = framing_of(Style.EVENT_SOURCE, include_pings=False, is_chunked=True)
    await cache.rest(address, tip, framing=event_source)
    await cache.rest(address, tip, log[300].seq)
    cache.reader.may_go_on.clear()
    reading = asyncio.create_task(cache.rest(address, log[100].seq))
    await wait_until(lambda: cache.reader.begun[-1] == 0)
    if how == "forget":
        cache.forget(address.run_id)
        cache.forget(core.address().run_id)
    else:
        cache.clear()
    assert cache.bytes == (kept if how == "forget" else 0)
    cache.reader.may_go_on.set()
    assert framed(log).startswith(await reading)
    assert cache.bytes == (kept if how == "forget" else 0)
    assert await held(cache, other, logs[other][-1].seq) == (how == "forget")
    assert not await held(cache, address, tip)


async def test_blocks_overlap_and_nothing_is_told_twice(core: Core) -> None:
    """Readers from cursors in any order leave blocks that overlap: each reader has each entry once."""
    address = core.address()
    log = (await core.fill([address] * 1500))[address]
    cache = Counting(Reader(core, catchup_chunks=300))
    for at in random.sample(range(len(log) - 1), 40):
        assert await cache.rest(address, log[-1].seq, log[at].seq) == framed(log[at + 1 :])
    blocks = sorted(cache._shelves[address.run_id, LETTA].blocks.values(), key=lambda block: block.after)
    assert all(one.last_seq < other.last_seq for one, other in pairwise(blocks)), "one is within another"
    assert cache.bytes == sum(block.size for block in blocks)
