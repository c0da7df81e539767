"""Cancelling through letta-client: the run ends as cancelled, everybody sees the same end, and the next can begin."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from letta_client import AsyncLetta, AsyncStream, BadRequestError, ConflictError, Letta, NotFoundError

from runstream.schemas import new_agent_id, new_conversation_id, new_otid, new_run_id
from tests.support.http import DONE
from tests.support.letta import Chunk, blocking_chunks_of, chunks_of, conversation, types_of, user, whole
from tests.support.stack import PUPPET, Stack
from tests.support.standstill import check_timely, measured_again

# `agents.messages.stream` is the older of two ways to say the same, and says so; clients in the field use it.
pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning:tests.clients.test_cancellation")

SHORT = json.dumps({"chunks": 1, "interval_ms": 0})
SPEAKING = json.dumps({"chunks": 10_000, "interval_ms": 5})
SILENT = json.dumps({"silence_ms": 600_000})
CANCELLED: Chunk = {"message_type": "stop_reason", "stop_reason": "cancelled"}
ACKNOWLEDGED_SECONDS = 1.0
ANSWERED_SECONDS = 2.5
"""A cancel is answered when the run is over, and after two seconds at most."""


async def begun(stream: AsyncStream[Any]) -> tuple[str, AsyncGenerator[Chunk, None]]:
    """A stream whose first ping has come: the run's id, and what follows."""
    chunks = chunks_of(stream)
    return (await anext(chunks))["run_id"], chunks


async def check_cancelled(letta: AsyncLetta, run_id: str) -> None:
    """The record says that the run was cancelled, and of no error."""
    run = await letta.runs.retrieve(run_id)
    assert (run.status, run.stop_reason) == ("cancelled", "cancelled")
    assert run.completed_at is not None
    assert "error" not in (run.metadata or {})


@pytest.mark.parametrize("pings", [True, False], ids=["pings", "no pings"])
@pytest.mark.parametrize("knobs", [SPEAKING, SILENT], ids=["speaking", "silent"])
@measured_again
async def test_everybody_sees_the_same_end(letta: AsyncLetta, knobs: str, pings: bool) -> None:
    """Who made the run, who came back to it, and who comes after its end: one stop reason, `cancelled`, and no more."""
    conversation_id, otid = await conversation(letta), new_otid()
    stream = await letta.conversations.messages.create(
        conversation_id, messages=[user(knobs, otid)], background=True, include_pings=pings
    )
    resumed = await letta.conversations.messages.stream(conversation_id, include_pings=pings)
    creator = asyncio.create_task(all_of(stream))
    follower = asyncio.create_task(all_of(resumed))
    if knobs == SPEAKING:
        run_id, chunks = await begun(await letta.conversations.messages.stream(conversation_id))
        await anext(chunks)
        await chunks.aclose()
    began = time.monotonic()
    answer = await letta.conversations.cancel(conversation_id)
    check_timely((took := time.monotonic() - began) < ANSWERED_SECONDS, took)
    ((run_id, said),) = answer.items()
    assert said == "cancelled"
    await check_cancelled(letta, run_id)
    seen = await creator
    check_timely((took := time.monotonic() - began) < ACKNOWLEDGED_SECONDS + ANSWERED_SECONDS, took)
    assert await follower == seen
    assert (seen.count(CANCELLED), seen[-1]) == (1, CANCELLED)
    assert types_of(seen).count("stop_reason") == 1
    assert set(types_of(seen)) <= {"ping", "assistant_message", "stop_reason"}
    replay = await whole(letta, run_id)
    assert replay == (seen if pings else [replay[0], *seen])
    by_otid = await letta.conversations.messages.stream(conversation_id, otid=otid)
    assert await all_of(by_otid) == replay


async def all_of(stream: AsyncStream[Any]) -> list[Chunk]:
    return [chunk async for chunk in chunks_of(stream)]


