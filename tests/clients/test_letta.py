"""letta-client, unmodified: what it creates it can follow, leave and come back to, and its errors are its own."""

import asyncio
import json
import random
from typing import Any

import httpx
import pytest
from letta_client import (
    APIStatusError,
    AsyncLetta,
    BadRequestError,
    ConflictError,
    DefaultAsyncHttpxClient,
    Letta,
    NotFoundError,
    UnprocessableEntityError,
)

from runstream.schemas import new_agent_id, new_otid, new_run_id
from tests.support.letta import (
    Chunk,
    Reader,
    blocking_chunks_of,
    chunks_of,
    conversation,
    cursor_in,
    kept,
    read_into,
    types_of,
    whole,
)
from tests.support.stack import PUPPET, Stack

# `agents.messages.stream` is the older of two ways to say the same, and says so; clients in the field use it.
pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning:tests.clients.test_letta")

CHUNKS = 30
KNOBS = json.dumps({"chunks": CHUNKS, "interval_ms": 4, "reasoning": True, "tool_call": True})
# Ping, reasoning, tool call, tool return, the answer, stop reason, usage.
MESSAGES = 4 + CHUNKS + 2


async def test_conversation_and_its_runs(letta: AsyncLetta) -> None:
    """A conversation is made, a message answered in the background, run and conversation are read."""
    agent_id = new_agent_id()
    made = await letta.conversations.create(agent_id=agent_id, summary="a summary")
    assert (made.agent_id, made.summary) == (agent_id, "a summary")
    stream = await letta.conversations.messages.create(made.id, input=KNOBS, background=True, streaming=True)
    chunks = [chunk async for chunk in chunks_of(stream)]
    assert types_of(chunks) == [
        "ping",
        "reasoning_message",
        "tool_call_message",
        "tool_return_message",
        *["assistant_message"] * CHUNKS,
        "stop_reason",
        "usage_statistics",
    ]
    run = await letta.runs.retrieve(chunks[0]["run_id"])
    assert (run.status, run.stop_reason, run.background) == ("completed", "end_turn", True)
    assert (run.agent_id, run.conversation_id) == (agent_id, made.id)
    read = await letta.conversations.retrieve(made.id)
    assert (read.id, read.agent_id, read.summary) == (made.id, agent_id, "a summary")
    assert read.last_message_at is not None


async def test_agent_in_the_foreground_and_background(letta: AsyncLetta) -> None:
    """An agent addressed directly answers in both ways; only in the background are there cursors."""
    for background in (False, True):
        stream = await letta.agents.messages.stream(new_agent_id(), input=KNOBS, background=background)
        chunks = [chunk async for chunk in chunks_of(stream)]
        assert len(chunks) == MESSAGES
        with_cursor = [chunk for chunk in chunks if chunk.get("seq_id") is not None]
        assert len(with_cursor) == (MESSAGES - 2 if background else 0)


@pytest.mark.parametrize("way", ["by run id", "by otid", "active run", "of the run"])
async def test_every_way_to_come_back(letta: AsyncLetta, stack: Stack, way: str) -> None:
    """A reader that left comes back by run id, by otid, by conversation, or to the run itself: the rest is there."""
    conversation_id, otid = await conversation(letta), new_otid()
    stream = await letta.conversations.messages.create(
        conversation_id,
        messages=[{"role": "user", "content": PUPPET, "otid": otid}],
        background=True,
        streaming=True,
    )
    creator = chunks_of(stream)
    run_id = (first := await anext(creator))["run_id"]
    stack.puppet.say(run_id, 5)
    seen = [first, *[await anext(creator) for _ in range(3)]]
    cursor = cursor_in(seen)
    match way:
        case "by run id":
            again = await letta.conversations.messages.stream(conversation_id, run_id=run_id, starting_after=cursor)
        case "by otid":
            again = await letta.conversations.messages.stream(conversation_id, otid=otid, starting_after=cursor)
        case "active run":
            again = await letta.conversations.messages.stream(conversation_id, starting_after=cursor)
        case _:
            again = await letta.runs.messages.stream(run_id, starting_after=cursor)
    stack.puppet.finish(run_id)
    rest = [chunk async for chunk in chunks_of(again)]
    assert rest == [chunk async for chunk in creator]
    assert seen + rest == await whole(letta, run_id)


