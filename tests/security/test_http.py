"""What every answer of every port has, and what none has: an id, headers for browsers, and nothing of the inside."""

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import structlog
from aiohttp import web
from structlog.testing import capture_logs

import runstream.broker.errors as broker_errors
from runstream.broker.errors import BrokerError
from runstream.broker.http import serving
from runstream.broker.http_server import Doors
from runstream.broker.ingest import errors as ingest_errors
from runstream.broker.limits.limiter import TOLD
from runstream.broker.limits.settings import LimitSettings
from runstream.broker.log import place_of
from runstream.broker.operations import Operation
from runstream.broker.runs import Runs
from runstream.broker.settings import BrokerSettings
from runstream.broker.topology import WORK_STREAM
from runstream.gateway.app import Gateway
from runstream.gateway.errors import translated
from runstream.gateway.settings import GatewaySettings
from runstream.schemas import TRACEPARENT, TRACESTATE, new_agent_id, new_conversation_id, new_run_id
from tests.support.http import Cut, Reply, fetch, open_stream
from tests.support.nats import NatsServer, nats_server_running
from tests.support.outages import stopped
from tests.support.stack import PUPPET, Stack, listener, message, stack_running, url_of

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
STATE = "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"
MADE = re.compile(r"[0-9a-f]{32}")
POISON = "$JS.API.STREAM.MSG.GET.KV_RUNSTREAM _INBOX_gateway.x runs.0.run-secret nats: timeout Traceback"
INSIDE = re.compile(
    r"\$JS|\$KV|_INBOX|KV_RUNSTREAM|RUNSTREAM_WORK|RUNS_\d|runs\.\d|live\.\d|index\.|nats:|nats://|err_code|Traceback"
    r"|File \"|\.py\b|run-secret|aiohttp|Python"
)
"""Subjects, streams, what NATS says, where it went wrong, and other runs' ids."""


@pytest_asyncio.fixture(scope="module")
async def stack(nats_url: str) -> AsyncIterator[Stack]:
    async with stack_running(nats_url, broker={"lease_seconds": 1}) as running:
        yield running