@pytest.mark.parametrize("background", [True, False], ids=["background", "foreground"])
@measured_again
async def test_the_stream_of_a_cancelled_run(stack: Stack, letta: AsyncLetta, background: bool) -> None:
    """On the wire: what was said, the stop reason, `[DONE]`, and a response that is complete."""
    conversation_id = await stack.conversation()
    async with stack.say_in(conversation_id, background=background) as stream:
        run_id = str((await stream.take(1))[0].json["run_id"])
        stack.puppet.say(run_id, 2)
        await stream.take(2)
        began = time.monotonic()
        cancelling = asyncio.create_task(letta.conversations.cancel(conversation_id))
        stop, done = await stream.rest()
        check_timely((took := time.monotonic() - began) < ACKNOWLEDGED_SECONDS, took)
        assert (stop.json, done) == (CANCELLED, DONE)
        assert await cancelling == {run_id: "cancelled"}
    await check_cancelled(letta, run_id)


@pytest.mark.parametrize("background", [True, False], ids=["background", "foreground"])
async def test_the_next_message_after_a_cancel(letta: AsyncLetta, background: bool) -> None:
    """The answer to a cancel says that the conversation is free: the next message is taken, twenty times over."""
    conversation_id = await conversation(letta)
    for _ in range(20):
        run_id, chunks = await begun(
            await letta.conversations.messages.create(conversation_id, input=PUPPET, background=background)
        )
        with pytest.raises(ConflictError) as caught:
            await letta.conversations.messages.create(conversation_id, input=SHORT, background=background)
        body: Any = caught.value.body
        assert body["run_id"] == run_id
        assert await letta.conversations.cancel(conversation_id) == {run_id: "cancelled"}
        answered, rest = await begun(
            await letta.conversations.messages.create(conversation_id, input=SHORT, background=background)
        )
        assert types_of([chunk async for chunk in rest]) == ["assistant_message", "stop_reason", "usage_statistics"]
        assert [chunk async for chunk in chunks] == [CANCELLED]
        await check_cancelled(letta, run_id)
        assert (await letta.runs.retrieve(answered)).status == "completed"


async def test_posting_at_the_end_of_a_cancelled_run(letta: AsyncLetta) -> None:
    """Who waits for the stream's end, and not for the cancel's answer, can go on as well: fifty times over."""
    conversation_id = await conversation(letta)
    answers = []
    for _ in range(50):
        run_id, chunks = await begun(
            await letta.conversations.messages.create(conversation_id, input=PUPPET, background=True)
        )
        answers.append((run_id, asyncio.create_task(letta.conversations.cancel(conversation_id))))
        assert [chunk async for chunk in chunks] == [CANCELLED]
    for run_id, answer in answers:
        assert await answer == {run_id: "cancelled"}
        await check_cancelled(letta, run_id)


async def test_nothing_to_cancel(letta: AsyncLetta) -> None:
    """Before the first run, after one has ended and after one was cancelled, there is nothing to cancel: a conflict."""
    agent_id, conversation_id = new_agent_id(), await conversation(letta)
    nothing = f"No active runs to cancel for conversation {conversation_id}"
    with pytest.raises(ConflictError, match=nothing):
        await letta.conversations.cancel(conversation_id)
    await all_of(await letta.conversations.messages.create(conversation_id, input=SHORT))
    with pytest.raises(ConflictError, match=nothing):
        await letta.conversations.cancel(conversation_id)
    _, chunks = await begun(await letta.conversations.messages.create(conversation_id, input=PUPPET, background=True))
    await letta.conversations.cancel(conversation_id)
    with pytest.raises(ConflictError, match=nothing):
        await letta.conversations.cancel(conversation_id)
    assert [chunk async for chunk in chunks] == [CANCELLED]
    with pytest.raises(ConflictError, match=f"No active runs to cancel for agent {agent_id}"):
        await letta.agents.messages.cancel(agent_id)
    for path, options in (("default", agent_id), (agent_id, None)):
        with pytest.raises(ConflictError, match=f"No active runs to cancel for conversation {path}"):
            await letta.conversations.cancel(path, agent_id=options)


async def test_what_is_not_there_cannot_be_cancelled(letta: AsyncLetta) -> None:
    """A conversation that was never made, and `default` without an agent, are not found."""
    for path in (new_conversation_id(), "default"):
        with pytest.raises(NotFoundError, match="Conversation not found"):
            await letta.conversations.cancel(path)


