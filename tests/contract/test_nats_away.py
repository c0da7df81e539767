"""NATS is away: before its headers a request is told to try again; after them a stream waits, then is cut, visibly."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from runstream.schemas import new_agent_id, new_otid
from tests.support.http import DONE, Cut, EventStream, Reply, fetch, open_stream
from tests.support.nats import NatsServer
from tests.support.stack import PUPPET, Stack, message, stack_running
from tests.support.waiting import wait_until

READ_PATIENCE_SECONDS = 2.0

Outage = tuple[Callable[[], Awaitable[None]], Callable[[], Awaitable[None]]]


@pytest_asyncio.fixture(scope="module")
async def stack(nats_url: str) -> AsyncIterator[Stack]:
    """A runstream whose readers wait two seconds for NATS."""
    broker = {"read_patience_seconds": READ_PATIENCE_SECONDS, "request_timeout_seconds": 0.5, "silence_seconds": 0.5}
    async with stack_running(nats_url, broker=broker) as running:
        yield running


@pytest.fixture(params=["stopped", "hanging"])
def outage(nats_server: NatsServer, request: pytest.FixtureRequest) -> Outage:
    """How NATS goes away, and how it comes back."""
    if request.param == "hanging":
        return nats_server.pause, nats_server.resume
    return nats_server.stop, nats_server.start


async def back(stack: Stack, nats_server: NatsServer) -> None:
    """Wait until NATS and the gateway's connection to it are back."""
    await nats_server.wait_ready()

    async def is_ready() -> bool:
        return (await stack.fetch("GET", "/readyz")).status == 200

    await wait_until(is_ready, 20, "the gateway does not become ready again")


async def is_unready(stack: Stack) -> bool:
    """Whether the gateway says that it is not ready."""
    answer = await stack.fetch("GET", "/readyz")
    return (answer.status, answer.json["status"]) == (503, "unavailable")


async def test_requests_are_told_to_try_again(stack: Stack, nats_server: NatsServer, outage: Outage) -> None:
    """Without NATS every request is answered within the deadline: 503, and when to come back or that it must not."""
    conversation_id, agent_id = await stack.conversation(), new_agent_id()
    run_id, events = await stack.finished({"chunks": 3})
    resume = [
        (f"/v1/runs/{run_id}/stream", {}),
        (f"/v1/conversations/{conversation_id}/stream", {}),
        (f"/v1/conversations/{conversation_id}/stream", {"run_id": run_id}),
        (f"/v1/conversations/{conversation_id}/stream", {"otid": "x"}),
        ("/v1/conversations/default/stream", {"agent_id": agent_id}),
    ]
    create = [
        (f"/v1/agents/{agent_id}/messages/stream", message("hello")),
        (f"/v1/conversations/{conversation_id}/messages", message("hello")),
        (f"/v1/conversations/?agent_id={agent_id}", {}),
    ]
    leave, come_back = outage
    await leave()
    try:
        asked = [fetch(stack.base, "POST", path, json=body) for path, body in [*resume, *create]]
        read = [stack.fetch("GET", path) for path in (f"/v1/runs/{run_id}", f"/v1/conversations/{conversation_id}")]
        replies: list[Reply] = await asyncio.gather(*asked, *read)
        for reply in replies:
            assert (reply.status, list(reply.json)) == (503, ["detail"])
        surely_nothing = [reply for reply in replies if reply.headers.get("x-should-retry") != "false"]
        assert {int(reply.headers["retry-after"]) > 0 for reply in surely_nothing} == {True}
        # Only what would start a run may have to say that it must not be repeated.
        assert [reply for reply in replies[: len(resume)] + replies[-2:] if reply not in surely_nothing] == []
        assert (await stack.fetch("GET", "/livez")).status == 200
        # What was found out a moment ago is good for a second.
        await wait_until(lambda: is_unready(stack), 5)
    finally:
        await come_back()
    await back(stack, nats_server)
    async with stack.resume(run_id) as stream:
        assert await stream.rest() == events
    async with stack.create({"chunks": 1}) as stream:
        assert (await stream.rest())[-1] == DONE


async def said_something(stack: Stack, run_id: str) -> bool:
    """Whether anything that a run has said is stored."""
    return bool((await stack.fetch("GET", f"/v1/runs/{run_id}/messages")).json)


