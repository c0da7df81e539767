"""Conversations through letta-client: who may speak when, which run answers, and how one comes back to it."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from letta_client import (
    APIStatusError,
    AsyncLetta,
    AsyncStream,
    BadRequestError,
    ConflictError,
    Letta,
    NotFoundError,
    UnprocessableEntityError,
)

from runstream.schemas import new_agent_id, new_conversation_id, new_otid
from tests.support.http import DONE
from tests.support.letta import (
    Chunk,
    blocking_chunks_of,
    chunks_of,
    conversation,
    read_into,
    types_of,
    user,
    whole,
)
from tests.support.stack import PUPPET, Stack

# `agents.messages.stream` is the older of two ways to say the same, and says so; clients in the field use it.
pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning:tests.clients.test_conversations")

SHORT = json.dumps({"chunks": 3, "interval_ms": 0})
FAILING = json.dumps({"chunks": 1, "interval_ms": 0, "error_after": 1})
ANSWER = ["assistant_message"] * 3
WHOLE = ["ping", *ANSWER, "stop_reason", "usage_statistics"]


async def all_of(stream: AsyncStream[Any]) -> list[Chunk]:
    return [chunk async for chunk in chunks_of(stream)]


async def begun(stream: AsyncStream[Any]) -> tuple[str, AsyncGenerator[Chunk, None]]:
    """A stream whose first ping has come: the run's id, and what follows."""
    chunks = chunks_of(stream)
    return (await anext(chunks))["run_id"], chunks


async def speak(letta: AsyncLetta, path: str, text: str = PUPPET, **options: Any) -> AsyncStream[Any]:
    """A message in a conversation, answered in the background unless told otherwise."""
    return await letta.conversations.messages.create(path, input=text, **{"background": True, **options})


# -- what a conversation is -------------------------------------------------------------------------------------------


async def test_a_conversation_is_read_as_it_was_made(letta: AsyncLetta) -> None:
    """What was made is read again with its id, agent and summary; one that was never made is not found."""
    agent_id = new_agent_id()
    made = await letta.conversations.create(agent_id=agent_id, summary="on ferns")
    read = await letta.conversations.retrieve(made.id)
    assert (read.id, read.agent_id, read.summary, read.last_message_at) == (made.id, agent_id, "on ferns", None)
    unknown = new_conversation_id()
    with pytest.raises(NotFoundError, match="Conversation not found"):
        await letta.conversations.retrieve(unknown)
    with pytest.raises(NotFoundError, match="Conversation not found"):
        await speak(letta, unknown, SHORT)


async def test_a_message_is_the_conversations_last(letta: AsyncLetta, stack: Stack) -> None:
    """A stream as bytes is events and one `[DONE]`; each message moves the conversation's `last_message_at` on."""
    conversation_id = await conversation(letta)
    seen = []
    for _ in range(2):
        async with stack.say_in(conversation_id, {"chunks": 3, "interval_ms": 0}) as stream:
            events = await stream.rest()
        assert [event.message_type for event in events] == [*WHOLE, None]
        assert (events.count(DONE), events[-1]) == (1, DONE)
        last = (await letta.conversations.retrieve(conversation_id)).last_message_at
        assert last is not None
        seen.append(last)
    assert seen[0] < seen[1]


async def test_input_or_messages(letta: AsyncLetta) -> None:
    """A request has either `input` or `messages`: with both, or with neither, nothing is started."""
    agent_id = new_agent_id()
    conversation_id = (await letta.conversations.create(agent_id=agent_id)).id
    messages = [user("hello", new_otid())]
    both: dict[str, Any] = {"input": "hello", "messages": messages}
    for body, complaint in ((both, "Cannot specify both"), ({}, "Must specify either")):
        with pytest.raises(UnprocessableEntityError, match=complaint):
            await letta.conversations.messages.create(conversation_id, **body)
        with pytest.raises(UnprocessableEntityError, match=complaint):
            await letta.agents.messages.stream(agent_id, **body)
    assert (await letta.conversations.retrieve(conversation_id)).last_message_at is None
    with pytest.raises(BadRequestError, match="No active runs found"):
        await letta.conversations.messages.stream("default", agent_id=agent_id)


# -- coming back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", [True, False])
async def test_nothing_to_resume(letta: AsyncLetta, background: bool) -> None:
    """Without an active run there is nothing to resume by conversation: before the first one, and after its end."""
    conversation_id = await conversation(letta)
    with pytest.raises(BadRequestError, match="No active runs found for this conversation"):
        await letta.conversations.messages.stream(conversation_id)
    assert types_of(await all_of(await speak(letta, conversation_id, SHORT, background=background))) == WHOLE
    with pytest.raises(BadRequestError, match="No active runs found for this conversation"):
        await letta.conversations.messages.stream(conversation_id)


