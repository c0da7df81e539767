"""What letta-client reads and changes besides streams: whole answers, lists, what a run said, used, and its removal."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from letta_client import APIStatusError, AsyncLetta, ConflictError, InternalServerError, NotFoundError
from letta_client.types import Conversation, ToolReturnMessage
from letta_client.types.agents import (
    AssistantMessage,
    LettaResponse,
    ReasoningMessage,
    Run,
    ToolCall,
    ToolCallMessage,
)
from letta_client.types.runs import UsageRetrieveResponse

from runstream.schemas import new_agent_id, new_otid, new_run_id
from tests.support.letta import Caller, user
from tests.support.stack import Stack

SHORT = json.dumps({"chunks": 3, "interval_ms": 0, "text": "one two three"})
FULL = json.dumps({"chunks": 2, "interval_ms": 0, "reasoning": True, "tool_call": True, "text": "one two"})
FAILING = json.dumps({"chunks": 1, "interval_ms": 0, "error_after": 1})


async def conversation(call: Caller, **options: Any) -> Conversation:
    made: Conversation = await call("conversations.create", **{"agent_id": new_agent_id(), **options})
    return made


async def run_in(call: Caller, conversation_id: str, said: str = SHORT, **options: Any) -> str:
    """Have a message answered; returns the run's id."""
    messages: list[Any] = await call.all_of("conversations.messages.create", conversation_id, input=said, **options)
    run_id: str = messages[0].run_id
    return run_id


async def runs_in(call: Caller, conversation_id: str, count: int) -> list[str]:
    """Have so many messages answered, one after the other; the runs' ids, oldest first."""
    return [await run_in(call, conversation_id, background=number % 2 == 0) for number in range(count)]


def ids(things: Sequence[Any]) -> list[str]:
    return [thing.id for thing in things]


def check_whole(messages: Sequence[Any], run_id: str) -> None:
    """What FULL says, each message whole and built as what it is."""
    thought, tool_call, tool_return, answer = messages
    assert isinstance(thought, ReasoningMessage)
    assert isinstance(tool_call, ToolCallMessage)
    assert isinstance(tool_call.tool_call, ToolCall)
    assert json.loads(tool_call.tool_call.arguments)
    assert isinstance(tool_return, ToolReturnMessage)
    assert tool_return.tool_call_id == tool_call.tool_call.tool_call_id
    assert isinstance(answer, AssistantMessage)
    assert answer.content == "one two "
    assert {message.run_id for message in messages} == {run_id}
    assert len(set(ids(messages))) == 4


# -- whole answers ----------------------------------------------------------------------------------------------------


async def test_agents_messages_create(call: Caller) -> None:
    """A message to an agent is answered whole, once its run has ended."""
    agent_id = new_agent_id()
    answer = await call("agents.messages.create", agent_id, input=FULL)
    assert isinstance(answer, LettaResponse)
    run_id = answer.messages[0].run_id
    assert run_id is not None
    check_whole(answer.messages, run_id)
    assert answer.stop_reason.stop_reason == "end_turn"
    assert (answer.usage.completion_tokens, answer.usage.step_count) == (2, 1)
    assert answer.usage.total_tokens == (answer.usage.prompt_tokens or 0) + 2
    run = await call("runs.retrieve", run_id)
    assert (run.status, run.agent_id, run.conversation_id) == ("completed", agent_id, None)
    assert run.metadata == {"run_type": "send_message"}


async def test_agents_messages_create_again(call: Caller) -> None:
    """The same request again is answered by the same run, whole."""
    agent_id, messages = new_agent_id(), [user(SHORT, new_otid())]
    first = await call("agents.messages.create", agent_id, messages=messages)
    assert await call("agents.messages.create", agent_id, messages=messages) == first


async def test_agents_messages_create_streaming(call: Caller) -> None:
    """With `streaming` the same method gives a stream, in the background one with cursors."""
    messages = await call.all_of("agents.messages.create", new_agent_id(), input=SHORT, streaming=True, background=True)
    kinds = [message.message_type for message in messages]
    assert kinds == ["ping", *["assistant_message"] * 3, "stop_reason", "usage_statistics"]
    assert await call.all_of("runs.messages.stream", messages[0].run_id) == messages


