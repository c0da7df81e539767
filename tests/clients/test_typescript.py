"""Letta's TypeScript client, unmodified: it sees what the one for Python sees, and comes back as that one does."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from letta_client import AsyncLetta

from runstream.schemas import new_agent_id, new_otid, new_run_id
from tests.support.http import DONE
from tests.support.letta import Chunk, types_of, user, whole
from tests.support.processes import RunningProcess, python, running
from tests.support.stack import PUPPET, Stack
from tests.support.typescript import Line, called, playing, told_by
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
# The source as it lies, wherever the process is started.
SOURCE = {"PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "schemas", "broker", "gateway"))}

CHUNKS = 40
MESSAGES = 1 + CHUNKS + 2
"""Ping, the answer, stop reason and usage."""
SHORT = {"input": json.dumps({"chunks": 3, "interval_ms": 0, "reasoning": True, "tool_call": True})}
FAILING = {"input": json.dumps({"chunks": 2, "interval_ms": 0, "error_after": 2})}
CANCELLED: Chunk = {"message_type": "stop_reason", "stop_reason": "cancelled"}


class Doomed(NamedTuple):
    """A gateway in a process of its own, to be killed."""

    base: str
    process: RunningProcess

    async def kill(self) -> None:
        """End it without a word, and wait until it has."""
        self.process.send_signal(signal.SIGKILL)
        assert await self.process.wait() == -signal.SIGKILL


@pytest_asyncio.fixture
async def doomed(nats_url: str, stack: Stack) -> AsyncIterator[Doomed]:
    """A second gateway, beside the stack's own, on the same NATS."""
    assert stack.base, "the streams are there before it is"
    async with running(*python("-m", "tests.support.gateway_process", nats_url), env=SOURCE) as process:
        ready = await process.wait_for_line("^ready ", 20)
        yield Doomed(ready.split()[1], process)


def with_dates(chunks: Sequence[Chunk]) -> list[Chunk]:
    """Chunks with their dates as moments: the client for Python writes `Z` where `+00:00` came."""
    return [
        {key: datetime.fromisoformat(value) if key == "date" else value for key, value in chunk.items()}
        for chunk in chunks
    ]


async def sent(stack: Stack, run_id: str) -> list[Chunk]:
    """The messages of a run as they are on the wire, byte by byte."""
    async with stack.resume(run_id) as stream:
        events = await stream.rest()
    assert events.pop() == DONE
    return [event.json for event in events]


# -- what it sees -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["conversation", "agent"])
@pytest.mark.parametrize("background", [True, False], ids=["background", "foreground"])
async def test_a_message_and_its_answer(stack: Stack, letta: AsyncLetta, place: str, background: bool) -> None:
    """The loop gives each message as it was sent, and ends at `[DONE]`; run and conversation are read afterwards."""
    agent_id = new_agent_id()
    made = await letta.conversations.create(agent_id=agent_id, summary="on ferns")
    body = {**SHORT, "background": background}
    call = ["conversations.messages.create", made.id, body]
    (answer,) = await called(
        stack.base, call if place == "conversation" else ["agents.messages.stream", agent_id, body]
    )
    messages = answer["messages"]
    assert types_of(messages) == [
        "ping",
        "reasoning_message",
        "tool_call_message",
        "tool_return_message",
        *["assistant_message"] * 3,
        "stop_reason",
        "usage_statistics",
    ]
    assert "raised" not in answer
    run_id = messages[0]["run_id"]
    if background:
        assert messages == await sent(stack, run_id)
        assert with_dates(messages) == with_dates(await whole(letta, run_id))
    else:
        assert {message["seq_id"] for message in messages[:-2]} == {None}
    run, conversation = await called(stack.base, ["runs.retrieve", run_id], ["conversations.retrieve", made.id])
    assert run["answer"] == (await stack.fetch("GET", f"/v1/runs/{run_id}")).json
    assert (run["answer"]["status"], run["answer"]["stop_reason"]) == ("completed", "end_turn")
    assert conversation["answer"] == (await stack.fetch("GET", f"/v1/conversations/{made.id}")).json
    assert (conversation["answer"]["agent_id"], conversation["answer"]["summary"]) == (agent_id, "on ferns")


async def test_a_conversation_that_it_makes(stack: Stack) -> None:
    """A conversation is made, with the agent in the query and the rest in the body, as the client sends them."""
    agent_id = new_agent_id()
    (made,) = await called(stack.base, ["conversations.create", {"agent_id": agent_id, "summary": "on ferns"}])
    assert (made["answer"]["agent_id"], made["answer"]["summary"]) == (agent_id, "on ferns")