async def test_a_foreground_run_cannot_be_resumed(letta: AsyncLetta, stack: Stack) -> None:
    """An active run of the foreground is refused as what it is, and goes on undisturbed."""
    conversation_id = await conversation(letta)
    run_id, creator = await begun(await speak(letta, conversation_id, background=False))
    with pytest.raises(BadRequestError, match="not created in background mode"):
        await letta.conversations.messages.stream(conversation_id)
    stack.puppet.say(run_id)
    stack.puppet.finish(run_id)
    assert types_of([chunk async for chunk in creator]) == ["assistant_message", "stop_reason", "usage_statistics"]


@pytest.mark.parametrize("form", ["default", "agent"])
@pytest.mark.parametrize("through", ["conversations", "agents"])
async def test_an_agent_addressed_directly(letta: AsyncLetta, stack: Stack, form: str, through: str) -> None:
    """`default` with an agent, and the agent in the path, mean its run while it is live, and nothing else."""
    agent_id = new_agent_id()
    path = "default" if form == "default" else agent_id
    options: dict[str, Any] = {"agent_id": agent_id} if form == "default" else {}

    async def resume() -> AsyncStream[Any]:
        return await letta.conversations.messages.stream(path, **options)

    with pytest.raises(BadRequestError, match="No active runs found"):
        await resume()
    if through == "agents":
        stream = await letta.agents.messages.stream(agent_id, input=PUPPET, background=True)
    else:
        stream = await speak(letta, path, **options)
    run_id, creator = await begun(stream)
    resumed_id, resumed = await begun(await resume())
    assert resumed_id == run_id
    stack.puppet.say(run_id, 2)
    stack.puppet.finish(run_id)
    rest = [chunk async for chunk in creator]
    assert [chunk async for chunk in resumed] == rest
    run = await letta.runs.retrieve(run_id)
    assert (run.status, run.agent_id, run.conversation_id) == ("completed", agent_id, None)
    with pytest.raises(BadRequestError, match="No active runs found"):
        await resume()


async def test_default_needs_its_agent(letta: AsyncLetta) -> None:
    """`default` is no conversation of its own: without an agent there is neither a message to it nor a resume."""
    with pytest.raises(BadRequestError, match="needs an agent_id"):
        await speak(letta, "default", SHORT)
    with pytest.raises(BadRequestError, match="No active runs found"):
        await letta.conversations.messages.stream("default")


@pytest.mark.parametrize("place", ["conversation", "agent"])
async def test_the_run_again_is_the_stream_again(letta: AsyncLetta, place: str) -> None:
    """A background run from its beginning is what its creator saw: cursors that grow, stop reason and usage last."""
    if place == "conversation":
        created = await all_of(await speak(letta, await conversation(letta), SHORT))
    else:
        created = await all_of(await letta.agents.messages.stream(new_agent_id(), input=SHORT, background=True))
    assert types_of(created) == WHOLE
    assert await whole(letta, created[0]["run_id"]) == created
    cursors = [chunk["seq_id"] for chunk in created[:-2]]
    assert cursors == sorted(set(cursors))
    assert {chunk["run_id"] for chunk in created[:-2]} == {created[0]["run_id"]}
    run = await letta.runs.retrieve(created[0]["run_id"])
    assert (run.status, run.stop_reason, run.background) == ("completed", "end_turn", True)


async def test_cursor_arithmetic(letta: AsyncLetta) -> None:
    """One less than a message's cursor gives this message and all behind it; the cursor itself what is behind it."""
    knobs = json.dumps({"chunks": 9, "interval_ms": 0, "reasoning": True, "tool_call": True})
    created = await all_of(await speak(letta, await conversation(letta), knobs))
    run_id, messages = created[0]["run_id"], created[1:-2]
    for count in range(1, len(messages) + 1):
        cursor = messages[-count]["seq_id"] - 1
        resumed = await all_of(await letta.runs.messages.stream(run_id, starting_after=cursor))
        assert resumed == created[-count - 2 :]
        assert types_of(resumed)[-2:] == ["stop_reason", "usage_statistics"]
        behind = await all_of(await letta.runs.messages.stream(run_id, starting_after=cursor + 1))
        assert behind == resumed[1:]


