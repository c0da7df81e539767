"""Approvals through letta-client: while one waits every other message fails, until it is given, denied or cancelled."""

import json
from typing import Any

import pytest
from letta_client import APIStatusError, AsyncLetta, ConflictError

from tests.support.letta import Chunk, chunks_of, conversation, read_into, types_of

HELLO = json.dumps({"chunks": 1, "interval_ms": 0})
ASK = json.dumps({"chunks": 1, "interval_ms": 0, "approval": True})
SPEAKING_FIRST = json.dumps({"chunks": 10_000, "interval_ms": 5, "approval": True})
CONFLICT = (
    "CONFLICT: Cannot send a new message: The agent is waiting for approval on a tool call. "
    "Please approve or deny the pending request before continuing."
)
WHOLE = ["ping", "assistant_message", "stop_reason", "usage_statistics"]


async def said(letta: AsyncLetta, conversation_id: str, **body: Any) -> list[Chunk]:
    """Say something in a conversation; returns all that is answered."""
    stream = await letta.conversations.messages.create(conversation_id, background=True, **body)
    return [chunk async for chunk in chunks_of(stream)]


async def asked(letta: AsyncLetta, conversation_id: str) -> tuple[str, str]:
    """Let the agent ask for approval; returns the run and the tool call that wait."""
    chunks = await said(letta, conversation_id, input=ASK)
    (request,) = (chunk for chunk in chunks if chunk["message_type"] == "approval_request_message")
    assert chunks[-2] == {"message_type": "stop_reason", "stop_reason": "requires_approval"}
    return chunks[0]["run_id"], request["tool_call"]["tool_call_id"]


@pytest.mark.parametrize("approve", [True, False], ids=["given", "denied"])
async def test_another_message_fails_until_there_is_an_answer(letta: AsyncLetta, approve: bool) -> None:
    """It is raised as the reference's conflict, each time; the answer goes on, and the next message is taken."""
    conversation_id = await conversation(letta)
    asking_id, call_id = await asked(letta, conversation_id)
    for _ in range(2):
        seen: list[Chunk] = []
        stream = await letta.conversations.messages.create(conversation_id, input=HELLO, background=True)
        with pytest.raises(APIStatusError, match="waiting for approval on a tool call") as caught:
            await read_into(seen, stream)
        body: Any = caught.value.body
        assert (body["error_type"], body["message"]) == ("internal_error", CONFLICT)
        assert types_of(seen) == ["ping", "stop_reason"]
        refused = await letta.runs.retrieve(seen[0]["run_id"])
        assert (refused.status, refused.stop_reason) == ("failed", "error")
    decision = {"type": "approval", "tool_call_id": call_id, "approve": approve}
    answer = await said(letta, conversation_id, messages=[{"type": "approval", "approvals": [decision]}])
    assert answer[-2] == {"message_type": "stop_reason", "stop_reason": "end_turn"}
    assert ("tool_return_message" in types_of(answer)) == approve
    assert types_of(await said(letta, conversation_id, input=HELLO)) == WHOLE
    asking = await letta.runs.retrieve(asking_id)
    assert (asking.status, asking.stop_reason) == ("completed", "requires_approval")


async def test_a_cancel_ends_the_waiting(letta: AsyncLetta) -> None:
    """It names the run that asked, which stays as it was; the next message is taken, and there is nothing to cancel."""
    conversation_id = await conversation(letta)
    run_id, _ = await asked(letta, conversation_id)
    assert await letta.conversations.cancel(conversation_id) == {run_id: "cancelled"}
    with pytest.raises(ConflictError, match="No active runs to cancel"):
        await letta.conversations.cancel(conversation_id)
    assert types_of(await said(letta, conversation_id, input=HELLO)) == WHOLE
    asking = await letta.runs.retrieve(run_id)
    assert (asking.status, asking.stop_reason) == ("completed", "requires_approval")


async def test_a_run_that_is_cancelled_before_it_asks(letta: AsyncLetta) -> None:
    """Its stream ends as cancelled, and nothing waits."""
    conversation_id = await conversation(letta)
    stream = await letta.conversations.messages.create(conversation_id, input=SPEAKING_FIRST, background=True)
    chunks = chunks_of(stream)
    run_id = (await anext(chunks))["run_id"]
    await anext(chunks)
    assert await letta.conversations.cancel(conversation_id) == {run_id: "cancelled"}
    rest = [chunk async for chunk in chunks]
    assert rest[-1] == {"message_type": "stop_reason", "stop_reason": "cancelled"}
    assert set(types_of(rest)) <= {"assistant_message", "stop_reason"}
    assert types_of(await said(letta, conversation_id, input=HELLO)) == WHOLE
