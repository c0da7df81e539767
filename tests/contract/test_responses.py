"""What a response looks like besides its events: headers, pings, what it costs, how it ends."""

import asyncio
import contextlib
import itertools
import json
import re
from collections.abc import AsyncIterator

import pytest_asyncio

from runstream.schemas import new_agent_id
from tests.support.http import DONE, Connection, Event, EventStream, open_stream
from tests.support.stack import Stack, message, stack_running
from tests.support.tasks import tasks
from tests.support.waiting import wait_until

KEEPALIVE_SECONDS = 0.2
MAX_FOLLOWERS = 60


@pytest_asyncio.fixture(scope="module")
async def stack(nats_url: str) -> AsyncIterator[Stack]:
    """A runstream that pings after a fifth of a second, and takes sixty followers."""
    settings = {"keepalive_seconds": KEEPALIVE_SECONDS, "max_followers": MAX_FOLLOWERS}
    async with stack_running(nats_url, gateway=settings) as running:
        yield running


def without(events: list[Event], message_type: str) -> list[Event]:
    return [event for event in events if event.message_type != message_type]


async def test_headers(stack: Stack) -> None:
    """Nobody may cache or buffer a stream, and its type is said in full."""
    run_id, _ = await stack.finished({"chunks": 1})
    async with stack.live() as (_, created), stack.resume(run_id) as resumed:
        for stream in (created, resumed):
            assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert stream.headers["cache-control"] == "no-cache"
            assert stream.headers["x-accel-buffering"] == "no"
            assert stream.headers["transfer-encoding"] == "chunked"
            assert "content-length" not in stream.headers
            assert "content-encoding" not in stream.headers


async def test_headers_and_first_ping_come_before_the_agent_speaks(stack: Stack) -> None:
    """The headers do not wait for the first chunk: clients would take the silence for a lost request."""
    async with stack.create({"silence_ms": 600_000}) as stream:
        (ping,) = await stream.take(1)
        assert ping.message_type == "ping"
        record = await stack.record(ping.json["run_id"])
        assert not record.is_terminal
        async with stack.resume(record.id, ping.seq_id, include_pings=False) as resumed:
            assert resumed.status == 200
            assert resumed.raw == b""


async def test_bytes_on_the_wire(stack: Stack) -> None:
    """Nothing but data and error events, each within one chunk, then the last chunk: to the byte."""
    run_id, events = await stack.finished({"chunks": 3, "interval_ms": 0, "error_after": 2, "text": "ä 😀"})
    for starting_after in (0, events[1].seq_id):
        async with stack.resume(run_id, starting_after) as stream:
            await stream.rest()
        raw = stream.raw
        assert raw.endswith(b"\r\n0\r\n\r\n")
        body, at = b"", 0
        while match := re.compile(rb"([0-9a-f]+)\r\n").match(raw, at):
            size = int(match[1], 16)
            chunk = raw[match.end() : match.end() + size]
            assert size == 0 or chunk.endswith(b"\n\n")
            body, at = body + chunk, match.end() + size + 2
        assert at == len(raw)
        lines = set(re.sub(rb"^data: .*$", b"data", body, flags=re.MULTILINE).split(b"\n"))
        assert lines == {b"data", b"event: error", b""}
        assert "😀".encode() in body


async def test_nothing_is_ever_sent_but_data_and_errors(stack: Stack) -> None:
    """A silent live stream has pings and nothing else: no comment, no id, no retry, no blank filler."""
    async with stack.live(1) as (run_id, stream):
        await stream.take(3)
        stack.puppet.fail(run_id)
        await stream.rest()
    # The client of these tests takes nothing else; here it is said again of the bytes.
    body = stream.raw.decode()
    for line in body.split("\n"):
        assert re.fullmatch(r"data: .+|event: error|[0-9a-f]+\r|\r|", line), line


async def test_keep_alive_pings(stack: Stack) -> None:
    """In silence pings come, each with the last cursor that its reader has; they are not stored."""
    async with stack.live(2) as (run_id, stream):
        pings = await stream.take(2)
        assert {ping.message_type for ping in pings} == {"ping"}
        assert {ping.seq_id for ping in pings} == {stream.seen[2].seq_id}
        assert {ping.json["run_id"] for ping in pings} == {run_id}
        assert list(pings[0].json) == list(stream.seen[0].json)
        stack.puppet.say(run_id)
        chunk = await stream.until("assistant_message")
        assert (await stream.until("ping")).seq_id == chunk.seq_id
        stack.puppet.finish(run_id)
        await stream.rest()
    async with stack.resume(run_id) as resumed:
        again = await resumed.rest()
    assert [event.message_type for event in again].count("ping") == 1
    assert without(again, "ping") == without(stream.seen, "ping")


