"""The feed of the index: whatever is lost on the way, what it applied is what is stored, and it says how far it is."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from runstream.broker.errors import Unavailable
from runstream.broker.feed import Feed, KeyWrite
from runstream.broker.jetstream import JetStream
from runstream.broker.keys import KV_OPERATION, key_of, subject_of
from runstream.broker.messages import StoredMessage
from runstream.broker.topology import INDEX_STREAM, provision
from tests.support.core import Core, core_running
from tests.support.nats import NatsServer
from tests.support.outages import paused
from tests.support.standstill import check_timely, measured_again
from tests.support.waiting import wait_until

PATTERNS = ["run.*.*", "conversation.*.*"]


@pytest_asyncio.fixture(autouse=True)
async def _empty(core: Core) -> AsyncIterator[None]:
    """Each test begins without a key."""
    await core.jetstream.api(f"STREAM.PURGE.{INDEX_STREAM}", {})
    yield


class Mirror:
    """What a feed has applied."""

    def __init__(self) -> None:
        self.keys: dict[str, bytes] = {}
        self.last_revision = 0
        self.feed: Feed
        self.at_reset: Callable[[], None] = lambda: None

    def apply(self, write: KeyWrite) -> None:
        assert write.revision > self.last_revision, "applied out of order"
        self.last_revision = write.revision
        if write.value is None:
            self.keys.pop(write.key, None)
        else:
            self.keys[write.key] = write.value

    def reset(self) -> None:
        self.keys.clear()
        self.last_revision = 0
        self.at_reset()

    async def caught_up(self) -> dict[str, bytes]:
        """What it has when it has all that is stored now."""
        async with asyncio.timeout(20):
            for pattern in PATTERNS:
                await self.feed.caught_up(pattern)
        return self.keys


@contextlib.asynccontextmanager
async def mirror_running(jetstream: JetStream, *, marks_seconds: float = 3600) -> AsyncIterator[Mirror]:
    """A feed on that connection, and what it has applied."""
    mirror = Mirror()
    mirror.feed = Feed(jetstream, PATTERNS, apply=mirror.apply, reset=mirror.reset, marks_seconds=marks_seconds)
    async with mirror.feed:
        yield mirror


class Lossy(JetStream):
    """JetStream that loses the next `lose_data` messages on their way here, or all heartbeats."""

    def __init__(self, core: Core) -> None:
        super().__init__(core.connection, timeout_seconds=2)
        self.lose_data = 0
        self.lose_heartbeats = False

    async def next_answer(self, queue: Any, what: str, *, seconds: float | None = None) -> Any:
        while True:
            message = await super().next_answer(queue, what, seconds=seconds)
            is_data = message.headers is None or message.headers.status is None
            if is_data and self.lose_data:
                self.lose_data -= 1
            elif not (self.lose_heartbeats and not is_data):
                return message


class Behind(JetStream):
    """JetStream whose feed can be kept from hearing anything, and which does `meanwhile` before each key it looks for.

    When nothing of that is left, it hears again.
    """

    def __init__(self, core: Core) -> None:
        super().__init__(core.connection, timeout_seconds=2)
        self.meanwhile: list[Callable[[], Awaitable[object]]] = []
        self.answered = asyncio.Event()
        self.is_heard = asyncio.Event()
        self.is_heard.set()

    async def next_answer(self, queue: Any, what: str, *, seconds: float | None = None) -> Any:
        message = await super().next_answer(queue, what, seconds=seconds)
        await self.is_heard.wait()
        return message

    async def first_message(self, stream: str, subject: str, *, seq: int = 0) -> StoredMessage | None:
        if self.meanwhile:
            await self.meanwhile.pop()()
        else:
            self.is_heard.set()
        found = await super().first_message(stream, subject, seq=seq)
        self.answered.set()
        return found


async def put(core: Core, key: str, value: bytes = b"1") -> int:
    return await core.jetstream.publish(subject_of(key), value, {})


async def delete(core: Core, key: str) -> int:
    return await core.jetstream.publish(subject_of(key), b"", {KV_OPERATION: "DEL"})


async def delete_consumer(core: Core) -> None:
    """Delete the one that there is."""
    (name,) = (await core.jetstream.api(f"CONSUMER.NAMES.{INDEX_STREAM}", {}))["consumers"]
    await core.jetstream.api(f"CONSUMER.DELETE.{INDEX_STREAM}.{name}", None)


async def stored(core: Core) -> dict[str, bytes]:
    """What the leader has, asked one by one."""
    found: dict[str, bytes] = {}
    for pattern in PATTERNS:
        seq = 0
        while (
            message := await core.jetstream.first_message(INDEX_STREAM, subject_of(pattern), seq=seq + 1)
        ) is not None:
            seq = message.seq
            if KV_OPERATION not in message.headers:
                found[key_of(message.subject)] = message.body
    return found


async def test_what_is_there_and_what_comes(core: Core) -> None:
    """All that is there is applied, then what is written, written again and deleted; other kinds of keys are not."""
    for number in range(250):
        await put(core, f"run.default.{number}")
    await put(core, "lease.x")
    async with mirror_running(core.jetstream) as mirror:
        assert await mirror.caught_up() == {f"run.default.{number}": b"1" for number in range(250)}
        await put(core, "run.default.0", b"2")
        await delete(core, "run.default.1")
        await put(core, "conversation.default.a", b"3")
        await put(core, "claim.default.b.c")
        assert await mirror.caught_up() == await stored(core)
        assert (len(mirror.keys), mirror.feed.watches, mirror.feed.resets) == (250, 1, 1)


async def test_an_empty_index(core: Core) -> None:
    """There is nothing to wait for."""
    async with mirror_running(core.jetstream) as mirror:
        assert await mirror.caught_up() == {}
        assert mirror.feed.is_loaded


async def test_an_outage_is_logged_once(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is tried again, each time with a consumer of another name; another reason is said, too."""
    reasons = ["away a5f0c2d41b6e7788", "away 00f1c2d41b6e7799", "away 00f1c2d41b6e7711", "elsewhere"]
    jetstream = JetStream(core.connection, timeout_seconds=2)
    api = jetstream.api

    async def failing(*called: Any, **options: Any) -> dict[str, Any]:
        if reasons:
            raise Unavailable(reasons.pop(0))
        return await api(*called, **options)

    monkeypatch.setattr(jetstream, "api", failing)
    with capture_logs() as logs:
        async with mirror_running(jetstream) as mirror:
            await wait_until(lambda: mirror.feed.is_loaded)
    lost = [line["error"] for line in logs if line["event"] == "index_feed_lost"]
    assert [("elsewhere" in error) for error in lost] == [False, True]