async def test_agents_messages_create_of_a_run_that_fails(call: Caller) -> None:
    """A failure is raised, with the error in the body, and not repeated: the run is there, and has failed."""
    with pytest.raises(InternalServerError) as caught:
        await call("agents.messages.create", new_agent_id(), input=FAILING)
    body: Any = caught.value.body
    assert body["error"]["type"] == "llm_error"
    # Without this the client would have sent the request three times.
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert (await call("runs.retrieve", body["run_id"])).status == "failed"


async def test_conversations_messages_create_without_streaming(letta: AsyncLetta) -> None:
    """In a conversation as well. The client's own method takes any answer for a stream, so it is asked for by path."""
    made = await letta.conversations.create(agent_id=new_agent_id())
    path = f"/v1/conversations/{made.id}/messages"
    answer = await letta.post(path, cast_to=LettaResponse, body={"input": FULL, "streaming": False})
    run_id = answer.messages[0].run_id
    assert run_id is not None
    check_whole(answer.messages, run_id)
    assert (await letta.runs.retrieve(run_id)).conversation_id == made.id


async def test_a_busy_conversation_without_streaming(letta: AsyncLetta, stack: Stack) -> None:
    """A conversation has one run at a time, however it is to be answered."""
    conversation_id = await stack.conversation()
    path = f"/v1/conversations/{conversation_id}/messages"
    async with stack.say_in(conversation_id) as creator:
        run_id = str((await creator.take(1))[0].json["run_id"])
        with pytest.raises(ConflictError) as caught:
            await letta.post(path, cast_to=LettaResponse, body={"input": SHORT, "streaming": False})
        body: Any = caught.value.body
        assert body["run_id"] == run_id
        stack.puppet.finish(run_id)
        await creator.rest()


# -- what a run said, and used ----------------------------------------------------------------------------------------


async def test_runs_messages_list(call: Caller) -> None:
    """What a run said, message by message and whole; page by page it is the same, forwards and backwards."""
    run_id = await run_in(call, (await conversation(call)).id, FULL, background=True)
    page = await call("runs.messages.list", run_id)
    check_whole(page.items, run_id)
    for limit in (1, 3, 4, 5, 1000):
        assert await call.all_of("runs.messages.list", run_id, limit=limit, order="asc") == page.items
    backwards = await call.all_of("runs.messages.list", run_id, limit=1, order="desc", order_by="created_at")
    assert backwards == page.items[::-1]
    behind = await call.all_of("runs.messages.list", run_id, after=page.items[1].id)
    assert behind == page.items[2:]
    assert (await call("runs.messages.list", run_id, before=page.items[2].id)).items == page.items[:2]


async def test_runs_messages_list_of_every_kind_of_run(call: Caller, stack: Stack) -> None:
    """One of the foreground has said as much; one that failed or goes on what it has come to; nobody's is not there."""
    foreground = await run_in(call, (await conversation(call)).id, FULL)
    check_whole(await call.all_of("runs.messages.list", foreground), foreground)
    failing = (await conversation(call)).id
    with pytest.raises(APIStatusError) as caught:
        await run_in(call, failing, FAILING)
    body: Any = caught.value.body
    (said,) = await call.all_of("runs.messages.list", body["run_id"])
    assert isinstance(said, AssistantMessage)
    async with stack.live(2) as (run_id, _):
        assert [message.content for message in await call.all_of("runs.messages.list", run_id)] == ["0 ", "1 "]
    with pytest.raises(NotFoundError, match="Run not found"):
        await call.all_of("runs.messages.list", new_run_id())


async def test_runs_usage_retrieve(call: Caller) -> None:
    """What a run used is what its stream said at its end."""
    ping, *_, usage = await call.all_of("conversations.messages.create", (await conversation(call)).id, input=SHORT)
    used = await call("runs.usage.retrieve", ping.run_id)
    assert isinstance(used, UsageRetrieveResponse)
    assert (used.completion_tokens, used.prompt_tokens) == (3, usage.prompt_tokens)
    assert used.total_tokens == usage.total_tokens
    with pytest.raises(NotFoundError, match="Run not found"):
        await call("runs.usage.retrieve", new_run_id())


# -- runs -------------------------------------------------------------------------------------------------------------


async def test_runs_list(call: Caller) -> None:
    """The runs of a conversation, newest first, each as it is when it is read by itself."""
    made = await conversation(call)
    run_ids = await runs_in(call, made.id, 3)
    page = await call("runs.list", conversation_id=made.id)
    assert all(isinstance(run, Run) for run in page.items)
    assert ids(page.items) == run_ids[::-1]
    for run in page.items:
        assert run == await call("runs.retrieve", run.id)


