"""Who comes for what a run said before: read once for all, and each has it in the way he asked for it."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from runstream.broker import tasks
from runstream.broker.reader import Batch
from runstream.gateway.fanout import Hub
from runstream.gateway.follower import Follower
from runstream.gateway.framing import Piece
from tests.support.eventsource import open_source
from tests.support.http import DONE, Event, open_stream
from tests.support.stack import Stack, stack_running
from tests.support.waiting import wait_until

CHUNKS = 1000
READ = "runstream_catchup_chunks_total"
KEPT = "runstream_replay_cache_bytes"


async def metric(stack: Stack, name: str) -> float:
    text = (await stack.fetch("GET", "/metrics")).body.decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    (value,) = [sample.value for sample in samples if sample.name == name]
    return value


async def ended(stack: Stack, chunks: int = CHUNKS) -> tuple[str, list[Event]]:
    """A run that has said so many chunks, and all that its creator was sent."""
    return await stack.finished({"chunks": chunks, "interval_ms": 0})


async def replayed(stack: Stack, run_id: str, cursor: int | None = None) -> list[Event]:
    async with stack.resume(run_id, cursor) as stream:
        return await stream.rest()


async def test_many_readers_of_a_run_that_has_ended_read_it_once(stack: Stack) -> None:
    """Thirty at once, and then others: the log is read to its length, whoever comes."""
    run_id, events = await ended(stack)
    before = await metric(stack, READ)
    found = await asyncio.gather(*(replayed(stack, run_id) for _ in range(30)))
    assert found == [events] * 30
    cursors = [random.choice(events[:-2]).seq_id for _ in range(10)]
    for cursor in cursors:
        after = [event for event in events if event is DONE or event.seq_id is None or event.seq_id > (cursor or 0)]
        assert await replayed(stack, run_id, cursor) == after
    # What is stored and not shown is read as well: the attempt.
    assert len(events) <= await metric(stack, READ) - before <= len(events) + 1
    assert await metric(stack, KEPT) > 0


async def test_what_comes_next_is_read_while_what_was_read_is_written(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader's second block is there before its first one is written."""
    run_id, events = await ended(stack)
    hub, may_write = stack.hub, asyncio.Event()
    write = hub._writing.do

    async def held(action: Callable[[], None]) -> None:
        await may_write.wait()
        await write(action)

    monkeypatch.setattr(hub._writing, "do", held)
    before = await metric(stack, READ)

    async def is_read() -> bool:
        return await metric(stack, READ) - before >= len(events)

    async with stack.resume(run_id) as stream:
        await wait_until(is_read, message="it waits for the writing")
        may_write.set()
        assert await stream.rest() == events


