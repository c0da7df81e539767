"""`GET /v1/runs/{run_id}/stream`, for a browser's EventSource: ids, resumes, 204, and what is no reason to stop."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio

from runstream.broker.topology import SEQUENCES_PER_SHARD
from runstream.schemas import MAX_SEQ_ID, RunRecord, new_run_id
from tests.support.eventsource import SourceStream, open_source, source_path, told_of
from tests.support.http import Connection, Cut, Event, Reply
from tests.support.stack import Stack, stack_running
from tests.support.waiting import wait_until

KEEPALIVE_SECONDS = 0.3
MAX_FOLLOWERS = 40
RETRY_SECONDS = 0.4
KNOBS = {"chunks": 4, "interval_ms": 0}


@pytest_asyncio.fixture(scope="module")
async def stack(nats_url: str) -> AsyncIterator[Stack]:
    """A runstream that pings soon, is full soon, and wants its browsers back soon."""
    settings = {
        "keepalive_seconds": KEEPALIVE_SECONDS,
        "max_followers": MAX_FOLLOWERS,
        "event_source_retry_seconds": RETRY_SECONDS,
    }
    async with stack_running(nats_url, gateway=settings) as running:
        yield running


def source(stack: Stack, run_id: str, last_event_id: object = None, *, version: str = "1.1", **query: Any) -> Any:
    """Open the run's stream as an EventSource does."""
    return open_source(stack.base, source_path(run_id, **query), last_event_id=last_event_id, version=version)


async def answer(stack: Stack, run_id: str, last_event_id: object = None, **query: Any) -> Reply:
    """What the same request is answered, whatever it is."""
    headers = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}
    return await stack.fetch("GET", source_path(run_id, **query), headers=headers)


async def finished(stack: Stack, **knobs: Any) -> tuple[RunRecord, list[Event]]:
    """A run that has ended, and what an EventSource has to be told of it."""
    run_id, _ = await stack.finished({**KNOBS, **knobs})
    return await stack.record(run_id), await told_of(stack, run_id)


def stored(events: Sequence[Event]) -> list[Event]:
    """All but pings."""
    return [event for event in events if event.message_type != "ping"]


async def test_every_stored_message_has_its_sequence_as_id(stack: Stack) -> None:
    """All that the log holds comes with its id, stop reason, usage and `[DONE]` included; the ping has none."""
    record, told = await finished(stack)
    async with source(stack, record.id) as stream:
        ping, *rest = await stream.rest()
    assert (ping.message_type, ping.seq_id, ping.id) == ("ping", record.first_seq, None)
    assert rest == told
    assert [event.message_type for event in rest[-3:]] == ["stop_reason", "usage_statistics", None]
    assert rest[-1].id == await stack.tip(record)


async def test_bodies_are_those_of_letta_paths(stack: Stack) -> None:
    """The data of each event is what the other paths show, byte by byte; only the error has another name."""
    async with stack.create({**KNOBS, "error_after": 2}) as creator:
        letta = await creator.rest()
    async with source(stack, letta[0].json["run_id"]) as stream:
        events = await stream.rest()
    assert [event.data for event in events] == [event.data for event in letta]
    named = {event.data: event.event for event in letta if event.event is not None}
    assert {event.data: event.event for event in events if event.event is not None} == dict.fromkeys(named, "run_error")


async def test_error_of_a_run(stack: Stack) -> None:
    """A run that fails says so in `run_error`, which has an id; then it ends, and the browser need not come back."""
    record, told = await finished(stack, error_after=2)
    async with source(stack, record.id) as stream:
        events = stored(await stream.rest())
    assert events == told
    assert [(event.event, event.message_type) for event in events[-3:]] == [
        (None, "stop_reason"),
        ("run_error", "error_message"),
        (None, None),
    ]
    assert events[-2].seq_id == events[-2].id
    async with source(stack, record.id, events[-2].id) as stream:
        assert await stream.rest() == events[-1:]
    assert (await answer(stack, record.id, events[-1].id)).status == 204


async def test_headers(stack: Stack) -> None:
    """The response looks like every other stream's."""
    record, _ = await finished(stack)
    async with source(stack, record.id) as stream, stack.resume(record.id) as letta:
        names = {"content-type", "cache-control", "x-accel-buffering", "transfer-encoding", "server"}
        assert {name: stream.headers[name] for name in names} == {name: letta.headers[name] for name in names}
        assert set(stream.headers) == set(letta.headers)


