"""Traces: one from a create to its delivery, through gateway and broker; and nothing of it where they are off."""

import json
import re
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from runstream.broker import otel
from runstream.broker.errors import InvalidSettings
from runstream.broker.log import trace_in
from runstream.broker.settings import BrokerSettings
from runstream.broker.topology import LogAddress
from runstream.broker.tracing import Tracing, tracing_of
from runstream.schemas import AssistantMessage, Chunk, RunRequest, StopReason, Trace, new_agent_id
from tests.support.http import fetch, open_stream
from tests.support.nats import free_ports, nats_server_running
from tests.support.processes import python, running
from tests.support.services import ROOT, SOURCE
from tests.support.stack import Stack, listener, message, stack_running, url_of
from tests.support.waiting import wait_until

TRACED = {"tracing": True}
CLIENTS = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = f"{CLIENTS[:-2]}00"
STATE = "rojo=00f067aa0ba902b7"
CHUNKS = 50
SENDER = OTLPSpanExporter
SECRET = "what nobody else may read"


class Collected(SpanExporter):
    """Where the spans of all services come, one after the other."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS

    def of(self, trace_id: str) -> list[ReadableSpan]:
        return [span for span in self.spans if f"{span.context.trace_id:032x}" == trace_id]

    async def named(self, trace_id: str, *names: str) -> list[ReadableSpan]:
        """The spans of a trace, which are of these names and no others, once they have come."""

        def all_are_there() -> bool:
            return len(self.of(trace_id)) >= len(names)

        await wait_until(all_are_there, 10, "spans are missing")
        found = {span.name: span for span in self.of(trace_id)}
        assert sorted(span.name for span in self.of(trace_id)) == sorted(names)
        return [found[name] for name in names]


class Asked:
    """An agent that says much, and notes which trace it is asked in."""

    def __init__(self) -> None:
        self.traces: dict[str, Trace | None] = {}

    async def __call__(self, request: RunRequest) -> AsyncGenerator[Chunk, None]:
        self.traces[request.run_id] = request.trace
        for number in range(CHUNKS):
            yield AssistantMessage(content=f"{number} ")
        if request.body["input"] == SECRET:
            raise ValueError(SECRET)
        yield StopReason(stop_reason="end_turn")


@pytest.fixture(scope="module")
def collected() -> Iterator[Collected]:
    """In place of what sends spans away."""
    found = Collected()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(otel, "OTLPSpanExporter", lambda: found)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        yield found


@pytest.fixture(scope="module")
def asked() -> Asked:
    return Asked()


@pytest_asyncio.fixture(scope="module")
async def stack(nats_url: str, collected: Collected, asked: Asked) -> AsyncIterator[Stack]:
    """A runstream that is traced."""
    assert collected.spans == []
    async with stack_running(nats_url, agent=asked, broker=TRACED) as traced:
        yield traced


async def created(stack: Stack, said: str = "go on", **headers: str) -> str:
    """A run, streamed to its end; its id."""
    path = f"/v1/agents/{new_agent_id()}/messages/stream"
    async with open_stream(stack.base, path, message(said), headers=headers) as stream:
        events = await stream.rest()
    return str(events[0].json["run_id"])


async def resumed(stack: Stack, run_id: str, **headers: str) -> None:
    async with open_stream(stack.base, f"/v1/runs/{run_id}/stream", {}, headers=headers) as stream:
        await stream.rest()


@pytest_asyncio.fixture
async def another_nats(tmp_path: Path) -> AsyncIterator[str]:
    """For tests that have a runstream of their own: on one NATS any broker executes any run."""
    async with nats_server_running(tmp_path) as server:
        yield server.url


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def said_of(span: ReadableSpan, *names: str) -> list[Any]:
    return [(span.attributes or {}).get(f"runstream.{name}") for name in names]


def services(*spans: ReadableSpan) -> list[Any]:
    return [span.resource.attributes["service.name"] for span in spans]


async def test_one_trace_leads_from_create_to_delivery(stack: Stack, collected: Collected, asked: Asked) -> None:
    """The client's: its create, the execution by a broker, and the stream, however many chunks there are; the agent is
    asked within the execution, and the log says which trace it belongs to."""
    run_id = await created(stack, traceparent=CLIENTS, tracestate=STATE)
    create, execute, stream = await collected.named(CLIENTS[3:35], "create", "execute", "stream")
    assert services(create, execute, stream) == ["runstream-gateway", "runstream-broker", "runstream-gateway"]
    assert parent_of(create) == int(CLIENTS[36:52], 16)
    assert (parent_of(execute), parent_of(stream)) == (create.context.span_id, create.context.span_id)
    assert said_of(create, "run_id", "is_new") == [run_id, True]
    assert said_of(execute, "run_id", "tenant", "stop_reason", "messages") == [
        run_id,
        "default",
        "end_turn",
        CHUNKS + 5,
    ]
    assert said_of(stream, "run_id", "kind", "is_done") == [run_id, "create", True]
    assert [event.name for event in stream.events] == ["first_chunk"]
    assert asked.traces[run_id] == Trace(f"00-{CLIENTS[3:35]}-{execute.context.span_id:016x}-01", STATE)
    record = await stack.record(run_id)
    logged = await trace_in(stack.jetstream, LogAddress(record.id, record.shard))
    assert logged == Trace(f"00-{CLIENTS[3:35]}-{create.context.span_id:016x}-01", STATE)


async def test_a_whole_answer_is_in_the_trace(stack: Stack, collected: Collected) -> None:
    """It has a span in place of the stream's, within its create as well."""
    trace = CLIENTS.replace("4bf9", "dddd")
    path = f"/v1/agents/{new_agent_id()}/messages"
    reply = await stack.fetch("POST", path, json={"input": "go on"}, headers={"traceparent": trace})
    assert reply.status == 200
    create, answer, execute = await collected.named(trace[3:35], "create", "answer", "execute")
    assert parent_of(answer) == create.context.span_id
    for name in ("runstream.run_id", "runstream.tenant"):
        assert len({(span.attributes or {})[name] for span in (create, answer, execute)}) == 1


