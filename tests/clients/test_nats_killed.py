"""The nats-server is killed while Letta's client reads and comes back: it is restarted, and nothing is lost."""

import asyncio
import json
import random

import pytest
from letta_client import AsyncLetta

from runstream.schemas import new_agent_id
from tests.support.letta import Chunk, Reader, chunks_of, without_repeated_pings
from tests.support.nats import NatsServer
from tests.support.stack import Stack
from tests.support.waiting import wait_until

CHUNKS = 200
KNOBS = json.dumps({"chunks": CHUNKS, "interval_ms": 20})


@pytest.mark.parametrize("kills", [1, 3])
async def test_nats_server_is_killed_in_mid_run(
    letta: AsyncLetta, stack: Stack, nats_server: NatsServer, kills: int
) -> None:
    """Readers that stay see no error, others are at most told to try again; all have every chunk exactly once."""
    conversation_id = (await letta.conversations.create(agent_id=new_agent_id())).id
    creator = chunks_of(await letta.conversations.messages.create(conversation_id, input=KNOBS, background=True))
    run_id = (first := await anext(creator))["run_id"]
    seen: list[Chunk] = [first]

    async def create() -> None:
        async for chunk in creator:
            seen.append(chunk)  # noqa: PERF401  # the test watches it grow

    async def stay() -> Reader:
        reader = Reader(letta, run_id)
        await reader.read()
        return reader

    async def hop(seed: int) -> Reader:
        hops, reader = random.Random(seed), Reader(letta, run_id)
        while not reader.is_done:
            await reader.read(hops.randint(1, 20))
        return reader

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(create())
        staying = [tasks.create_task(stay()) for _ in range(5)]
        hopping = [tasks.create_task(hop(seed)) for seed in range(10)]
        for kill in range(1, kills + 1):
            enough = kill * CHUNKS // (kills + 2)
            await wait_until(lambda enough=enough: len(seen) > enough, 30, "the run does not go on")  # type: ignore[misc]
            await nats_server.kill()

    expected = without_repeated_pings(seen)
    contents = [chunk["content"] for chunk in expected if chunk["message_type"] == "assistant_message"]
    assert len(contents) == CHUNKS
    assert len({chunk["seq_id"] for chunk in expected if chunk.get("seq_id")}) == CHUNKS + 1
    for reader in (task.result() for task in [*staying, *hopping]):
        assert without_repeated_pings(reader.history) == expected
        assert reader.is_done
    assert [task.result().connections for task in staying] == [1] * len(staying)
    assert sum(task.result().cuts for task in [*staying, *hopping]) == 0
    assert (await letta.runs.retrieve(run_id)).status == "completed"
    # The conversation takes the next message at once.
    again = await letta.conversations.messages.create(conversation_id, input=json.dumps({"chunks": 1}))
    assert [chunk["message_type"] async for chunk in chunks_of(again)][-1] == "usage_statistics"
    await stack.nobody_follows()
