"""Runs that an HTTP agent answers, from the platform's bytes to what the gateway serves."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from runstream.broker.agents import Agent
from runstream.broker.agents.http import http_agent
from runstream.broker.agents.http_platform import Platform
from runstream.broker.agents.settings import UpstreamSettings
from runstream.broker.hops import MOST_HOPS, hops_in
from runstream.schemas import Chunk, RunRequest, new_agent_id, new_run_id
from tests.support.captures import capture, normalised
from tests.support.http import Event, Reply, open_stream
from tests.support.nats import NatsServer
from tests.support.outages import paused
from tests.support.processes import python, running
from tests.support.stack import Stack, message, stack_running
from tests.support.upstream import DONE, Exchange, Script, Upstream, event, plays, upstream_running
from tests.support.waiting import wait_until

BY_URL = "/stream"
STOP = event({"message_type": "stop_reason", "stop_reason": "end_turn"})


@asynccontextmanager
async def asking(nats_url: str, url: str, **settings: Any) -> AsyncIterator[Stack]:
    """A runstream whose agent is the platform at `url`."""
    chosen = UpstreamSettings(**{"silence_seconds": 20, "patience_seconds": 0.5, **settings})
    async with http_agent(Platform(url), chosen) as agent, stack_running(nats_url, agent=agent) as stack:
        yield stack


@asynccontextmanager
async def platform(
    nats_url: str, script: Script, path: str = "", **settings: Any
) -> AsyncIterator[tuple[Upstream, Stack]]:
    """A platform, and a runstream in front of it."""
    async with (
        upstream_running(script) as upstream,
        asking(nats_url, upstream.url + path, **settings) as stack,
    ):
        yield upstream, stack


async def served(stack: Stack, **body: Any) -> list[Event]:
    """All events of a new run."""
    async with stack.create("hello", **body) as stream:
        return await stream.rest()


def word(number: int) -> dict[str, Any]:
    return {"message_type": "assistant_message", "content": f"{number} "}


def words(count: int) -> list[bytes]:
    return [event(word(number)) for number in range(count)]


def types(events: list[Event]) -> list[str | None]:
    """What kind each event is of; None for `[DONE]`."""
    return [event.message_type for event in events]


# -- the golden captures ----------------------------------------------------------------------------------------------


def split(body: bytes, seed: str) -> list[bytes]:
    """The bytes in pieces: single ones, or of random sizes."""
    if seed == "bytes":
        return [bytes([byte]) for byte in body]
    chance = random.Random(seed)
    pieces = []
    while body:
        size = chance.choice([1, 2, 3, 10, 100, 1000])
        pieces.append(body[:size])
        body = body[size:]
    return pieces


def meant(events: list[Event], ping: Event) -> list[Any]:
    """What a run is to be of which the platform streamed these events, with our first ping and our run's id."""
    expected: list[tuple[str | None, dict[str, Any]]] = [(None, without_cursor(ping.json))]
    run_id = ping.json["run_id"]
    stops = [each for each in events if each.message_type == "stop_reason"]
    for each in events:
        if each.is_done or each.message_type == "ping" or (each in stops and each != stops[-1]):
            continue
        body = without_cursor(each.json)
        expected.append((each.event, {**body, "run_id": run_id} if "run_id" in body else body))
    return [*expected, "[DONE]"]


def without_cursor(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != "seq_id"}


@pytest.mark.parametrize("number", [1, 2, 3, 4, 7, 9, 10, 11, 12, 13])
async def test_a_capture_is_served_as_it_was_captured(nats_url: str, number: int) -> None:
    """What the reference streamed, in any pieces and with any line ends, is what a client gets of it.

    Every word of every event, in its order, but for the run's id and the cursors; of two stop reasons the last one,
    and `[DONE]` always.
    """
    captured = capture(number)
    body = captured.body.strip("\n").encode() + b"\n\n"
    seeds = [("bytes", b"\n"), *((f"{seed}", end) for seed, end in enumerate([b"\n", b"\r\n", b"\r"]))]
    async with platform(nats_url, plays([])) as (upstream, stack):
        for seed, line_end in seeds:
            upstream.script = plays(split(body.replace(b"\n", line_end), seed))
            events = await served(stack)
            seen = ["[DONE]" if each.is_done else (each.event, without_cursor(each.json)) for each in events]
            assert seen == meant(captured.events, events[0])
            cursors = [each.seq_id for each in events if each.seq_id is not None]
            assert cursors == sorted(set(cursors))


