"""An EventSource comes back by itself after every loss, however often, and in the end has the run as its log has it."""

import asyncio
import signal
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from httpx_sse import ServerSentEvent, aconnect_sse

from tests.support.eventsource import EventSource, Message, open_source, source_path, told_of
from tests.support.http import Cut, Event
from tests.support.nats import NatsServer
from tests.support.outages import stopped
from tests.support.proxy import Proxy, random_cuts
from tests.support.stack import Stack, stack_running
from tests.support.waiting import wait_until

MAX_FOLLOWERS = 5
READ_PATIENCE_SECONDS = 1.0
KNOBS = {"chunks": 200, "interval_ms": 2, "chunk_bytes": 300}


@pytest_asyncio.fixture(scope="module")
async def stack(nats_url: str) -> AsyncIterator[Stack]:
    """A runstream that wants its browsers back at once, and whose readers wait a second for NATS."""
    gateway = {"event_source_retry_seconds": 0.02, "keepalive_seconds": 0.2, "max_followers": MAX_FOLLOWERS}
    broker = {"read_patience_seconds": READ_PATIENCE_SECONDS, "request_timeout_seconds": 0.5, "silence_seconds": 0.3}
    async with stack_running(nats_url, gateway=gateway, broker=broker) as running:
        yield running


def of_messages(messages: list[Message]) -> list[Event]:
    """What a page has seen, pings aside: an event with an id is one that has moved the EventSource's own."""
    shown = [message for message in messages if '"message_type":"ping"' not in message.data]
    return [
        Event(None if message.type == "message" else message.type, message.data, int(message.last_event_id))
        for message in shown
    ]


async def with_httpx_sse(url: str) -> list[Event]:
    """The same with the library that people use, in the loop that they write around it."""
    seen: list[ServerSentEvent] = []
    last = ""
    async with httpx.AsyncClient(trust_env=False) as client:
        while True:
            try:
                async with aconnect_sse(client, "GET", url, headers={"Last-Event-ID": last}) as source:
                    if source.response.status_code == 204:
                        break
                    async for event in source.aiter_sse():
                        seen.append(event)
                        last = event.id or last
            except httpx.TransportError:
                continue
    return of_messages([Message(event.event, event.data, event.id) for event in seen])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("reader", ["browser", "httpx-sse"])
async def test_cut_at_twenty_points(stack: Stack, reader: str, seed: int) -> None:
    """A live run whose connection is reset twenty times, in mid-event too: every id once, in order, nothing missing."""
    async with stack.create(KNOBS) as creator, Proxy.running([stack.base], random_cuts(seed)) as proxy:
        (ping,) = await creator.take(1)
        run_id = str(ping.json["run_id"])
        url = proxy.url + source_path(run_id)
        if reader == "browser":
            source = EventSource(url)
            await asyncio.gather(source.run(), creator.rest())
            seen = of_messages(source.messages)
            assert source.statuses[-1] == 204
        else:
            seen, _ = await asyncio.gather(with_httpx_sse(url), creator.rest())
        assert seen == await told_of(stack, run_id)
        assert not proxy.cuts, "the run was over before it was cut as often as it was to be"


async def test_two_gateways_of_which_one_goes_away(nats_url: str, stack: Stack) -> None:
    """A gateway that stops takes nothing with it: its EventSources go on at the other, where they were."""
    async with (
        stack_running(nats_url, agent=stack.agent, gateway={"event_source_retry_seconds": 0.02}) as leaving,
        Proxy.running([leaving.base, stack.base]) as proxy,
        stack.live(5) as (run_id, creator),
    ):
        source = EventSource(proxy.url + source_path(run_id))
        following = asyncio.create_task(source.run())
        await wait_until(lambda: len(source.messages) >= 6)
        await leaving.gateway.__aexit__(None, None, None)
        stack.puppet.say(run_id, 5)
        stack.puppet.finish(run_id)
        await asyncio.gather(following, creator.rest())
        assert of_messages(source.messages) == await told_of(stack, run_id)
        assert next(passage.server for passage in proxy.passages if passage.asked) == leaving.base
        assert source.statuses == [200, 200, 204]


async def test_full_gateway_is_waited_for(stack: Stack) -> None:
    """Turned away by a gateway that is full, an EventSource is there again when there is room."""
    async with stack.live(3) as (run_id, creator):
        others = [open_source(stack.base, source_path(run_id)) for _ in range(MAX_FOLLOWERS - 1)]
        opened = [await other.__aenter__() for other in others]
        source = EventSource(stack.base + source_path(run_id))
        following = asyncio.create_task(source.run())
        await wait_until(lambda: source.statuses == [200])
        assert source.messages == []
        for stream in opened:
            stream.leave()
        stack.puppet.finish(run_id)
        await asyncio.gather(following, creator.rest())
        assert of_messages(source.messages) == await told_of(stack, run_id)
        assert set(source.statuses[:-1]) == {200}
        for other in others:
            await other.__aexit__(None, None, None)


async def test_nats_away_before_the_headers(stack: Stack, nats_server: NatsServer) -> None:
    """Without NATS a stream says when to come back, and no more; nobody is stopped for good by an outage."""
    run_id, _ = await stack.finished({"chunks": 3})
    told = await told_of(stack, run_id)
    source = EventSource(stack.base + source_path(run_id))
    async with stopped(nats_server):
        async with open_source(stack.base, source_path(run_id)) as stream:
            assert await stream.rest() == []
            assert stream.retry is not None
            assert 1000 <= stream.retry <= 3000
        following = asyncio.create_task(source.run())
        await wait_until(lambda: source.statuses == [200])
    await following
    await stack.is_back()
    assert of_messages(source.messages) == told
    assert source.statuses[-1] == 204


async def test_nats_away_after_the_headers(stack: Stack, nats_server: NatsServer) -> None:
    """A stream that is cut says when to come back, and no `error`, which is the browser's own; then it goes on."""
    async with stack.live(3) as (run_id, creator), open_source(stack.base, source_path(run_id)) as stream:
        await stream.take(4)
        source = EventSource(stack.base + source_path(run_id))
        following = asyncio.create_task(source.run())
        await wait_until(lambda: len(source.messages) >= 4)
        async with stopped(nats_server):
            before = stream.retry
            with pytest.raises(Cut):
                await stream.rest()
            assert {event.event for event in stream.seen} == {None}
            assert stream.retry != before
            assert stream.raw.endswith(b"\r\nretry: %d\n\r\n" % (stream.retry or 0))
            with pytest.raises(Cut):
                await creator.rest()
        await stack.is_back()
        stack.puppet.say(run_id, 2)
        stack.puppet.finish(run_id)
        await following
        assert of_messages(source.messages) == await told_of(stack, run_id)


async def test_short_outage_is_not_seen(stack: Stack, nats_server: NatsServer) -> None:
    """NATS that is back in time is nobody's business: one connection, and the run whole."""
    async with stack.live(3) as (run_id, creator):
        source = EventSource(stack.base + source_path(run_id))
        following = asyncio.create_task(source.run())
        await wait_until(lambda: len(source.messages) >= 4)
        await nats_server.stop(signal.SIGKILL)
        await nats_server.start()
        await stack.is_back()
        stack.puppet.say(run_id, 3)
        stack.puppet.finish(run_id)
        await asyncio.gather(following, creator.rest())
        assert of_messages(source.messages) == await told_of(stack, run_id)
        assert source.statuses == [200, 204]
