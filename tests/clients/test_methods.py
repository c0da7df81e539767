"""Every method of letta-client that has an endpoint here, for asyncio and for threads: what it takes and gives."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any

import pytest
from letta_client import APIStatusError, AsyncLetta
from letta_client.types import Conversation, OpenAIModelSettings, ToolReturnMessage
from letta_client.types.agents import (
    ApprovalRequestMessage,
    AssistantMessage,
    ReasoningMessage,
    Run,
    ToolCall,
    ToolCallMessage,
)
from letta_client.types.agents.letta_streaming_response import LettaPing, LettaStopReason, LettaUsageStatistics

from runstream.schemas import new_agent_id, new_otid, new_run_id
from tests.support.letta import Caller, user
from tests.support.stack import Stack

# `agents.messages.stream` is the older of two ways to say the same, and says so; clients in the field use it.
pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")

SHORT = json.dumps({"chunks": 3, "interval_ms": 0, "text": "one two three"})
FULL = json.dumps({"chunks": 2, "interval_ms": 0, "reasoning": True, "tool_call": True, "text": "one two"})
APPROVAL = json.dumps({"chunks": 0, "approval": True})
FAILING = json.dumps({"chunks": 1, "interval_ms": 0, "error_after": 1})

# All that the client can say about a message, besides the message.
OPTIONS: dict[str, Any] = {
    "assistant_message_tool_kwarg": "text",
    "assistant_message_tool_name": "say",
    "client_skills": [{"name": "botany", "description": "knows ferns", "location": "skills/botany/SKILL.md"}],
    "client_tools": [{"name": "look", "description": "looks", "parameters": {"type": "object", "properties": {}}}],
    "enable_thinking": "true",
    "include_compaction_messages": True,
    "include_pings": True,
    "include_return_message_types": ["assistant_message"],
    "max_steps": 7,
    "override_model": "openai/gpt-9",
    "override_system": "You know ferns.",
    "return_logprobs": True,
    "return_token_ids": True,
    "stream_tokens": True,
    "streaming": True,
    "top_logprobs": 2,
    "use_assistant_message": False,
}


def is_recent(moment: datetime | None) -> bool:
    """Whether a date was understood as one of just now, and in which zone."""
    assert moment is not None
    return timedelta(seconds=-2) < datetime.now(UTC) - moment < timedelta(minutes=2)


def texts(messages: list[Any]) -> list[Any]:
    """What was said in the agent's own words, event by event."""
    return [message.content for message in messages if isinstance(message, AssistantMessage)]


# -- conversations ----------------------------------------------------------------------------------------------------


async def test_conversations_create(call: Caller) -> None:
    """All that a conversation may be made with comes back in its fields."""
    agent_id = new_agent_id()
    made = await call(
        "conversations.create",
        agent_id=agent_id,
        context_window_limit=8192,
        description="of ferns",
        hidden=False,
        model="openai/gpt-9",
        model_settings={"provider_type": "openai", "temperature": 0.5, "max_output_tokens": 100},
        summary="on ferns",
    )
    assert isinstance(made, Conversation)
    assert made.id.startswith("conv-")
    assert (made.agent_id, made.context_window_limit, made.description) == (agent_id, 8192, "of ferns")
    assert (made.model, made.summary) == ("openai/gpt-9", "on ferns")
    assert isinstance(made.api_model_settings, OpenAIModelSettings)
    assert (made.api_model_settings.temperature, made.api_model_settings.max_output_tokens) == (0.5, 100)
    assert is_recent(made.created_at)
    assert is_recent(made.updated_at)
    assert (made.created_by_id, made.last_updated_by_id) == ("user-00000000-0000-4000-8000-000000000000",) * 2
    assert (made.last_message_at, made.archived, made.archived_at) == (None, None, None)
    assert made.in_context_message_ids == []


