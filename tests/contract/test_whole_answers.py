"""Whole answers: one JSON body when the run has ended, of the very run that a stream would have been of."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from runstream.broker.messages import StoredMessage
from runstream.broker.reader import LogReader
from runstream.broker.topology import LogAddress
from runstream.schemas import Chunk, RunRecord, RunRequest, StopReason, new_agent_id, new_otid, new_run_id
from tests.support.http import DONE, Connection, Event, Reply, encoded
from tests.support.stack import PUPPET, Stack, message, stack_running
from tests.support.waiting import wait_until

HELLO = {"chunks": 3, "interval_ms": 0, "reasoning": True, "tool_call": True}
ASK = {"chunks": 1, "interval_ms": 0, "approval": True}
WAITING = (
    "CONFLICT: Cannot send a new message: The agent is waiting for approval on a tool call. "
    "Please approve or deny the pending request before continuing."
)
Place = tuple[str, dict[str, Any]]


@pytest_asyncio.fixture
async def stack(nats_url: str) -> AsyncIterator[Stack]:
    async with stack_running(nats_url) as made:
        yield made


@pytest_asyncio.fixture(params=["a conversation", "an agent", "default", "an agent's id as a conversation"])
async def place(request: pytest.FixtureRequest, stack: Stack) -> Place:
    """A path that takes messages, and what its bodies have besides."""
    agent = new_agent_id()
    match request.param:
        case "an agent":
            return f"/v1/agents/{agent}/messages", {}
        case "default":
            return "/v1/conversations/default/messages", {"agent_id": agent, "streaming": False}
        case "a conversation":
            return f"/v1/conversations/{await stack.conversation()}/messages", {"streaming": False}
    return f"/v1/conversations/{agent}/messages", {"streaming": False}


async def in_conversation(stack: Stack) -> Place:
    return f"/v1/conversations/{await stack.conversation()}/messages", {"streaming": False}


async def ask(stack: Stack, place: Place, said: Any = HELLO, **body: Any) -> Reply:
    """Say something there, a text or the demo's knobs, and wait for the whole answer."""
    path, besides = place
    return await stack.fetch("POST", path, json={**message(said, **body), **besides})


@contextlib.asynccontextmanager
async def asking(stack: Stack, place: Place, **body: Any) -> AsyncIterator[tuple[str, asyncio.Task[Reply]]]:
    """A request that waits for a run of the puppet's; nothing is left of it when the block ends."""
    otid = new_otid()
    said = {"messages": [{"role": "user", "content": PUPPET, "otid": otid}], **body}
    waiting = asyncio.create_task(ask(stack, place, **said))
    try:
        yield await run_of(stack, otid), waiting
    finally:
        waiting.cancel()
        await asyncio.wait([waiting])


async def run_of(stack: Stack, otid: str) -> str:
    """The run that a request with this otid started."""
    return str(await wait_until(lambda: stack.run_of(otid), 10, "no run is started"))


def texts(reply: Reply) -> list[str]:
    """What each message of an answer says."""
    assert reply.status == 200, reply
    return [found["content"] for found in reply.json["messages"]]


def whole(events: list[Event]) -> list[dict[str, Any]]:
    """The messages of a stream of the demo agent's, put together by hand: an event by its id."""
    messages: dict[str, dict[str, Any]] = {}
    for event in events[:-1]:
        if event.message_type in {"ping", "stop_reason", "usage_statistics", "error_message"}:
            continue
        found = {**event.json, "seq_id": None}
        known = messages.setdefault(found["id"], found)
        if known is not found:
            known["content"] += found["content"]
    return [*messages.values()]


