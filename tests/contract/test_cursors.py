"""Where a response begins for each cursor there can be, with one shard and with three."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from runstream.broker.topology import SEQUENCES_PER_SHARD
from runstream.schemas import RunRecord, new_agent_id
from tests.support.http import DONE, Event, Reply, events_of, open_stream
from tests.support.stack import Stack, stack_running

EXPIRED = {"detail": "EXPIRED: Part of this run was removed by retention."}
NO_ACTIVE_RUN = {"detail": "INVALID_ARGUMENT: No active runs found for this conversation."}
KNOBS = {"chunks": 4, "interval_ms": 0}


@pytest_asyncio.fixture(scope="module", params=[1, 3], ids=["1 shard", "3 shards"])
async def stack(nats_url: str, request: pytest.FixtureRequest) -> AsyncIterator[Stack]:
    """A runstream whose runs are spread over as many shards."""
    async with stack_running(nats_url, broker={"shards": request.param}) as running:
        yield running


async def finished(stack: Stack) -> tuple[RunRecord, list[Event]]:
    run_id, events = await stack.finished(KNOBS)
    return await stack.record(run_id), events


async def refusal(stack: Stack, run_id: str, starting_after: int) -> Reply:
    return await stack.fetch("POST", f"/v1/runs/{run_id}/stream", json={"starting_after": starting_after})


def seq(event: Event) -> int:
    assert event.seq_id is not None
    return event.seq_id


def of_another_shard(cursor: int) -> list[int]:
    """The same cursor in the ranges of other shards, and the ends of those ranges."""
    own, place = divmod(cursor, SEQUENCES_PER_SHARD)
    others = [shard for shard in range(8) if shard != own]
    return [shard * SEQUENCES_PER_SHARD + at for shard in others for at in (1, place, SEQUENCES_PER_SHARD - 1)]


@pytest.mark.parametrize("is_live", [False, True])
async def test_cursor_that_skips_nothing(stack: Stack, is_live: bool) -> None:
    """Missing, zero, negative, before the run's first message, of another shard: everything comes."""
    async with stack.live(3) as (run_id, creator):
        record = await stack.record(run_id)
        if not is_live:
            stack.puppet.finish(run_id)
            await creator.rest()
        begin = seq(creator.seen[0])
        # Another shard's cursor may come out below a run's own, when nothing has been stored in front of it.
        for cursor in (None, 0, -1, -(2**60), 1, begin - 1, *of_another_shard(begin)):
            async with stack.resume(run_id, cursor) as resumed:
                assert await resumed.take(len(creator.seen)) == creator.seen, cursor
    assert begin == record.first_seq


async def test_cursor_inside_the_run(stack: Stack) -> None:
    """After a cursor of the run comes what follows it, wherever it is."""
    record, events = await finished(stack)
    for at, event in enumerate(events[:-3]):
        async with stack.resume(record.id, seq(event)) as resumed:
            assert await resumed.rest() == events[at + 1 :]


async def test_cursor_between_two_of_the_run(stack: Stack) -> None:
    """A sequence of another run that lies inside this one is as good a cursor as its own."""
    async with stack.live(1) as (run_id, creator):
        record = await stack.record(run_id)
        cursor = await stack.advance(record)
        stack.puppet.say(run_id)
        (later,) = await creator.take(1)
        assert seq(creator.seen[1]) < cursor < seq(later)
        async with stack.resume(run_id, cursor) as live:
            assert await live.take(1) == [later]
            stack.puppet.finish(run_id)
            rest = await creator.rest()
            assert await live.rest() == rest
    async with stack.resume(run_id, cursor) as resumed:
        assert await resumed.rest() == [later, *rest]


async def test_cursor_at_the_last_message(stack: Stack) -> None:
    """Stop reason and usage have sequences and no cursors: whoever saw all chunks gets them again."""
    record, events = await finished(stack)
    async with stack.resume(record.id, seq(events[-4])) as resumed:
        assert await resumed.rest() == events[-3:]
    assert [event.message_type for event in events[-3:]] == ["stop_reason", "usage_statistics", None]