@pytest.mark.parametrize(("number", "background"), [(1, False), (2, True), (9, False)])
async def test_a_platform_behind_runstream_looks_as_without_it(nats_url: str, number: int, background: bool) -> None:
    """A whole answer of the reference's, in the foreground or in the background, is the reference's event by event.

    Whatever the client asks for, the platform is asked to answer in the foreground.
    """
    captured = capture(1 if number == 2 else number)
    async with platform(nats_url, plays([captured.body.encode()])) as (upstream, stack):
        events = await served(stack, background=background)
    assert normalised(events) == normalised(capture(number).events)
    assert upstream.asked[0].json["background"] is False


async def test_an_error_of_the_references_is_told(nats_url: str) -> None:
    """The reference's error that is no error_message ends the run with its text."""
    captured = capture(6)
    async with platform(nats_url, plays([captured.body.encode()])) as (_, stack):
        events = await served(stack)
    assert events[-2].event == "error"
    assert events[-2].json["error_type"] == "internal_error"
    assert events[-2].json["detail"] == captured.events[-1].data


@pytest.mark.parametrize("number", [10, 11, 12])
async def test_a_run_ends_as_its_platform_said(nats_url: str, number: int) -> None:
    """Its record has the last stop reason, and the platform's error as that was."""
    captured = capture(number)
    async with platform(nats_url, plays([captured.body.encode()])) as (_, stack):
        events = await served(stack)
        record = await stack.record(str(events[0].json["run_id"]))
    stop = [each for each in captured.events if each.message_type == "stop_reason"][-1]
    errors = [each.json for each in captured.events if each.event == "error"]
    assert record.stop_reason == stop.json["stop_reason"]
    assert record.status == ("cancelled" if number == 12 else "failed")
    assert (record.error or {}).get("detail") == (errors[0]["detail"] if errors else None)


# -- what is not Letta's ----------------------------------------------------------------------------------------------

FOREIGN = [
    '{"a":1.0,"b":1e400,"c":18446744073709551616,"run_id":"theirs","d":{"x":1,"x":2}}',
    '{"choices":[{"delta":{"content":"日🙂"}}],"run_id":null}',
    '{"message_type":7,"run_id":"theirs"}',
]


async def test_what_is_no_message_passes_untouched(nats_url: str) -> None:
    """Objects of any kind are served byte for byte, with a cursor of ours and nothing else of ours in them."""
    stream = [event(f'{data[:-1]},"seq_id":3}}') for data in FOREIGN]
    async with platform(nats_url, plays([*stream, DONE]), BY_URL) as (_, stack):
        ping, *rest = await served(stack)
        async with stack.resume(str(ping.json["run_id"]), rest[0].seq_id) as stream_again:
            again = await stream_again.rest()
    chunks = rest[: len(FOREIGN)]
    assert [each.data.rpartition(',"seq_id":')[0] + "}" for each in chunks] == FOREIGN
    assert [each.json["seq_id"] for each in chunks] == sorted(each.json["seq_id"] for each in chunks)
    assert [each.json.get("stop_reason") for each in rest[len(FOREIGN) : -1]] == ["end_turn", None]
    assert again == rest[1:]


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("sent", "passed_on"),
    [
        (TRACE, TRACE),
        (None, None),
        ("hunter2", None),
        (f"{TRACE}-more", None),
        (TRACE.upper(), None),
        (TRACE.replace("b7ad6b7169203331", "0" * 16), None),
    ],
)
async def test_the_clients_trace_goes_on(nats_url: str, sent: str | None, passed_on: str | None) -> None:
    """The platform's work is a part of the client's trace; what is no trace is passed over."""
    headers = {} if sent is None else {"traceparent": sent, "tracestate": "rojo=1"}
    async with platform(nats_url, plays([STOP, DONE])) as (upstream, stack):
        path = f"/v1/agents/{new_agent_id()}/messages/stream"
        async with open_stream(stack.base, path, message("hello"), headers=headers) as stream:
            await stream.rest()
    assert upstream.asked[0].headers.get("traceparent") == passed_on
    assert upstream.asked[0].headers.get("tracestate") == (None if passed_on is None else "rojo=1")


# -- platforms that fail ----------------------------------------------------------------------------------------------


def refuses(status: str, body: bytes, **headers: str) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.refuse(status, body, **headers)

    return script