async def test_who_comes_back_without_a_trace_is_part_of_the_runs(stack: Stack, collected: Collected) -> None:
    """So one that nobody sent a trace with has one of its own, from its create to whoever reads it last."""
    run_id = await created(stack)
    await wait_until(lambda: spans_of(collected, run_id, "create"), 10, "no create")
    (create,) = spans_of(collected, run_id, "create")
    assert create.parent is None
    await resumed(stack, run_id)
    await wait_until(lambda: len(spans_of(collected, run_id, "stream")) > 1, 10, "no second stream")
    for stream in spans_of(collected, run_id, "stream"):
        assert (stream.context.trace_id, parent_of(stream)) == (create.context.trace_id, create.context.span_id)


def spans_of(collected: Collected, run_id: str, name: str) -> list[ReadableSpan]:
    return [span for span in collected.spans if span.name == name and said_of(span, "run_id") == [run_id]]


async def test_who_comes_back_with_a_trace_is_linked_to_the_runs(stack: Stack, collected: Collected) -> None:
    """Its stream is a part of what the client does now, and leads to what it did then."""
    run_id = await created(stack)
    other = CLIENTS.replace("4bf9", "aaaa")
    await resumed(stack, run_id, traceparent=other)
    (stream,) = await collected.named(other[3:35], "stream")
    (create,) = spans_of(collected, run_id, "create")
    assert [link.context.span_id for link in stream.links] == [create.context.span_id]
    assert said_of(stream, "kind", "source") == ["resume", "log"]


async def test_what_a_client_does_not_sample_is_recorded_nowhere(
    stack: Stack, collected: Collected, asked: Asked
) -> None:
    """And goes on as it is: the platform is told that it is not sampled."""
    trace = UNSAMPLED.replace("4bf9", "bbbb")
    run_id = await created(stack, traceparent=trace)
    told = asked.traces[run_id]
    assert told is not None
    assert re.fullmatch(f"{trace[:36]}[0-9a-f]{{16}}-00", told.parent)
    marker = await created(stack)  # What came before it has been sent.
    await wait_until(lambda: spans_of(collected, marker, "execute"), 10, "no spans")
    assert collected.of(trace[3:35]) == []


async def test_spans_tell_nothing_that_was_said(stack: Stack, collected: Collected) -> None:
    """Of an agent that fails there is the stop reason, and of a request that is refused the kind of refusal."""
    run_id = await created(stack, SECRET)
    await wait_until(lambda: spans_of(collected, run_id, "execute"), 10, "no execution")
    (execute,) = spans_of(collected, run_id, "execute")
    assert said_of(execute, "stop_reason") == ["error"]
    refused = CLIENTS.replace("4bf9", "cccc")
    path = f"/v1/conversations/conv-{new_agent_id().removeprefix('agent-')}/messages"
    reply = await stack.fetch("POST", path, json=message(SECRET), headers={"traceparent": refused})
    assert reply.status == 404
    assert SECRET not in "".join(span.to_json() for span in collected.spans)