async def test_keep_alive_pings_come_in_time(stack: Stack) -> None:
    """A ping comes after the interval, neither sooner nor much later, also for one who has just come back."""
    clock = asyncio.get_running_loop().time
    async with stack.live(1) as (run_id, creator):
        begun = clock()
        async with stack.resume(run_id, creator.cursor) as stream:
            (ping,) = await stream.take(1)
        assert KEEPALIVE_SECONDS * 0.9 < clock() - begun < KEEPALIVE_SECONDS * 10
        # It has been sent nothing with a cursor on this connection.
        assert (ping.message_type, ping.seq_id) == ("ping", None)


async def test_no_pings_when_none_are_wanted(stack: Stack) -> None:
    """With include_pings off neither the stored ping comes nor one in silence, live or from the log."""
    async with (
        stack.live(0, include_pings=True) as (run_id, with_pings),
        stack.resume(run_id, include_pings=False) as stream,
        stack.resume(run_id, include_pings=None) as null,
    ):
        await with_pings.take(3)
        stack.puppet.say(run_id)
        await with_pings.until("assistant_message")
        await with_pings.take(2)
        stack.puppet.finish(run_id)
        await with_pings.rest()
        events = await stream.rest()
        assert events == await null.rest()
    assert events == without(with_pings.seen, "ping")
    async with stack.resume(run_id, include_pings=False) as stream:
        assert await stream.rest() == events


async def test_foreground_pings(stack: Stack) -> None:
    """In the foreground no ping has a cursor either, the first or one in silence."""
    async with stack.create(background=False) as stream:
        pings = await stream.take(3)
        run_id = pings[0].json["run_id"]
        stack.puppet.say(run_id)
        chunk = await stream.until("assistant_message")
        pings += [await stream.until("ping")]
        stack.puppet.finish(run_id)
        await stream.rest()
    assert {ping.message_type for ping in pings} == {"ping"}
    assert {event.seq_id for event in [*pings, chunk]} == {None}
    assert '"seq_id":null' in pings[-1].data


async def test_a_busy_stream_has_no_keep_alive(stack: Stack) -> None:
    """While chunks come nobody needs to be kept alive."""
    async with stack.create({"chunks": 30, "interval_ms": KEEPALIVE_SECONDS * 1000 / 4}) as stream:
        events = await stream.rest()
    # In its one and a half seconds of silence it would have had seven; a machine that stalls makes a silence.
    assert [event.message_type for event in events].count("ping") <= 3


async def test_done_only_at_the_end_of_the_run(stack: Stack) -> None:
    """`[DONE]` comes once, last, after every kind of end."""
    for knobs in ({"chunks": 2}, {"chunks": 2, "error_after": 1}, {"approval": True}, {"no such": 1}, {"chunks": 0}):
        _, events = await stack.finished(knobs)
        assert events.count(DONE) == 1
        assert events[-1] == DONE
        assert any(event.message_type == "stop_reason" for event in events)


def live_subscriptions(stack: Stack) -> int:
    """How many subscriptions to live messages the gateway holds."""
    known_to_the_server = stack.hub.jetstream.connection._client._subs.values()
    return sum(subscription.subject.startswith("live.") for subscription in known_to_the_server)


async def test_clients_that_leave_cost_nothing(stack: Stack) -> None:
    """Fifty followers of a silent run hang up: no follower, tail, task, subscription or consumer is left."""
    async with stack.live(1) as (run_id, creator):
        creator.leave()
        await stack.nobody_follows()
        assert await stack.consumers() == 0  # The test's own connection makes its inbox at its first request.
        before = tasks()
        streams = [stack.resume(run_id) for _ in range(50)]
        opened: list[EventStream] = await asyncio.gather(*(stream.__aenter__() for stream in streams))
        for stream in opened:
            await stream.take(2)
        assert (stack.hub.seats.taken, stack.hub.live_tails) == (50, 1)
        assert live_subscriptions(stack) == 1
        for stream in opened:
            stream.leave()
        await stack.nobody_follows()
        assert live_subscriptions(stack) == 0
        assert await stack.consumers() == 0
        await wait_until(lambda: tasks() <= before, message="tasks are left")
        await asyncio.gather(*(stream.__aexit__(None, None, None) for stream in streams))


async def test_closing_a_tail_is_not_broken_off(stack: Stack) -> None:
    """A client that leaves while its run's tail is being closed, or again and again, leaves no subscription behind."""
    async with stack.live(1) as (run_id, creator):
        creator.leave()
        await stack.nobody_follows()
        record = await stack.record(run_id)
        before = tasks()
        for is_open, turns in itertools.product((True, False), range(8)):
            opened, leave = asyncio.Event(), asyncio.Event()

            async def follow(opened: asyncio.Event = opened, leave: asyncio.Event = leave) -> None:
                async with stack.hub.tail(record):
                    opened.set()
                    await leave.wait()

            following = asyncio.create_task(follow())
            if is_open:
                await opened.wait()
                leave.set()
            else:
                while not live_subscriptions(stack):
                    await asyncio.sleep(0)  # It has subscribed, and waits for the log's tip.
                following.cancel()
            for _ in range(turns):
                await asyncio.sleep(0)
            following.cancel()
            await asyncio.wait([following])
            assert live_subscriptions(stack) == 0, (is_open, turns)
        await wait_until(lambda: tasks() <= before, message="tasks are left")