async def test_conversations_retrieve(call: Caller) -> None:
    """A conversation is read as it was made; once it was spoken in, it says when."""
    made = await call("conversations.create", agent_id=new_agent_id(), summary="on ferns")
    assert await call("conversations.retrieve", made.id) == made
    await call.all_of("conversations.messages.create", made.id, input=SHORT)
    read = await call("conversations.retrieve", made.id)
    assert is_recent(read.last_message_at)
    assert read.last_message_at >= made.created_at


@pytest.mark.parametrize("way", ["conversation", "default", "agent"])
async def test_conversations_cancel(call: Caller, stack: Stack, way: str) -> None:
    """What goes on ends, in a conversation, and for an agent in both forms of the path: the answer names the run."""
    agent_id = new_agent_id()
    conversation_id = (await call("conversations.create", agent_id=agent_id)).id
    path = {"conversation": conversation_id, "default": "default", "agent": agent_id}[way]
    options = {"agent_id": agent_id} if way == "default" else {}
    async with stack.say_in(path, **options) as stream:
        run_id = (await stream.take(1))[0].json["run_id"]
        assert await call("conversations.cancel", path, **options) == {run_id: "cancelled"}
        assert (await stream.rest())[-2].json == {"message_type": "stop_reason", "stop_reason": "cancelled"}


# -- messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["conversations.messages.create", "agents.messages.stream"])
@pytest.mark.parametrize("background", [True, False], ids=["background", "foreground"])
async def test_messages_of_every_kind(call: Caller, method: str, background: bool) -> None:
    """Each message is built as what it is, with all its fields; a cursor is there in the background only."""
    conversation_id = (await call("conversations.create", agent_id=new_agent_id())).id
    path = conversation_id if method.startswith("conversations") else new_agent_id()
    ping, thought, tool_call, tool_return, one, two, stop, usage = await call.all_of(
        method, path, input=FULL, background=background
    )
    assert isinstance(ping, LettaPing)
    assert isinstance(thought, ReasoningMessage)
    assert (bool(thought.reasoning), thought.source, thought.signature) == (True, "reasoner_model", None)
    assert isinstance(tool_call, ToolCallMessage)
    assert isinstance(tool_call.tool_call, ToolCall)
    assert json.loads(tool_call.tool_call.arguments)
    assert tool_call.tool_calls == [tool_call.tool_call]
    assert isinstance(tool_return, ToolReturnMessage)
    assert (tool_return.status, tool_return.tool_call_id) == ("success", tool_call.tool_call.tool_call_id)
    assert tool_return.tool_return
    assert [each.tool_return for each in tool_return.tool_returns or []] == [tool_return.tool_return]
    assert texts([one, two]) == ["one ", "two "]
    assert isinstance(stop, LettaStopReason)
    assert stop.stop_reason == "end_turn"
    assert isinstance(usage, LettaUsageStatistics)
    assert (usage.completion_tokens, usage.step_count) == (2, 1)
    assert usage.total_tokens == (usage.prompt_tokens or 0) + 2
    messages = [ping, thought, tool_call, tool_return, one, two]
    assert {message.run_id for message in messages} == {ping.run_id}
    assert all(is_recent(message.date) for message in messages)
    assert len({message.id for message in messages}) == 5
    assert one.id == two.id
    assert len({message.step_id for message in messages[1:]}) == 1
    cursors = [message.seq_id for message in messages]
    assert cursors == (sorted(set(cursors)) if background else [None] * 6)


@pytest.mark.parametrize("method", ["conversations.messages.create", "agents.messages.stream"])
async def test_all_that_can_be_said_with_a_message(call: Caller, method: str) -> None:
    """Every option that the client has is taken; those that a run keeps are in its record, one of them is heeded."""
    agent_id = new_agent_id()
    options = OPTIONS if method.startswith("agents") else {**OPTIONS, "agent_id": agent_id}
    path = agent_id if method.startswith("agents") else "default"
    messages = await call.all_of(method, path, input=FULL, background=True, **options)
    assert [message.message_type for message in messages] == [
        "ping",
        "assistant_message",
        "assistant_message",
        "stop_reason",
        "usage_statistics",
    ]
    kept = (await call("runs.retrieve", messages[0].run_id)).request_config
    assert (kept.assistant_message_tool_kwarg, kept.assistant_message_tool_name) == ("text", "say")
    assert (kept.include_return_message_types, kept.use_assistant_message) == (["assistant_message"], False)


