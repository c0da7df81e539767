"""However little of a run is kept in memory, and however it is read from the log, a stream is exact."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.http import Event
from tests.support.stack import Puppet, Stack, stack_running

CHUNKS = 700
# Each bound that decides where an entry comes from, at an edge: a window that holds little, one that is empty when it
# is opened, one that bytes bound, reads of the log in two steps, in many, and one at a time.
BOUNDS = {
    "a short window": ({"tail_chunks": 16, "tail_fill_chunks": 8}, {}),
    "a window of one": ({"tail_chunks": 1, "tail_fill_chunks": 1}, {"catchup_chunks": 50}),
    "no filling": ({"tail_chunks": 64, "tail_fill_chunks": 0}, {"concurrent_catchups": 1}),
    "few bytes": ({"tail_bytes": 1024, "tail_fill_chunks": 300}, {"catchup_bytes": 2048}),
    "filling beyond the window": ({"tail_chunks": 16, "tail_fill_chunks": 256}, {"catchup_chunks": 1}),
    "the defaults": ({}, {}),
}


@pytest_asyncio.fixture(scope="module", params=BOUNDS.values(), ids=BOUNDS)
async def stack(nats_url: str, request: pytest.FixtureRequest) -> AsyncIterator[Stack]:
    """A runstream with these bounds."""
    gateway, broker = request.param
    async with stack_running(nats_url, agent=Puppet(), gateway=gateway, broker=broker) as running:
        yield running


async def test_a_finished_run_from_any_cursor(stack: Stack) -> None:
    """A long run that has ended is read whole, and from cursors at every distance from its end."""
    run_id, events = await stack.finished({"chunks": CHUNKS, "interval_ms": 0})
    assert len(events) == CHUNKS + 4
    ends = [*range(20), 63, 64, 65, 255, 256, 257, 300, 511, 512, 513, CHUNKS]
    for end in ends:
        at = CHUNKS - end
        async with stack.resume(run_id, events[at].seq_id) as stream:
            assert await stream.rest() == events[at + 1 :], end
    async with stack.resume(run_id) as stream:
        assert await stream.rest() == events


async def test_a_live_run_from_any_cursor(stack: Stack) -> None:
    """Followers that join a live run from cursors at every distance from its tip meet the tip, and miss nothing."""
    async with stack.live(CHUNKS) as (run_id, creator):
        cursors = [
            None,
            *(creator.seen[-distance].seq_id for distance in (1, 2, 15, 16, 17, 64, 256, 257, 400, CHUNKS)),
        ]
        streams = [stack.resume(run_id, cursor) for cursor in cursors]
        opened = await asyncio.gather(*(stream.__aenter__() for stream in streams))
        stack.puppet.say(run_id, 40)
        stack.puppet.finish(run_id)
        await creator.rest()
        for cursor, got in zip(cursors, await asyncio.gather(*(stream.rest() for stream in opened)), strict=True):
            assert got == after(creator.seen, cursor), cursor
        await asyncio.gather(*(stream.__aexit__(None, None, None) for stream in streams))


async def test_a_run_that_is_spread_over_its_stream(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The window of a run that lies far apart begins near the tip; cursors before it are served from the log."""
    monkeypatch.setattr("runstream.gateway.fanout.FILL_SEQUENCES", 6)
    run_id, events = await stack.finished({"chunks": 20, "interval_ms": 0})
    for at in range(len(events) - 3):
        async with stack.resume(run_id, events[at].seq_id) as stream:
            assert await stream.rest() == events[at + 1 :], at
    async with stack.resume(run_id) as stream:
        assert await stream.rest() == events


async def test_followers_come_and_go_while_chunks_pour(stack: Stack) -> None:
    """Followers that join, read a little and leave, while the agent speaks as fast as it can, are exact as well."""
    async with stack.create({"chunks": 1500, "interval_ms": 0.5}) as creator:
        (ping,) = await creator.take(1)
        run_id = ping.json["run_id"]

        async def wander(seed: int) -> list[Event]:
            steps, history = random.Random(seed), list[Event]()
            while True:
                cursor = next((event.seq_id for event in reversed(history) if event.seq_id is not None), None)
                history = [event for event in history if event.seq_id is not None]
                async with stack.resume(run_id, cursor) as stream:
                    count = steps.choice([1, 10, 100, 1000])
                    while count and (event := await stream.next()) is not None:
                        history.append(event)
                        count -= 1
                    if stream.is_complete:
                        return history

        wandering = asyncio.gather(*(wander(seed) for seed in range(6)))
        await creator.rest()
        for seed, history in enumerate(await wandering):
            assert history == creator.seen, seed
    await stack.nobody_follows()
    assert await stack.consumers() == 0


def after(events: list[Event], cursor: int | None) -> list[Event]:
    """What follows a cursor, stop reason, usage and end included."""
    begin = 0 if cursor is None else [event.seq_id for event in events].index(cursor) + 1
    return events[begin:]