@pytest.mark.parametrize("background", [False, True])
async def test_it_is_what_a_stream_would_have_said(stack: Stack, place: Place, *, background: bool) -> None:
    """All messages put together, the stop reason and the usage, in the reference's order of keys, whatever the mode."""
    otid = new_otid()
    said = {"messages": [{"role": "user", "content": json.dumps(HELLO), "otid": otid}], "background": background}
    reply = await ask(stack, place, **said)
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert list(reply.json) == ["messages", "stop_reason", "usage"]
    assert list(reply.json["messages"][0])[-1] == "seq_id"
    run_id = await run_of(stack, otid)
    record = await stack.record(run_id)
    assert (record.status, record.background) == ("completed", background)
    stream = [event for event in await events_of(stack, record) if event.message_type != "ping"]
    assert reply.json["messages"] == whole(stream)
    assert [found["message_type"] for found in reply.json["messages"]] == [
        *("reasoning_message", "tool_call_message", "tool_return_message", "assistant_message")
    ]
    assert [reply.json["stop_reason"], reply.json["usage"]] == [event.json for event in stream[-3:-1]]
    is_agents = place[0].startswith("/v1/agents/")
    assert record.run_type == ("send_message" if is_agents else "send_conversation_message")


async def events_of(stack: Stack, record: RunRecord) -> list[Event]:
    """What a run's log has for a stream, from its stored messages: a foreground run cannot be streamed again."""
    found = await stack.jetstream.consume(
        f"RUNS_{record.shard}", f"runs.{record.shard}.{record.id}", after=0, limit=100, max_bytes=2**20
    )
    shown = [stored.body.decode() for stored in found if stored.headers["Rs-Kind"] in {"data", "plain"}]
    return [*(Event(None, body) for body in shown), DONE]


async def test_an_agents_messages_are_streamed_if_that_is_asked_for(stack: Stack) -> None:
    """`streaming` true makes the same path a stream."""
    path = f"/v1/agents/{new_agent_id()}/messages"
    async with Connection.open(stack.base) as connection:
        await connection.send("POST", path, json=message({"chunks": 1}, streaming=True))
        status, headers = await connection.head()
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")


async def test_it_comes_when_the_run_ends_and_its_conversation_is_free(stack: Stack) -> None:
    """Nothing is answered before the end; who has the answer may say the next thing at once, again and again."""
    place = await in_conversation(stack)
    async with asking(stack, place) as (run_id, waiting):
        stack.puppet.say(run_id, 3)
        await wait_until(lambda: said_by(stack, run_id, 3))
        assert not waiting.done()
        busy = await ask(stack, place)
        assert (busy.status, busy.json["run_id"], busy.headers["x-should-retry"]) == (409, run_id, "false")
        stack.puppet.finish(run_id)
        assert texts(await waiting) == ["0 ", "1 ", "2 "]
    for _ in range(20):
        assert (await ask(stack, place, {"chunks": 1, "interval_ms": 0})).status == 200


async def said_by(stack: Stack, run_id: str, count: int) -> bool:
    """Whether so many messages of a run are stored."""
    reply = await stack.fetch("GET", f"/v1/runs/{run_id}/messages")
    return reply.status == 200 and len(reply.json) == count


async def test_a_repeated_request_gets_the_same_body(stack: Stack, place: Place) -> None:
    """Of identical requests, at one time, after a client that left, and later, one starts a run; all get its answer."""
    otid = new_otid()
    said = {"messages": [{"role": "user", "content": PUPPET, "otid": otid}]}
    async with asyncio.TaskGroup() as group:
        replies = [group.create_task(ask(stack, place, **said)) for _ in range(5)]
        run_id = await run_of(stack, otid)
        path, besides = place
        async with Connection.open(stack.base) as gone:
            await gone.send("POST", path, json={**message("", **said), **besides})
            stack.puppet.say(run_id, 2)
            await wait_until(lambda: said_by(stack, run_id, 2))
        stack.puppet.finish(run_id)
    bodies = {reply.result().body for reply in replies}
    assert len(bodies) == 1
    assert texts(replies[0].result()) == ["0 ", "1 "]
    assert (await ask(stack, place, **said)).body == bodies.pop()
    assert (await stack.record(run_id)).status == "completed"