@pytest.mark.parametrize("method", ["conversations.messages.create", "agents.messages.stream"])
async def test_messages_in_every_form(call: Caller, method: str) -> None:
    """What is said may be text, parts, messages with parts, and what answers a request for approval."""
    agent_id = new_agent_id()
    conversation_id = (await call("conversations.create", agent_id=agent_id)).id
    path = conversation_id if method.startswith("conversations") else agent_id
    part = {"type": "text", "text": SHORT}
    for said in (
        {"input": SHORT},
        {"input": [part]},
        {"messages": [{"role": "user", "content": SHORT}]},
        {"messages": [{"role": "system", "content": "Be brief."}, user(SHORT, new_otid())]},
        {"messages": [{"type": "message", "role": "user", "content": [part], "name": "somebody"}]},
    ):
        assert texts(await call.all_of(method, path, **said)) == ["one ", "two ", "three "]
    asked = await call.all_of(method, path, input=APPROVAL)
    (request,) = (message for message in asked if isinstance(message, ApprovalRequestMessage))
    assert isinstance(request.tool_call, ToolCall)
    decision = {"type": "approval", "tool_call_id": request.tool_call.tool_call_id, "approve": True}
    answered = await call.all_of(method, path, messages=[{"type": "approval", "approvals": [decision]}])
    assert isinstance(answered[-1], LettaUsageStatistics)


@pytest.mark.parametrize("method", ["conversations.messages.stream", "runs.messages.stream"])
async def test_resuming_with_every_option(call: Caller, method: str) -> None:
    """Every option that the client has for a resume is taken; the run, the otid and the cursor say what is given."""
    agent_id, otid = new_agent_id(), new_otid()
    whole = await call.all_of("agents.messages.stream", agent_id, messages=[user(SHORT, otid)], background=True)
    run_id, cursor = whole[0].run_id, whole[1].seq_id
    options: dict[str, Any] = {"agent_id": agent_id, "batch_size": 1, "otid": otid, "poll_interval": 5.0}
    path = "default" if method.startswith("conversations") else run_id
    assert await call.all_of(method, path, **options) == whole
    assert await call.all_of(method, path, **options, include_pings=False) == whole[1:]
    assert await call.all_of(method, path, **options, starting_after=cursor) == whole[2:]
    # In the path it is the run of this one, whose body may name another: nobody looks at it.
    named = {"run_id": run_id} if method.startswith("conversations") else {"body_run_id": new_run_id()}
    assert await call.all_of(method, path, **options, **named, starting_after=cursor) == whole[2:]


async def test_resuming_what_goes_on(call: Caller, stack: Stack) -> None:
    """By conversation the run that goes on is found, and followed to its end."""
    conversation_id = (await call("conversations.create", agent_id=new_agent_id())).id
    async with stack.say_in(conversation_id) as creator:
        run_id = str((await creator.take(1))[0].json["run_id"])
        followed = asyncio.create_task(call.all_of("conversations.messages.stream", conversation_id))
        stack.puppet.say(run_id, 2)
        await creator.take(2)
        stack.puppet.finish(run_id)
        await creator.rest()
        messages = await followed
    assert [message.message_type for message in messages[-2:]] == ["stop_reason", "usage_statistics"]
    assert texts(messages) == ["0 ", "1 "]


async def test_agents_messages_cancel(call: Caller, stack: Stack) -> None:
    """An agent's latest run ends, or those that are named; of an id that is not one of its runs, `failed` is said."""
    agent_id = new_agent_id()
    async with stack.create(agent_id=agent_id) as one, stack.create(agent_id=agent_id) as two:
        first, second = [(await stream.take(1))[0].json["run_id"] for stream in (one, two)]
        named = await call("agents.messages.cancel", agent_id, run_ids=[first, "run-x"])
        assert named == {first: "cancelled", "run-x": "failed"}
        await one.rest()
        assert await call("agents.messages.cancel", agent_id) == {second: "cancelled"}
        await two.rest()