async def test_client_that_leaves_before_its_headers(stack: Stack) -> None:
    """Clients that send a request and hang up at once leave nothing behind either; their runs go on."""
    knobs = {"chunks": 20, "interval_ms": 10}
    agent_id = new_agent_id()
    for _ in range(20):
        async with Connection.open(stack.base) as connection:
            await connection.send("POST", f"/v1/agents/{agent_id}/messages/stream", json=message(knobs))
    await stack.nobody_follows()
    # Whether the last of them was started before its client left, only the index knows; what was started ends well.
    stored = await stack.index.latest_run_of_agent("default", agent_id)
    if stored is not None:
        async with stack.resume(stored.value.id) as stream:
            assert without(await stream.rest(), "ping")[-2].message_type == "usage_statistics"


async def test_a_run_outlives_its_creator(stack: Stack) -> None:
    """A client that leaves does not end its run, in the foreground or in the background."""
    for background in (True, False):
        async with stack.create({"chunks": 10, "interval_ms": 20}, background=background) as stream:
            run_id = (await stream.take(2))[0].json["run_id"]
            stream.leave()

        async def is_completed(run_id: str = run_id) -> bool:
            return (await stack.record(run_id)).status == "completed"

        await wait_until(is_completed)


async def test_as_many_followers_as_may_be(stack: Stack) -> None:
    """One follower too many is told to try again, a new message too, which then starts no run; room is used again."""
    conversation_id = await stack.conversation()
    async with stack.live() as (run_id, creator):
        streams = [stack.resume(run_id) for _ in range(MAX_FOLLOWERS - 1)]
        opened = await asyncio.gather(*(stream.__aenter__() for stream in streams))
        refused = [
            await stack.fetch("POST", f"/v1/runs/{run_id}/stream", json={}),
            await stack.fetch("POST", f"/v1/conversations/{conversation_id}/stream", json={"run_id": run_id}),
            await stack.fetch("POST", f"/v1/conversations/{conversation_id}/messages", json={"input": "x"}),
            await stack.fetch("POST", f"/v1/agents/{new_agent_id()}/messages/stream", json={"input": "x"}),
        ]
        for reply in refused:
            assert reply.status == 503
            assert int(reply.headers["retry-after"]) > 0
            assert list(reply.json) == ["detail"]
        ready = await stack.fetch("GET", "/readyz")
        assert ready.status == 503
        # Nothing was started, so the conversation is free.
        opened[0].leave()
        await wait_until(lambda: not stack.hub.seats.is_full)
        async with stack.say_in(conversation_id, {"chunks": 1}) as stream:
            assert (await stream.rest())[-1] == DONE
        assert (await stack.fetch("GET", "/readyz")).status == 200
        stack.puppet.finish(run_id)
        await creator.rest()
        for other in opened[1:]:
            assert (await other.rest())[-1] == DONE
        await asyncio.gather(*(stream.__aexit__(None, None, None) for stream in streams))


async def test_burst_of_followers_stays_within_the_bound(stack: Stack) -> None:
    """Requests that come all at once are counted one by one: as many as may be are served, the others refused."""
    async with stack.live() as (run_id, _), contextlib.AsyncExitStack() as opened:
        connections = [await opened.enter_async_context(Connection.open(stack.base)) for _ in range(2 * MAX_FOLLOWERS)]
        for connection in connections:
            await connection.send("POST", f"/v1/runs/{run_id}/stream", json={})
        statuses = [status for status, _ in await asyncio.gather(*(connection.head() for connection in connections))]
        assert (statuses.count(200), statuses.count(503)) == (MAX_FOLLOWERS - 1, MAX_FOLLOWERS + 1)
        assert stack.hub.seats.taken == MAX_FOLLOWERS


async def test_foreground_stream_with_many_followers_has_one_style_each(stack: Stack) -> None:
    """The same request in the foreground again is answered by the same run, and neither reader gets a cursor."""
    agent_id = new_agent_id()
    path = f"/v1/agents/{agent_id}/messages/stream"
    body = {"messages": [{"role": "user", "content": json.dumps({"chunks": 5, "silence_ms": 300}), "otid": "again"}]}
    async with open_stream(stack.base, path, body) as one, open_stream(stack.base, path, body) as two:
        first, second = await asyncio.gather(one.rest(), two.rest())
    assert without(first, "ping") == without(second, "ping")
    assert {event.seq_id for event in first} == {None}