@pytest_asyncio.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A nats-server with nothing in it, for a test that stops it."""
    async with nats_server_running(tmp_path) as server:
        yield server


def asked(run_id: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """One request of each kind: what there is, and what is refused in whichever way."""
    agent_id, conversation_id = new_agent_id(), new_conversation_id()
    posted = {"json": message({"chunks": 1})}
    yield "GET", "/livez", {}
    yield "GET", "/readyz", {}
    yield "GET", "/metrics", {}
    yield "GET", "/openapi.json", {}
    yield "GET", "/nothing", {}
    yield "GET", "/v1/health/", {}
    yield "GET", "/v1/nothing", {}
    yield "PUT", f"/v1/runs/{run_id}", {}
    yield "GET", f"/v1/runs/{run_id}/", {}
    yield "GET", f"/v1/runs/{run_id}", {}
    yield "GET", f"/v1/runs/{run_id}", {"headers": {"user_id": "x"}}
    yield "GET", "/v1/runs/run-1", {}
    yield "GET", f"/v1/runs/{new_run_id()}", {}
    yield "GET", "/v1/runs/", {}
    yield "GET", "/v1/runs/?limit=x", {}
    yield "GET", "/v1/conversations/", {}
    yield "GET", f"/v1/conversations/{conversation_id}", {}
    yield "GET", f"/v1/runs/{run_id}/messages", {}
    yield "GET", f"/v1/runs/{run_id}/usage", {}
    yield "GET", f"/v1/runs/{run_id}/stream", {}
    yield "POST", f"/v1/runs/{run_id}/stream", {"json": {}}
    yield "DELETE", f"/v1/runs/{new_run_id()}", {}
    yield "POST", f"/v1/conversations/{conversation_id}/messages", posted
    yield "POST", f"/v1/conversations/{conversation_id}/stream", {"json": {}}
    yield "POST", f"/v1/conversations/{conversation_id}/cancel", {}
    yield "POST", f"/v1/agents/{agent_id}/messages", posted
    yield "POST", f"/v1/agents/{agent_id}/messages/stream", posted
    yield "POST", f"/v1/agents/{agent_id}/messages/stream", {"json": {"input": 1}}
    yield (
        "POST",
        f"/v1/agents/{agent_id}/messages/stream",
        {"body": b"\xff", "headers": {"Content-Type": "application/json"}},
    )
    yield "POST", f"/v1/agents/{agent_id}/messages/cancel", {"json": {}}
    yield "POST", f"/v1/conversations/?agent_id={agent_id}", {"json": {}}


def asked_of_brokers() -> Iterator[tuple[str, str, dict[str, Any]]]:
    run = f"/ingest/v1/runs/{new_run_id()}"
    yield "GET", "/livez", {}
    yield "GET", "/readyz", {}
    yield "GET", "/metrics", {}
    yield "GET", "/openapi.json", {}
    yield "GET", "/nothing", {}
    yield "GET", "/ingest/nothing", {}
    yield "POST", "/ingest/v1/runs", {"json": {"agent_id": new_agent_id()}}
    yield "POST", "/ingest/v1/runs", {"json": {"agent_id": "x"}}
    for path, body in (("chunks", {"a": 1}), ("lease", {}), ("end", {"stop_reason": "end_turn"}), ("fail", {})):
        yield "POST", f"{run}/{path}", {"json": body}


async def all_answers(stack: Stack, run_id: str, **headers: str) -> list[tuple[str, Reply]]:
    """What both ports answer, to all of it at once."""

    async def answer(base: str, method: str, path: str, options: dict[str, Any]) -> tuple[str, Reply]:
        sent = {**options.pop("headers", {}), **headers}
        return f"{method} {path}", await fetch(base, method, path, headers=sent, **options)

    of_gateway = [answer(stack.base, *each) for each in asked(run_id)]
    of_broker = [answer(stack.broker_base, *each) for each in asked_of_brokers()]
    return await asyncio.gather(*of_gateway, *of_broker)


async def raw(base: str, sent: bytes) -> str:
    """What is answered to bytes that need not be HTTP."""
    host, port = base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(sent)
        return (await reader.read()).decode()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


# -- every answer -----------------------------------------------------------------------------------------------------


async def test_every_answer_is_signed(stack: Stack) -> None:
    """No type is guessed, no page is run or framed, no version is told, and each has an id of its own."""
    run_id, _ = await stack.finished({"chunks": 1})
    answers = await all_answers(stack, run_id)
    for name, reply in answers:
        said = reply.headers
        assert said["x-content-type-options"] == "nosniff", name
        assert said["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'", name
        assert said["server"] == "runstream", name
        assert MADE.fullmatch(said["x-request-id"]), name
        assert "html" not in said.get("content-type", ""), name
    assert len({reply.headers["x-request-id"] for _, reply in answers}) == len(answers)


async def test_what_is_no_http_learns_no_version(stack: Stack) -> None:
    """It is refused before anything here sees it, in a line of text."""
    for base in (stack.base, stack.broker_base):
        said = await raw(base, b"no HTTP\r\n\r\n")
        assert said.startswith(("HTTP/1.0 400", "HTTP/1.1 400"))
        assert "Server: runstream\r\n" in said
        assert not INSIDE.search(said)
        assert "text/html" not in said


async def test_an_expectation_that_nobody_meets(stack: Stack) -> None:
    """It is refused before anything of ours is asked, and signed all the same."""
    for name, reply in await all_answers(stack, new_run_id(), **{"Expect": "nothing", "X-Request-ID": "mine"}):
        if name == "GET /nothing" and reply.headers["content-type"].startswith("text/plain"):
            continue  # Of a broker, where nothing at all answers that.
        assert (reply.status, reply.headers["x-request-id"]) == (417, "mine"), name
        assert reply.json == {"detail": "This expectation is not met here: send Expect: 100-continue, or none."}, name
        assert reply.headers["x-content-type-options"] == "nosniff", name


async def test_who_waits_with_the_body_is_told_to_go_on(stack: Stack) -> None:
    """Once, and then answered as anybody."""
    said = b'{"agent_id":"x"}'
    for base, path in ((stack.base, "/v1/conversations/"), (stack.broker_base, "/ingest/v1/runs")):
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(said)}\r\n"
        answered = await raw(base, f"{head}Expect: 100-Continue\r\n\r\n".encode() + said)
        begun, _, rest = answered.partition("\r\n\r\n")
        assert begun == "HTTP/1.1 100 Continue"
        assert rest.startswith(("HTTP/1.1 400 ", "HTTP/1.1 422 "))


@pytest.mark.parametrize("given", ["1", "a" * 128, "01J9Z3:Root=1-67891233/abc+def==", "user@host.example"])
async def test_a_request_keeps_its_id(stack: Stack, given: str) -> None:
    """A client, or the load balancer before it, finds its own id again, on every answer."""
    for name, reply in await all_answers(stack, new_run_id(), **{"X-Request-ID": given}):
        assert reply.headers["x-request-id"] == given, name


@pytest.mark.parametrize("given", ["", "a" * 129, "two words", "<script>", 'a"b', "{}", "é"])
async def test_an_id_that_is_none_is_replaced(stack: Stack, given: str) -> None:
    """What could not stand in a log or a header is as if it were absent."""
    for base in (stack.base, stack.broker_base):
        reply = await fetch(base, "GET", "/livez", headers={"X-Request-ID": given})
        assert MADE.fullmatch(reply.headers["x-request-id"])


# -- logs -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def logged() -> Iterator[list[Any]]:
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        yield lines


async def test_what_a_request_logs_has_its_id(own_server: NatsServer) -> None:
    """Of a client that complains one finds what went wrong; and nobody else's lines have the id."""
    async with stack_running(own_server.url, is_patient=False) as stack, stopped(own_server):
        with logged() as lines:
            path = f"/v1/runs/{new_run_id()}"
            refused = await stack.fetch("GET", path, headers={"X-Request-ID": "mine"})
            writing = await fetch(
                stack.broker_base, "POST", f"/ingest{path}/lease", headers={"X-Request-ID": "its-writer"}
            )
        assert (refused.status, writing.status) == (503, 503)
        failed = {line["request_id"]: line for line in lines if line["event"] == "request_failed"}
        assert failed.keys() == {"mine", "its-writer"}
        assert not [line for line in lines if line.get("request_id") and line["event"] != "request_failed"]