async def test_cursor_at_and_beyond_the_end(stack: Stack) -> None:
    """At the end of a finished run and beyond it: the end, at once, whatever else the stream holds."""
    record, _ = await finished(stack)
    end = await stack.tip(record)
    newest = await stack.advance(record)
    for cursor in (end, end + 1, newest, newest + 1, newest + 10**9):
        async with stack.resume(record.id, cursor) as resumed:
            assert await resumed.rest() == [DONE], cursor
    async with stack.resume(record.id, end - 1) as resumed:
        assert await resumed.rest() == [DONE]
    async with stack.resume(record.id, end - 2) as resumed:
        assert [event.message_type for event in await resumed.rest()] == ["usage_statistics", None]


async def test_cursor_beyond_the_tip_of_a_live_run(stack: Stack) -> None:
    """Beyond a live run's tip, and not beyond what its stream has issued: what comes after it, when it comes."""
    async with stack.live(2) as (run_id, creator):
        record = await stack.record(run_id)
        newest = await stack.advance(record)
        assert await stack.tip(record) < newest
        async with stack.resume(run_id, newest) as ahead, stack.resume(run_id, await stack.tip(record)) as at_tip:
            stack.puppet.say(run_id, 2)
            (first, second) = await creator.take(2)
            assert await ahead.take(2) == await at_tip.take(2) == [first, second]
            stack.puppet.finish(run_id)
            rest = await creator.rest()
            assert await ahead.rest() == await at_tip.rest() == rest


async def test_cursor_beyond_the_tip_of_a_run_that_ends(stack: Stack) -> None:
    """When nothing comes any more, the end does."""
    async with stack.live(2) as (run_id, creator):
        newest = await stack.advance(await stack.record(run_id))
        async with stack.resume(run_id, newest) as ahead:
            stack.puppet.finish(run_id)
            assert await ahead.rest() == await creator.rest()


async def test_cursor_that_was_never_issued(stack: Stack) -> None:
    """A live run knows nothing of a cursor above all that its stream has issued: its stream is not the one it was."""
    async with stack.live(2) as (run_id, creator):
        record = await stack.record(run_id)
        for ahead in (1, 10**6):
            refused = await refusal(stack, run_id, await stack.newest_sequence(record) + ahead)
            assert refused.status == 410
            assert refused.detail.startswith("EXPIRED: This run has no event with that seq_id yet: resume from ")
        stack.puppet.say(run_id)
        assert len(await creator.take(1)) == 1


async def test_finished_run_whose_beginning_is_removed(stack: Stack) -> None:
    """Where something that should come is gone, 410, and never a silent gap; behind that, what is left comes."""
    record, events = await finished(stack)
    removed = seq(events[2])
    await stack.purge_up_to(record, removed)
    for cursor in (0, 1, removed - 1, removed, *of_another_shard(removed)):
        refused = await refusal(stack, record.id, cursor)
        assert (refused.status, refused.json) == (410, EXPIRED), cursor
    async with stack.resume(record.id, seq(events[3])) as resumed:
        assert await resumed.rest() == events[4:]
    # The record says what it was: only the log is gone.
    assert (await stack.fetch("GET", f"/v1/runs/{record.id}")).json["status"] == "completed"


async def test_live_run_whose_beginning_is_removed(stack: Stack) -> None:
    """The same for a live run that nobody follows: its readers hear that they cannot have it whole."""
    async with stack.live(4) as (run_id, creator):
        record = await stack.record(run_id)
        creator.leave()
        await stack.nobody_follows()
        removed = seq(creator.seen[2])
        await stack.purge_up_to(record, removed)
        for cursor in (0, removed):
            refused = await refusal(stack, run_id, cursor)
            assert (refused.status, refused.json) == (410, EXPIRED)
        async with stack.resume(run_id, seq(creator.seen[3])) as resumed:
            assert await resumed.take(1) == creator.seen[4:]
            stack.puppet.finish(run_id)
            assert (await resumed.rest())[-1] == DONE
    await stack.nobody_follows()


