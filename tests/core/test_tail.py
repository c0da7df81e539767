"""A live run's tail: every entry once, in order, whatever core NATS drops, and nothing left behind."""

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from runstream.broker.connection import Message
from runstream.broker.errors import BrokerError, CursorExpired, NoResponders, Unavailable
from runstream.broker.log import Entry, entry_of
from runstream.broker.messages import StoredMessage
from runstream.broker.publisher import Publisher
from runstream.broker.reader import Batch, LogReader
from runstream.broker.tail import LiveTail, TailCounters
from runstream.broker.topology import LogAddress
from runstream.schemas import Kind
from tests.support.core import END, Core, chunk, core_running
from tests.support.faults import turns
from tests.support.nats import NatsServer
from tests.support.outages import stopped
from tests.support.standstill import check_timely, measured_again
from tests.support.waiting import wait_until


class Screen:
    """A tail and what it has shown."""

    def __init__(
        self,
        core: Core,
        address: LogAddress,
        *,
        drops: Callable[[Message], bool] = lambda _: False,
        on_entries: Callable[[Sequence[Entry]], None] = lambda _: None,
        reader: LogReader | None = None,
        start: int = 0,
    ) -> None:
        self.shown: list[Entry] = []
        self.failures: list[BrokerError] = []
        self.counters = TailCounters()
        self.tip: Entry | None = None
        self._start = start
        self._also = on_entries
        self.tail = _DroppingTail(
            core.jetstream,
            reader or core.reader,
            core.settings,
            address,
            counters=self.counters,
            on_entries=self._show,
            on_failure=self.failures.append,
        )
        self.tail.drops = drops

    def _show(self, entries: Sequence[Entry]) -> None:
        self._also(entries)
        self.shown += entries

    async def open(self) -> None:
        async def start(_: Entry | None) -> int:
            return self._start

        self.tip = await self.tail.open(start)

    async def ends(self, timeout: float = 10.0) -> None:
        """Wait until the end has been shown."""
        await wait_until(lambda: self.tail.ended or self.failures, timeout, "the end was not shown")
        assert not self.failures


class _DroppingTail(LiveTail):
    """A tail that live messages reach as core NATS brings them: at most once."""

    drops: Callable[[Message], bool]

    def _on_messages(self, messages: Sequence[Message]) -> None:
        super()._on_messages([message for message in messages if not self.drops(message)])


@contextlib.asynccontextmanager
async def opened(screen: Screen) -> AsyncIterator[Screen]:
    """The screen, open; its tail is closed when the block ends."""
    try:
        await screen.open()
        yield screen
    finally:
        await screen.tail.close()


async def log_of(core: Core, address: LogAddress) -> list[Entry]:
    return [entry_of(message) for message in await core.stored(address)]


async def publish(publisher: Publisher, numbers: range) -> None:
    for number in numbers:
        await publisher.publish(chunk(number))


def is_end(message: Message) -> bool:
    return (message.headers or {}).get("Rs-Kind") == Kind.END


# -- joining ------------------------------------------------------------------------------------------------------


async def test_opened_before_the_run(core: Core) -> None:
    """A tail of a run that has no messages yet shows all of them, as they are stored."""
    address = core.address()
    async with opened(Screen(core, address)) as screen, core.publisher(address) as publisher:
        assert screen.tip is None
        for number in range(20):
            await publisher.publish(chunk(number))
            await wait_until(lambda number=number: len(screen.shown) == number + 1)  # type: ignore[misc]
        await publisher.publish_marked(END)
        await screen.ends()
        assert screen.shown == await log_of(core, address)
        assert screen.counters.holes_repaired == 0


async def test_opened_during_the_run(core: Core) -> None:
    """`open` returns with all that was stored before shown, and the tip; the rest is shown live."""
    address = core.address()
    async with core.publisher(address) as publisher:
        await publish(publisher, range(600))
        async with opened(Screen(core, address)) as screen:
            assert screen.shown == await log_of(core, address)
            assert screen.tip == screen.shown[-1]
            await publish(publisher, range(600, 620))
            await publisher.publish_marked(END)
            await screen.ends()
            assert screen.shown == await log_of(core, address)


