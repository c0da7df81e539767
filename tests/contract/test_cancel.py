"""Cancel: it reaches a run at once, ends it once, and never the next one."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from runstream.broker.agents import Agent
from runstream.broker.bucket import Stored
from runstream.broker.index import Index
from runstream.gateway.cancelling import Canceller
from runstream.schemas import (
    AssistantMessage,
    Chunk,
    ConversationRecord,
    RunRequest,
    StopReason,
    new_agent_id,
    new_run_id,
)
from tests.support.http import Event, EventStream, Reply, open_stream
from tests.support.nats import NatsServer, nats_server_running
from tests.support.outages import paused, stopped
from tests.support.stack import Stack, message, stack_running
from tests.support.standstill import check_timely, measured_again
from tests.support.waiting import wait_until

ACKNOWLEDGED_SECONDS = 1.0
MISSING = "conv-123e4567-e89b-42d3-8456-426614174000"
SILENT = {"chunks": 5, "silence_ms": 3_600_000}
"""A demo run that says nothing for an hour."""
ENDLESS = {"chunks": 1_000_000, "interval_ms": 1}


async def cancel(stack: Stack, path: str, **options: object) -> Reply:
    return await stack.fetch("POST", f"/v1/{path}", **options)


def check_cancelled(events: Sequence[Event]) -> None:
    """The events end with one stop reason, `cancelled`, and the end."""
    assert [event.json for event in events[-2:-1]] == [{"message_type": "stop_reason", "stop_reason": "cancelled"}]
    assert events[-1].is_done
    assert [event.message_type for event in events].count("stop_reason") == 1


async def acknowledged(stream: EventStream, since: float) -> None:
    """The stream ends as a cancelled one within a second."""
    await stream.rest(deadline=5)
    took = time.monotonic() - since
    check_timely(took < ACKNOWLEDGED_SECONDS, took)
    check_cancelled(stream.seen)


async def check_free(stack: Stack, conversation: str) -> None:
    """The conversation takes the next message at once, and nothing of what was is left."""
    async with stack.say_in(conversation, {"chunks": 1, "interval_ms": 0}) as stream:
        assert stream.status == 200
        assert (await stream.rest())[-1].is_done
        assert any(
            event.json == {"message_type": "stop_reason", "stop_reason": "end_turn"} for event in stream.seen[:-1]
        )


# -- statuses and bodies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("said", [SILENT, ENDLESS], ids=["silent", "talking"])
@measured_again
async def test_a_conversation_is_cancelled(nats_url: str, said: dict[str, int], *, background: bool) -> None:
    """The answer names the run, comes when the conversation is free again, and is acknowledged by the stream's end."""
    async with stack_running(nats_url) as stack:
        conversation = await stack.conversation()
        async with stack.say_in(conversation, said, background=background) as stream:
            (ping,) = await stream.take(1)
            run_id = ping.json["run_id"]
            since = time.monotonic()
            reply = await cancel(stack, f"conversations/{conversation}/cancel")
            assert (reply.status, reply.json) == (200, {run_id: "cancelled"})
            record = await stack.record(run_id)
            assert (record.status, record.stop_reason, record.error) == ("cancelled", "cancelled", None)
            assert record.completed_at is not None
            await check_free(stack, conversation)
            await acknowledged(stream, since)
        if background:
            async with stack.resume(run_id) as again:
                check_cancelled(await again.rest())
        refused = await cancel(stack, f"conversations/{conversation}/cancel")
        assert (refused.status, refused.headers["x-should-retry"]) == (409, "false")
        assert refused.json == {"detail": f"CONFLICT: No active runs to cancel for conversation {conversation}"}


@measured_again
async def test_an_agent_is_cancelled(nats_url: str) -> None:
    """Without ids its latest run ends; one that has ended counts as cancelled, and stays as it is."""
    async with stack_running(nats_url) as stack:
        agent = new_agent_id()
        async with stack.create(SILENT, agent_id=agent) as stream:
            run_id = (await stream.take(1))[0].json["run_id"]
            since = time.monotonic()
            reply = await cancel(stack, f"agents/{agent}/messages/cancel")
            assert (reply.status, reply.json) == (200, {run_id: "cancelled"})
            await acknowledged(stream, since)
        record = await stack.record(run_id)
        again = await cancel(stack, f"agents/{agent}/messages/cancel", json={})
        assert (again.status, again.json) == (200, {run_id: "cancelled"})
        assert await stack.record(run_id) == record
        await wait_until(lambda: forgotten(stack, run_id))
        nobody = new_agent_id()
        refused = await cancel(stack, f"agents/{nobody}/messages/cancel")
        assert (refused.status, refused.headers["x-should-retry"]) == (409, "false")
        assert refused.json == {"detail": f"CONFLICT: No active runs to cancel for agent {nobody}"}