# -- runs -------------------------------------------------------------------------------------------------------------


async def test_runs_retrieve(call: Caller) -> None:
    """A run has all its fields: who answered, where, how it began and ended, and how long it took."""
    made = await call("conversations.create", agent_id=new_agent_id())
    messages = await call.all_of("conversations.messages.create", made.id, input=SHORT, background=True)
    run = await call("runs.retrieve", messages[0].run_id)
    assert isinstance(run, Run)
    assert (run.id, run.agent_id, run.conversation_id) == (messages[0].run_id, made.agent_id, made.id)
    assert (run.status, run.stop_reason, run.background) == ("completed", "end_turn", True)
    assert is_recent(run.created_at)
    assert run.created_at is not None
    assert run.completed_at is not None
    # The reference gives this one without a zone.
    lasted = run.completed_at.replace(tzinfo=UTC) - run.created_at
    assert timedelta() < lasted < timedelta(minutes=1)
    assert run.total_duration_ns == pytest.approx(lasted.total_seconds() * 1e9, rel=0.5, abs=1e8)
    assert run.metadata == {"run_type": "send_conversation_message"}
    assert run.request_config is not None
    assert (run.request_config.use_assistant_message, run.request_config.include_return_message_types) == (True, None)
    assert (run.base_template_id, run.callback_url, run.callback_error) == (None, None, None)
    assert (run.callback_sent_at, run.callback_status_code) == (None, None)


async def test_runs_retrieve_while_it_goes_on(call: Caller, stack: Stack) -> None:
    """A run that goes on has no end yet."""
    async with stack.live(1) as (run_id, creator):
        run = await call("runs.retrieve", run_id)
        assert (run.status, run.stop_reason, run.completed_at) == ("running", None, None)
        assert (run.conversation_id, run.metadata) == (None, {"run_type": "send_message_streaming"})
        assert run.total_duration_ns is None
        stack.puppet.finish(run_id)
        await creator.rest()


async def test_runs_retrieve_of_one_that_failed(call: Caller) -> None:
    """A run that failed says of what; so does the error that is raised when it is followed, each time."""
    agent_id = new_agent_id()
    with pytest.raises(APIStatusError) as caught:
        await call.all_of("agents.messages.stream", agent_id, input=FAILING, background=True)
    assert caught.value.status_code == 200
    error: Any = caught.value.body
    assert (error["message_type"], error["error_type"]) == ("error_message", "llm_error")
    assert error["message"]
    assert error["detail"]
    run = await call("runs.retrieve", error["run_id"])
    assert (run.status, run.stop_reason) == ("failed", "llm_api_error")
    assert run.metadata == {"run_type": "send_message_streaming", "error": {**error, "seq_id": None}}
    with pytest.raises(APIStatusError) as again:
        await call.all_of("runs.messages.stream", run.id)
    assert again.value.body == error


# -- responses --------------------------------------------------------------------------------------------------------


async def test_raw_responses(letta: AsyncLetta) -> None:
    """A program that wants the response itself has it, headers and all; a redirect on the way was followed."""
    raw = await letta.conversations.messages.with_raw_response.create(
        (await letta.conversations.create(agent_id=new_agent_id())).id, input=SHORT
    )
    assert (raw.status_code, raw.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    run_id = ""
    async for message in await raw.parse():
        run_id = getattr(message, "run_id", None) or run_id
    read: Any = await letta.get(f"/v1/runs/{run_id}/", cast_to=object)
    assert read["id"] == run_id
    made: Any = await letta.post(
        f"/v1/conversations?agent_id={new_agent_id()}", cast_to=object, body={"summary": "on ferns"}
    )
    assert made["summary"] == "on ferns"


async def test_health(call: Caller) -> None:
    """The server is there, and says its version."""
    found = await call("health")
    assert (found.status, found.version) == ("ok", version("runstream"))