# -- one at a time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("first", ["completed", "failed"])
async def test_the_next_message(letta: AsyncLetta, first: str, background: bool) -> None:
    """However a run ended, the conversation takes the next message at once, ten times over."""
    conversation_id = await conversation(letta)
    for _ in range(10):
        seen: list[Chunk] = []
        stream = await speak(letta, conversation_id, SHORT if first == "completed" else FAILING, background=background)
        if first == "completed":
            await read_into(seen, stream)
        else:
            with pytest.raises(APIStatusError, match="llm_error"):
                await read_into(seen, stream)
        assert (await letta.runs.retrieve(seen[0]["run_id"])).status == first
    assert types_of(await all_of(await speak(letta, conversation_id, SHORT))) == WHOLE


@pytest.mark.parametrize("background", [True, False])
async def test_two_messages_at_once(letta: AsyncLetta, stack: Stack, background: bool) -> None:
    """Of two simultaneous messages to a conversation one is answered, the other a conflict; then it takes a third."""
    conversation_id = await conversation(letta)
    for _ in range(10):
        outcomes = await asyncio.gather(
            *(speak(letta, conversation_id, background=background) for _ in range(2)), return_exceptions=True
        )
        refused = [outcome for outcome in outcomes if isinstance(outcome, ConflictError)]
        streams = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        assert (len(refused), len(streams)) == (1, 1), outcomes
        run_id, chunks = await begun(streams[0])
        body: Any = refused[0].body
        assert body["run_id"] == run_id
        stack.puppet.finish(run_id)
        assert types_of([chunk async for chunk in chunks]) == ["stop_reason", "usage_statistics"]
        assert types_of(await all_of(await speak(letta, conversation_id, SHORT))) == WHOLE


