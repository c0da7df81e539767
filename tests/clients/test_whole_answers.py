"""letta-client without a stream: an answer at once, what a run said and used, and failures as errors of its own."""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from letta_client import (
    APIStatusError,
    AsyncLetta,
    AuthenticationError,
    ConflictError,
    InternalServerError,
    Letta,
    NotFoundError,
    RateLimitError,
    UnprocessableEntityError,
)
from letta_client.types.agents import LettaResponse

from runstream.schemas import new_agent_id, new_otid
from tests.support.letta import as_json, conversation, user
from tests.support.stack import Stack

KNOBS = json.dumps({"chunks": 20, "interval_ms": 2, "reasoning": True, "tool_call": True})
TYPES = ["reasoning_message", "tool_call_message", "tool_return_message", "assistant_message"]


async def answered(letta: AsyncLetta, conversation_id: str, **sent: Any) -> LettaResponse:
    """Say something in a conversation, without a stream.

    The client takes whatever `conversations.messages.create` is answered with for a stream, so that who wants the body
    asks for the raw response.
    """
    raw = await letta.conversations.messages.with_raw_response.create(conversation_id, streaming=False, **sent)
    return LettaResponse.model_validate(await raw.json())


def check(stack: Stack, answer: Any) -> str:
    """A whole answer as the client has it; returns its run."""
    assert [message.message_type for message in answer.messages] == TYPES
    assert len(answer.messages[-1].content.split()) == 20
    assert (answer.stop_reason.stop_reason, answer.usage.completion_tokens) == ("end_turn", 20)
    assert stack.hub.seats.taken == 0
    return str(answer.messages[0].run_id)


async def test_an_agents_answer(stack: Stack, letta: AsyncLetta) -> None:
    """`agents.messages.create` gives the whole answer, and its run can be asked for what it said and used."""
    answer = await letta.agents.messages.create(new_agent_id(), input=KNOBS)
    run_id = check(stack, answer)
    listed = [as_json(message) async for message in letta.runs.messages.list(run_id)]
    assert listed == [as_json(message) for message in answer.messages]
    usage = await letta.runs.usage.retrieve(run_id)
    assert (usage.completion_tokens, usage.total_tokens) == (20, answer.usage.total_tokens)
    run = await letta.runs.retrieve(run_id)
    assert run.status == "completed"
    assert run.metadata is not None
    assert run.metadata["run_type"] == "send_message"
    assert run.ttft_ns is not None


async def test_a_conversations_answer(stack: Stack, letta: AsyncLetta) -> None:
    """A conversation's answers without streaming, one after another: the conversation is free at each answer."""
    name = await conversation(letta)
    for _ in range(3):
        check(stack, await answered(letta, name, input=KNOBS))


async def test_the_blocking_client(stack: Stack, blocking_letta: Letta) -> None:
    """The client that blocks has the same answers."""

    def use() -> None:
        answer = blocking_letta.agents.messages.create(new_agent_id(), input=KNOBS)
        run_id = str(answer.messages[0].run_id)
        listed = [as_json(message) for message in blocking_letta.runs.messages.list(run_id, limit=2)]
        assert listed == [as_json(message) for message in answer.messages]
        assert blocking_letta.runs.usage.retrieve(run_id).completion_tokens == answer.usage.completion_tokens
        check(stack, answer)

    await asyncio.to_thread(use)


async def test_pages_of_a_run(letta: AsyncLetta) -> None:
    """The client goes from page to page by itself, in both orders, and has each message once."""
    answer = await letta.agents.messages.create(new_agent_id(), input=KNOBS)
    run_id = str(answer.messages[0].run_id)
    expected = [message.id for message in answer.messages]
    for limit in (1, 2, 3, 100):
        assert [found.id async for found in letta.runs.messages.list(run_id, limit=limit)] == expected
        backwards = letta.runs.messages.list(run_id, limit=limit, order="desc", order_by="created_at")
        assert [found.id async for found in backwards] == expected[::-1]
    before = letta.runs.messages.list(run_id, limit=1, before=expected[-1])
    # What the client calls the next page lies further back.
    assert [found.id async for found in before] == expected[-2::-1]
    with pytest.raises(NotFoundError):
        await letta.runs.messages.list(run_id, after="message-123e4567-e89b-42d3-8456-426614174000")


@pytest.mark.parametrize(
    ("error_type", "kind"),
    [
        ("llm_rate_limit", RateLimitError),
        ("llm_authentication", AuthenticationError),
        ("llm_timeout", InternalServerError),
        ("llm_error", InternalServerError),
    ],
)
async def test_failures_are_raised_once(
    stack: Stack, letta: AsyncLetta, error_type: str, kind: type[APIStatusError]
) -> None:
    """A failed run is the client's own error for its status; no run is started twice for it."""
    agent = new_agent_id()
    with pytest.raises(kind) as raised:
        await letta.agents.messages.create(agent, input=json.dumps({"error_after": 0, "error_type": error_type}))
    body: Any = raised.value.body
    assert body["error"]["type"] == error_type
    latest = await stack.index.latest_run_of_agent("default", agent)
    assert latest is not None
    assert latest.value.id == body["run_id"]


async def test_a_pending_approval_is_a_conflict(letta: AsyncLetta) -> None:
    """A message while the agent waits for approval raises a conflict that says which request waits."""
    name = await conversation(letta)
    asked = await answered(letta, name, input=json.dumps({"chunks": 1, "approval": True}))
    assert asked.stop_reason.stop_reason == "requires_approval"
    with pytest.raises(ConflictError) as raised:
        await answered(letta, name, input="hello")
    body: Any = raised.value.body
    assert body["detail"]["code"] == "PENDING_APPROVAL"
    assert body["detail"]["pending_request_id"] == asked.messages[-1].id


async def test_the_same_request_at_the_same_time(stack: Stack, letta: AsyncLetta) -> None:
    """A client that repeats a request which has otids has the answer of one run, every time."""
    name, otid = await conversation(letta), new_otid()
    answers = await asyncio.gather(*(answered(letta, name, messages=[user(KNOBS, otid)]) for _ in range(4)))
    assert len({check(stack, answer) for answer in answers}) == 1


@pytest.mark.parametrize("sent", [{}, {"input": "hello", "messages": [user("hello", "1")]}], ids=["neither", "both"])
@pytest.mark.parametrize("streaming", [False, True])
async def test_either_input_or_messages(letta: AsyncLetta, sent: dict[str, Any], *, streaming: bool) -> None:
    """Both, or neither, is no request: 422, from every endpoint that takes messages, streamed or not."""
    name = await conversation(letta)
    create: Sequence[tuple[Callable[..., Any], str]] = [
        (letta.agents.messages.create, new_agent_id()),
        (letta.conversations.messages.create, name),
    ]
    for place, addressee in create:
        with pytest.raises(UnprocessableEntityError):
            await place(addressee, streaming=streaming, **sent)
