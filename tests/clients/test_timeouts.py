"""A client that loses patience: pings keep it, and without them its repetitions are one run."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from letta_client import APITimeoutError, AsyncLetta, AsyncStream

from runstream.schemas import new_agent_id, new_otid
from tests.support.letta import Chunk, read_into, types_of, user, whole
from tests.support.proxy import Proxy
from tests.support.stack import PUPPET, CountingPuppet, Stack, stack_running
from tests.support.waiting import wait_until

# `agents.messages.stream` is the older of two ways to say the same, and says so; clients in the field use it.
pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning:tests.clients.test_timeouts")

PATIENCE_SECONDS = 1.0
ANSWER = ["assistant_message"] * 3
ENDING = ["stop_reason", "usage_statistics"]


@pytest_asyncio.fixture(scope="module")
async def stack(nats_url: str) -> AsyncIterator[Stack]:
    """A runstream that pings often, and whose agent counts."""
    async with stack_running(nats_url, agent=CountingPuppet(), gateway={"keepalive_seconds": 0.1}) as running:
        yield running


def runs_of(stack: Stack, addressee: str) -> list[str]:
    assert isinstance(stack.agent, CountingPuppet)
    return stack.agent.runs_of(addressee)


def impatient(base: str, seconds: float = PATIENCE_SECONDS) -> AsyncLetta:
    """Letta's client with a lowered read time-out, and as many retries of its own as it has."""
    return AsyncLetta(base_url=base, api_key="dummy", timeout=httpx.Timeout(5, read=seconds))


async def test_pings_keep_a_client_that_times_out(stack: Stack) -> None:
    """An agent may be silent for longer than a client's read time-out: with pings the stream is not lost."""
    seen: list[Chunk] = []
    async with impatient(stack.base, 0.5) as letta:
        stream = await letta.agents.messages.stream(new_agent_id(), input=PUPPET, background=True)
        reading = asyncio.create_task(read_into(seen, stream))
        # Each of these comes a tenth of a second after the one before: three times the client's patience in all.
        await wait_until(lambda: len(seen) > 15)
        run_id = seen[0]["run_id"]
        stack.puppet.say(run_id, 3)
        stack.puppet.finish(run_id)
        await reading
    assert [kind for kind in types_of(seen) if kind != "ping"] == [*ANSWER, *ENDING]


async def test_a_call_that_times_out_and_is_repeated(stack: Stack) -> None:
    """A silent agent, no pings, a call that times out and is repeated with its otid: one run, executed once."""
    agent_id, otid = new_agent_id(), new_otid()
    timeouts = 0
    seen: list[Chunk] = []
    async with impatient(stack.base) as letta:

        async def call() -> None:
            stream = await letta.agents.messages.stream(
                agent_id, messages=[user(PUPPET, otid)], background=True, include_pings=False
            )
            await read_into(seen, stream)

        while timeouts < 2:
            with pytest.raises((httpx.ReadTimeout, APITimeoutError)):
                await call()
            timeouts += 1
            assert seen == []
        (run_id,) = runs_of(stack, agent_id)
        assert (await letta.runs.retrieve(run_id)).status == "running"
        stack.puppet.say(run_id, 3)
        stack.puppet.finish(run_id)
        await call()
        assert types_of(seen) == [*ANSWER, *ENDING]
        assert {chunk["run_id"] for chunk in seen[:3]} == {run_id}
        assert seen == (await whole(letta, run_id))[1:]
        assert (await letta.runs.retrieve(run_id)).status == "completed"
    assert runs_of(stack, agent_id) == [run_id]


@pytest.mark.parametrize("place", ["conversation", "agent"])
@pytest.mark.parametrize("swallowed", [1, 3])
async def test_answers_that_never_arrive(stack: Stack, place: str, swallowed: int) -> None:
    """Answers lost, headers and all: what the client repeats by itself, and its caller after that, is one run."""
    addressee = new_agent_id() if place == "agent" else await stack.conversation()
    otid = new_otid()
    async with Proxy.running([stack.base]) as proxy, impatient(proxy.url, 0.4) as letta:
        proxy.swallowed = swallowed

        async def call() -> AsyncStream[Any]:
            messages = [user(PUPPET, otid)]
            if place == "agent":
                return await letta.agents.messages.stream(
                    addressee, messages=messages, background=True, include_pings=False
                )
            return await letta.conversations.messages.create(
                addressee, messages=messages, background=True, include_pings=False
            )

        if swallowed == 3:
            # All that the client tries by itself.
            with pytest.raises(APITimeoutError):
                await call()
        stream = await call()
        assert proxy.swallowed == 0
        posts = [asked for asked in proxy.passages if otid.encode() in asked.asked]
        assert len(posts) == swallowed + 1
        (run_id,) = runs_of(stack, addressee)
        stack.puppet.say(run_id, 3)
        stack.puppet.finish(run_id)
        seen: list[Chunk] = []
        await read_into(seen, stream)
        assert types_of(seen) == [*ANSWER, *ENDING]
        assert {chunk["run_id"] for chunk in seen[:3]} == {run_id}
    assert runs_of(stack, addressee) == [run_id]