async def test_what_was_stored_before_the_question_is_there(core: Core, nats_url: str) -> None:
    """Whoever wrote it, over whichever connection, and whatever else is written meanwhile."""
    async with core_running(nats_url, name="other") as other, mirror_running(core.jetstream) as mirror:

        async def noise() -> None:
            for number in range(300):
                await put(other, f"lease.{number % 7}")
                await put(other, f"run.default.noise{number % 7}")

        making = asyncio.create_task(noise())
        for number in range(200):
            await put(other, f"run.default.{number % 20}", str(number).encode())
            assert (await mirror.caught_up())[f"run.default.{number % 20}"] == str(number).encode()
        await making
        assert await mirror.caught_up() == await stored(core)


@pytest.mark.parametrize("times", [1, 2])
async def test_what_is_written_again_before_it_is_applied_is_there(core: Core, times: int) -> None:
    """A run that begins, and one that ends as well, while who asks for it still waits for the write that made it."""
    jetstream = Behind(core)
    async with mirror_running(jetstream) as mirror:
        await wait_until(lambda: mirror.feed.is_loaded)
        jetstream.is_heard.clear()
        await put(core, "run.default.1")
        jetstream.meanwhile = [lambda: put(core, "run.default.1")] * times
        async with asyncio.timeout(20):
            await mirror.feed.caught_up("run.*.*")
        assert mirror.keys == {"run.default.1": b"1"}