async def cut_and_resumed(letta: AsyncLetta, after: int) -> None:
    stream = await letta.agents.messages.stream(new_agent_id(), input=KNOBS, background=True)
    creator = chunks_of(stream)
    first = await anext(creator)
    uninterrupted = asyncio.create_task(whole(letta, first["run_id"]))
    seen = [first, *[await anext(creator) for _ in range(after - 1)]]
    await creator.aclose()
    again = await letta.runs.messages.stream(first["run_id"], starting_after=cursor_in(seen))
    stitched = kept(seen) + [chunk async for chunk in chunks_of(again)]
    assert stitched == await uninterrupted
    assert len(stitched) == MESSAGES


async def test_cut_after_any_chunk(letta: AsyncLetta) -> None:
    """Wherever a live stream is cut, its reader comes back and has every chunk exactly once, in order."""
    # A few at a time: each run must still be live when its reader comes back.
    for begin in range(1, MESSAGES + 1, 12):
        await asyncio.gather(*(cut_and_resumed(letta, k) for k in range(begin, min(begin + 12, MESSAGES + 1))))


def blocking_cut_and_resumed(letta: Letta, after: int) -> None:
    knobs = KNOBS.replace('"interval_ms": 4', '"interval_ms": 1')
    creator = blocking_chunks_of(letta.agents.messages.stream(new_agent_id(), input=knobs, background=True))
    seen = [next(creator) for _ in range(after)]
    creator.close()
    run_id = seen[0]["run_id"]
    again = blocking_chunks_of(letta.runs.messages.stream(run_id, starting_after=cursor_in(seen)))
    stitched = kept(seen) + list(again)
    assert stitched == list(blocking_chunks_of(letta.runs.messages.stream(run_id, starting_after=0)))
    assert len(stitched) == MESSAGES


async def test_cut_after_any_chunk_in_a_thread(blocking_letta: Letta) -> None:
    """The same with the client that blocks."""
    for k in range(1, MESSAGES + 1):
        await asyncio.to_thread(blocking_cut_and_resumed, blocking_letta, k)


async def test_blocking_client_reads_runs_and_conversations(blocking_letta: Letta) -> None:
    """The client that blocks creates, streams and reads as the other does."""

    def use() -> None:
        made = blocking_letta.conversations.create(agent_id=new_agent_id())
        stream = blocking_letta.conversations.messages.create(made.id, input=KNOBS, background=True, streaming=True)
        chunks = list(blocking_chunks_of(stream))
        assert len(chunks) == MESSAGES
        rest = blocking_letta.conversations.messages.stream(made.id, starting_after=chunks[-5]["seq_id"])
        assert list(blocking_chunks_of(rest)) == chunks[-4:]
        assert blocking_letta.runs.retrieve(chunks[0]["run_id"]).status == "completed"
        assert blocking_letta.conversations.retrieve(made.id).id == made.id

    await asyncio.to_thread(use)


async def test_cut_again_and_again(letta: AsyncLetta) -> None:
    """Readers whose connections last for one to three chunks get through a live run, and miss nothing."""
    stream = await letta.agents.messages.stream(new_agent_id(), input=KNOBS, background=True)
    creator = chunks_of(stream)
    run_id = (first := await anext(creator))["run_id"]

    async def hop(seed: int) -> Reader:
        hops, reader = random.Random(seed), Reader(letta, run_id)
        while not reader.is_done:
            await reader.read(hops.randint(1, 3))
        return reader

    readers = asyncio.gather(*map(hop, range(8)))
    expected = [first, *[chunk async for chunk in creator]]
    for reader in await readers:
        assert reader.history == expected
        assert reader.connections >= MESSAGES / 3


async def test_fifty_readers_come_and_go(letta: AsyncLetta, stack: Stack) -> None:
    """Fifty readers of a live run, joining and leaving at random, each have it whole in the end."""
    knobs = json.dumps({"chunks": 150, "interval_ms": 10})
    creator = chunks_of(await letta.agents.messages.stream(new_agent_id(), input=knobs, background=True))
    run_id = (first := await anext(creator))["run_id"]

    async def wander(seed: int) -> Reader:
        steps, reader = random.Random(seed), Reader(letta, run_id)
        while not reader.is_done:
            await reader.read(steps.choice([1, 2, 5, 20, 80, None]))
            await asyncio.sleep(steps.choice([0, 0, 0.01, 0.1]))
        return reader

    readers = asyncio.gather(*map(wander, range(50)))
    expected = [first, *[chunk async for chunk in creator]]
    assert len(expected) == 153
    finished = await readers
    assert [seed for seed, reader in enumerate(finished) if reader.history != expected] == []
    assert sum(reader.connections for reader in finished) > 100
    assert sum(reader.refusals + reader.cuts for reader in finished) == 0
    await stack.nobody_follows()