@pytest.mark.parametrize("state", ["live", "ended"])
async def test_every_way_to_come_back(stack: Stack, state: str) -> None:
    """From a cursor on, by run id, by otid, to the run itself and, while it is live, by conversation: the same rest."""
    conversation_id, otid = await stack.conversation(), new_otid()
    async with stack.say_in(conversation_id, messages=[user(PUPPET, otid)]) as creator:
        run_id = str((await creator.take(1))[0].json["run_id"])
        stack.puppet.say(run_id, 5)
        cursor = (await creator.take(3))[-1].seq_id
        path = "conversations.messages.stream"
        calls: list[list[Any]] = [
            [path, conversation_id, {"run_id": run_id, "starting_after": cursor}],
            [path, conversation_id, {"otid": otid, "starting_after": cursor, "include_pings": False}],
            [path, conversation_id, {"starting_after": cursor}],
            ["runs.messages.stream", run_id, {"starting_after": cursor}],
        ]
        if state == "ended":
            stack.puppet.finish(run_id)
            await creator.rest()
        answering = asyncio.gather(*(called(stack.base, call) for call in calls))
        if state == "live":
            await wait_until(lambda: stack.hub.seats.taken == 1 + len(calls))
            stack.puppet.finish(run_id)
            await creator.rest()
        answers = await answering
    assert [answer["messages"] for (answer,) in answers] == [(await sent(stack, run_id))[4:]] * len(calls)


async def test_a_failed_run(stack: Stack) -> None:
    """The loop gives what was said and the stop reason, then throws: no status, the error in `error`; no repetition."""
    conversation_id = await stack.conversation()
    call = ["conversations.messages.create", conversation_id, {**FAILING, "background": True}]
    (failed,) = await called(stack.base, call)
    assert types_of(failed["messages"]) == ["ping", "assistant_message", "assistant_message", "stop_reason"]
    assert (failed["raised"], failed["status"], failed["requests"]) == ("APIError", None, 1)
    assert (failed["body"]["message_type"], failed["body"]["error_type"]) == ("error_message", "llm_error")
    assert failed["message"] == failed["body"]["message"]
    run_id = failed["body"]["run_id"]
    # It has stopped at the error, before `[DONE]`: the conversation is free by then, and the run stays as it is.
    run, again, following = await called(
        stack.base,
        ["runs.retrieve", run_id],
        ["runs.messages.stream", run_id],
        ["conversations.messages.create", conversation_id, SHORT],
    )
    assert (run["answer"]["status"], run["answer"]["stop_reason"]) == ("failed", "llm_api_error")
    assert again == failed
    assert types_of(following["messages"])[-1] == "usage_statistics"


@pytest.mark.parametrize("background", [True, False], ids=["background", "foreground"])
async def test_a_cancelled_run(stack: Stack, background: bool) -> None:
    """A cancel from within the loop ends it, with one stop reason `cancelled`, and throws nothing."""
    body = {"input": json.dumps({"chunks": 10_000, "interval_ms": 5}), "background": background}
    async with playing("cancel", stack.base, agent_id=new_agent_id(), body=body, after=5) as process:
        (told,) = await told_by(process)
    seen, run = told["seen"], told["run"]
    assert (seen.count(CANCELLED), seen[-1]) == (1, CANCELLED)
    assert types_of(seen[:-1]) == ["ping", *["assistant_message"] * (len(seen) - 2)]
    assert told["answer"] == {run["id"]: "cancelled"}
    assert (run["id"], run["status"], run["stop_reason"]) == (seen[0]["run_id"], "cancelled", "cancelled")


async def test_cancelling_an_agent(stack: Stack) -> None:
    """An agent's run is cancelled by agent, by its id, and as `default` conversation; then there is nothing left."""
    agent_id = new_agent_id()
    for cancel in (
        ["agents.messages.cancel", agent_id],
        ["conversations.cancel", "default", {"agent_id": agent_id}],
        ["conversations.cancel", agent_id],
    ):
        async with stack.create(agent_id=agent_id) as stream:
            run_id = (await stream.take(1))[0].json["run_id"]
            answer, nothing = await called(stack.base, cancel, ["conversations.cancel", agent_id])
            assert answer["answer"] == {run_id: "cancelled"}
            assert [event.data for event in await stream.rest()][-1] == DONE.data
            assert (nothing["raised"], nothing["requests"]) == ("ConflictError", 1)