async def test_a_client_that_leaves_ends_nothing(stack: Stack) -> None:
    """The run goes on without who asked, and nobody waits for it any longer."""
    path, besides = await in_conversation(stack)
    otid = new_otid()
    said = {"messages": [{"role": "user", "content": PUPPET, "otid": otid}]}
    async with Connection.open(stack.base) as gone:
        await gone.send("POST", path, json={**message("", **said), **besides})
        run_id = await run_of(stack, otid)
        assert stack.hub.seats.taken == 1
    await stack.nobody_follows()
    stack.puppet.say(run_id)
    stack.puppet.finish(run_id)

    async def is_over() -> bool:
        return (await stack.record(run_id)).status == "completed"

    await wait_until(is_over, 10, "the run does not end")
    assert len((await stack.fetch("GET", f"/v1/runs/{run_id}/messages")).json) == 1


async def test_a_cancelled_run_is_answered_with_what_it_said(stack: Stack) -> None:
    """A cancel is an end like others: 200, the messages so far, and no usage."""
    path, _ = place = await in_conversation(stack)
    async with asking(stack, place) as (run_id, waiting):
        stack.puppet.say(run_id, 2)
        await wait_until(lambda: said_by(stack, run_id, 2))
        assert (await stack.fetch("POST", path.replace("/messages", "/cancel"))).json == {run_id: "cancelled"}
        reply = await waiting
        assert texts(reply) == ["0 ", "1 "]
        assert reply.json["stop_reason"] == {"message_type": "stop_reason", "stop_reason": "cancelled"}
        assert reply.json["usage"]["total_tokens"] == 0


@pytest.mark.parametrize(
    ("error_type", "status"),
    [
        ("llm_rate_limit", 429),
        ("llm_authentication", 401),
        ("llm_timeout", 504),
        ("llm_error", 500),
        ("internal_error", 500),
        ("of_a_platform", 500),
    ],
)
async def test_a_failed_run_is_a_status(stack: Stack, place: Place, error_type: str, status: int) -> None:
    """The reference's status and body for it, with the run, which must not be started again."""
    otids = {
        "messages": [{"role": "user", "content": json.dumps({**HELLO, "error_after": 1, "error_type": error_type})}]
    }
    reply = await ask(stack, place, **otids)
    assert (reply.status, reply.headers["x-should-retry"]) == (status, "false")
    assert "retry-after" not in reply.headers
    record = await stack.record(reply.json["run_id"])
    assert record.status == "failed"
    assert record.error is not None
    assert reply.json["detail"] == record.error["message"]
    assert reply.json["error"] == {
        "type": error_type,
        "message": record.error["message"],
        "detail": "The demo agent was asked to fail after 1 chunks.",
    }
    said = (await stack.fetch("GET", f"/v1/runs/{record.id}/messages")).json
    assert [found["message_type"] for found in said][-1] == "assistant_message"


async def test_a_failed_run_is_the_same_failure_again(stack: Stack, place: Place) -> None:
    """Sent again with its otids, a request that failed is answered by the run that failed."""
    said = {
        "messages": [
            {
                "role": "user",
                "content": json.dumps({"chunks": 1, "error_after": 0, "error_type": "x"}),
                "otid": new_otid(),
            }
        ]
    }
    first = await ask(stack, place, **said)
    assert first.status == 500
    assert (await ask(stack, place, **said)).body == first.body