async def test_busy_conversation_is_a_conflict(stack: Stack) -> None:
    """A second message to a busy conversation is a ConflictError that names the run, and is not repeated."""
    sent: list[str] = []

    async def note(request: httpx.Request) -> None:
        sent.append(request.url.path)

    http_client = DefaultAsyncHttpxClient(event_hooks={"request": [note]})
    async with AsyncLetta(base_url=stack.base, api_key="dummy", http_client=http_client) as letta:
        conversation_id = await conversation(letta)
        creator = chunks_of(await letta.conversations.messages.create(conversation_id, input=PUPPET, background=True))
        run_id = (await anext(creator))["run_id"]
        sent.clear()
        with pytest.raises(ConflictError) as caught:
            await letta.conversations.messages.create(conversation_id, input="hello", background=True)
        assert sent == [f"/v1/conversations/{conversation_id}/messages"]
        body: Any = caught.value.body
        assert body["run_id"] == run_id
        assert run_id in body["detail"]
        stack.puppet.finish(run_id)
        assert types_of([chunk async for chunk in creator]) == ["stop_reason", "usage_statistics"]
        # At the end of the stream the conversation is free.
        again = await letta.conversations.messages.create(conversation_id, input=KNOBS)
        assert len([chunk async for chunk in chunks_of(again)]) == MESSAGES


async def test_failed_run_raises_after_what_it_said(letta: AsyncLetta) -> None:
    """A failed run gives its chunks and its stop reason, then raises with the error in the body: live and resumed."""
    knobs = json.dumps({"chunks": 3, "interval_ms": 1, "error_after": 2})
    stream = await letta.agents.messages.stream(new_agent_id(), input=knobs, background=True)
    for _ in range(2):
        seen: list[Chunk] = []
        with pytest.raises(APIStatusError) as caught:
            await read_into(seen, stream)
        assert types_of(seen) == ["ping", "assistant_message", "assistant_message", "stop_reason"]
        assert caught.value.status_code == 200
        body: Any = caught.value.body
        assert body["error_type"] == "llm_error"
        stream = await letta.runs.messages.stream(seen[0]["run_id"], starting_after=0)
    run = await letta.runs.retrieve(seen[0]["run_id"])
    assert run.status == "failed"


async def test_conversation_is_free_after_an_error(letta: AsyncLetta) -> None:
    """The client stops at the error, before the end: the run is over by then, and the conversation takes a message."""
    conversation_id = await conversation(letta)
    failing = json.dumps({"chunks": 1, "interval_ms": 0, "error_after": 1})
    for _ in range(20):
        seen: list[Chunk] = []
        stream = await letta.conversations.messages.create(conversation_id, input=failing, background=True)
        with pytest.raises(APIStatusError, match="llm_error"):
            await read_into(seen, stream)
        assert (await letta.runs.retrieve(seen[0]["run_id"])).status == "failed"


async def test_errors_are_the_clients_own(letta: AsyncLetta, stack: Stack) -> None:
    """Each refusal arrives as the class the client has for it."""
    conversation_id = await conversation(letta)
    with pytest.raises(BadRequestError, match="No active runs found"):
        await letta.conversations.messages.stream(conversation_id)
    with pytest.raises(NotFoundError, match="Run not found"):
        await letta.runs.retrieve(new_run_id())
    with pytest.raises(NotFoundError, match="No run found for otid"):
        await letta.conversations.messages.stream(conversation_id, otid="nope")
    with pytest.raises(UnprocessableEntityError, match="must not be empty"):
        await letta.conversations.messages.create(conversation_id, messages=[])
    run_id, events = await stack.finished({"chunks": 2})
    await stack.purge_up_to(await stack.record(run_id), events[1].seq_id or 0)
    with pytest.raises(APIStatusError, match="removed by retention") as caught:
        await letta.runs.messages.stream(run_id)
    assert caught.value.status_code == 410