async def test_only_the_first_message_is_removed(stack: Stack) -> None:
    """One message is enough: a run without its first is no longer whole."""
    record, events = await finished(stack)
    await stack.purge_up_to(record, seq(events[0]))
    refused = await refusal(stack, record.id, 0)
    assert (refused.status, refused.json) == (410, EXPIRED)
    async with stack.resume(record.id, seq(events[1])) as resumed:
        assert await resumed.rest() == events[2:]


@pytest.mark.parametrize("is_live", [False, True])
async def test_record_without_a_log(stack: Stack, is_live: bool) -> None:
    """A run whose log is gone is gone, with any cursor."""
    async with stack.live(2) as (run_id, creator):
        record = await stack.record(run_id)
        if is_live:
            creator.leave()
        else:
            stack.puppet.finish(run_id)
            await creator.rest()
        await stack.nobody_follows()
        subject = f"runs.{record.shard}.{run_id}"
        await stack.api(f"STREAM.PURGE.RUNS_{record.shard}", {"filter": subject})
        for cursor in (0, seq(creator.seen[0]), seq(creator.seen[2]), seq(creator.seen[2]) + 3):
            refused = await refusal(stack, run_id, cursor)
            assert (refused.status, refused.json) == (410, EXPIRED), cursor


async def test_cursor_of_an_earlier_run(stack: Stack) -> None:
    """A cursor from the conversation's run before skips nothing of the one that is active now."""
    conversation_id = await stack.conversation()
    async with stack.say_in(conversation_id, KNOBS) as creator:
        earlier = await creator.rest()
    path = f"/v1/conversations/{conversation_id}/stream"
    async with stack.say_in(conversation_id) as creator:
        run_id = (await creator.take(1))[0].json["run_id"]
        stack.puppet.say(run_id, 2)
        await creator.take(2)
        for event in earlier[:-3]:
            async with open_stream(stack.base, path, {"starting_after": seq(event)}) as resumed:
                assert await resumed.take(3) == creator.seen
        stack.puppet.finish(run_id)
        await creator.rest()


async def test_conversation_after_the_end_of_its_run(stack: Stack) -> None:
    """By conversation a finished run is found with a cursor inside it, and only so."""
    conversation_id = await stack.conversation()
    path = f"/v1/conversations/{conversation_id}/stream"
    async with stack.say_in(conversation_id, KNOBS) as creator:
        earlier = await creator.rest()
    async with stack.say_in(conversation_id, KNOBS) as creator:
        events = await creator.rest()
    end = await stack.tip(await stack.record(events[0].json["run_id"]))
    for cursor in (0, -1, seq(earlier[2]), seq(events[0]) - 1, *of_another_shard(end)):
        refused = await stack.fetch("POST", path, json={"starting_after": cursor})
        assert (refused.status, refused.json) == (400, NO_ACTIVE_RUN), cursor
    for at, event in enumerate(events[:-3]):
        assert await events_of(stack.base, path, {"starting_after": seq(event)}) == events[at + 1 :]
    for cursor in (end, end + 1, end + 10**6):
        assert await events_of(stack.base, path, {"starting_after": cursor}) == [DONE]


async def test_agent_after_the_end_of_its_run(stack: Stack) -> None:
    """The same by agent, in both forms."""
    agent_id = new_agent_id()
    async with stack.create(KNOBS, agent_id=agent_id) as creator:
        events = await creator.rest()
    body = {"starting_after": seq(events[1]), "agent_id": agent_id}
    for name in ("default", agent_id):
        path = f"/v1/conversations/{name}/stream"
        refused = await stack.fetch("POST", path, json={"agent_id": agent_id})
        assert (refused.status, refused.json) == (400, NO_ACTIVE_RUN)
        assert await events_of(stack.base, path, body) == events[2:]


async def test_runs_are_spread_over_the_shards(stack: Stack) -> None:
    """Runs lie in every shard, and each cursor names its own."""
    seen: set[int] = set()
    while len(seen) < stack.settings.shards:
        run_id, events = await stack.finished({"chunks": 1})
        record = await stack.record(run_id)
        assert {seq(event) // SEQUENCES_PER_SHARD for event in events[:-3]} == {record.shard}
        seen.add(record.shard)
    assert seen == set(range(stack.settings.shards))