async def test_what_waits_for_approval_refuses_other_messages(stack: Stack, place: Place) -> None:
    """The request for approval is an answer; then everything but its answer is a 409 that names it."""
    asked = await ask(stack, place, ASK)
    assert (asked.status, asked.json["stop_reason"]["stop_reason"]) == (200, "requires_approval")
    request = asked.json["messages"][-1]
    for said in ({}, {"messages": [{"role": "user", "content": "hello", "otid": new_otid()}]}):
        refused = await ask(stack, place, **said)
        assert (refused.status, refused.headers["x-should-retry"]) == (409, "false")
        assert refused.json["detail"] == {
            "code": "PENDING_APPROVAL",
            "message": WAITING,
            "pending_request_id": request["id"],
        }
        assert (await stack.record(refused.json["run_id"])).status == "failed"
    answer = {"type": "approval", "tool_call_id": request["tool_call"]["tool_call_id"], "approve": True}
    approved = await ask(stack, place, messages=[{"type": "approval", "approvals": [answer]}])
    assert approved.status == 200
    assert "tool_return_message" in [found["message_type"] for found in approved.json["messages"]]
    assert (await ask(stack, place)).status == 200


async def test_a_request_for_approval_that_is_gone_has_no_id(stack: Stack) -> None:
    """What retention has removed cannot be named: null."""
    place = await in_conversation(stack)
    asked = await ask(stack, place, ASK)
    record = await stack.record(asked.json["messages"][0]["run_id"])
    await stack.purge_up_to(record, await stack.tip(record))
    refused = await ask(stack, place)
    assert refused.status == 409
    assert refused.json["detail"]["pending_request_id"] is None


async def judge(request: RunRequest) -> AsyncGenerator[Chunk, None]:
    """A platform that asks for approval, and takes whatever comes then."""
    del request
    yield StopReason(stop_reason="requires_approval")


async def test_a_platform_that_judges_approvals_is_asked(nats_url: str) -> None:
    """Where the platform knows what waits nobody refuses a message for it."""
    async with stack_running(nats_url, agent=judge, judges_approvals=True) as stack:
        place = await in_conversation(stack)
        for _ in range(2):
            reply = await ask(stack, place)
            assert (reply.status, reply.json["stop_reason"]["stop_reason"]) == (200, "requires_approval")


async def test_messages_of_types_that_are_not_wanted_are_left_out(stack: Stack, place: Place) -> None:
    """`include_return_message_types` holds for whole answers as for streams."""
    reply = await ask(stack, place, include_return_message_types=["reasoning_message"])
    assert [found["message_type"] for found in reply.json["messages"]] == ["reasoning_message"]


async def test_a_gateway_that_stops_says_where_the_answer_will_be(nats_url: str) -> None:
    """Who waits is told of the run, which goes on, before the gateway is gone."""
    async with contextlib.AsyncExitStack() as left, stack_running(nats_url) as other:
        patient = {"silence_seconds": 60}
        stack = await left.enter_async_context(stack_running(nats_url, agent=other.agent, broker=patient))
        async with asking(stack, (f"/v1/agents/{new_agent_id()}/messages", {})) as (run_id, waiting):
            stopping = asyncio.create_task(stack.gateway.__aexit__(None, None, None))
            reply = await waiting
            await stopping
            assert (reply.status, reply.json["run_id"], reply.headers["x-should-retry"]) == (503, run_id, "false")
            assert reply.detail.startswith(f"Run {run_id} had not ended when this gateway stopped.")
            other.puppet.say(run_id)
            other.puppet.finish(run_id)
            await wait_until(lambda: said_by(other, run_id, 1))


async def test_a_run_that_is_too_long_for_a_body_is_refused(nats_url: str) -> None:
    """Memory is bounded: what is longer is told to be streamed, wherever it is asked for whole."""
    async with stack_running(nats_url, gateway={"max_answer_bytes": 4096}) as stack:
        place = await in_conversation(stack)
        reply = await ask(stack, place, {"chunks": 8, "interval_ms": 0, "chunk_bytes": 1024})
        assert (reply.status, reply.headers["x-should-retry"]) == (507, "false")
        run_id = reply.json["run_id"]
        assert reply.detail == f"The messages of run {run_id} have more than 4096 bytes: stream them instead."
        assert (await stack.fetch("GET", f"/v1/runs/{run_id}/messages")).json == reply.json
        # Many small ones of one message are small together.
        assert (await ask(stack, place, {"chunks": 100, "interval_ms": 0})).status == 200