@pytest.mark.parametrize("way", ["agents", "its run's id", "agent as conversation", "default"])
async def test_an_agent_addressed_directly(letta: AsyncLetta, way: str) -> None:
    """The run of an agent without a conversation is cancelled by agent, by its id, and in both forms of the path."""
    agent_id = new_agent_id()
    run_id, chunks = await begun(await letta.agents.messages.stream(agent_id, input=PUPPET, background=True))
    answer: dict[str, object]
    match way:
        case "agents":
            answer = await letta.agents.messages.cancel(agent_id)
        case "its run's id":
            answer = await letta.agents.messages.cancel(agent_id, run_ids=[run_id])
        case "agent as conversation":
            answer = await letta.conversations.cancel(agent_id)
        case _:
            answer = await letta.conversations.cancel("default", agent_id=agent_id)
    assert answer == {run_id: "cancelled"}
    assert [chunk async for chunk in chunks] == [CANCELLED]
    await check_cancelled(letta, run_id)
    with pytest.raises(BadRequestError, match="No active runs found"):
        await letta.conversations.messages.stream("default", agent_id=agent_id)
    again = await letta.agents.messages.stream(agent_id, input=SHORT, background=True)
    assert types_of(await all_of(again))[-2:] == ["stop_reason", "usage_statistics"]


async def test_runs_that_are_named(letta: AsyncLetta, stack: Stack) -> None:
    """Only the runs that are named end; one that had ended stays as it was, and an unknown id is `failed`."""
    agent_id = new_agent_id()
    ended = await all_of(await letta.agents.messages.stream(agent_id, input=SHORT, background=True))
    runs = [await begun(await letta.agents.messages.stream(agent_id, input=PUPPET, background=True)) for _ in range(3)]
    named = [runs[0][0], runs[1][0], ended[0]["run_id"]]
    unknown = [new_run_id(), "no-run"]
    answer = await letta.agents.messages.cancel(agent_id, run_ids=[*named, *unknown])
    assert answer == {**dict.fromkeys(named, "cancelled"), **dict.fromkeys(unknown, "failed")}
    for run_id, chunks in runs[:2]:
        assert [chunk async for chunk in chunks] == [CANCELLED]
        await check_cancelled(letta, run_id)
    assert (await letta.runs.retrieve(named[2])).status == "completed"
    run_id, chunks = runs[2]
    stack.puppet.finish(run_id)
    assert types_of([chunk async for chunk in chunks]) == ["stop_reason", "usage_statistics"]
    assert (await letta.runs.retrieve(run_id)).status == "completed"


async def test_a_disconnect_is_no_cancel(letta: AsyncLetta, stack: Stack) -> None:
    """Whoever hangs up, in the background or the foreground, leaves the run going on to its own end."""
    for background in (True, False):
        conversation_id = await conversation(letta)
        run_id, chunks = await begun(
            await letta.conversations.messages.create(conversation_id, input=PUPPET, background=background)
        )
        await chunks.aclose()
        await stack.nobody_follows()
        with pytest.raises(ConflictError) as caught:
            await letta.conversations.messages.create(conversation_id, input=SHORT)
        body: Any = caught.value.body
        assert body["run_id"] == run_id
        stack.puppet.finish(run_id)
        if background:
            rest = await letta.runs.messages.stream(run_id)
            assert types_of(await all_of(rest)) == ["ping", "stop_reason", "usage_statistics"]
            assert (await letta.runs.retrieve(run_id)).status == "completed"


async def test_cancelled_from_another_thread(blocking_letta: Letta, stack: Stack) -> None:
    """The client that blocks reads in one thread and cancels in another."""
    conversation_id = await stack.conversation()
    stream = await asyncio.to_thread(
        blocking_letta.conversations.messages.create, conversation_id, input=SPEAKING, background=True
    )
    reading = asyncio.create_task(asyncio.to_thread(list, blocking_chunks_of(stream)))
    answer = await asyncio.to_thread(blocking_letta.conversations.cancel, conversation_id)
    seen = await reading
    assert answer == {seen[0]["run_id"]: "cancelled"}
    assert (seen.count(CANCELLED), seen[-1]) == (1, CANCELLED)