@measured_again
async def test_the_runs_that_are_named_are_cancelled_and_no_others(nats_url: str) -> None:
    """Of an agent's runs those named end; another agent's, an unknown and a malformed id have failed to."""
    async with stack_running(nats_url) as stack, contextlib.AsyncExitStack() as streams:
        agent = new_agent_id()
        asked = [stack.create(SILENT, agent_id=agent) for _ in range(3)]
        mine = [await streams.enter_async_context(stream) for stream in asked]
        other = await streams.enter_async_context(stack.create(SILENT))
        ids = [str((await stream.take(1))[0].json["run_id"]) for stream in [*mine, other]]
        unknown = new_run_id()
        since = time.monotonic()
        wanted = [ids[0], ids[1], ids[3], unknown, "run-x", ""]
        reply = await cancel(stack, f"agents/{agent}/messages/cancel", json={"run_ids": wanted})
        assert reply.status == 200
        assert reply.json == {
            ids[0]: "cancelled",
            ids[1]: "cancelled",
            **dict.fromkeys([ids[3], unknown, "run-x", ""], "failed"),
        }
        await asyncio.gather(*(acknowledged(stream, since) for stream in mine[:2]))

        async def others_go_on() -> bool:
            return [(await stack.record(run_id)).status for run_id in ids[2:]] == ["running", "running"]

        await wait_until(others_go_on)  # A run is told before its record says that it runs.


@measured_again
async def test_whose_default_conversation_is_cancelled(nats_url: str) -> None:
    """`default` needs an agent, which the query names; an agent's id in the path means the same."""
    async with stack_running(nats_url) as stack:
        agent = new_agent_id()
        for path in (f"conversations/default/cancel?agent_id={agent}", f"conversations/{agent}/cancel"):
            async with stack.create(SILENT, agent_id=agent) as stream:
                run_id = (await stream.take(1))[0].json["run_id"]
                since = time.monotonic()
                assert (await cancel(stack, path)).json == {run_id: "cancelled"}
                await acknowledged(stream, since)
            refused = await cancel(stack, path)
            name = path.split("/")[1]
            assert (refused.status, refused.json["detail"]) == (
                409,
                f"CONFLICT: No active runs to cancel for conversation {name}",
            )