async def test_opened_after_the_run(core: Core) -> None:
    """A tail of a run that is over shows the log, ends, and listens to nothing."""
    address = core.address()
    await core.write(address, [chunk(number) for number in range(30)], end=True)
    held = len(core.connection._subscriptions)
    async with opened(Screen(core, address)) as screen:
        assert screen.tail.ended
        assert screen.shown == await log_of(core, address)
        assert len(core.connection._subscriptions) <= held + 1  # Direct get keeps one for its answers.
        assert screen.tail._watch is None


async def test_opened_at_a_cursor(core: Core) -> None:
    """A tail that starts at a sequence shows what follows it, stored and live."""
    address = core.address()
    async with core.publisher(address) as publisher:
        await publish(publisher, range(300))
        log = await log_of(core, address)
        for start in (0, 10, 298, 299):
            async with opened(Screen(core, address, start=log[start].seq)) as screen:
                assert screen.shown == log[start + 1 :]
        async with opened(Screen(core, address, start=log[-1].seq)) as screen:
            await publish(publisher, range(300, 310))
            await wait_until(lambda: len(screen.shown) == 10)
            assert [entry.body for entry in screen.shown] == [chunk(number) for number in range(300, 310)]


async def test_opened_at_every_moment(core: Core) -> None:
    """Tails that are opened all the time while a run is written at full speed: each shows all of it, once."""
    address = core.address()

    async def follow(delay: float) -> Screen:
        await asyncio.sleep(delay)
        async with opened(Screen(core, address)) as screen:
            await screen.ends(timeout=60)
        return screen

    async with core.publisher(address) as publisher:
        following = [asyncio.create_task(follow(random.random() / 2)) for _ in range(25)]
        await publish(publisher, range(1500))
        await publisher.publish_marked(END)
        screens = await asyncio.gather(*following)
    log = await log_of(core, address)
    assert all(screen.shown == log for screen in screens)


# -- what core NATS drops -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
async def test_dropped_messages_are_read_from_the_log(core: Core, share: float) -> None:
    """However many live messages are lost, the last one included, all entries are shown once, in order."""
    address = core.address()
    screen = Screen(core, address, drops=lambda message: is_end(message) or random.random() < share)
    async with opened(screen), core.publisher(address) as publisher:
        for first in range(0, 500, 50):
            await publish(publisher, range(first, first + 50))
            await asyncio.sleep(random.random() / 50)
        await publisher.publish_marked(END)
        await screen.ends()
        assert screen.shown == await log_of(core, address)
        assert screen.counters.holes_repaired or share == 1.0


async def test_a_lost_last_message_is_found_in_time(core: Core) -> None:
    """When nothing comes after a lost message, silence is reason enough to ask the leader, within seconds."""
    address = core.address()
    async with opened(Screen(core, address, drops=is_end)) as screen, core.publisher(address) as publisher:
        await publish(publisher, range(5))
        await wait_until(lambda: len(screen.shown) == 5)
        await publisher.publish_marked(END)
        started = time.monotonic()
        await screen.ends()
        # Twice the interval, and what a busy machine adds.
        assert time.monotonic() - started < 2 * core.settings.silence_seconds + 2
        assert screen.shown == await log_of(core, address)


@measured_again
async def test_a_silent_run_is_looked_at_ever_more_rarely(core: Core) -> None:
    """The longer a run says nothing, the rarer its tip is asked for; the next chunk begins that anew."""
    address = core.address()
    async with core.publisher(address) as publisher:
        await publish(publisher, range(1))
        async with opened(Screen(core, address)) as screen:
            asked_at: list[float] = []

            def asked() -> bool:
                if screen.counters.tip_checks > len(asked_at):
                    asked_at.append(time.monotonic())
                return len(asked_at) == 4

            await wait_until(asked)
            gaps = [later - earlier for earlier, later in itertools.pairwise(asked_at)]
            check_timely(gaps[0] < gaps[1] < gaps[2] < 2 * 4 * core.settings.silence_seconds, gaps)
            assert screen.counters.holes_repaired == 0
            await publish(publisher, range(1, 2))
            await wait_until(lambda: len(screen.shown) == 2)
            assert screen.tail._silences == 0


async def test_duplicates_are_not_shown(core: Core) -> None:
    """A live message that comes twice, or again much later, is shown once."""
    address = core.address()
    kept: list[Message] = []

    def keep(message: Message) -> bool:
        kept.append(message)
        return False

    async with opened(Screen(core, address, drops=keep)) as screen, core.publisher(address) as publisher:
        await publish(publisher, range(10))
        await wait_until(lambda: len(screen.shown) == 10)
        for message in [*kept, *reversed(kept)]:
            screen.tail._on_messages([message])
        await publisher.publish_marked(END)
        await screen.ends()
        assert screen.shown == await log_of(core, address)
        assert screen.counters.holes_repaired == 0