async def test_runs_list_page_by_page(call: Caller) -> None:
    """Whatever the size of a page and the order, the loop over a list gives each run once, and ends."""
    made = await conversation(call)
    run_ids = await runs_in(call, made.id, 5)
    for limit in (1, 2, 4, 5, 6):
        options: dict[str, Any] = {"conversation_id": made.id, "limit": limit}
        assert ids(await call.all_of("runs.list", **options)) == run_ids[::-1]
        assert ids(await call.all_of("runs.list", **options, order="asc", order_by="created_at")) == run_ids
        assert ids(await call.all_of("runs.list", **options, ascending=True)) == run_ids
    options = {"conversation_id": made.id, "limit": 2}
    assert ids((await call("runs.list", **options, after=run_ids[3])).items) == [run_ids[2], run_ids[1]]
    assert ids((await call("runs.list", **options, before=run_ids[1])).items) == [run_ids[3], run_ids[2]]
    assert ids(await call.all_of("runs.list", **options, before=run_ids[1])) == [
        run_ids[3],
        run_ids[2],
        run_ids[4],
    ], "the client asks for what comes before the first one it has: the page next to it, then the one before that"


async def test_runs_list_filtered(call: Caller, stack: Stack) -> None:
    """Each filter of the client's leaves what it names, and several what all of them name."""
    agent_id = new_agent_id()
    made = await conversation(call, agent_id=agent_id)
    background, foreground = await runs_in(call, made.id, 2)
    with pytest.raises(APIStatusError) as caught:
        await run_in(call, made.id, FAILING)
    body: Any = caught.value.body
    failed = body["run_id"]
    async with stack.create(agent_id=agent_id) as creator:
        live = str((await creator.take(1))[0].json["run_id"])

        async def listed(**options: Any) -> list[str]:
            return ids(await call.all_of("runs.list", **options))

        everything = [live, failed, foreground, background]
        assert await listed(agent_id=agent_id) == everything
        assert await listed(agent_ids=[agent_id, new_agent_id()]) == everything
        assert await listed(agent_id=new_agent_id()) == []
        assert await listed(conversation_id=made.id) == everything[1:]
        assert await listed(agent_id=agent_id, active=True) == [live]
        assert await listed(agent_id=agent_id, background=True) == [live, background]
        assert await listed(agent_id=agent_id, background=False) == [failed, foreground]
        assert await listed(agent_id=agent_id, statuses=["completed", "failed"]) == everything[1:]
        assert await listed(agent_id=agent_id, statuses=["failed"], active=True) == [failed]
        assert await listed(agent_id=agent_id, stop_reason="llm_api_error") == [failed]
        assert await listed(agent_id=agent_id, stop_reason="end_turn", background=True) == [background]
        stack.puppet.finish(live)
        await creator.rest()
    assert await listed(agent_id=agent_id, active=True) == []


async def test_a_run_is_deleted(letta: AsyncLetta) -> None:
    """A run that is deleted is not found any more, by nobody; letta-client has no method for it, and asks by path."""
    agent_id, otid = new_agent_id(), new_otid()
    stream = await letta.conversations.messages.create(agent_id, messages=[user(SHORT, otid)], background=True)
    run_id = [message async for message in stream][0].run_id  # type: ignore[union-attr]  # noqa: RUF015
    assert run_id is not None
    await letta.delete(f"/v1/runs/{run_id}", cast_to=object)
    with pytest.raises(NotFoundError):
        await letta.runs.retrieve(run_id)
    with pytest.raises(NotFoundError):
        await letta.runs.messages.stream(run_id)
    with pytest.raises(NotFoundError):
        await letta.conversations.messages.stream("default", otid=otid)
    assert [run.id async for run in letta.runs.list(agent_id=agent_id)] == []
    with pytest.raises(NotFoundError):
        await letta.delete(f"/v1/runs/{run_id}", cast_to=object)


# -- conversations ----------------------------------------------------------------------------------------------------


