"""One run from many requests: whoever sends the same otids at the same time gets the same run, whole."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from letta_client import AsyncLetta, AsyncStream, ConflictError

from runstream.schemas import new_agent_id, new_otid
from tests.support.http import Connection, Event, EventStream, Reply
from tests.support.letta import Chunk, chunks_of, types_of, user
from tests.support.stack import PUPPET, CountingPuppet, Stack, stack_running

# `agents.messages.stream` is the older of two ways to say the same, and says so; clients in the field use it.
pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning:tests.clients.test_same_request")

IDENTICAL = 20
DIFFERENT = 2
LANES = 4
"""How many conversations, or agents, go through their rounds side by side: nobody waits for the store alone."""
ROUNDS = 25
"""In each lane: a hundred in all."""
TYPES = ["ping", "assistant_message", "assistant_message", "stop_reason", "usage_statistics", None]


@pytest_asyncio.fixture(scope="module")
async def stack(nats_url: str) -> AsyncIterator[Stack]:
    """A runstream whose agent counts."""
    async with stack_running(nats_url, agent=CountingPuppet()) as running:
        yield running


def counting(stack: Stack) -> CountingPuppet:
    assert isinstance(stack.agent, CountingPuppet)
    return stack.agent


class Answers(NamedTuple):
    """What simultaneous requests were answered, by the otids they had."""

    streams: dict[str, list[EventStream]]
    refusals: dict[str, list[Reply]]


@contextlib.asynccontextmanager
async def asked_at_once(stack: Stack, path: str, otids: Sequence[str]) -> AsyncIterator[Answers]:
    """Send one request for each of the otids, all at the same moment; they are open until the block ends."""
    answers = Answers({}, {})
    async with contextlib.AsyncExitStack() as opened:
        connections = [await opened.enter_async_context(Connection.open(stack.base)) for _ in otids]

        async def ask(connection: Connection, otid: str) -> None:
            await connection.send("POST", path, json={"messages": [user(PUPPET, otid)], "background": True})
            status, headers = await connection.head()
            if status == 200:
                answers.streams.setdefault(otid, []).append(EventStream(connection, status, headers))
            else:
                body = await connection.reader.readexactly(int(headers["content-length"]))
                answers.refusals.setdefault(otid, []).append(Reply(status, headers, body))

        await asyncio.gather(*map(ask, connections, otids))
        yield answers


async def ended(stack: Stack, streams: Sequence[EventStream]) -> str:
    """Let the one run of all these streams speak and end; returns its id, after a look at what each has seen."""
    pings = [(await stream.take(1))[0] for stream in streams]
    run_id = str(pings[0].json["run_id"])
    stack.puppet.say(run_id, 2)
    stack.puppet.finish(run_id)
    await asyncio.gather(*(stream.rest() for stream in streams))
    seen: list[list[Event]] = [stream.seen for stream in streams]
    assert [event.message_type for event in seen[0]] == TYPES
    # Events are compared as they were on the wire: the same bytes, so the same cursors, from the first message on.
    assert [number for number, events in enumerate(seen) if events != seen[0]] == []
    return run_id


def shuffled(otid: str) -> tuple[list[str], list[str]]:
    """The otids of twenty requests that are identical, among those of two others; and those two."""
    others = [new_otid() for _ in range(DIFFERENT)]
    requests = [*[otid] * IDENTICAL, *others]
    random.shuffle(requests)
    return requests, others


async def rounds_in_a_conversation(stack: Stack) -> None:
    conversation_id = await stack.conversation()
    path = f"/v1/conversations/{conversation_id}/messages"
    expected = []
    for _ in range(ROUNDS):
        otid = new_otid()
        requests, _ = shuffled(otid)
        async with asked_at_once(stack, path, requests) as answers:
            ((winner, streams),) = answers.streams.items()
            assert len(streams) == (IDENTICAL if winner == otid else 1)
            refusals = [refusal for refused in answers.refusals.values() for refusal in refused]
            assert len(streams) + len(refusals) == IDENTICAL + DIFFERENT
            run_id = await ended(stack, streams)
            assert {(refusal.status, refusal.json["run_id"], refusal.json["otid"]) for refusal in refusals} == {
                (409, run_id, winner)
            }
        expected.append(run_id)
        if winner == otid:
            continue
        # Another one was faster, and is over now: the identical ones come again, and meet nobody.
        async with asked_at_once(stack, path, [otid] * IDENTICAL) as again:
            assert not again.refusals
            expected.append(await ended(stack, again.streams[otid]))
    assert counting(stack).runs_of(conversation_id) == expected


async def rounds_with_an_agent(stack: Stack) -> None:
    agent_id = new_agent_id()
    expected = []
    for _ in range(ROUNDS):
        otid = new_otid()
        requests, others = shuffled(otid)
        async with asked_at_once(stack, f"/v1/agents/{agent_id}/messages/stream", requests) as answers:
            assert not answers.refusals
            assert len(answers.streams[otid]) == IDENTICAL
            expected += await asyncio.gather(*(ended(stack, answers.streams[first]) for first in (otid, *others)))
    assert len(set(expected)) == ROUNDS * (1 + DIFFERENT)
    assert sorted(counting(stack).runs_of(agent_id)) == sorted(expected)


async def test_identical_requests_in_a_conversation(stack: Stack) -> None:
    """Whichever request comes first, all that are identical to it get its run, and every other one is told of it."""
    await asyncio.gather(*(rounds_in_a_conversation(stack) for _ in range(LANES)))


async def test_identical_requests_to_an_agent(stack: Stack) -> None:
    """Requests to an agent that are identical get one run, and every different one beside them a run of its own."""
    await asyncio.gather(*(rounds_with_an_agent(stack) for _ in range(LANES)))


@pytest.mark.parametrize("place", ["conversation", "agent"])
async def test_identical_calls_of_the_client(letta: AsyncLetta, stack: Stack, place: str) -> None:
    """The same with letta-client: identical calls are one run that each caller has whole, whatever else is said."""
    agent_id = new_agent_id()
    conversation_id = (await letta.conversations.create(agent_id=agent_id)).id

    async def call(otid: str) -> AsyncStream[Any]:
        messages = [user(PUPPET, otid)]
        if place == "agent":
            return await letta.agents.messages.stream(agent_id, messages=messages, background=True)
        return await letta.conversations.messages.create(conversation_id, messages=messages, background=True)

    for round_number in range(1, 6):
        otids = [*[new_otid()] * IDENTICAL, new_otid(), new_otid()]
        outcomes = await asyncio.gather(*map(call, otids), return_exceptions=True)
        followed: dict[str, list[AsyncGenerator[Chunk, None]]] = {}
        firsts: dict[str, Chunk] = {}
        for stream in (outcome for outcome in outcomes if isinstance(outcome, AsyncStream)):
            chunks = chunks_of(stream)
            first = await anext(chunks)
            assert firsts.setdefault(first["run_id"], first) == first
            followed.setdefault(first["run_id"], []).append(chunks)
        conflicts = [outcome for outcome in outcomes if isinstance(outcome, ConflictError)]
        assert sum(map(len, followed.values())) + len(conflicts) == len(otids), outcomes
        assert len(followed) == (3 if place == "agent" else 1)
        for run_id, readers in followed.items():
            assert len(readers) in {1, IDENTICAL}
            stack.puppet.say(run_id, 2)
            stack.puppet.finish(run_id)
            rests = [[chunk async for chunk in reader] for reader in readers]
            assert [*types_of(rests[0]), None] == TYPES[1:]
            assert all(rest == rests[0] for rest in rests)
        assert len(counting(stack).runs_of(agent_id)) == len(followed) * round_number
