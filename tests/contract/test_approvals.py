"""Approvals: who waits for one takes no other message, the approval goes on, and a cancel ends the waiting."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any

import pytest
import pytest_asyncio

from runstream.gateway.cancelling import Canceller
from runstream.schemas import Chunk, RunRequest, StopReason, approvals_in, new_agent_id, new_otid
from tests.support.http import Event, open_stream
from tests.support.stack import Stack, message, stack_running
from tests.support.waiting import wait_until

ASK = {"chunks": 1, "interval_ms": 0, "approval": True}
HELLO = {"chunks": 1, "interval_ms": 0}
CONFLICT = (
    "CONFLICT: Cannot send a new message: The agent is waiting for approval on a tool call. "
    "Please approve or deny the pending request before continuing."
)


@pytest_asyncio.fixture
async def stack(nats_url: str) -> AsyncIterator[Stack]:
    async with stack_running(nats_url) as made:
        yield made


@pytest_asyncio.fixture(params=["a conversation", "an agent", "default"])
async def place(request: pytest.FixtureRequest, stack: Stack) -> tuple[str, dict[str, Any]]:
    """A path that takes messages, and what its bodies have besides: each is a place of its own for approvals."""
    agent = new_agent_id()
    if request.param == "an agent":
        return f"/v1/agents/{agent}/messages/stream", {}
    if request.param == "default":
        return "/v1/conversations/default/messages", {"agent_id": agent}
    return f"/v1/conversations/{await stack.conversation()}/messages", {}


async def post(stack: Stack, place: tuple[str, dict[str, Any]], said: Mapping[str, Any], **body: Any) -> list[Event]:
    """Say something there; returns all its events."""
    path, besides = place
    async with open_stream(stack.base, path, {**message(said, **body), **besides}) as stream:
        assert stream.status == 200
        return await stream.rest()


async def asked(stack: Stack, place: tuple[str, dict[str, Any]]) -> tuple[str, str]:
    """Let the agent ask for approval; returns the run and the tool call."""
    events = await post(stack, place, ASK)
    (request,) = [event.json for event in events[:-1] if event.message_type == "approval_request_message"]
    assert stop_of(events) == "requires_approval"
    run_id = str(events[0].json["run_id"])
    assert (await stack.record(run_id)).status == "completed"
    return run_id, str(request["tool_call"]["tool_call_id"])


def stop_of(events: Sequence[Event]) -> str:
    """The one stop reason of a stream that ended."""
    assert events[-1].is_done
    (stop,) = [event.json["stop_reason"] for event in events[:-1] if event.message_type == "stop_reason"]
    return str(stop)


def approval(tool_call_id: str, *, approve: bool = True) -> dict[str, Any]:
    answer = {"type": "approval", "tool_call_id": tool_call_id, "approve": approve}
    return {"messages": [{"type": "approval", "approvals": [answer]}]}


async def check_free(stack: Stack, place: tuple[str, dict[str, Any]]) -> None:
    assert stop_of(await post(stack, place, HELLO)) == "end_turn"


async def test_another_message_is_refused_until_the_approval(stack: Stack, place: tuple[str, dict[str, Any]]) -> None:
    """A message that is no approval gets a run that fails with the conflict; the approval goes on, and frees."""
    _, call = await asked(stack, place)
    for _ in range(2):
        events = await post(stack, place, HELLO)
        assert [event.message_type for event in events[:-1]] == ["ping", "stop_reason", "error_message"]
        assert stop_of(events) == "error"
        error = events[-2].json
        assert (error["error_type"], error["message"]) == ("internal_error", CONFLICT)
        assert (await stack.record(events[0].json["run_id"])).status == "failed"
    events = await post(stack, place, {}, **approval(call))
    assert stop_of(events) == "end_turn"
    assert any(event.message_type == "tool_return_message" for event in events[:-1])
    await check_free(stack, place)


@pytest.mark.parametrize("form", ["denied", "the older form", "a tool's return"])
async def test_every_form_of_an_answer_goes_on(stack: Stack, form: str) -> None:
    """A denial, the single approval of older clients and a tool's return answer the request as well."""
    place = f"/v1/conversations/{await stack.conversation()}/messages", dict[str, Any]()
    _, call = await asked(stack, place)
    body = {
        "denied": approval(call, approve=False),
        "the older form": {"messages": [{"type": "approval", "approve": True, "approval_request_id": call}]},
        "a tool's return": {
            "messages": [
                {
                    "type": "tool_return",
                    "tool_returns": [
                        {"type": "tool", "tool_call_id": call, "tool_return": "sunny", "status": "success"}
                    ],
                }
            ]
        },
    }[form]
    assert stop_of(await post(stack, place, {}, **body)) == "end_turn"
    await check_free(stack, place)