async def test_a_defect_is_answered_in_json() -> None:
    """Whatever a browser says that it accepts: aiohttp would make a page of it."""

    async def crash(_: web.Request) -> web.Response:
        raise RuntimeError(POISON)

    bound = listener()
    with contextlib.closing(bound), logged() as lines:
        crashing = Operation(method="GET", path="/crash", handler=crash, answers={}, scope="open")
        async with serving([crashing], bound, Doors(LimitSettings(), lambda _: None)):
            reply = await fetch(url_of(bound), "GET", "/crash", headers={"Accept": "text/html", "X-Request-ID": "mine"})
    assert (reply.status, reply.json) == (500, {"detail": "An unknown error occurred"})
    assert [line["request_id"] for line in lines if line["event"] == "request_crashed"] == ["mine"]


@pytest.mark.parametrize("error", [RuntimeError(POISON), web.HTTPBadRequest()], ids=["defect", "refusal"])
async def test_a_defect_in_the_middle_of_an_answer_breaks_it_off(error: Exception) -> None:
    """Another answer within it would end it as if it were whole."""

    async def crash(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        answer.enable_chunked_encoding()
        await answer.prepare(request)
        await answer.write(b"data: 1\n\n")
        raise error

    bound = listener()
    operations = [Operation(method="POST", path="/crash", handler=crash, answers={}, scope="open")]
    with contextlib.closing(bound), logged():
        doors = Doors(LimitSettings(), lambda _: None)
        async with serving(operations, bound, doors), open_stream(url_of(bound), "/crash") as stream:
            with pytest.raises(Cut):
                await stream.rest()
    assert [event.data for event in stream.seen] == ["1"]


async def test_a_shared_tail_logs_for_nobody(stack: Stack) -> None:
    """All who follow a run share what reads it: what that logs does not bear the name of the first one."""
    with logged() as lines:
        async with stack.live(1) as (run_id, stream):
            record = await stack.record(run_id)
            subject = f"runs.{record.shard}.{run_id}"
            last = await stack.jetstream.last_message(f"RUNS_{record.shard}", subject)
            assert last is not None
            broken = {"Rs-Kind": "unheard of", "Rs-Writer": f"somebody:{place_of(last) + 1}"}
            await stack.jetstream.publish(subject, b"{}", broken)
            with pytest.raises(Cut):
                await stream.rest()
    (noted,) = [line for line in lines if line["event"] == "stored_broken"]
    assert "request_id" not in noted


# -- traces -----------------------------------------------------------------------------------------------------------


async def test_a_trace_goes_with_what_a_request_causes(stack: Stack) -> None:
    """The run's request on the queue and the log's first message say to which trace they belong, and no others."""
    headers = {TRACEPARENT: TRACE, TRACESTATE: STATE}
    path = f"/v1/agents/{new_agent_id()}/messages/stream"
    async with open_stream(stack.base, path, message(PUPPET), headers=headers) as stream:
        run_id = str((await stream.take(1))[0].json["run_id"])
        queued = await stack.jetstream.last_message(WORK_STREAM, f"work.default.{run_id}")
        record = await stack.record(run_id)
        stack.puppet.finish(run_id)
        await stream.rest()
    assert queued is not None
    assert traced(queued.headers) == {TRACEPARENT: TRACE, TRACESTATE: STATE}
    first = await stack.jetstream.first_message(f"RUNS_{record.shard}", f"runs.{record.shard}.{run_id}")
    last = await stack.jetstream.last_message(f"RUNS_{record.shard}", f"runs.{record.shard}.{run_id}")
    assert first is not None
    assert last is not None
    assert traced(first.headers) == {TRACEPARENT: TRACE, TRACESTATE: STATE}
    assert traced(last.headers) == {}


@pytest.mark.parametrize(
    "given", [TRACE, "00-1-2-3", TRACE.upper(), f"{TRACE}-x", f"00-{'0' * 32}-{'1' * 16}-01", None]
)
@pytest.mark.parametrize("state", [STATE, "no state", None])
async def test_a_writers_trace(stack: Stack, given: str | None, state: str | None) -> None:
    """A run that is opened over HTTP begins with the trace of its opening; what is no trace is none."""
    sent = {name: value for name, value in ((TRACEPARENT, given), (TRACESTATE, state)) if value is not None}
    body = {"agent_id": new_agent_id()}
    opened = await fetch(stack.broker_base, "POST", "/ingest/v1/runs", json=body, headers=sent)
    taken = {TRACEPARENT: TRACE, **({TRACESTATE: STATE} if state == STATE else {})}
    assert await first_traced(stack, opened.json["run_id"]) == (taken if given == TRACE else {})


@pytest.mark.parametrize(("given", "state"), [(TRACE, STATE), (TRACE, None), (None, STATE), ("no trace", STATE)])
async def test_the_librarys_trace(stack: Stack, given: str | None, state: str | None) -> None:
    """So does one that a platform's own process opens, which is told nothing of what is no trace."""
    async with (
        Runs(stack.settings.nats_url) as runs,
        runs.open(agent_id=new_agent_id(), traceparent=given, tracestate=state) as run,
    ):
        taken = {TRACEPARENT: TRACE, **({TRACESTATE: STATE} if state == STATE else {})}
        assert await first_traced(stack, run.run_id) == (taken if given == TRACE else {})


async def first_traced(stack: Stack, run_id: str) -> dict[str, str]:
    """The trace that the first message of a run's log names."""
    record = await stack.record(run_id)
    first = await stack.jetstream.first_message(f"RUNS_{record.shard}", f"runs.{record.shard}.{record.id}")
    assert first is not None
    return traced(first.headers)


def traced(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name in {TRACEPARENT, TRACESTATE}}


# -- refusals ---------------------------------------------------------------------------------------------------------

SHAPED: dict[str, Callable[[], BrokerError]] = {
    "Conflict": lambda: broker_errors.Conflict(run_id=new_run_id(), otid=None, shares_otid=False),
    "ConversationDeleted": lambda: broker_errors.ConversationDeleted(conversation_id=new_conversation_id()),
    "WrongAgent": lambda: broker_errors.WrongAgent(conversation_id=new_conversation_id(), agent_id=new_agent_id()),
    "ChunkTooLarge": lambda: broker_errors.ChunkTooLarge(size=2, limit=1),
    "RecordTooLarge": lambda: broker_errors.RecordTooLarge(size=2, limit=1),
    "ConversationTooLarge": lambda: broker_errors.ConversationTooLarge(size=2, limit=1),
    "LimitReached": lambda: broker_errors.LimitReached(TOLD["key_runs"], limit="key_runs", seconds=1.5),
    "Unauthenticated": lambda: broker_errors.Unauthenticated(reason="It has expired."),
    "Forbidden": lambda: broker_errors.Forbidden("It is not for this run.", scope="runs:read"),
    "AgentFailed": lambda: broker_errors.AgentFailed("llm_error", message=POISON, detail=POISON),
    "BrokenRecord": lambda: broker_errors.BrokenRecord(POISON, key=POISON),
}
"""Those that are not made of a text and facts; all others are made with what nobody may see."""


@pytest.mark.parametrize("name", broker_errors.__all__)
def test_no_error_shows_the_inside(name: str) -> None:
    """Whatever goes wrong, and whatever it says of itself: clients and writers get what they can act on."""
    kind = getattr(broker_errors, name)
    error = SHAPED[name]() if name in SHAPED else kind(POISON, subject=POISON)
    told = translated(error)
    assert not INSIDE.search(repr((told.body, told.headers))), told.body
    refused = ingest_errors.translated(error)
    assert not INSIDE.search(repr((refused.body, refused.headers))), refused.body


async def test_no_answer_shows_the_inside(own_server: NatsServer) -> None:
    """Of all that can be asked, while NATS is there, and while it is away."""
    hasty = {"gateway": {"open_seconds": 0.2}, "broker": {"request_timeout_seconds": 0.2}}
    async with stack_running(own_server.url, **hasty) as stack:  # type: ignore[arg-type]
        run_id, _ = await stack.finished({"chunks": 1})
        answers = await all_answers(stack, run_id)
        async with stopped(own_server):
            answers += await all_answers(stack, run_id)
    assert {503, 404, 422, 400, 200} <= {reply.status for _, reply in answers}
    for name, reply in answers:
        if not name.endswith(("/metrics", "/openapi.json")):
            assert not INSIDE.search(reply.body.decode()), (name, reply)


async def test_a_gateway_before_any_broker_shows_nothing(own_server: NatsServer) -> None:
    """Without streams every request that needs them is refused, and readiness names the stream and no subject."""
    bound: socket.socket = listener()
    settings = GatewaySettings(open_seconds=0.2)
    with contextlib.closing(bound):
        async with Gateway(settings, BrokerSettings(nats_url=own_server.url), listener=bound):
            replies = [
                (f"{method} {path}", await fetch(url_of(bound), method, path, **options))
                for method, path, options in asked(new_run_id())
            ]
    ready = next(reply for name, reply in replies if name == "GET /readyz")
    assert ready.json["detail"] == "Stream RUNS_0 is not there: a broker, or `runstream provision`, makes it."
    for name, reply in replies:
        if not name.endswith(("/readyz", "/metrics", "/openapi.json")):
            assert not INSIDE.search(reply.body.decode()), (name, reply)
