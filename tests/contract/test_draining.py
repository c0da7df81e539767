"""A gateway that drains, and streams that grow old: each reader leaves at a moment of its own, and loses nothing."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from prometheus_client import generate_latest

from runstream.gateway.response import FAREWELL_SECONDS
from runstream.schemas import DEFAULT_TENANT, new_agent_id
from tests.support.eventsource import EventSource, SourceStream, open_source, source_path
from tests.support.http import DONE, Connection, Cut, EventStream, fetch, open_stream
from tests.support.stack import PUPPET, Stack, message, stack_running
from tests.support.standstill import check_timely, measured_again
from tests.support.waiting import wait_until

WINDOW_SECONDS = 1.0
SLACK_SECONDS = 1.0
"""What a busy machine of two cores takes to do what is done at once."""


@contextlib.asynccontextmanager
async def stack(
    nats_url: str, *, window: float = WINDOW_SECONDS, gateway: Mapping[str, Any] | None = None
) -> AsyncIterator[Stack]:
    async with stack_running(nats_url, broker={"drain_seconds": window}, gateway=gateway) as running:
        yield running


@contextlib.asynccontextmanager
async def draining(stack: Stack) -> AsyncIterator[asyncio.Task[None]]:
    """Its gateway drains while the block lasts, or has drained."""
    task = asyncio.create_task(stack.gateway.drain(), name="drain")
    try:
        await wait_until(lambda: stack.hub.seats.is_draining)
        yield task
    finally:
        await task


async def moment_of_the_cut(stream: EventStream) -> float:
    """Read a stream until it is cut; returns when that was."""
    try:
        await stream.rest()
    except Cut:
        return time.monotonic()
    raise AssertionError("it was not cut")


async def newest_run(stack: Stack, agent_id: str) -> str | None:
    """The run that an agent was asked for last."""
    stored = await stack.index.latest_run_of_agent(DEFAULT_TENANT, agent_id)
    return None if stored is None else stored.value.id


def metrics(stack: Stack) -> str:
    """What the gateway counts."""
    return generate_latest(stack.gateway.metrics.registry).decode()


async def test_new_streams_are_refused(nats_url: str) -> None:
    """503 and when to come back for whoever would follow a run, and for nobody else; readiness says so."""
    async with stack(nats_url) as running, running.live(3) as (run_id, _), draining(running):
        agent_id = new_agent_id()
        paths = [
            (f"/v1/runs/{run_id}/stream", {}),
            (f"/v1/agents/{agent_id}/messages/stream", message(PUPPET)),
            (f"/v1/agents/{agent_id}/messages", message(PUPPET, streaming=False)),
        ]
        for path, body in paths:
            refused = await running.fetch("POST", path, json=body)
            assert (refused.status, refused.detail) == (503, "This gateway stops. Try again, at another one.")
            assert refused.headers["retry-after"] == "2"
        unready = await running.fetch("GET", "/readyz")
        assert (unready.status, unready.json["detail"]) == (503, "This gateway stops.")
        assert (await running.fetch("GET", f"/v1/runs/{run_id}")).status == 200
        assert (await running.fetch("GET", "/livez")).status == 200
        assert "runstream_draining 1.0" in (await running.fetch("GET", "/metrics")).body.decode()
        assert await newest_run(running, agent_id) is None


async def test_an_event_source_is_told_to_come_back(nats_url: str) -> None:
    """A 503 would end it for good: it gets a stream with nothing but `retry:`, complete."""
    async with stack(nats_url) as running, running.live(3) as (run_id, _), draining(running):
        async with open_source(running.base, source_path(run_id)) as source:
            assert await source.rest() == []
        assert isinstance(source, SourceStream)
        assert source.retry is not None
        assert source.headers["connection"] == "close"


async def test_every_answer_is_the_last_of_its_connection(nats_url: str) -> None:
    """The next request of a client that keeps its connections leads to another gateway."""
    async with stack(nats_url) as running, running.live() as (run_id, _), Connection.open(running.base) as kept:
        await kept.send("GET", f"/v1/runs/{run_id}")
        assert "connection" not in (await kept.reply()).headers
        async with draining(running):
            await kept.send("GET", f"/v1/runs/{run_id}")
            assert (await kept.reply()).headers["connection"] == "close"
            assert await kept.ends()


@measured_again
async def test_readers_leave_one_by_one(nats_url: str) -> None:
    """Forty readers are cut at moments that are spread over the window, and not before its end all of them."""
    async with stack(nats_url) as running, running.live(1) as (run_id, _), contextlib.AsyncExitStack() as readers:
        streams = [await readers.enter_async_context(running.resume(run_id)) for _ in range(20)]
        sources = [await readers.enter_async_context(open_source(running.base, source_path(run_id))) for _ in range(20)]
        reading = [asyncio.create_task(moment_of_the_cut(stream)) for stream in [*streams, *sources]]
        begun_at = time.monotonic()
        async with draining(running):
            moments = sorted(moment - begun_at for moment in await asyncio.gather(*reading))
        check_timely(moments[-1] <= WINDOW_SECONDS + SLACK_SECONDS, moments)
        # Of forty at random, each quarter of the window has some with all but 1e-4 of chance.
        for quarter in range(4):
            within = [
                moment for moment in moments if quarter / 4 <= moment / WINDOW_SECONDS <= (quarter + 1) / 4 + 0.05
            ]
            check_timely(within, moments)
        assert all(not stream.is_complete and stream.seen[-1].message_type == "assistant_message" for stream in streams)
        for source in sources:
            assert isinstance(source, SourceStream)
            # Once before the first event, and once more before the cut.
            assert source.raw.count(b"retry: ") == 2
        # With the one that began the run.
        assert 'runstream_streams_cut_total{cause="drain"} 41.0' in metrics(running)


async def test_a_reader_is_written_to_until_it_leaves(nats_url: str) -> None:
    """What is said while the gateway drains arrives at those who are still there, and at another gateway the rest."""
    async with stack(nats_url) as running, stack(nats_url) as other, running.live(1) as (run_id, first):
        async with draining(running) as drain:
            said = 1
            while not drain.done():
                running.puppet.say(run_id)
                said += 1
                await asyncio.sleep(0.01)  # the pace of the run, and not a wait
        await moment_of_the_cut(first)
        running.puppet.finish(run_id)
        async with other.resume(run_id, first.cursor) as rest:
            events = [*first.seen, *await rest.rest()]
        texts = [event.json["content"].strip() for event in events if event.message_type == "assistant_message"]
        assert texts == [str(number) for number in range(said)]
        assert events[-1] == DONE


async def test_who_cannot_come_back_has_all_of_the_time(nats_url: str) -> None:
    """A foreground run cannot be resumed: its reader is not sent away before the window is over, nor for its age."""
    age = {"max_stream_seconds": 0.3}
    async with stack(nats_url, gateway=age) as running, running.live(1, background=False) as (_, stream):
        reading = asyncio.create_task(moment_of_the_cut(stream))
        await asyncio.sleep(0.5)  # longer than a stream may last, and not a wait
        assert not reading.done()
        begun_at = time.monotonic()
        async with draining(running):
            assert await reading - begun_at >= WINDOW_SECONDS


async def test_a_client_without_chunks_sees_that_it_was_cut(nats_url: str) -> None:
    """HTTP/1.0 has nothing but the end of the connection: it is a reset, also when the gateway just stops."""
    async with stack(nats_url) as running, running.live(1) as (run_id, _):
        path = f"/v1/runs/{run_id}/stream"
        async with open_stream(running.base, path, {}, version="1.0") as old:
            await old.take(2)
            await running.gateway.__aexit__(None, None, None)
            with pytest.raises(ConnectionResetError):
                await old.next()


async def test_a_run_that_ends_meanwhile_ends_its_streams(nats_url: str) -> None:
    """Its readers get its end, complete, and the drain does not wait for the rest of its window."""
    async with stack(nats_url, window=60) as running, running.live(1) as (run_id, stream):
        began_at = time.monotonic()
        async with draining(running):
            running.puppet.finish(run_id)
            events = await stream.rest()
        assert events[-1] == DONE
        assert time.monotonic() - began_at < 20


async def test_a_drain_with_nobody_there_is_over_at_once(nats_url: str) -> None:
    """There is nothing to wait for."""
    async with stack(nats_url, window=60) as running:
        async with asyncio.timeout(5):
            await running.gateway.drain()


async def test_a_stalled_reader_does_not_hold_the_drain_up(nats_url: str) -> None:
    """One whose socket is full leaves with the others."""
    async with (
        stack(nats_url) as running,
        running.live(1) as (run_id, _),
        running.resume(run_id, receive_buffer=2048),
    ):
        running.puppet.say(run_id, 64, size=100_000)
        await wait_until(lambda: "runstream_slow_followers_total 1.0" in metrics(running))
        began_at = time.monotonic()
        async with draining(running):
            pass
        assert time.monotonic() - began_at <= WINDOW_SECONDS + SLACK_SECONDS
        # What waits for it goes out for a moment more, if it takes it.
        await wait_until(lambda: not running.hub.seats.taken, FAREWELL_SECONDS + SLACK_SECONDS)


async def test_a_whole_answer_has_all_of_the_time(nats_url: str) -> None:
    """It is not cut off before the window is over, and if its run ends by then it is answered."""
    async with stack(nats_url, window=60) as running:
        agent_id = new_agent_id()
        body = message(PUPPET, streaming=False)
        asking = asyncio.create_task(fetch(running.base, "POST", f"/v1/agents/{agent_id}/messages", json=body))
        run_id = await wait_until(lambda: newest_run(running, agent_id)) or ""
        async with draining(running):
            running.puppet.say(run_id)
            running.puppet.finish(run_id)
            answer = await asking
        assert (answer.status, len(answer.json["messages"])) == (200, 1)


async def test_streams_have_a_maximum_age(nats_url: str) -> None:
    """Each is cut before it is older than that, and none before three quarters of it; an EventSource comes back."""
    most = 1.0
    async with stack(nats_url, gateway={"max_stream_seconds": most, "event_source_retry_seconds": 0.05}) as running:
        async with running.create() as creator, contextlib.AsyncExitStack() as readers:
            (ping,) = await creator.take(1)
            run_id = str(ping.json["run_id"])
            source = EventSource(running.base + source_path(run_id))
            browser = asyncio.create_task(source.run())
            began_at = time.monotonic()
            streams = [await readers.enter_async_context(running.resume(run_id)) for _ in range(10)]
            cuts = await asyncio.gather(*[moment_of_the_cut(stream) for stream in streams])
            assert all(0.75 * most <= cut - began_at <= most + SLACK_SECONDS for cut in cuts)
            assert max(cuts) - min(cuts) > 0.02 * most
            await wait_until(lambda: source.attempts > 1)
            running.puppet.say(run_id, 3)
            running.puppet.finish(run_id)
            await browser
        shown = [said.data for said in source.messages if '"ping"' not in said.data]
        assert len(shown) == len(set(shown)) == 6
        assert 'runstream_streams_cut_total{cause="age"}' in metrics(running)