async def test_a_reader_that_takes_nothing_is_cut_off(nats_url: str) -> None:
    """A body that nobody reads is not kept for longer than a write may wait."""
    async with (
        stack_running(nats_url, gateway={"write_deadline_seconds": 0.3}) as stack,
        Connection.open(stack.base, receive_buffer=2**16) as slow,
    ):
        knobs = {"chunks": 24, "interval_ms": 0, "chunk_bytes": 2**19}
        await slow.send("POST", f"/v1/agents/{new_agent_id()}/messages", json=message(knobs))
        status, headers = await slow.head()
        assert (status, int(headers["content-length"]) > 12 * 2**20) == (200, True)
        await stack.nobody_follows()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await slow.reader.readexactly(int(headers["content-length"]))


async def test_answers_that_nobody_takes_are_bounded_together(nats_url: str) -> None:
    """A gateway that holds as many as it may answers 503 until a reader has its own; no run is started twice for it."""
    async with stack_running(nats_url, gateway={"held_answer_bytes": 2**20}) as stack:
        # Far more than the kernel may take off the gateway for a reader that is not there: 4 MiB.
        run_id, _ = await stack.finished({"chunks": 32, "interval_ms": 0, "chunk_bytes": 2**19})
        path = f"/v1/runs/{run_id}/messages"
        async with Connection.open(stack.base, receive_buffer=2**16) as slow:
            await slow.send("GET", path)
            _, headers = await slow.head()
            refused = await stack.fetch("GET", path)
            assert (refused.status, refused.headers["retry-after"]) == (503, "2")
            refused = await ask(stack, (f"/v1/agents/{new_agent_id()}/messages", {}), {"chunks": 1, "interval_ms": 0})
            assert (refused.status, refused.headers["x-should-retry"]) == (503, "false")
            assert (await stack.record(refused.json["run_id"])).status == "completed"
            await slow.reader.readexactly(int(headers["content-length"]))
            await stack.nobody_follows()
        assert (await stack.fetch("GET", path)).status == 200
        assert (await stack.fetch("GET", f"/v1/runs/{refused.json['run_id']}/messages")).status == 200


@pytest.mark.parametrize(("bytes_per_second", "is_cut"), [(2**30, True), (2**20, False)])
async def test_a_reader_that_takes_little_at_a_time(nats_url: str, bytes_per_second: int, *, is_cut: bool) -> None:
    """It has as long as the whole body may take: a pace that is too slow is cut off, though it never stops."""
    # The kernel takes megabytes, and lets more in when a third of them is gone: that is within one write's deadline.
    limits = {"write_deadline_seconds": 1.0, "answer_bytes_per_second": bytes_per_second}
    async with stack_running(nats_url, gateway=limits) as stack:
        run_id, _ = await stack.finished({"chunks": 32, "interval_ms": 0, "chunk_bytes": 2**19})
        async with Connection.open(stack.base, receive_buffer=2**16) as slow:
            await slow.send("GET", f"/v1/runs/{run_id}/messages")
            _, headers = await slow.head()
            left = int(headers["content-length"])
            with contextlib.suppress(ConnectionError):
                while left and (piece := await slow.reader.read(2**16)):
                    left -= len(piece)
                    await asyncio.sleep(0.008)  # The pace.
            assert bool(left) is is_cut


async def test_what_is_answered_counts_as_a_stream(nats_url: str) -> None:
    """Whoever waits takes a seat: a gateway that is full answers 503 before it starts a run."""
    async with stack_running(nats_url, gateway={"max_followers": 1}) as stack, stack.live():
        reply = await ask(stack, (f"/v1/agents/{new_agent_id()}/messages", {}))
        assert (reply.status, reply.headers["retry-after"]) == (503, "2")
        assert (await stack.fetch("GET", f"/v1/runs/{new_run_id()}/messages")).status == 503