async def dies(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.say(*words(2))
    exchange.cut()


async def stalls(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.say(*words(2), b"data: ")
    await exchange.left.wait()


FAILURES: dict[str, tuple[Script, list[int], str, str]] = {
    "404": (refuses("404 Not Found", b"no such agent"), [], "upstream_rejected", "HTTP 404 Not Found: no such agent"),
    "429": (refuses("429 Slow Down", b""), [], "upstream_rejected", "HTTP 429 Slow Down."),
    "html": (refuses("200 OK", b"<p>", content_type="text/html"), [], "upstream_rejected", "text/html: <p>"),
    "dies": (dies, [0, 1], "stream_incomplete", "broke"),
    "half": (plays([*words(2), b"data: {"]), [0, 1], "stream_incomplete", "within an event"),
    "no stop": (plays([*words(2), DONE]), [0, 1], "stream_incomplete", ""),
    "stalls": (stalls, [0, 1], "upstream_timeout", "0.5 s"),
    "rubbish": (plays([*words(2), event("rubbish")]), [0, 1], "upstream_invalid", "rubbish"),
    "too long": (plays([*words(2), b"data: " + b"x" * 10**6]), [0, 1], "chunk_too_large", "EVENT_BYTES"),
    "too large": (plays([*words(2), event({"a": "x" * 1_100_000})]), [0, 1], "chunk_too_large", "limit="),
}


@pytest.mark.parametrize("how", FAILURES)
async def test_a_platform_that_fails(nats_url: str, how: str) -> None:
    """What it had said is there, then why the run has failed, then the end; and the conversation is free."""
    script, said, error_type, detail = FAILURES[how]
    bounds: dict[str, Any] = {
        "silence_seconds": 0.5 if how == "stalls" else 20,
        "event_bytes": 2 ** (21 if how == "too large" else 16),
    }
    async with platform(nats_url, script, **bounds) as (_, stack):
        conversation = await stack.conversation()
        async with stack.say_in(conversation, "hello") as stream:
            ping, *events = await stream.rest()
        record = await stack.record(str(ping.json["run_id"]))
        async with stack.say_in(conversation, "once more") as stream:
            await stream.rest()
    assert [each.json.get("content") for each in events[: len(said)]] == [f"{number} " for number in said]
    assert types(events[len(said) :]) == ["stop_reason", "error_message", None]
    stop, error = events[-3].json, events[-2].json
    assert (stop["stop_reason"], error["error_type"]) == ("error", error_type)
    assert detail in (error["detail"] or "")
    assert record.status == "failed"
    assert (record.error or {})["error_type"] == error_type


async def test_a_platform_that_is_not_there(nats_url: str) -> None:
    """A run whose platform cannot be reached says so, when it has been tried for long enough."""
    async with upstream_running(plays([])) as gone:
        pass
    async with asking(nats_url, gone.url, patience_seconds=0.2) as stack:
        events = await served(stack)
    assert types(events) == ["ping", "stop_reason", "error_message", None]
    assert events[-2].json["error_type"] == "upstream_unreachable"


KILLED = """
import asyncio, itertools
from tests.agents.test_http_runs import word
from tests.support.upstream import Upstream, event

async def script(exchange):
    await exchange.head()
    for number in itertools.count():
        await exchange.say(event(word(number)))
        await asyncio.sleep(0.01)  # the platform's pace

async def main():
    upstream = Upstream(script)
    await upstream.start()
    print(upstream.url)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_platform_that_is_killed(nats_url: str) -> None:
    """SIGKILL in the middle of an answer: what it had said is whole, and the run says that more was to come."""
    async with running(*python("-c", KILLED)) as process:
        url = await process.wait_for_line("^http:")
        async with asking(nats_url, url) as stack, stack.create("hello") as stream:
            await stream.take(10)
            process.send_signal(signal.SIGKILL)
            await stream.rest()
            *chunks, stop, error, done = stream.seen[1:]
    assert [each.json["content"] for each in chunks] == [f"{number} " for number in range(len(chunks))]
    assert stop.json["stop_reason"] == "error"
    assert error.json["error_type"] == "stream_incomplete"
    assert done.is_done


# -- many, and slow ones ----------------------------------------------------------------------------------------------


async def test_many_platform_streams_at_one_time(nats_url: str) -> None:
    """A hundred runs are all recorded while all of them go on, each with its own words."""
    count = 100
    everyone = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        said = exchange.asked.json["input"]
        await exchange.say(event({"message_type": "assistant_message", "content": said}))
        await everyone.wait()
        await exchange.say(event({"message_type": "assistant_message", "content": "bye"}), STOP, DONE)
        await exchange.end()

    async def one(stack: Stack, number: int) -> list[str]:
        async with stack.create(f"run {number}") as stream:
            events = await stream.rest(deadline=30)
        assert types(events)[-3:] == ["stop_reason", "usage_statistics", None]
        return [each.json["content"] for each in events if each.message_type == "assistant_message"]

    async with platform(nats_url, script) as (upstream, stack):
        runs = [asyncio.create_task(one(stack, number)) for number in range(count)]
        await wait_until(lambda: len(upstream.exchanges) == count, 30)
        everyone.set()
        assert await asyncio.gather(*runs) == [[f"run {number}", "bye"] for number in range(count)]


async def test_a_platform_is_held_up_while_the_store_is_away(nats_server: NatsServer) -> None:
    """With NATS gone, a platform that goes on talking fills a bounded queue and the kernel's buffers, and waits.

    Nothing of what it says is lost, and it does not count as silent however long that takes.
    """
    size, count = 64 * 1024, 500
    fill = "x" * size
    go = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.say(*words(1))
        await go.wait()
        for number in range(count):
            await exchange.say(event({"n": number, "fill": fill}))
        await exchange.say(STOP, DONE)
        await exchange.end()

    async with (
        platform(nats_server.url, script, BY_URL, silence_seconds=0.5) as (upstream, stack),
        stack.create("hello") as stream,
    ):
        await stream.until("assistant_message")
        (exchange,) = upstream.exchanges
        sent: list[int] = []

        def is_held_up() -> bool:
            sent.append(exchange.sent_bytes)
            return exchange.sent_bytes > size and len(sent) > 50 and sent[-1] == sent[-50]

        async with paused(nats_server):
            go.set()
            await wait_until(is_held_up)
            assert exchange.sent_bytes < size * count * 0.8
        numbers = [each.json["n"] for each in await stream.rest() if not each.is_done and "n" in each.json]
    assert numbers == list(range(count))


async def test_a_broker_that_stops_hangs_up(nats_url: str) -> None:
    """A platform is not left talking to a broker that is gone."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.say(*words(1))
        await exchange.left.wait()

    async with upstream_running(script) as upstream:
        async with asking(nats_url, upstream.url) as stack:
            async with stack.create("hello") as stream:
                await stream.until("assistant_message")
            assert not upstream.exchanges[0].left.is_set()
        await asyncio.wait_for(upstream.exchanges[0].left.wait(), 1)


# -- an address that leads back ---------------------------------------------------------------------------------------


async def test_an_agent_that_leads_back_starts_no_further_run(nats_url: str) -> None:
    """The gateway whose run asks it for an answer refuses, which fails that run and says why."""
    agents: list[Agent] = []
    asked: list[str] = []

    def ask(request: RunRequest) -> AsyncIterator[Chunk | Mapping[str, object]]:
        asked.append(request.run_id)
        return agents[0](request)

    async with stack_running(nats_url, agent=cast("Agent", ask)) as stack:
        for url in (stack.base, f"{stack.base}/v1/agents/{new_agent_id()}/messages/stream"):
            async with http_agent(Platform(url), UpstreamSettings()) as agent:
                agents[:] = [agent]
                said = await served(stack)
                assert types(said) == ["ping", "stop_reason", "error_message", None]
                assert said[2].json["error_type"] == "upstream_rejected"
                assert "leads back to this runstream" in said[2].json["detail"]
                assert asked.pop() == said[0].json["run_id"]
                assert not asked


async def test_a_circle_of_several_is_noticed(nats_url: str) -> None:
    """Who has a run knows it again, whatever others the request has come by; the platform is told them all."""
    other = new_run_id()
    async with platform(nats_url, plays([STOP, DONE])) as (upstream, stack):

        async def say(*runs: str) -> Reply:
            via = ", ".join(["1.1 proxy", *(f"1.1 runstream-{run_id}" for run_id in runs)])
            path = f"/v1/agents/{new_agent_id()}/messages"
            return await stack.fetch("POST", path, json={"input": "hello"}, headers={"Via": via})

        assert (await say(other)).status == 200
        (asked,) = upstream.asked
        first, own = hops_in(asked.headers)
        assert (first, (await stack.record(own)).status) == (other, "completed")
        assert (await say(own, other)).status == 508
        assert (await say(*(new_run_id() for _ in range(MOST_HOPS - 1)))).status == 200
        assert (await say(*(new_run_id() for _ in range(MOST_HOPS)))).status == 508
        assert len(upstream.asked) == 2