@pytest.mark.parametrize("by_header", [True, False], ids=["Last-Event-ID", "starting_after"])
async def test_resume_at_every_position(stack: Stack, by_header: bool) -> None:
    """After each id of a finished run comes exactly what follows it; after the last nothing does."""
    record, told = await finished(stack)
    for at, event in enumerate(told[:-1]):
        where: dict[str, Any] = {"last_event_id": event.id} if by_header else {"starting_after": event.id}
        async with source(stack, record.id, **where) as stream:
            assert await stream.rest() == told[at + 1 :], at
    for beyond in (0, 1, 10**6):
        end = (told[-1].id or 0) + beyond
        where = {"last_event_id": end} if by_header else {"starting_after": end}
        assert (await answer(stack, record.id, **where)).status == 204


async def test_resume_at_every_position_of_a_live_run(stack: Stack) -> None:
    """The same while the run goes on, and at its tip: that is no end, and what comes next is waited for."""
    async with stack.live(3) as (run_id, creator), contextlib.AsyncExitStack() as opened:
        seen = [event.seq_id for event in creator.seen]
        streams = [await opened.enter_async_context(source(stack, run_id, seq)) for seq in seen]
        stack.puppet.say(run_id)
        stack.puppet.finish(run_id)
        await creator.rest()
        told = await told_of(stack, run_id)
        for seq, stream in zip(seen, streams, strict=True):
            events = stored(await stream.rest())
            assert events == [event for event in told if (event.id or 0) > (seq or 0)]


async def test_live_run_is_followed_by_all_kinds_at_once(stack: Stack) -> None:
    """Readers of Letta's stream and EventSources follow one run side by side, each in its own framing."""
    async with stack.live() as (run_id, creator), source(stack, run_id) as one, source(stack, run_id) as two:
        async with source(stack, run_id, include_pings="false") as quiet:
            await asyncio.gather(one.take(1), two.take(1))
            for _ in range(3):
                stack.puppet.say(run_id, 2)
            stack.puppet.fail(run_id)
            await asyncio.gather(creator.rest(), one.rest(), two.rest(), quiet.rest())
            assert stored(one.seen) == stored(two.seen) == quiet.seen == await told_of(stack, run_id)
        assert [event.data for event in stored(one.seen)] == [event.data for event in stored(creator.seen)]


async def test_header_wins_over_the_query(stack: Stack) -> None:
    """The query says where the page began, the header where the browser is: it counts."""
    record, told = await finished(stack)
    for first, last in ((told[0].id, told[2].id), (told[3].id, told[1].id), (0, told[0].id)):
        async with source(stack, record.id, last, starting_after=first) as stream:
            assert (await stream.rest())[0].id == next(event.id for event in told if (event.id or 0) > (last or 0))
    assert (await answer(stack, record.id, told[-1].id, starting_after=0)).status == 204


@pytest.mark.parametrize(
    "malformed",
    [
        "",
        "x",
        "-1",
        "+7",
        "1.5",
        "0x10",
        "1e3",
        "\uff11\uff12",
        "7, 8",
        "null",
        str(MAX_SEQ_ID + 1),
        "9" * 17,
        "9" * 5000,
    ],
)
async def test_header_that_is_no_id(stack: Stack, malformed: str) -> None:
    """What was never issued is as if it were absent: a refusal would stop the browser for good."""
    record, told = await finished(stack)
    header = malformed.encode().decode("latin-1")
    async with source(stack, record.id, header) as stream:
        assert stored(await stream.rest()) == told
    async with source(stack, record.id, header, starting_after=told[1].id) as stream:
        assert await stream.rest() == told[2:]


async def test_ids_of_other_runs(stack: Stack) -> None:
    """An id from before the run, or of another shard, skips nothing, whether the run has ended or not."""
    async with stack.live(2) as (run_id, creator):
        begin = (await stack.record(run_id)).first_seq or 0
        for ended in (False, True):
            if ended:
                stack.puppet.finish(run_id)
                await creator.rest()
            told = await told_of(stack, run_id)
            for earlier in (0, 1, begin - 1, begin + SEQUENCES_PER_SHARD, MAX_SEQ_ID):
                async with source(stack, run_id, earlier) as stream:
                    events = await stream.take(1 + len(told))
                    assert (events[0].message_type, events[1:]) == ("ping", told), (ended, earlier)


async def test_nothing_follows_the_end(stack: Stack) -> None:
    """At and after the end of an ended run: 204, without a body, not to be cached; the connection can be used again."""
    record, told = await finished(stack)
    end = told[-1].id or 0
    async with Connection.open(stack.base) as connection:
        for cursor in (end, end + 1, await stack.newest_sequence(record), end + 10**9):
            await connection.send("GET", source_path(record.id), headers={"Last-Event-ID": str(cursor)})
            reply = await connection.reply()
            assert (reply.status, reply.body, reply.headers["cache-control"]) == (204, b"", "no-cache")
            assert "content-type" not in reply.headers
    async with source(stack, record.id, end - 1) as stream:
        assert await stream.rest() == told[-1:]