async def test_what_comes_together_is_shown_together(core: Core) -> None:
    """Live messages that one read brought are one batch for whoever shows them, duplicates left out."""
    address = core.address()
    kept: list[Message] = []
    batches: list[Sequence[Entry]] = []

    def keep(message: Message) -> bool:
        kept.append(message)
        return len(kept) <= 50

    screen = Screen(core, address, drops=keep, on_entries=batches.append)
    async with opened(screen), core.publisher(address) as publisher:
        await publish(publisher, range(50))
        await wait_until(lambda: len(kept) == 50)
        screen.tail._on_messages([*kept[:20], *kept])
        assert [len(batch) for batch in batches] == [50]
        await publisher.publish_marked(END)
        await screen.ends()
        assert screen.shown == await log_of(core, address)
        assert screen.counters.holes_repaired == 0


async def test_a_hole_within_a_batch_is_filled(core: Core) -> None:
    """Of messages that come together what is before a hole is shown at once, the rest as the log has it."""
    address = core.address()
    kept: list[Message] = []

    def keep(message: Message) -> bool:
        kept.append(message)
        return len(kept) <= 30

    screen = Screen(core, address, drops=keep)
    async with opened(screen), core.publisher(address) as publisher:
        await publish(publisher, range(30))
        await wait_until(lambda: len(kept) == 30)
        screen.tail._on_messages([*kept[:10], *kept[11:]])
        assert len(screen.shown) == 10
        await wait_until(lambda: len(screen.shown) == 30)
        await publisher.publish_marked(END)
        await screen.ends()
        assert screen.shown == await log_of(core, address)
        assert screen.counters.holes_repaired == 1


async def test_messages_out_of_order_are_put_in_order(core: Core) -> None:
    """Live messages that overtake each other are shown as the log has them."""
    address = core.address()
    kept: list[Message] = []

    def keep(message: Message) -> bool:
        kept.append(message)
        return len(kept) <= 50

    async with opened(Screen(core, address, drops=keep)) as screen, core.publisher(address) as publisher:
        await publish(publisher, range(50))
        await wait_until(lambda: len(kept) == 50)
        shuffled = random.sample(kept, 50)
        for message in shuffled:
            screen.tail._on_messages([message])
        await publisher.publish_marked(END)
        await screen.ends()
        assert screen.shown == await log_of(core, address)


async def test_nothing_is_shown_after_the_end(core: Core) -> None:
    """A writer that goes on behind the end is not followed there: neither live, nor by a tail that opens later."""
    address = core.address()
    async with core.publisher(address) as publisher, opened(Screen(core, address)) as screen:
        await publish(publisher, range(3))
        await publisher.publish_marked(END)
        await screen.ends()
        await publish(publisher, range(3, 6))
        async with opened(Screen(core, address)) as late:
            assert late.tail.ended
            assert late.shown == (await log_of(core, address))[:4]
        await wait_until(lambda: screen.tail._watch is None or screen.tail._watch.done())
        assert screen.shown == late.shown


# -- outages ------------------------------------------------------------------------------------------------------


async def test_a_server_killed_in_mid_run(core: Core, nats_server: NatsServer) -> None:
    """Over restarts of the server everything is shown once, in order, to early and late tails."""
    address = core.address()
    async with core.publisher(address) as publisher, contextlib.AsyncExitStack() as stack:
        screens = [await stack.enter_async_context(opened(Screen(core, address)))]
        writing = asyncio.create_task(publish(publisher, range(1500)))
        for reached in (300, 900):
            await wait_until(lambda reached=reached: publisher.next_index > reached)  # type: ignore[misc]
            await nats_server.kill()
            await nats_server.wait_ready()
            screens.append(await stack.enter_async_context(opened(Screen(core, address))))
        await writing
        await publisher.publish_marked(END)
        for screen in screens:
            await screen.ends()
        log = await log_of(core, address)
        assert len(log) == 1501
        for screen in screens:
            assert screen.shown == log