async def test_two_messages_at_once_from_threads(blocking_letta: Letta, stack: Stack) -> None:
    """The same with the client that blocks, in two threads."""
    conversation_id = await stack.conversation()
    knobs = json.dumps({"chunks": 2, "interval_ms": 300})

    def say() -> list[str]:
        stream = blocking_letta.conversations.messages.create(conversation_id, input=knobs, background=True)
        return types_of(list(blocking_chunks_of(stream)))

    outcomes = await asyncio.gather(*(asyncio.to_thread(say) for _ in range(2)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes].count(ConflictError) == 1
    assert ["ping", *ANSWER[:2], "stop_reason", "usage_statistics"] in outcomes
    assert await asyncio.to_thread(say) in outcomes


async def test_an_agent_is_never_busy(letta: AsyncLetta, stack: Stack) -> None:
    """On the agents' own path an agent answers many messages at once, also while its default conversation is busy."""
    agent_id = new_agent_id()
    streams = [
        await speak(letta, "default", agent_id=agent_id),
        await letta.agents.messages.stream(agent_id, input=PUPPET, background=True),
        await letta.agents.messages.stream(agent_id, input=PUPPET, background=True),
    ]
    begun_ones = [await begun(stream) for stream in streams]
    assert len({run_id for run_id, _ in begun_ones}) == len(streams)
    for run_id, chunks in begun_ones:
        stack.puppet.finish(run_id)
        assert types_of([chunk async for chunk in chunks]) == ["stop_reason", "usage_statistics"]


async def test_an_agents_default_conversation_is_busy_like_any_other(letta: AsyncLetta, stack: Stack) -> None:
    """Named `default` or by the agent's id it is the same one: a second message is a conflict until the first ended."""
    agent_id = new_agent_id()
    run_id, chunks = await begun(await speak(letta, "default", agent_id=agent_id))
    for name, besides in ((agent_id, {}), ("default", {"agent_id": agent_id})):
        with pytest.raises(ConflictError) as refused:
            await speak(letta, name, **besides)
        body: Any = refused.value.body
        assert body["run_id"] == run_id
    stack.puppet.finish(run_id)
    assert types_of([chunk async for chunk in chunks]) == ["stop_reason", "usage_statistics"]
    assert types_of(await all_of(await speak(letta, agent_id, SHORT))) == WHOLE


async def test_a_run_says_where_it_stands(letta: AsyncLetta, stack: Stack) -> None:
    """A run is `running` while its agent speaks, without a stop reason or an end; then both are there."""
    run_id, chunks = await begun(await speak(letta, await conversation(letta)))
    stack.puppet.say(run_id)
    await anext(chunks)
    run = await letta.runs.retrieve(run_id)
    assert (run.status, run.stop_reason, run.completed_at) == ("running", None, None)
    stack.puppet.fail(run_id, "llm_timeout")
    with pytest.raises(APIStatusError, match="llm_timeout"):
        await anext(aiter_without_stop(chunks))
    run = await letta.runs.retrieve(run_id)
    assert (run.status, run.stop_reason) == ("failed", "llm_api_error")
    assert run.completed_at is not None
    error: Any = (run.metadata or {})["error"]
    assert (error["error_type"], error["run_id"]) == ("llm_timeout", run_id)


async def aiter_without_stop(chunks: AsyncGenerator[Chunk, None]) -> AsyncGenerator[Chunk, None]:
    """Pass over the stop reason."""
    async for chunk in chunks:
        if chunk["message_type"] != "stop_reason":
            yield chunk


# -- otids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", [True, False])
async def test_another_message_is_a_conflict_and_the_same_is_the_run(
    letta: AsyncLetta, stack: Stack, background: bool
) -> None:
    """In a busy conversation another otid is a conflict that names the run; its own otid is the run, then and later."""
    conversation_id, otid = await conversation(letta), new_otid()

    async def say(otid: str) -> AsyncStream[Any]:
        return await letta.conversations.messages.create(
            conversation_id, messages=[user(PUPPET, otid)], background=background
        )

    run_id, creator = await begun(await say(otid))
    with pytest.raises(ConflictError) as caught:
        await say(new_otid())
    body: Any = caught.value.body
    assert (body["run_id"], body["otid"]) == (run_id, otid)
    assert run_id in body["detail"]
    same_id, same = await begun(await say(otid))
    assert same_id == run_id
    stack.puppet.say(run_id, 3)
    stack.puppet.finish(run_id)
    rest = [chunk async for chunk in creator]
    assert types_of(rest) == [*ANSWER, "stop_reason", "usage_statistics"]
    assert [chunk async for chunk in same] == rest
    after_id, after = await begun(await say(otid))
    assert after_id == run_id
    assert [chunk async for chunk in after] == rest


async def test_a_failed_run_answers_its_request_again(letta: AsyncLetta) -> None:
    """The same otid after a failure is the failure once more, not another try; a new otid is a new run."""
    conversation_id = await conversation(letta)
    seen: list[list[Chunk]] = []
    for otid in ["first", "first", "second"]:
        seen.append([])
        stream = await letta.conversations.messages.create(
            conversation_id, messages=[user(FAILING, f"{otid} in {conversation_id}")], background=True
        )
        with pytest.raises(APIStatusError, match="llm_error"):
            await read_into(seen[-1], stream)
    assert seen[0] == seen[1]
    assert seen[2][0]["run_id"] != seen[0][0]["run_id"]


async def test_the_run_of_an_otid(letta: AsyncLetta, stack: Stack) -> None:
    """Who knows only a message's otid finds the run by it, live and ended, from the beginning or from a cursor."""
    conversation_id, otid = await conversation(letta), new_otid()
    stream = await letta.conversations.messages.create(
        conversation_id, messages=[user("first", new_otid()), user(PUPPET, otid)], background=True
    )
    run_id, creator = await begun(stream)
    live_id, live = await begun(await letta.conversations.messages.stream(conversation_id, otid=otid))
    stack.puppet.say(run_id, 3)
    stack.puppet.finish(run_id)
    rest = [chunk async for chunk in creator]
    assert (live_id, [chunk async for chunk in live]) == (run_id, rest)
    ended = await all_of(await letta.conversations.messages.stream(conversation_id, otid=otid))
    assert ended == await whole(letta, run_id)
    cursor = rest[0]["seq_id"]
    behind = await letta.conversations.messages.stream(conversation_id, otid=otid, starting_after=cursor)
    assert await all_of(behind) == rest[1:]


async def test_an_otid_of_another_conversation(letta: AsyncLetta) -> None:
    """Nobody is answered with another conversation's run: its otid is a conflict, and nothing is started."""
    otid = new_otid()
    conversations = [await conversation(letta) for _ in range(2)]

    async def say(conversation_id: str) -> list[Chunk]:
        return await all_of(
            await letta.conversations.messages.create(conversation_id, messages=[user(SHORT, otid)], background=True)
        )

    answer = await say(conversations[0])
    with pytest.raises(ConflictError, match=f"otid {otid} belongs to another request") as caught:
        await say(conversations[1])
    body: Any = caught.value.body
    assert body["run_id"] == answer[0]["run_id"]
    assert (await letta.conversations.retrieve(conversations[1])).last_message_at is None
    assert types_of(await all_of(await speak(letta, conversations[1], SHORT))) == WHOLE