async def test_a_conversation_to_cancel_is_read_once(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read of it is one request to the leader, while its client waits."""
    read: list[str] = []

    async def counted(index: Index, tenant: str, conversation_id: str) -> Stored[ConversationRecord] | None:
        read.append(conversation_id)
        return await found(index, tenant, conversation_id)

    async with stack_running(nats_url) as stack:
        conversation_id = await stack.conversation()
        found = Index.conversation
        monkeypatch.setattr(Index, "conversation", counted)
        assert (await cancel(stack, f"conversations/{conversation_id}/cancel")).status == 409
        assert read == [conversation_id]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"conversations/{MISSING}/cancel", 404),
        ("conversations/default/cancel", 404),
        ("conversations/default/cancel?agent_id=nobody", 404),
        ("conversations/nonsense/cancel", 422),
        ("agents/nonsense/messages/cancel", 422),
    ],
)
async def test_what_is_not_there_cannot_be_cancelled(nats_url: str, path: str, status: int) -> None:
    """An unknown conversation, `default` without an agent and malformed ids are refused as such."""
    async with stack_running(nats_url) as stack:
        assert (await cancel(stack, path)).status == status


async def test_a_bad_list_of_runs_is_refused(nats_url: str) -> None:
    """Ids that are no list, and more than a hundred of them, are 422, and nothing is cancelled."""
    async with stack_running(nats_url) as stack:
        path = f"agents/{new_agent_id()}/messages/cancel"
        for run_ids in ("run-x", [1], [new_run_id()] * 101):
            assert (await cancel(stack, path, json={"run_ids": run_ids})).status == 422


# -- agents that do not obey --------------------------------------------------------------------------------------


async def deaf(_: RunRequest) -> AsyncGenerator[Chunk, None]:
    """An agent that swallows its cancellation and goes on talking."""
    for number in range(100_000):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.005)  # its pace
        yield AssistantMessage(content=str(number))


async def tidy(_: RunRequest) -> AsyncGenerator[Chunk, None]:
    """An agent that takes its time to clean up."""
    try:
        yield AssistantMessage(content="0")
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(2)  # what it takes to clean up


async def late(_: RunRequest) -> AsyncGenerator[Chunk, None]:
    """An agent that has a last word when it is cancelled."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        yield AssistantMessage(content="one more thing")
        yield StopReason(stop_reason="end_turn")


@pytest.mark.parametrize("agent", [deaf, tidy, late])
@measured_again
async def test_an_agent_that_does_not_stop_is_not_waited_for(nats_url: str, agent: Agent) -> None:
    """Whatever an agent does with its cancellation, the stream ends within a second, and nothing follows."""
    async with stack_running(nats_url, agent=agent) as stack, stack.create() as stream:
        run_id = str((await stream.take(1))[0].json["run_id"])
        await wait_until(lambda: started(stack, run_id))
        since = time.monotonic()
        await cancel(stack, f"agents/{(await stack.record(run_id)).agent_id}/messages/cancel")
        await acknowledged(stream, since)
        async with stack.resume(run_id) as again:
            assert [event.json for event in await again.rest() if not event.is_done] == [
                event.json for event in stream.seen if not event.is_done
            ]


async def started(stack: Stack, run_id: str) -> bool:
    return (await stack.record(run_id)).status == "running"


async def test_a_run_that_waits_for_a_worker_is_cancelled(tmp_path: Path) -> None:
    """Cancelled before it was begun, a run ends within a second, and its agent never hears of it."""
    executed: list[str] = []

    async def agent(request: RunRequest) -> AsyncGenerator[Chunk, None]:
        executed.append(request.run_id)
        yield AssistantMessage(content="0")
        await asyncio.Event().wait()

    async with (
        nats_server_running(tmp_path) as server,  # What other tests have left would be given the one worker.
        stack_running(server.url, agent=agent, broker={"worker_concurrency": 1}) as stack,
    ):
        busy = new_agent_id()
        async with stack.create(agent_id=busy) as first:
            await first.take(2)
            conversation = await stack.conversation()
            async with stack.say_in(conversation) as waiting:
                run_id = (await waiting.take(1))[0].json["run_id"]
                since = time.monotonic()
                reply = await cancel(stack, f"conversations/{conversation}/cancel")
                assert reply.json == {run_id: "cancelled"}
                await acknowledged(waiting, since)
            assert (await cancel(stack, f"agents/{busy}/messages/cancel")).status == 200
            check_cancelled([*first.seen, *await first.rest()])
        await wait_until(lambda: off_the_queue(stack, run_id))
    assert executed == [first.seen[0].json["run_id"]]


async def off_the_queue(stack: Stack, run_id: str) -> bool:
    return await stack.jetstream.last_message("RUNSTREAM_WORK", f"work.default.{run_id}") is None


async def forgotten(stack: Stack, run_id: str) -> bool:
    return await stack.index.cancel_wish(run_id) is None and await stack.index.lease(run_id) is None


@pytest.mark.parametrize("outage", [stopped, paused])
@measured_again
async def test_a_cancel_that_nobody_heard_is_found_after_the_reconnect(
    nats_url: str, nats_server: NatsServer, outage: Callable[[NatsServer], AbstractAsyncContextManager[None]]
) -> None:
    """A wish that was stored, and whose news was lost with the connection, ends the run within a second of NATS."""
    async with stack_running(nats_url) as stack, stack.create(SILENT) as stream:
        run_id = str((await stream.take(1))[0].json["run_id"])
        await wait_until(lambda: started(stack, run_id))
        async with outage(nats_server):
            wishing = asyncio.create_task(stack.index.wish_cancelled("default", run_id))
            await asyncio.sleep(0.3)  # how long the outage is, not a wait
        await wishing
        await stack.is_back()
        await acknowledged(stream, time.monotonic())


# -- never the wrong one ------------------------------------------------------------------------------------------


async def test_a_late_cancel_never_hits_the_next_run(nats_url: str) -> None:
    """Cancelled as it was a moment ago, a run that has ended stays as it is, and so does the one that came after it."""
    async with stack_running(nats_url) as stack:
        conversation = await stack.conversation()
        canceller = Canceller(stack.jetstream.connection, stack.index)
        for _ in range(30):
            async with stack.say_in(conversation) as first:
                run_id = str((await first.take(1))[0].json["run_id"])
                await wait_until(lambda run_id=run_id: started(stack, run_id))  # type: ignore[misc]
                read_before = await stack.record(run_id)
                stack.puppet.finish(run_id)
                await first.rest()
            async with stack.say_in(conversation) as second:
                next_id = str((await second.take(1))[0].json["run_id"])
                await canceller.cancel(read_before)
                stack.puppet.say(next_id)
                stack.puppet.finish(next_id)
                events = await second.rest()
            assert [event.message_type for event in events[:-1]] == [
                *("assistant_message", "stop_reason", "usage_statistics")
            ]
            assert [(await stack.record(each)).status for each in (run_id, next_id)] == ["completed", "completed"]


async def test_cancels_at_any_moment_meet_one_run_or_none(nats_url: str) -> None:
    """A hundred messages, each posted the moment the last has ended, and cancels without end: no post is refused."""
    async with stack_running(nats_url) as stack:
        conversation = await stack.conversation()
        done = asyncio.Event()

        async def keep_cancelling() -> None:
            while not done.is_set():
                assert (await cancel(stack, f"conversations/{conversation}/cancel")).status in {200, 409}

        stops: list[list[str]] = []
        async with beside(keep_cancelling(), done):
            for _ in range(100):
                async with stack.say_in(conversation, {"chunks": 1, "interval_ms": 0}) as stream:
                    assert stream.status == 200, "the conversation was still busy after the end"
                    await stream.rest()
                assert stream.seen[-1].is_done
                stops.append([each.json["stop_reason"] for each in stream.seen if each.message_type == "stop_reason"])
        assert {tuple(each) for each in stops} <= {("cancelled",), ("end_turn",)}
        assert ["cancelled"] in stops, "no cancel met a run"


@contextlib.asynccontextmanager
async def beside(work: Coroutine[None, None, None], done: asyncio.Event) -> AsyncIterator[None]:
    """Let `work` go on while the block lasts; `done` is set at its end."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        done.set()
        await task


async def test_who_leaves_does_not_cancel(nats_url: str) -> None:
    """Clients that hang up, the creator and those who resumed, change nothing: the run ends as it would have."""
    async with stack_running(nats_url) as stack:
        async with stack.live(2) as (run_id, stream):
            async with stack.resume(run_id) as other:
                await other.take(3)
                other.leave()
            stream.leave()
            await stack.nobody_follows()
            stack.puppet.say(run_id, 2)
        async with stack.resume(run_id) as again:
            events = await again.rest()
        assert [event.json.get("stop_reason") for event in events[:-1] if event.message_type == "stop_reason"] == [
            "end_turn"
        ]
        assert (await stack.record(run_id)).status == "completed"


async def test_twenty_cancels_at_once_end_a_run_once(nats_url: str) -> None:
    """However many ask at the same time, by whichever path, the stream has one stop reason and one end."""
    async with stack_running(nats_url) as stack:
        for _ in range(10):
            agent = new_agent_id()
            async with open_stream(stack.base, f"/v1/agents/{agent}/messages/stream", message(ENDLESS)) as stream:
                run_id = (await stream.take(1))[0].json["run_id"]
                paths = [f"agents/{agent}/messages/cancel", f"conversations/{agent}/cancel"] * 10
                replies = await asyncio.gather(*(cancel(stack, path) for path in paths))
                assert {reply.status for reply in replies} <= {200, 409}
                assert all(reply.json == {run_id: "cancelled"} for reply in replies if reply.status == 200)
                await stream.rest()
                check_cancelled(stream.seen)