async def test_what_was_stored_while_the_reader_was_cut_off(core: Core, nats_server: NatsServer) -> None:
    """A tail that missed the end asks for it when its connection has been replaced, and not only after a silence."""
    address = core.address()
    missing = False
    patient = core_running(nats_server.url, silence_seconds=60)
    async with patient as cut_off, core.publisher(address) as publisher, contextlib.AsyncExitStack() as stack:
        screen = await stack.enter_async_context(opened(Screen(cut_off, address, drops=lambda _: missing)))
        await publish(publisher, range(5))
        await wait_until(lambda: len(screen.shown) == 5)
        missing = True
        await publish(publisher, range(5, 10))
        await publisher.publish_marked(END)
        await cut_off.connection.request("$JS.API.INFO", b"", seconds=5)  # Whatever was republished has come.
        assert len(screen.shown) == 5
        await cut_off.connection._client.close()
        await screen.ends()
        assert screen.shown == await log_of(core, address)


async def test_patience_ends(nats_server: NatsServer) -> None:
    """A server that stays away longer than a reader's patience is the tail's failure, reported once."""
    await nats_server.wait_ready()
    impatient = core_running(
        nats_server.url, silence_seconds=0.1, read_patience_seconds=0.5, request_timeout_seconds=0.1
    )
    async with impatient as core:
        address = core.address()
        await core.write(address, [chunk(0)])
        async with opened(Screen(core, address)) as screen:
            async with stopped(nats_server):
                await wait_until(lambda: screen.failures)
            assert [type(failure) for failure in screen.failures] == [Unavailable]
            await wait_until(lambda: core.connection.is_connected)
            await turns()
            assert len(screen.failures) == 1


# -- failures -----------------------------------------------------------------------------------------------------


async def test_retention_that_overtakes_the_tail_is_its_failure(core: Core) -> None:
    """A tail that would have to show what is no longer there says so, instead of a hole."""
    address = core.address()
    dropping = False
    screen = Screen(core, address, drops=lambda _: dropping)
    async with opened(screen), core.publisher(address) as publisher:
        await publish(publisher, range(5))
        await wait_until(lambda: len(screen.shown) == 5)
        dropping = True
        await publish(publisher, range(5, 10))
        await core.purge_before(address, publisher.last_seq)
        dropping = False
        await publisher.publish(chunk(10))
        await wait_until(lambda: screen.failures)
        assert isinstance(screen.failures[0], CursorExpired)
        assert [entry.index for entry in screen.shown] == [0, 1, 2, 3, 4]


async def test_what_is_gone_behind_somebody_elses_message_is_said(core: Core) -> None:
    """A hole of which nothing is left, but a message that is not the run's, is not looked for again and again."""

    class Late(LogReader):
        may_go_on = asyncio.Event()

        async def batch(self, *args: Any, **options: Any) -> Batch:
            await self.may_go_on.wait()
            return await super().batch(*args, **options)

    address = core.address()
    reader = Late(core.jetstream, core.settings)
    dropping = False
    async with core.publisher(address) as publisher:
        await publish(publisher, range(3))
        screen = Screen(core, address, drops=lambda _: dropping, reader=reader, start=publisher.last_seq)
        async with opened(screen):
            dropping = True
            await publish(publisher, range(3, 4))
            dropping = False
            await publish(publisher, range(4, 5))
            await wait_until(lambda: screen.tail._newest == publisher.last_seq)
            await core.purge(address)
            await core.jetstream.publish(address.subject, b"{}", {})
            reader.may_go_on.set()
            await wait_until(lambda: screen.failures, 5, "the tail looks for it without end")
    assert [type(failure) for failure in screen.failures] == [CursorExpired]


async def test_a_defect_in_showing_live_entries_is_a_failure(core: Core) -> None:
    """If what is called with live entries raises, the followers hear of it: nothing is left out in silence."""
    await _defect(core, drops=lambda _: False)


async def test_a_defect_in_showing_read_entries_is_a_failure(core: Core) -> None:
    """The same, when the entries come from the log after a hole."""
    await _defect(core, drops=lambda message: (message.headers or {})["Rs-Writer"].endswith((":3", ":4")))