async def test_a_feed_that_begins_anew_while_it_is_looked_at(core: Core) -> None:
    """Who asks waits until everything is there again, though nothing is new."""
    jetstream = Behind(core)
    async with mirror_running(jetstream, marks_seconds=0) as mirror:
        await put(core, "run.default.1")
        await mirror.caught_up()
        jetstream.is_heard.clear()
        await put(core, "lease.x")  # Else there is nothing to look for.

        async def lose_it() -> None:
            jetstream.is_heard.set()
            await delete_consumer(core)
            await wait_until(lambda: mirror.feed.resets == 2 and not mirror.feed.is_loaded)

        async def asked() -> dict[str, bytes]:
            await mirror.feed.caught_up("run.*.*")
            return {**mirror.keys}

        mirror.at_reset = jetstream.is_heard.clear
        jetstream.meanwhile = [lose_it]
        async with asyncio.timeout(20):
            asking = asyncio.create_task(asked())
            await jetstream.answered.wait()
            jetstream.is_heard.set()
            assert await asking == {"run.default.1": b"1"}


async def test_nothing_is_looked_for_twice(core: Core) -> None:
    """Heartbeats say that what was written since is not ours: the position moves with it."""
    async with mirror_running(core.jetstream) as mirror:
        await put(core, "run.default.1")
        last = [await put(core, f"lease.{number}") for number in range(20)][-1]
        await wait_until(lambda: mirror.feed.position == last, 5, "the position stays where it was")


@pytest.mark.parametrize("count", [1, 3])
async def test_a_hole_is_noticed(core: Core, count: int) -> None:
    """A message that is lost before another one ends the watch, and the next one begins with it."""
    jetstream = Lossy(core)
    async with mirror_running(jetstream) as mirror:
        await mirror.caught_up()
        jetstream.lose_data = count
        for number in range(10):
            await put(core, f"run.default.{number}")
        assert await mirror.caught_up() == await stored(core)
        assert (mirror.feed.watches, mirror.feed.resets) == (2, 1)


async def test_a_lost_last_message_is_noticed(core: Core) -> None:
    """Nothing follows it, and who asks waits for it until a heartbeat has told of it."""
    jetstream = Lossy(core)
    async with mirror_running(jetstream) as mirror:
        await mirror.caught_up()
        jetstream.lose_data = 1
        await put(core, "run.default.1")
        assert await mirror.caught_up() == {"run.default.1": b"1"}
        assert (mirror.feed.watches, mirror.feed.resets) == (2, 1)