async def insistent(request: RunRequest) -> AsyncGenerator[Chunk, None]:
    """An agent that asks for approval whatever it is told, but for an approval: then it says nothing for ever."""
    if any(answer.approved for answer in approvals_in(request.body)):
        await asyncio.Event().wait()
    yield StopReason(stop_reason="requires_approval")


async def test_an_answer_may_lead_to_another_request(nats_url: str) -> None:
    """A run that answers one request and ends with another keeps its place waiting, for the new one."""
    async with stack_running(nats_url, agent=insistent) as stack:
        place = f"/v1/conversations/{await stack.conversation()}/messages", dict[str, Any]()
        for _ in range(2):
            assert stop_of(await post(stack, place, HELLO, **approval("call", approve=False))) == "requires_approval"
        assert stop_of(await post(stack, place, HELLO)) == "error"


async def test_an_answer_that_was_cancelled_has_been_given(nats_url: str) -> None:
    """When the run that answers a request is cancelled nothing waits any more: the next message is taken."""
    async with stack_running(nats_url, agent=insistent) as stack:
        conversation = await stack.conversation()
        place = f"/v1/conversations/{conversation}/messages", dict[str, Any]()
        assert stop_of(await post(stack, place, HELLO)) == "requires_approval"
        async with open_stream(stack.base, place[0], message("", **approval("call"))) as stream:
            run_id = (await stream.take(1))[0].json["run_id"]
            await wait_until(lambda: is_running(stack, run_id))
            await stack.fetch("POST", f"/v1/conversations/{conversation}/cancel")
            assert stop_of(await stream.rest()) == "cancelled"
        assert stop_of(await post(stack, place, HELLO)) == "requires_approval"


async def test_a_cancel_that_meets_the_request_ends_the_waiting(nats_url: str) -> None:
    """Cancelled while it ends with a request for approval, a run leaves nothing waiting, as the answer says."""
    async with stack_running(nats_url) as stack, stack.live(1) as (run_id, stream):
        record = await stack.record(run_id)
        stack.puppet.finish(run_id, "requires_approval")
        await stream.rest()
        assert await stack.index.waiting_for_approval("default", record.agent_id) == run_id
        # What the gateway had read a moment before.
        await Canceller(stack.jetstream.connection, stack.index).cancel(record)
        assert await stack.index.waiting_for_approval("default", record.agent_id) is None


async def is_running(stack: Stack, run_id: str) -> bool:
    return (await stack.record(run_id)).status == "running"


async def test_a_repeated_approval_is_the_same_run(stack: Stack) -> None:
    """An approval whose message has an otid is executed once, however often it is posted, and waits for nothing."""
    place = f"/v1/conversations/{await stack.conversation()}/messages", dict[str, Any]()
    _, call = await asked(stack, place)
    body = approval(call)
    body["messages"][0]["otid"] = new_otid()
    answers = [await post(stack, place, {}, **body) for _ in range(3)]
    assert len({events[0].json["run_id"] for events in answers}) == 1
    await check_free(stack, place)


async def test_a_cancel_ends_the_waiting(stack: Stack, place: tuple[str, dict[str, Any]]) -> None:
    """Cancelled while it waits, by the way it was asked, the place takes messages again; the run stays as it was."""
    path, besides = place
    run_id, _ = await asked(stack, place)
    record = await stack.record(run_id)
    refused = await post(stack, place, HELLO)
    assert stop_of(refused) == "error"
    if path.startswith("/v1/agents"):
        cancel = path.replace("messages/stream", "messages/cancel")
    else:
        cancel = path.replace("/messages", "/cancel") + (f"?agent_id={besides['agent_id']}" if besides else "")
    reply = await stack.fetch("POST", cancel)
    assert (reply.status, reply.json) == (200, {run_id: "cancelled"})
    assert await stack.record(run_id) == record
    await check_free(stack, place)


async def test_a_platform_that_judges_approvals_is_asked_in_any_case(nats_url: str) -> None:
    """Where the agent is a Letta platform it knows what waits: runstream passes every message on to it."""
    async with stack_running(nats_url, judges_approvals=True) as stack:
        place = f"/v1/conversations/{await stack.conversation()}/messages", dict[str, Any]()
        await asked(stack, place)
        await check_free(stack, place)
