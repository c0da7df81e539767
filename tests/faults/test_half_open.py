"""A connection to NATS that looks alive and is not: it is noticed within ten seconds and replaced, and nothing lost."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

import pytest
import pytest_asyncio

from runstream.broker.connection import PING_INTERVAL_SECONDS, PROBE_SECONDS, Connection
from runstream.broker.errors import Unavailable
from runstream.broker.jetstream import JetStream
from runstream.broker.runs import Runs
from runstream.broker.topology import LogAddress
from runstream.schemas import AssistantMessage, new_agent_id
from tests.support.core import chunk, core_running
from tests.support.half_open import BOTH, HalfOpen
from tests.support.http import EventStream
from tests.support.stack import Stack, stack_running
from tests.support.waiting import wait_until

NOTICED_SECONDS = 10.0
WAYS = [BOTH, frozenset({"in"}), frozenset({"out"})]
SHUT_CHUNKS = 20
Read: TypeAlias = Callable[[], Awaitable[object]]


@pytest_asyncio.fixture
async def proxy(nats_url: str) -> AsyncIterator[HalfOpen]:
    async with HalfOpen.before(nats_url) as running:
        yield running


async def replaced(nats_url: str, ways: frozenset[str], waiting_bytes: int) -> float:
    """Shut a connection while so much waits to be written on it; returns after how long another one answers."""
    async with HalfOpen.before(nats_url) as proxy, Connection(proxy.url, name="test") as connection:
        told: list[float] = []
        connection.on_reconnect(lambda: told.append(time.monotonic()))
        await connection.request("$JS.API.INFO", b"", seconds=2)
        assert proxy.shut(ways) == 1
        since = time.monotonic()
        for _ in range(waiting_bytes // 2**19):
            await connection.publish("tests.half.open", b"x" * 2**19)
        assert connection.is_connected
        await wait_until(lambda: told, NOTICED_SECONDS, f"a connection shut {set(ways)} was not replaced")
        await connection.request("$JS.API.INFO", b"", seconds=2)
        assert len(told) == 1
        return told[0] - since


async def test_it_is_replaced_within_ten_seconds(nats_url: str) -> None:
    """By default, whichever way passes nothing, also if more waits to be written than the kernel takes."""
    assert PING_INTERVAL_SECONDS + PROBE_SECONDS < NOTICED_SECONDS
    found = await asyncio.gather(*(replaced(nats_url, ways, waiting) for ways in WAYS for waiting in (0, 2**24)))
    print("replaced after", ", ".join(f"{seconds:.1f} s" for seconds in found))
    assert max(found) < NOTICED_SECONDS


async def test_a_server_that_accepts_and_says_nothing_costs_no_socket(nats_url: str) -> None:
    """However often it is tried to connect to it, there is one socket at a time, and the first to answer is taken."""
    async with HalfOpen.before(nats_url) as proxy, Connection(proxy.url, name="test") as connection:
        proxy.is_black_hole = True
        proxy.cut()
        tried: list[int] = []

        def has_tried_again() -> bool:
            if proxy.accepted not in tried:
                tried.append(proxy.accepted)
            assert proxy.open <= 2, "one that is being closed, and the next"
            return len(tried) > 3

        await wait_until(has_tried_again, 15, "it is not tried again")
        with pytest.raises(Unavailable):
            await connection.request("$JS.API.INFO", b"", seconds=0.2)
        proxy.heal()
        await wait_until(lambda: connection.is_connected, 10)


async def begin_consuming(stack: contextlib.AsyncExitStack, jetstream: JetStream, log: LogAddress) -> Read:
    start = {"deliver_policy": "all"}
    consumer = await stack.enter_async_context(jetstream.consumer(log.stream, [log.subject], start))
    return lambda: consumer.pull(1)


@pytest.mark.parametrize("way", ["leader", "replica", "consumer"])
async def test_a_read_fails_when_its_connection_is_lost(proxy: HalfOpen, way: str) -> None:
    """Long before its time is up, also one that several answers belong to: it can be repeated over the next."""
    async with core_running(proxy.url) as core, contextlib.AsyncExitStack() as stack:
        log = core.address()
        async with core.publisher(log) as publisher:
            await publisher.publish(chunk(1))
        jetstream = JetStream(core.connection, timeout_seconds=60)
        stack.push_async_callback(jetstream.close)
        reads: dict[str, Read] = {
            "leader": lambda: jetstream.last_message(log.stream, log.subject),
            "replica": lambda: jetstream.direct_batch(log.stream, log.subject, after=0),
            "consumer": await begin_consuming(stack, jetstream, log),
        }
        sent = core.connection._client.stats["out_msgs"]
        proxy.shut()
        reading = asyncio.ensure_future(reads[way]())
        await wait_until(lambda: core.connection._client.stats["out_msgs"] > sent, 10, "nothing was asked")
        proxy.cut()
        with pytest.raises(Unavailable):
            await asyncio.wait_for(reading, 20)
        assert await jetstream.direct_batch(log.stream, log.subject, after=0)


async def test_who_waits_for_room_to_write_is_let_go_with_the_connection(proxy: HalfOpen) -> None:
    """Whoever leaves it leaves nobody behind who would wait for a server that takes nothing."""
    async with Connection(proxy.url, name="test") as connection:
        proxy.shut()
        saying = [asyncio.create_task(connection.publish("said", b"x" * 2**13)) for _ in range(2000)]
        await wait_until(lambda: any(each.done() for each in saying), 10)
        assert not all(each.done() for each in saying)
    async with asyncio.timeout(10):
        await asyncio.gather(*saying, return_exceptions=True)


async def contents(stream: EventStream) -> list[str]:
    """Read a stream to its end; what the agent said in it."""
    await stream.rest(deadline=30)
    return [event.json["content"] for event in stream.seen if event.message_type == "assistant_message"]


async def connections_of(proxy: HalfOpen, stack: Stack) -> int:
    """How many there are when all are up: the gateway has two, the broker, the test and the library one each."""
    await wait_until(lambda: proxy.passing == 5, 10, "not all are connected")
    assert stack.gateway._connections[1].is_connected
    return proxy.passing


@pytest.mark.parametrize("ways", WAYS, ids=lambda ways: "-".join(sorted(ways)))
async def test_followers_and_writers_lose_nothing(
    proxy: HalfOpen, ways: frozenset[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway's connections, the broker's and the library's: runs go on, and every follower has each chunk once."""
    monkeypatch.setattr("runstream.broker.connection.PING_INTERVAL_SECONDS", 1)
    monkeypatch.setattr("runstream.broker.connection.PROBE_SECONDS", 1)
    async with (
        stack_running(proxy.url) as stack,
        Runs(proxy.url, drain_seconds=None) as runs,
        stack.live(3) as (run_id, creator),
        stack.resume(run_id) as resumed,
    ):
        run = runs.open(agent_id=new_agent_id())
        async with run, stack.resume(run.run_id) as followed:
            await run.publish(AssistantMessage(content="before"))
            await followed.take(2)
            await resumed.take(4)
            before = await connections_of(proxy, stack)
            shut_at = time.monotonic()
            assert proxy.shut(ways) == before
            stack.puppet.say(run_id, SHUT_CHUNKS)
            for number in range(SHUT_CHUNKS):
                await run.publish(AssistantMessage(content=f"{number}"))
            await asyncio.gather(*(stream.take(SHUT_CHUNKS) for stream in (creator, resumed, followed)))
            print(f"shut {'-'.join(ways)}: all is delivered {time.monotonic() - shut_at:.1f} s later")
            assert await connections_of(proxy, stack) == before
            stack.puppet.finish(run_id)
            assert await contents(creator) == await contents(resumed) == [f"{at} " for at in range(3 + SHUT_CHUNKS)]
        async with stack.resume(run.run_id) as whole:
            assert await contents(whole) == ["before", *map(str, range(SHUT_CHUNKS))]
        assert followed.seen == whole.seen[: len(followed.seen)]