async def test_live_run_beyond_its_tip(stack: Stack) -> None:
    """Beyond a live run's tip: what comes, when it comes. Beyond all that its stream has issued: 410, as everywhere."""
    async with stack.live(2) as (run_id, creator):
        record = await stack.record(run_id)
        newest = await stack.advance(record)
        assert await stack.tip(record) < newest
        refused = await answer(stack, run_id, newest + 1)
        assert (refused.status, refused.detail.partition(":")[0]) == (410, "EXPIRED")
        assert "has no event with that seq_id yet" in refused.detail
        async with source(stack, run_id, newest) as ahead, source(stack, run_id, await stack.tip(record)) as at_tip:
            stack.puppet.say(run_id)
            stack.puppet.finish(run_id)
            await creator.rest()
            told = (await told_of(stack, run_id))[2:]
            assert stored(await ahead.rest()) == stored(await at_tip.rest()) == told


async def test_keep_alive_pings(stack: Stack) -> None:
    """In silence pings come, which repeat the cursor and have no id: the browser's place stays where it is."""
    async with stack.live(1) as (run_id, creator), source(stack, run_id) as stream:
        *_, chunk, one, two = await stream.take(4)
        assert [(ping.message_type, ping.id, ping.seq_id) for ping in (one, two)] == [("ping", None, chunk.id)] * 2
        async with source(stack, run_id, include_pings="false") as quiet:
            await creator.take(2)
            stack.puppet.finish(run_id)
            assert await quiet.rest() == await told_of(stack, run_id)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_versions_of_http(stack: Stack, version: str) -> None:
    """HTTP/1.0 gets bare events and the connection's end."""
    record, told = await finished(stack)
    async with source(stack, record.id, told[0].id, version=version) as stream:
        # The strict reader takes bare events one by one, and the line that precedes the first one with it.
        first = await stream.connection.reader.readuntil(b"\n") if version == "1.0" else b""
        assert first.startswith(b"retry: ") or version == "1.1"
        assert await stream.rest() == told[1:]
        assert ("transfer-encoding" in stream.headers) == (version == "1.1")


async def test_when_to_come_back_is_said_first(stack: Stack) -> None:
    """Before anything else a browser hears when to come back: whoever is killed says nothing more."""
    async with stack.live() as (run_id, _), source(stack, run_id, include_pings="false") as stream:
        first = await stream.connection.chunk()
        assert first is not None
        assert re.fullmatch(rb"retry: \d+\n", first)


async def test_times_to_come_back_are_spread(stack: Stack) -> None:
    """Between half and one and a half of what is set, and not the same for all."""
    record, told = await finished(stack)
    times = set()
    for _ in range(20):
        async with source(stack, record.id, told[-2].id) as stream:
            await stream.rest()
        times.add(stream.retry)
    assert len(times) > 10
    assert all(500 * RETRY_SECONDS <= time <= 1500 * RETRY_SECONDS for time in times)


# -- refusals ---------------------------------------------------------------------------------------------------------


async def refusals(stack: Stack) -> dict[str, tuple[int, str, dict[str, Any]]]:
    """Paths that are refused, with what they are refused as: status, run, query."""
    foreground, _ = await stack.finished(KNOBS, background=False)
    record, _ = await finished(stack)
    return {
        "malformed run": (400, "run-1", {}),
        "no such run": (404, new_run_id(), {}),
        "foreground": (400, foreground, {}),
        "no cursor": (422, record.id, {"starting_after": "x"}),
        "empty cursor": (422, record.id, {"starting_after": ""}),
        "half a cursor": (422, record.id, {"starting_after": "1.5"}),
        "cursor too large": (422, record.id, {"starting_after": MAX_SEQ_ID + 1}),
        "no flag": (422, record.id, {"include_pings": "perhaps"}),
    }


async def test_refusals_are_those_of_a_resume(stack: Stack) -> None:
    """What is permanent is refused as to everybody, in the same words; the browser stops, as it should."""
    for name, (status, run_id, query) in (await refusals(stack)).items():
        reply = await answer(stack, run_id, **query)
        posted = await stack.fetch(
            "POST", source_path(run_id), json={name: str(value) for name, value in query.items()}
        )
        assert (reply.status, posted.status) == (status, status), name
        assert reply.headers["content-type"] == "application/json"
        expected = posted.detail.replace("('body', ", "('query', ")
        assert reply.json == {**posted.json, "detail": expected}, name