async def test_a_consumer_that_says_nothing_is_taken_for_gone(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither messages nor heartbeats come any more: another one is made."""
    monkeypatch.setattr("runstream.broker.consumer.HEARTBEAT_SECONDS", 0.2)
    jetstream = Lossy(core)
    async with mirror_running(jetstream) as mirror:
        await mirror.caught_up()
        jetstream.lose_data, jetstream.lose_heartbeats = 1, True
        await put(core, "run.default.1")
        await wait_until(lambda: mirror.feed.silent_seconds > 0.4, 5, "something is heard")
        jetstream.lose_heartbeats = False
        assert await mirror.caught_up() == {"run.default.1": b"1"}


async def test_a_consumer_that_somebody_deletes(core: Core) -> None:
    """The server says so, and another one is made."""
    async with mirror_running(core.jetstream) as mirror:
        await mirror.caught_up()
        await delete_consumer(core)
        await put(core, "run.default.1")
        assert await mirror.caught_up() == {"run.default.1": b"1"}


@measured_again
async def test_pulls_that_run_out(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pull that ends by its time, by its bytes or by its count is followed by another, and nothing is lost."""
    monkeypatch.setattr("runstream.broker.consumer.FOLLOW_SECONDS", 0.5)
    monkeypatch.setattr("runstream.broker.consumer.HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr("runstream.broker.consumer.FOLLOWED_MESSAGES", 7)
    large = b"x" * (core.connection.max_payload - 1024)
    async with mirror_running(core.jetstream) as mirror:
        for number in range(8):
            await put(core, f"conversation.default.{number}", large)
        for number in range(40):
            await put(core, f"run.default.{number}")
        assert await mirror.caught_up() == await stored(core)
        before = asyncio.get_running_loop().time()
        await wait_until(lambda: asyncio.get_running_loop().time() - before > 1.2)
        await put(core, "run.default.late")
        assert await mirror.caught_up() == await stored(core)
        check_timely(mirror.feed.watches == 1, "a heartbeat was late, or a pull that ran out was taken for an outage")


async def test_a_feed_that_is_left_leaves_nothing(core: Core) -> None:
    """Its consumer is gone from the server, its subscription from the connection."""
    async with mirror_running(core.jetstream) as mirror:
        await mirror.caught_up()
        assert await core.consumers(INDEX_STREAM) == 1

    async def none() -> bool:
        return await core.consumers(INDEX_STREAM) == 0

    await wait_until(none, 5, "a consumer is left")


@pytest.mark.parametrize("is_out_for_long", [True, False])
async def test_what_was_purged_while_it_was_out(core: Core, *, is_out_for_long: bool) -> None:
    """Nobody hears of a purge: out for longer than marks are kept for certain, it reads everything anew."""
    await put(core, "run.default.1")
    await put(core, "run.default.2")
    async with mirror_running(core.jetstream, marks_seconds=0.0 if is_out_for_long else 3600) as mirror:
        await mirror.caught_up()
        await core.jetstream.purge(INDEX_STREAM, subject_of("run.default.1"), through=2**60)
        await delete_consumer(core)
        await wait_until(lambda: mirror.feed.watches == 2, 5, "no other consumer is made")
        assert await mirror.caught_up() == await stored(core) | ({} if is_out_for_long else {"run.default.1": b"1"})
        assert mirror.feed.resets == (2 if is_out_for_long else 1)


async def test_an_index_that_is_another(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleted and made again, with fewer messages or with more: what it was is forgotten, and what it is, applied."""
    monkeypatch.setattr("runstream.broker.feed.FIRST_DELAY_SECONDS", 1.0)  # It looks when all of this is done.
    async with mirror_running(core.jetstream) as mirror:
        for number in range(20):
            await put(core, f"run.default.{number}")
        await mirror.caught_up()
        for count in (3, 60):
            await core.jetstream.api(f"STREAM.DELETE.{INDEX_STREAM}", None)
            await provision(core.jetstream, core.settings)
            for number in range(count):
                await put(core, f"run.default.{count}-{number}")
            assert await mirror.caught_up() == {f"run.default.{count}-{number}": b"1" for number in range(count)}


async def test_an_index_that_has_lost_what_it_had(core: Core) -> None:
    """After a power failure the same bucket may be where it was before: what is applied is what it has now."""
    async with mirror_running(core.jetstream) as mirror:
        last = await put(core, "run.default.1")
        await mirror.caught_up()
        mirror.apply(KeyWrite("run.default.lost", b"1", last + 5))
        mirror.feed.position = last + 5
        await delete_consumer(core)
        await put(core, "run.default.2")
        assert await mirror.caught_up() == await stored(core)
        assert mirror.feed.resets == 2


async def test_a_server_that_is_killed(core: Core, nats_server: NatsServer) -> None:
    """Again and again, in the middle of writes and deletes: when it is back the feed has what is stored."""
    async with mirror_running(core.jetstream) as mirror:
        number = 0

        async def write() -> None:
            nonlocal number
            while True:
                with contextlib.suppress(Exception):
                    number += 1
                    await put(core, f"run.default.{number % 50}", str(number).encode())
                    if number % 5 == 0:
                        await delete(core, f"run.default.{number % 35}")

        for _ in range(4):
            writing = asyncio.create_task(write())
            reached = number + 100
            await wait_until(lambda reached=reached: number > reached, 20)  # type: ignore[misc]
            await nats_server.kill()
            await nats_server.wait_ready()
            writing.cancel()
            await asyncio.wait([writing])
            await wait_until(lambda: core.connection.is_connected, 20)
            await put(
                core, "run.default.last"
            )  # Behind a write that nobody waits for any more, and that is on its way.
            assert await mirror.caught_up() == await stored(core)
        assert mirror.feed.resets == 1


async def test_a_paused_server(core: Core, nats_server: NatsServer) -> None:
    """A connection that is there and says nothing: when the server goes on, so does the feed."""
    async with mirror_running(core.jetstream) as mirror:
        await mirror.caught_up()
        async with paused(nats_server):
            await wait_until(lambda: mirror.feed.silent_seconds > 4, 10)
        await wait_until(lambda: mirror.feed.silent_seconds < 1, 20, "nothing is heard any more")
        await put(core, "run.default.1")
        assert await mirror.caught_up() == {"run.default.1": b"1"}