async def test_a_run_that_nobody_knows_any_more_is_gone(nats_url: str) -> None:
    """Who waits for a run whose record and log are both removed is told so, and does not wait for ever."""
    async with stack_running(nats_url, broker={"silence_seconds": 0.2}) as stack:
        place = f"/v1/agents/{new_agent_id()}/messages", dict[str, Any]()
        async with asking(stack, place) as (run_id, waiting):
            stack.puppet.say(run_id)
            await wait_until(lambda: said_by(stack, run_id, 1))
            record = await stack.record(run_id)
            await stack.api("STREAM.PURGE.KV_RUNSTREAM", {"filter": f"$KV.RUNSTREAM.run.default.{run_id}"})
            await stack.purge_up_to(record, await stack.tip(record))
            assert (await waiting).status == 410
            stack.puppet.finish(run_id)


async def test_a_run_of_which_retention_removed_a_part_is_gone(stack: Stack) -> None:
    """An answer with a hole is none: 410, and never what is left."""
    otid = new_otid()
    said = {"messages": [{"role": "user", "content": json.dumps(HELLO), "otid": otid}]}
    place = f"/v1/agents/{new_agent_id()}/messages", dict[str, Any]()
    assert (await ask(stack, place, **said)).status == 200
    record = await stack.record(await run_of(stack, otid))
    await stack.purge_up_to(record, (record.first_seq or 0) + 2)
    assert (await ask(stack, place, **said)).status == 410
    assert (await stack.fetch("GET", f"/v1/runs/{record.id}/messages")).status == 410
    assert (await stack.fetch("GET", f"/v1/runs/{record.id}/usage")).json["completion_tokens"] == 3


# -- what a run said and used -----------------------------------------------------------------------------------------


async def test_messages_of_a_run_that_goes_on(stack: Stack) -> None:
    """What was said so far is there at once, of a run in the foreground, too, and grows."""
    async with stack.live(background=False) as (run_id, stream):
        assert (await stack.fetch("GET", f"/v1/runs/{run_id}/messages")).json == []
        for count in (1, 2):
            stack.puppet.say(run_id)
            await stream.take(1)
            reply = await stack.fetch("GET", f"/v1/runs/{run_id}/messages")
            assert texts(Reply(200, {}, encoded({"messages": reply.json}))) == [f"{at} " for at in range(count)]
        usage = await stack.fetch("GET", f"/v1/runs/{run_id}/usage")
        assert usage.json == {
            "completion_tokens": 0,
            "prompt_tokens": 0,
            "total_tokens": 0,
            "prompt_tokens_details": None,
            "completion_tokens_details": None,
        }


async def test_pages_of_messages(stack: Stack) -> None:
    """A client that goes on from the last id has all messages once, in both orders; an unknown id is 404."""
    run_id, _ = await stack.finished({**HELLO, "chunks": 1})
    path = f"/v1/runs/{run_id}/messages"
    everything = (await stack.fetch("GET", path)).json
    assert len(everything) == 4
    assert all(found["id"].startswith("message-") for found in everything)
    for order, expected in (("asc", everything), ("desc", everything[::-1])):
        seen: list[Any] = []
        while page := (await stack.fetch("GET", f"{path}?order={order}&limit=3{after(seen)}")).json:
            seen += page
        assert seen == expected
    back = (await stack.fetch("GET", f"{path}?before={everything[3]['id']}&limit=2&order_by=created_at")).json
    assert back == everything[1:3]
    for cursor in ("after", "before"):
        unknown = await stack.fetch("GET", f"{path}?{cursor}=message-1")
        assert (unknown.status, unknown.detail) == (404, "Message not found with id='message-1'")


def after(seen: list[Any]) -> str:
    return f"&after={seen[-1]['id']}" if seen else ""


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "order=up", "order_by=name"])
async def test_a_page_that_makes_no_sense_is_refused(stack: Stack, query: str) -> None:
    """A query that is none is 422, in the reference's form."""
    run_id, _ = await stack.finished({"chunks": 1})
    reply = await stack.fetch("GET", f"/v1/runs/{run_id}/messages?{query}")
    assert reply.status == 422
    assert "('query', " in reply.detail