async def test_parameters_of_others_are_not_looked_at(stack: Stack) -> None:
    """Unknown parameters are no reason to refuse, nor are those that a body may have."""
    record, told = await finished(stack)
    async with source(stack, record.id, told[-2].id, batch_size="x", otid="x", token="x") as stream:
        assert await stream.rest() == told[-1:]


async def test_what_retention_removed(stack: Stack) -> None:
    """What should come and is gone is 410; behind it the rest comes, and after the end 204 as ever."""
    record, told = await finished(stack)
    await stack.purge_up_to(record, told[1].id or 0)
    for cursor in (None, 0, told[0].id, told[1].id):
        reply = await answer(stack, record.id, cursor)
        assert (reply.status, reply.detail) == (410, "EXPIRED: Part of this run was removed by retention."), cursor
    async with source(stack, record.id, told[2].id) as stream:
        assert await stream.rest() == told[3:]
    assert (await answer(stack, record.id, told[-1].id)).status == 204


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "OPTIONS"])
async def test_other_methods(stack: Stack, method: str) -> None:
    """The path takes GET and POST; a stream has no head without its body."""
    record, _ = await finished(stack)
    async with Connection.open(stack.base) as connection:
        await connection.send(method, source_path(record.id))
        status, headers = await connection.head()
        assert (status, headers["allow"]) == (405, "GET,POST")


async def test_last_slash(stack: Stack) -> None:
    """With a slash at its end the path leads to the one without, the query with it."""
    reply = await stack.fetch("GET", source_path("run-1").replace("/stream", "/stream/") + "?starting_after=7")
    assert (reply.status, reply.headers["location"]) == (307, "/v1/runs/run-1/stream?starting_after=7")


# -- what will pass ---------------------------------------------------------------------------------------------------


async def turned_away(stream: SourceStream) -> None:
    """Nothing but when to come back, in a response that is complete."""
    assert await stream.rest() == []
    assert stream.retry is not None
    assert 1000 <= stream.retry <= 3000
    assert stream.raw == b"%x\r\nretry: %d\n\r\n0\r\n\r\n" % (len(f"retry: {stream.retry}\n"), stream.retry)


async def test_full_gateway(stack: Stack) -> None:
    """One too many is told when to come back instead of 503, which would stop it for good; then there is room."""
    record, told = await finished(stack)
    async with stack.live() as (run_id, _):
        streams = [source(stack, run_id) for _ in range(MAX_FOLLOWERS - 1)]
        opened = await asyncio.gather(*(stream.__aenter__() for stream in streams))
        async with source(stack, record.id) as stream:
            await turned_away(stream)
        # What is permanent is not looked up first: everybody has to come back.
        async with source(stack, record.id, told[-1].id) as stream:
            await turned_away(stream)
        assert (await answer(stack, "run-1")).status == 400
        async with source(stack, record.id, version="1.0") as old:
            assert (await old.connection.reader.read()).startswith(b"retry: ")
        opened[0].leave()
        await wait_until(lambda: not stack.hub.seats.is_full)
        async with source(stack, record.id) as stream:
            assert stored(await stream.rest()) == told
        await asyncio.gather(*(stream.__aexit__(None, None, None) for stream in streams))
    metrics = (await stack.fetch("GET", "/metrics")).body.decode()
    assert "runstream_event_sources_turned_away_total 3.0" in metrics
    assert 'runstream_streams_total{kind="event_source"}' in metrics


async def test_clients_that_leave_cost_nothing(stack: Stack) -> None:
    """EventSources of a silent run that are closed leave no follower and no tail."""
    async with stack.live(1) as (run_id, creator):
        creator.leave()
        streams = [source(stack, run_id) for _ in range(20)]
        for stream in await asyncio.gather(*(stream.__aenter__() for stream in streams)):
            await stream.take(2)
            stream.leave()
        await stack.nobody_follows()
        await asyncio.gather(*(stream.__aexit__(None, None, None) for stream in streams))


async def test_gateway_goes_away(nats_url: str, stack: Stack) -> None:
    """A gateway that stops cuts its streams, and adds nothing to what it said at their beginning."""
    # Its broker stays: it may be the one that executes the run.
    async with (
        stack_running(nats_url, agent=stack.agent) as leaving,
        stack.live(2) as (run_id, creator),
        source(leaving, run_id) as stream,
    ):
        await stream.take(3)
        await leaving.gateway.__aexit__(None, None, None)
        with pytest.raises(Cut):
            await stream.rest()
        assert [event.data for event in stored(stream.seen)] == [event.data for event in stored(creator.seen)][:2]