async def test_who_waits_for_a_whole_answer_is_told_of_the_run(
    stack: Stack, nats_server: NatsServer, outage: Outage
) -> None:
    """A request whose NATS stays away is answered, in time, with the run, which goes on, and where it will be."""
    otid = new_otid()
    body = {"messages": [{"role": "user", "content": PUPPET, "otid": otid}]}
    path = f"/v1/agents/{new_agent_id()}/messages"
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(fetch(stack.base, "POST", path, json=body))
        run_id = str(await wait_until(lambda: stack.run_of(otid), 10, "no run is started"))
        stack.puppet.say(run_id)
        await wait_until(lambda: said_something(stack, run_id))
        leave, come_back = outage
        await leave()
        try:
            reply = await waiting
            assert (reply.status, reply.json["run_id"], reply.headers["x-should-retry"]) == (503, run_id, "false")
            assert reply.detail.endswith(f"Do not send the message again: ask for /v1/runs/{run_id}/messages.")
        finally:
            await come_back()
    await back(stack, nats_server)
    # Sent again all the same it waits for the same run, and an outage that passes is not noticed by who waits.
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(fetch(stack.base, "POST", path, json=body))
        await wait_until(lambda: stack.hub.seats.taken == 1)
        await leave()
        await come_back()
        await back(stack, nats_server)
        stack.puppet.finish(run_id)
    answer = waiting.result()
    assert [found["content"] for found in answer.json["messages"]] == ["0 "]
    assert (await stack.fetch("GET", f"/v1/runs/{run_id}/messages")).json == answer.json["messages"]


async def cut_of(stream: EventStream) -> str:
    """Read a stream to its cut, and say what it was told last: `store_unavailable`."""
    with pytest.raises(Cut):
        await stream.rest()
    told = stream.seen[-1]
    assert told.event == "error"
    assert told.message_type == "error_message"
    assert told.seq_id is None
    return str(told.json["error_type"])


async def test_open_streams_are_cut(stack: Stack, nats_server: NatsServer, outage: Outage) -> None:
    """A stream whose NATS stays away longer than a reader waits ends with an error, and without its last chunk."""
    leave, come_back = outage
    async with (
        stack.live(3) as (run_id, creator),
        stack.resume(run_id, creator.cursor) as resumed,
        open_stream(stack.base, f"/v1/runs/{run_id}/stream", {}, version="1.0") as old,
        stack.create(background=False) as foreground,
    ):
        await foreground.take(1)
        await old.take(4)
        await leave()
        try:
            streams = [creator, resumed, foreground]
            assert await asyncio.gather(*map(cut_of, streams)) == ["store_unavailable"] * len(streams)
            for stream in streams:
                assert DONE not in stream.seen
                # The error's chunk is the last thing on the wire: the chunk that would say "complete" is not there.
                assert stream.raw.endswith(b"\n\n\r\n")
                assert not stream.raw.endswith(b"0\r\n\r\n")
                assert b'"error_type":"store_unavailable"' in stream.raw.splitlines()[-3]
            with pytest.raises((ConnectionResetError, Cut)):
                await old.rest()
            await stack.nobody_follows()
        finally:
            await come_back()
        await back(stack, nats_server)
        # The run knows nothing of it: its readers come back with their cursors, and it goes on.
        async with stack.resume(run_id, creator.cursor) as again:
            stack.puppet.say(run_id, 2)
            stack.puppet.finish(run_id)
            rest = await again.rest()
        stack.puppet.finish(foreground.seen[0].json["run_id"])
    types = [event.message_type for event in rest if event.message_type != "ping"]
    assert types == ["assistant_message", "assistant_message", "stop_reason", "usage_statistics", None]


async def test_short_outage_is_not_seen(stack: Stack, nats_server: NatsServer) -> None:
    """NATS that comes back in time is nobody's business: the streams go on, each chunk once."""
    async with stack.live(3) as (run_id, creator), stack.resume(run_id) as resumed:
        await resumed.take(4)
        await nats_server.stop(signal.SIGKILL)
        stack.puppet.say(run_id, 3)
        await nats_server.start()
        await creator.take(3)
        stack.puppet.finish(run_id)
        await creator.rest()
        await resumed.rest()
    assert creator.seen == resumed.seen
    contents = [event.json["content"] for event in creator.seen if event.message_type == "assistant_message"]
    assert contents == [f"{number} " for number in range(6)]