@pytest.mark.parametrize("what", ["messages", "usage"])
async def test_runs_that_are_none(stack: Stack, what: str) -> None:
    """A malformed id is 400 and an unknown one 404, as for the run itself."""
    for run_id in ("run-1", "run-123e4567-e89b-42d3-8456-426614174000"):
        expected = await stack.fetch("GET", f"/v1/runs/{run_id}")
        reply = await stack.fetch("GET", f"/v1/runs/{run_id}/{what}")
        assert (reply.status, reply.body) == (expected.status, expected.body)


async def test_usage_and_first_chunk_of_a_run_that_has_ended(stack: Stack) -> None:
    """A run that completed has its usage, and the time until its agent spoke; one that said nothing has neither."""
    run_id, _ = await stack.finished({"chunks": 3, "interval_ms": 0, "silence_ms": 50})
    usage = (await stack.fetch("GET", f"/v1/runs/{run_id}/usage")).json
    assert list(usage) == [
        *("completion_tokens", "prompt_tokens", "total_tokens", "prompt_tokens_details", "completion_tokens_details")
    ]
    assert usage["completion_tokens"] == 3
    run = (await stack.fetch("GET", f"/v1/runs/{run_id}")).json
    assert 50e6 <= run["ttft_ns"] <= run["total_duration_ns"]
    silent, _ = await stack.finished({"chunks": 1, "error_after": 0})
    assert (await stack.fetch("GET", f"/v1/runs/{silent}")).json["ttft_ns"] is None
    assert (await stack.fetch("GET", f"/v1/runs/{silent}/usage")).json["total_tokens"] == 0


async def test_endings_in_a_crowd(nats_url: str) -> None:
    """Of many runs that end at one time each is answered with its own, at once: nobody waits for a silence to pass."""
    async with stack_running(nats_url, broker={"silence_seconds": 60}) as stack:
        places = [await in_conversation(stack) for _ in range(5)] + [
            (f"/v1/agents/{new_agent_id()}/messages", {}) for _ in range(20)
        ]
        asked = (ask(stack, place, {"chunks": at, "interval_ms": 0}) for at, place in enumerate(places, start=1))
        for count, reply in enumerate(await asyncio.gather(*asked), start=1):
            assert (reply.status, reply.json["usage"]["completion_tokens"]) == (200, count)
            assert len(reply.json["messages"][0]["content"].split()) == count


async def test_an_end_that_is_not_heard_of_is_found(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that is lost on its way announces itself in no other way: in a silence the index is asked."""

    async def deaf(*_: object) -> None:
        pass

    monkeypatch.setattr("runstream.gateway.awaiting._Wait._hear", deaf)
    async with (
        stack_running(nats_url, broker={"silence_seconds": 0.1}) as stack,
        asking(stack, (f"/v1/agents/{new_agent_id()}/messages", {})) as (run_id, waiting),
    ):
        stack.puppet.say(run_id)
        await wait_until(lambda: said_by(stack, run_id, 1))
        stack.puppet.finish(run_id)
        assert texts(await waiting) == ["0 "]


async def test_a_leader_that_lags_is_asked_again(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader that has just been elected may not have the ending yet: what it lacks is not left out of the answer."""
    last = LogReader.last
    lags = iter([True, True])
    async with stack_running(nats_url, broker={"catchup_chunks": 10}) as stack:

        async def lagging(self: LogReader, address: LogAddress) -> StoredMessage | None:
            if next(lags, False):
                return await stack.jetstream.first_message(address.stream, address.subject)
            return await last(self, address)

        monkeypatch.setattr(LogReader, "last", lagging)
        # More than is read at one time: what one read gives is not all.
        reply = await ask(stack, await in_conversation(stack), {"chunks": 600, "interval_ms": 0})
        assert [len(text.split()) for text in texts(reply)] == [600]