async def test_conversations_list(call: Caller) -> None:
    """An agent's conversations, newest first or oldest, a page after each other, each as it is when it is read."""
    agent_id = new_agent_id()
    made = [await conversation(call, agent_id=agent_id, summary=f"on {name}") for name in ("ferns", "moss", "ivy")]
    listed = await call("conversations.list", agent_id=agent_id)
    assert all(isinstance(each, Conversation) for each in listed)
    assert listed == made[::-1]
    assert await call("conversations.list", agent_id=agent_id, order="asc") == made
    assert await call("conversations.list", agent_id=agent_id, limit=1) == [made[2]]
    assert await call("conversations.list", agent_id=agent_id, limit=1, after=made[2].id) == [made[1]]
    assert await call("conversations.list", agent_id=agent_id, after=made[0].id) == []
    assert await call("conversations.list", agent_id=agent_id, summary_search="mos") == [made[1]]
    assert await call("conversations.list", agent_id=new_agent_id()) == []
    assert set(ids(made)) <= set(ids(await call("conversations.list", limit=100)))


async def test_conversations_list_by_what_was_said_last(call: Caller) -> None:
    """The conversation that was spoken in last comes first, if that is asked for."""
    agent_id = new_agent_id()
    made = [await conversation(call, agent_id=agent_id) for _ in range(3)]
    for spoken in (made[2], made[0], made[1]):
        await run_in(call, spoken.id)
    expected = ids([made[1], made[0], made[2]])
    for order_by in ("last_message_at", "last_run_completion"):
        assert ids(await call("conversations.list", agent_id=agent_id, order_by=order_by)) == expected


async def test_conversations_update(call: Caller) -> None:
    """What is said of a conversation changes, and nothing else; null takes it back."""
    made = await conversation(call, summary="on ferns", description="of ferns")
    changed = await call(
        "conversations.update",
        made.id,
        context_window_limit=8192,
        last_message_at="2026-01-02T03:04:05Z",
        model="openai/gpt-9",
        model_settings={"provider_type": "openai", "temperature": 0.5},
        summary="on moss",
    )
    assert isinstance(changed, Conversation)
    assert (changed.id, changed.agent_id, changed.created_at) == (made.id, made.agent_id, made.created_at)
    assert (changed.summary, changed.description, changed.model) == ("on moss", "of ferns", "openai/gpt-9")
    assert changed.context_window_limit == 8192
    assert changed.last_message_at is not None
    assert changed.last_message_at.isoformat() == "2026-01-02T03:04:05+00:00"
    assert changed.updated_at is not None
    assert made.updated_at is not None
    assert changed.updated_at > made.updated_at
    assert await call("conversations.retrieve", made.id) == changed
    emptied = await call("conversations.update", made.id, summary=None)
    assert (emptied.summary, emptied.description) == (None, "of ferns")
    with pytest.raises(NotFoundError, match="Conversation not found"):
        await call("conversations.update", f"conv-{new_run_id().removeprefix('run-')}", summary="x")


async def test_conversations_are_archived(call: Caller) -> None:
    """An archived conversation is left out of lists, unless it is asked for; it is not gone, and can come back."""
    agent_id = new_agent_id()
    put_away, kept = [await conversation(call, agent_id=agent_id) for _ in range(2)]
    archived = await call("conversations.update", put_away.id, archived=True)
    assert (archived.archived, archived.archived_at is None) == (True, False)

    async def listed(**options: Any) -> list[str]:
        return ids(await call("conversations.list", agent_id=agent_id, **options))

    assert await listed() == [kept.id]
    assert await listed(archive_status="unarchived") == [kept.id]
    assert await listed(archive_status="archived") == [put_away.id]
    assert await listed(archive_status="all") == [kept.id, put_away.id]
    back = await call("conversations.update", put_away.id, archived=False)
    assert (back.archived, back.archived_at) == (False, None)
    assert await listed() == [kept.id, put_away.id]


async def test_conversations_delete(call: Caller) -> None:
    """A deleted conversation is not found any more, takes no message, and is in no list."""
    made = await conversation(call)
    await run_in(call, made.id)
    await call("conversations.delete", made.id)
    with pytest.raises(NotFoundError, match="Conversation not found"):
        await call("conversations.retrieve", made.id)
    with pytest.raises(NotFoundError, match="Conversation not found"):
        await run_in(call, made.id)
    with pytest.raises(NotFoundError, match="Conversation not found"):
        await call("conversations.cancel", made.id)
    assert await call("conversations.list", agent_id=made.agent_id, archive_status="all") == []
    with pytest.raises(NotFoundError, match="Conversation not found"):
        await call("conversations.delete", made.id)