async def _defect(core: Core, *, drops: Callable[[Message], bool]) -> None:
    address = core.address()

    def stumble(entries: Sequence[Entry]) -> None:
        if any(entry.index >= 3 for entry in entries):
            raise ZeroDivisionError("a defect, by a test")

    screen = Screen(core, address, drops=drops, on_entries=stumble)
    async with opened(screen), core.publisher(address) as publisher:
        await publish(publisher, range(6))
        await wait_until(lambda: screen.failures, 5, "nobody heard of the defect")
        assert "a defect, by a test" in str(screen.failures[0])
        await publish(publisher, range(6, 8))
        await wait_until(lambda: screen.tail._watch is None or screen.tail._watch.done(), 5)
        assert [entry.index for entry in screen.shown] == [0, 1, 2]
        assert len(screen.failures) == 1


async def test_a_defect_in_reading_is_a_failure(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the reader raises what it should not, the followers hear of it."""
    address = core.address()
    reader = LogReader(core.jetstream, core.settings)
    screen = Screen(core, address, reader=reader, drops=lambda message: not is_end(message))

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a defect, by a test")

    async with opened(screen), core.publisher(address) as publisher:
        monkeypatch.setattr(reader, "read", broken)
        await publish(publisher, range(3))
        await publisher.publish_marked(END)
        await wait_until(lambda: screen.failures, 5, "nobody heard of the defect")
        assert "a defect, by a test" in str(screen.failures[0])
        assert screen.shown == []


# -- leaving ------------------------------------------------------------------------------------------------------


class Belongings:
    """What a connection holds for its users: tasks, subscriptions, listeners."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.tasks = asyncio.all_tasks()
        self.subscriptions = set(core.connection._subscriptions)
        self.inner = len(core.connection._client._subs)
        self.listeners = len(core.connection._listeners)

    async def are_all_there_is(self, address: LogAddress) -> None:
        """Wait until nothing is there that was not there before, on either side."""
        core = self._core
        await wait_until(lambda: asyncio.all_tasks() <= self.tasks, 5, "a task is left")
        assert core.connection._subscriptions == self.subscriptions
        assert len(core.connection._client._subs) == self.inner
        assert len(core.connection._listeners) == self.listeners
        # The server itself says whether anybody listens.
        with pytest.raises(NoResponders):
            await core.connection.request(address.live_subject, b"", seconds=5)
        await core.no_consumers()


@contextlib.asynccontextmanager
async def nothing_left(core: Core, address: LogAddress) -> AsyncIterator[None]:
    """Whatever happens in the block, nothing of it is left after it."""
    # What the connection itself makes with its first request and its first direct get, and keeps.
    await core.jetstream.direct_batch(address.stream, address.subject, after=0, limit=1)
    await core.jetstream.last_message(address.stream, address.subject)
    before = Belongings(core)
    yield
    await before.are_all_there_is(address)


async def test_closing_a_live_tail_leaves_nothing(core: Core) -> None:
    """Closed in mid-run, once or twice, a tail leaves no task, no subscription, no listener."""
    address = core.address()
    async with nothing_left(core, address), core.publisher(address) as publisher:
        async with opened(Screen(core, address)) as screen:
            await publish(publisher, range(10))
            await wait_until(lambda: len(screen.shown) == 10)
        await screen.tail.close()
        await publish(publisher, range(10, 20))
        assert len(screen.shown) == 10


async def test_a_tail_that_ended_leaves_nothing(core: Core) -> None:
    """After the end a tail lets go of everything, before anybody closes it."""
    address = core.address()
    async with nothing_left(core, address), core.publisher(address) as publisher:
        screen = Screen(core, address)
        await screen.open()
        await publish(publisher, range(3))
        await publisher.publish_marked(END)
        await screen.ends()
    await screen.tail.close()


async def test_a_tail_that_failed_leaves_nothing(core: Core) -> None:
    """The same after a failure."""
    address = core.address()
    dropping = False
    async with nothing_left(core, address), core.publisher(address) as publisher:
        screen = Screen(core, address, drops=lambda _: dropping)
        await screen.open()
        await publish(publisher, range(3))
        await wait_until(lambda: len(screen.shown) == 3)
        dropping = True
        await publish(publisher, range(3, 6))
        await core.purge_before(address, publisher.last_seq)
        await wait_until(lambda: screen.failures)
    await screen.tail.close()


async def test_closing_while_it_opens_leaves_nothing(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled at any moment of its opening and closed, a tail leaves nothing."""
    # A deletion that is sent on the heels of a consumer's creation may overtake it: then the idle threshold does it.
    monkeypatch.setattr("runstream.broker.jetstream.CONSUMER_IDLE_SECONDS", 1.0)
    address = core.address()
    await core.fill([address] * 1000)
    async with nothing_left(core, address):
        for turn in range(0, 120, 3):
            screen = Screen(core, address)
            opening = asyncio.create_task(screen.open())
            await turns(turn)
            opening.cancel()
            await asyncio.wait([opening])
            await screen.tail.close()


async def test_closing_during_a_repair_leaves_nothing(core: Core) -> None:
    """Closed while it reads the log after a hole, a tail leaves nothing."""
    address = core.address()
    async with nothing_left(core, address), core.publisher(address) as publisher:
        for turn in range(0, 60, 3):
            dropping = True
            screen = Screen(core, address, start=publisher.last_seq, drops=lambda _: dropping)  # noqa: B023
            async with opened(screen):
                await publish(publisher, range(5))
                dropping = False
                await publisher.publish(chunk(5))
                await turns(turn)


# -- everything at once -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
async def test_any_schedule(core: Core, seed: int) -> None:
    """Runs at different paces, tails that join, lose messages and leave at random: each shows a whole stretch."""
    chance = random.Random(seed)
    addresses = [core.address() for _ in range(4)]

    async def write(address: LogAddress) -> None:
        pace = chance.choice([0.0, 0.0005, 0.002])
        async with core.publisher(address) as publisher:
            for number in range(200):
                await publisher.publish(chunk(number))
                if pace and chance.random() < 0.5:
                    await asyncio.sleep(pace * chance.random())
            await publisher.publish_marked(END)

    async def follow(address: LogAddress) -> Screen:
        await asyncio.sleep(chance.random() / 10)
        share = chance.choice([0.0, 0.1, 0.5])
        screen = Screen(core, address, drops=lambda _: chance.random() < share)
        stays = chance.random() < 0.7
        async with opened(screen):
            if stays:
                await screen.ends()
            else:
                await asyncio.sleep(chance.random() / 20)
        assert screen.tail.ended or not stays
        return screen

    followers = [address for address in addresses for _ in range(8)]
    *_, screens = await asyncio.gather(
        *(write(address) for address in addresses),
        asyncio.gather(*(follow(address) for address in followers)),
    )
    logs = {address: await log_of(core, address) for address in addresses}
    for address, screen in zip(followers, screens or [], strict=True):
        log = logs[address]
        assert screen.shown == log[: len(screen.shown)]
        assert not screen.tail.ended or screen.shown == log


async def test_a_log_that_is_removed(core: Core) -> None:
    """Whoever follows a run that is removed is told, and does not wait for what will never come."""
    address = core.address()
    async with core.publisher(address) as publisher:
        await publisher.publish(chunk(0))
        async with opened(Screen(core, address)) as screen:
            await core.jetstream.api(f"STREAM.PURGE.{address.stream}", {"filter": address.subject})
            await wait_until(lambda: screen.failures, 10, "nobody is told")
    assert isinstance(screen.failures[0], CursorExpired)


async def test_a_leader_that_has_nothing_of_a_log_removes_it_from_nobody(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have lost the others, or be new: it is asked again once it was confirmed."""
    address = core.address()
    ask, times = core.jetstream.last_message, 0
    async with core.publisher(address) as publisher:
        await publisher.publish(chunk(0))
        async with opened(Screen(core, address)) as screen:

            async def answered_by_another(*where: str) -> StoredMessage | None:
                nonlocal times
                times += where[1] == address.subject
                return None if times == 1 else await ask(*where)

            monkeypatch.setattr(core.jetstream, "last_message", answered_by_another)
            await wait_until(lambda: times > 1, 20, "nobody asks")
            monkeypatch.undo()
            await publisher.publish_marked(END)
            await screen.ends()
    assert screen.shown == await log_of(core, address)


async def test_an_answer_that_is_older_than_the_first_message(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader that had nothing when it was asked does not make a run expired that begins before it is heard."""
    address = core.address()
    ask = core.jetstream.last_message
    async with opened(Screen(core, address)) as screen, core.publisher(address) as publisher:

        async def answered_late(*where: str) -> StoredMessage | None:
            answer = await ask(*where)
            if answer is None:
                await publisher.publish(chunk(0))
                await wait_until(lambda: screen.shown)
            return answer

        monkeypatch.setattr(core.jetstream, "last_message", answered_late)
        await wait_until(lambda: screen.shown)
        await publisher.publish_marked(END)
        await screen.ends()
    assert screen.shown == await log_of(core, address)