async def test_refusals_are_its_own_errors(stack: Stack) -> None:
    """Each refusal is thrown as the class that the client has for it, the body in `error`; none of them is repeated."""
    conversation_id = await stack.conversation()
    run_id, events = await stack.finished({"chunks": 2})
    await stack.purge_up_to(await stack.record(run_id), events[1].seq_id or 0)
    async with stack.say_in(conversation_id) as creator:
        (ping,) = await creator.take(1)
        refused = await called(
            stack.base,
            ["conversations.messages.stream", await stack.conversation()],
            ["runs.retrieve", "zzz"],
            ["runs.retrieve", new_run_id()],
            ["conversations.messages.stream", conversation_id, {"otid": "nope"}],
            ["conversations.messages.create", conversation_id, SHORT],
            ["runs.messages.stream", run_id],
            ["conversations.messages.create", conversation_id, {"messages": []}],
        )
        stack.puppet.finish(ping.json["run_id"])
        await creator.rest()
    assert [(each["raised"], each["status"], each["requests"]) for each in refused] == [
        ("BadRequestError", 400, 1),
        ("BadRequestError", 400, 1),
        ("NotFoundError", 404, 1),
        ("NotFoundError", 404, 1),
        ("ConflictError", 409, 1),
        ("APIError", 410, 1),
        ("UnprocessableEntityError", 422, 1),
    ]
    assert all(each["body"]["detail"] in each["message"] for each in refused)
    assert refused[4]["body"]["run_id"] == ping.json["run_id"]


async def test_a_redirect_is_followed(stack: Stack) -> None:
    """A path with a slash too many or too few is asked again at the right one, by the client, body and all."""
    run_id, _ = await stack.finished({"chunks": 1})
    read, made, resumed = await called(
        stack.base,
        ["get", f"/v1/runs/{run_id}/"],
        ["post", f"/v1/conversations?agent_id={new_agent_id()}", {"body": {"summary": "on ferns"}}],
        ["post", f"/v1/runs/{run_id}/stream/", {"body": {"include_pings": False}, "stream": True}],
    )
    assert read["answer"]["id"] == run_id
    assert made["answer"]["summary"] == "on ferns"
    assert resumed["messages"] == (await sent(stack, run_id))[1:]


# -- losing the connection --------------------------------------------------------------------------------------------


def was_cut(loss: Line) -> bool:
    """Whether this is what the client throws when a response is cut: no error class of its own."""
    return (loss["raised"], loss["message"], loss["cause"]) == ("TypeError", "terminated", "UND_ERR_SOCKET")


async def check_whole(stack: Stack, letta: AsyncLetta, run_id: str, seen: Sequence[Chunk]) -> None:
    """What was put together from many connections is the run: complete, in order, each message once."""
    assert len(seen) == MESSAGES
    cursors = [chunk["seq_id"] for chunk in seen[:-2]]
    assert cursors == sorted(set(cursors))
    assert seen == await sent(stack, run_id)
    assert with_dates(seen) == with_dates(await whole(letta, run_id))


async def test_a_reader_that_is_cut_twenty_times(stack: Stack, letta: AsyncLetta, doomed: Doomed) -> None:
    """Cut at twenty points, back at the other gateway each time, and one of them killed: nothing is lost or twice."""
    # Before the ping, after it, …, after the last chunk, after the stop reason, and just before the end.
    early = [0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 21, 24]
    late = [28, 36, CHUNKS, CHUNKS + 1, CHUNKS + 2, CHUNKS + 3]
    assert len(early) % 2 == 0, "so that it is at the first gateway again when that is killed"
    async with (
        stack.live() as (run_id, creator),
        playing("journey", doomed.base, stack.base, run_id=run_id, cuts=early + late) as process,
    ):
        stack.puppet.say(run_id, 25)
        await process.wait_for_line(r'^{"at":26}$')
        await doomed.kill()
        stack.puppet.say(run_id, CHUNKS - 25)
        stack.puppet.finish(run_id)
        *_, told = await told_by(process)
        await creator.rest()
    (loss,) = told["losses"]
    assert (loss["at"], was_cut(loss)) == (26, True), loss
    await check_whole(stack, letta, run_id, told["seen"])


async def test_twenty_readers_whose_gateway_is_killed(stack: Stack, letta: AsyncLetta, doomed: Doomed) -> None:
    """Each leaves at a point of its own, or loses its gateway in mid-stream, and goes on at the other: all have it."""
    cuts = [*range(10), *range(CHUNKS - 6, CHUNKS + 4)]
    async with (
        stack.live() as (run_id, creator),
        playing("journeys", doomed.base, stack.base, run_id=run_id, cuts=cuts) as process,
    ):
        stack.puppet.say(run_id, 20)
        await wait_until(lambda: process.lines.count('{"at":21}') == len(cuts))
        # Half of them have left by now, and the other half is about to be told this:
        stack.puppet.say(run_id, 10)
        await doomed.kill()
        stack.puppet.say(run_id, CHUNKS - 30)
        stack.puppet.finish(run_id)
        told = [line for line in await told_by(process) if "seen" in line]
        await creator.rest()
    assert len(told) == len(cuts)
    losses = [loss for each in told for loss in each["losses"]]
    assert (len(losses), all(map(was_cut, losses))) == (len(cuts) // 2, True), losses
    for each in told:
        assert each["seen"] == told[0]["seen"]
    await check_whole(stack, letta, run_id, told[0]["seen"])