async def test_what_is_read_ahead_of_who_leaves_is_broken_off(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the gateway has done with him nothing of it goes on."""
    run_id, _ = await ended(stack)
    read, begun = stack.hub.reader.batch, 0

    async def second_never_comes(*args: Any, **options: Any) -> Batch:
        nonlocal begun
        begun += 1
        if begun > 1:
            await asyncio.Event().wait()
        return await read(*args, **options)

    monkeypatch.setattr(stack.hub.reader, "batch", second_never_comes)
    async with stack.resume(run_id) as stream:
        await stream.take(1)
        await wait_until(lambda: begun == 2, message="nothing is read ahead")
    await stack.nobody_follows()
    assert not [task for task in asyncio.all_tasks() if task.get_name() in {f"ahead-{run_id}", f"replay-{run_id}"}]


async def test_who_lacks_the_last_chunks_reads_these(stack: Stack) -> None:
    """Of a run that has ended nothing is read that nobody lacks, however long it is."""
    run_id, events = await ended(stack)
    chunks = [event for event in events if event.message_type == "assistant_message"]
    before = await metric(stack, READ)
    assert await replayed(stack, run_id, chunks[-6].seq_id) == events[events.index(chunks[-5]) :]
    assert await metric(stack, READ) - before < 10


async def test_a_long_run_that_goes_on_is_read_once(nats_url: str, stack: Stack) -> None:
    """Readers who lack more of it than memory has get that from its log together, and then follow it live."""
    gateway = {"tail_chunks": 20, "tail_fill_chunks": 5}
    async with (
        # With the agent of the other one, which may be asked for it.
        stack_running(nats_url, agent=stack.puppet, gateway=gateway) as small,
        small.live(300) as (run_id, creator),
    ):
        before = await metric(small, READ)
        readers = [small.resume(run_id) for _ in range(20)]
        streams = [await reader.__aenter__() for reader in readers]
        try:
            for stream in streams:
                assert await stream.take(len(creator.seen)) == creator.seen
            assert await metric(small, READ) - before <= len(creator.seen) + 1
            stack.puppet.say(run_id, 3)
            stack.puppet.finish(run_id)
            whole = creator.seen + await creator.rest()
            for stream in streams:
                assert stream.seen + await stream.rest() == whole
        finally:
            for reader in readers:
                await reader.__aexit__(None, None, None)


async def test_each_has_it_in_his_own_way(stack: Stack) -> None:
    """Pings or none, HTTP/1.1 or 1.0, Letta's events or a browser's, all at once: none gets what is another's."""
    run_id, events = await ended(stack, 300)
    path = f"/v1/runs/{run_id}/stream"
    async with (
        open_stream(stack.base, path, {}) as letta,
        open_stream(stack.base, path, {"include_pings": False}) as quiet,
        open_stream(stack.base, path, {}, version="1.0") as old,
        open_stream(stack.base, path, {"include_pings": False}, version="1.0") as old_and_quiet,
        open_source(stack.base, path) as browser,
    ):
        pinged, unpinged, *others = await asyncio.gather(*(each.rest() for each in (letta, quiet, old, old_and_quiet)))
        told = await browser.rest()
    shown = [event for event in events if event.message_type != "ping"]
    assert pinged == others[0] == events
    assert unpinged == others[1] == shown
    assert [event.data for event in told if event.data] == [event.data for event in events]


async def test_a_run_that_is_removed_is_let_go_of(stack: Stack) -> None:
    """With the run its text leaves the gateway's memory."""
    kept = await metric(stack, KEPT)
    run_id, events = await ended(stack)
    assert await replayed(stack, run_id) == events
    assert await metric(stack, KEPT) > kept
    assert (await stack.fetch("DELETE", f"/v1/runs/{run_id}")).status == 200

    async def is_let_go() -> bool:
        return await metric(stack, KEPT) <= kept

    await wait_until(is_let_go, message="the run is still in memory")
    assert (await stack.fetch("POST", f"/v1/runs/{run_id}/stream", json={})).status == 404


@pytest.mark.parametrize("which", [0, 1], ids=["live", "catch-up"])
async def test_what_was_read_before_a_reconnect_is_read_again(stack: Stack, which: int) -> None:
    """A server that was away may have lost the newest of what it had: what there is now is what counts."""
    run_id, events = await ended(stack)
    assert await replayed(stack, run_id) == events
    await stack.gateway._connections[which]._client.force_reconnect()
    await wait_until(lambda: stack.hub.replays.bytes == 0, message="it is still in memory")
    await stack.is_back()
    before = await metric(stack, READ)
    assert await replayed(stack, run_id) == events
    assert await metric(stack, READ) - before >= len(events)


@pytest.mark.parametrize("bound", [0, 50_000])
async def test_a_small_bound_is_kept(nats_url: str, bound: int) -> None:
    """Whatever is read, no more is kept than may be; everybody has everything, and nothing is read twice for one."""
    async with stack_running(nats_url, gateway={"replay_cache_bytes": bound}) as stack:
        runs = [await ended(stack, 200) for _ in range(5)]
        for _ in range(2):
            found = await asyncio.gather(*(replayed(stack, run_id) for run_id, _ in runs * 3))
            assert found == [events for _, events in runs * 3]
            assert await metric(stack, KEPT) <= bound
        run_id, events = await ended(stack, 600)
        before = await metric(stack, READ)
        assert await replayed(stack, run_id) == events
        assert await metric(stack, READ) - before <= len(events) + 1


async def test_a_removed_beginning_is_said_whatever_stands_there(stack: Stack) -> None:
    """Where somebody else's message is all that retention has left before a run's next one: 410, and no half answer."""
    async with stack.live(3) as (run_id, creator):
        record = await stack.record(run_id)
        subject = f"runs.{record.shard}.{run_id}"
        strangers = await stack.jetstream.publish(subject, b"{}", {})
        stack.puppet.say(run_id, 3)
        stack.puppet.finish(run_id)
        await creator.rest()
    await stack.purge_up_to(record, strangers - 1)
    for cursor in (0, *(event.seq_id for event in creator.seen[:4])):
        reply = await stack.fetch("POST", f"/v1/runs/{run_id}/stream", json={"starting_after": cursor})
        assert reply.status == 410
    assert await replayed(stack, run_id, creator.seen[4].seq_id) == creator.seen[5:]


async def test_replays_take_turns(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in memory is there at once: however many come for it, others on the event loop have their turn, too."""
    run_id, events = await ended(stack)
    assert await replayed(stack, run_id) == events
    rounds = 0
    served: list[int] = []
    write = Hub._write

    def noting(hub: Hub, follower: Follower, piece: Piece) -> None:
        served.append(rounds)
        write(hub, follower, piece)

    async def count() -> None:
        nonlocal rounds
        while True:
            await asyncio.sleep(0)
            rounds += 1

    monkeypatch.setattr(tasks, "TURN_SECONDS", 0)
    monkeypatch.setattr(Hub, "_write", noting)
    counting = asyncio.create_task(count())
    found = await asyncio.gather(*(replayed(stack, run_id) for _ in range(50)))
    await tasks.cancel_all(counting)
    assert found == [events] * 50
    assert len(served) == len(set(served)) > 50