async def test_spans_are_sent_where_the_environment_says(another_nats: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By OTLP over HTTP, the last ones before a service has stopped; it is called as the environment says."""
    came: list[ExportTraceServiceRequest] = []

    async def take(request: web.Request) -> web.Response:
        found = ExportTraceServiceRequest()
        found.ParseFromString(await request.read())
        came.append(found)
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/traces", take)
    runner = web.AppRunner(app)
    await runner.setup()
    with listener() as bound:
        await web.SockSite(runner, bound).start()
        monkeypatch.setattr(otel, "OTLPSpanExporter", SENDER)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url_of(bound))
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=streams,service.namespace=agents")
        async with stack_running(another_nats, broker=TRACED) as traced:
            await traced.finished({"chunks": 1})
        await runner.cleanup()
    resources = [found.resource for request in came for found in request.resource_spans]
    said = {(one.key, one.value.string_value) for resource in resources for one in resource.attributes}
    assert {("service.name", "streams"), ("service.namespace", "agents")} <= said
    spans = [span for one in came for found in one.resource_spans for part in found.scope_spans for span in part.spans]
    assert sorted(span.name for span in spans) == ["create", "execute", "stream"]


def sdk_threads() -> set[threading.Thread]:
    """What sends spans, or waits for them to be sent."""
    return {thread for thread in threading.enumerate() if thread.name.startswith(("Otel", "tracing-shutdown"))}


async def test_a_collector_that_is_away_keeps_nobody(another_nats: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams are served as ever, and two services stop within seconds, though the SDK would try for twenty."""
    (port,) = free_ports(1)
    monkeypatch.setattr(otel, "OTLPSpanExporter", SENDER)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    others = sdk_threads()
    async with stack_running(another_nats, broker=TRACED) as traced:
        await traced.finished({"chunks": 1})
        stopped_at = time.monotonic()
    took = time.monotonic() - stopped_at
    # The SDK draws its pauses at random, for which Hypothesis would take a test that comes after this one to account.
    await wait_until(lambda: sdk_threads() <= others, 30, "the SDK goes on trying")
    assert took < 2 * otel.FLUSH_SECONDS + 4


@pytest.mark.parametrize("trace", [None, Trace(CLIENTS, STATE)])
async def test_a_disabled_sdk_leaves_traces_as_they_came(trace: Trace | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """`OTEL_SDK_DISABLED` is one of its own variables: nothing is recorded then, and everybody is served."""
    monkeypatch.setattr(otel, "OTLPSpanExporter", Collected)
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    async with tracing_of(BrokerSettings(tracing=True), "gateway") as tracing:
        with tracing.span("create", "server", within=trace, run_id="run-1") as span:
            span.note(seq_id=1)
            span.event("first_chunk")
    assert (span.trace, span.is_recorded) == (trace, False)


# -- off --------------------------------------------------------------------------------------------------------------

ALL_OF_IT = """
import asyncio, json, sys
from runstream.broker.agents.demo import demo
from tests.support.stack import stack_running

async def main():
    async with stack_running(sys.argv[1], agent=demo) as stack:
        run_id, _ = await stack.finished({"chunks": 3})
        async with stack.resume(run_id) as stream:
            await stream.rest()

asyncio.run(main())
print(json.dumps(sorted(name for name in sys.modules if name.partition(".")[0] == "opentelemetry")))
"""


async def test_nothing_of_it_is_imported_where_it_is_off(another_nats: str) -> None:
    """A gateway and a broker that have served a run, and a resume, have not looked at OpenTelemetry."""
    path = f"{SOURCE['PYTHONPATH']}:{ROOT}"
    async with running(*python("-c", ALL_OF_IT, another_nats), env={"PYTHONPATH": path}) as process:
        assert await process.wait(30) == 0, process.report()
        assert json.loads(process.lines[-1]) == []


@pytest.mark.parametrize("part", ["fanout", "follower", "response", "window", "sse"])
def test_nothing_on_the_way_of_a_chunk_knows_of_traces(part: str) -> None:
    """Whatever is on, a chunk costs no more; so with the broker's writing."""
    written = ROOT / "broker" / "runstream" / "broker"
    paths = [
        ROOT / "gateway" / "runstream" / "gateway" / f"{part}.py",
        written / "publisher.py",
        written / "recording.py",
    ]
    for path in paths:
        assert not re.search(r"tracing|spans?\b|otel", path.read_text(encoding="utf-8")), path


async def test_a_span_that_is_off_costs_nothing(nats_url: str) -> None:
    """Microseconds, three times a run; and a trace goes on as it came."""
    async with tracing_of(BrokerSettings(nats_url=nats_url), "gateway") as tracing:
        assert type(tracing) is Tracing
        trace, rounds = Trace(CLIENTS, STATE), 10_000
        began = time.perf_counter()
        for _ in range(rounds):
            with tracing.span("create", "server", within=trace, run_id="run-1") as span:
                span.note(seq_id=1)
        assert (time.perf_counter() - began) / rounds < 100e-6
        assert span.trace is trace


async def test_who_turns_it_on_without_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """At start, in one sentence."""
    monkeypatch.delitem(sys.modules, "runstream.broker.otel")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(
        InvalidSettings, match=r"tracing: OpenTelemetry is not installed: pip install 'runstream\[otel\]'"
    ):
        async with tracing_of(BrokerSettings(tracing=True), "broker"):
            pass


async def test_a_variable_of_its_own_that_is_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As any other setting that is: at start, in one sentence that names it."""
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many")
    with pytest.raises(InvalidSettings, match=r"tracing: .*OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT .*many"):
        async with tracing_of(BrokerSettings(tracing=True), "broker"):
            pass


async def test_a_gateway_serves_a_trace_as_it_came_where_it_is_off(another_nats: str) -> None:
    """The platform is told the client's own."""
    agent = Asked()
    async with stack_running(another_nats, agent=agent) as untraced:
        run_id = await created(untraced, traceparent=CLIENTS, tracestate=STATE)
        assert (await fetch(untraced.base, "GET", f"/v1/runs/{run_id}")).status == 200
    assert agent.traces[run_id] == Trace(CLIENTS, STATE)
