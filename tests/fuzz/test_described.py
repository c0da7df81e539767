"""Requests that schemathesis makes of what each port says of itself: valid, and not."""

import asyncio
import contextlib
import functools
import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import pytest
import requests
import schemathesis
from hypothesis import event, given
from hypothesis import strategies as st
from schemathesis.checks import load_all_checks
from schemathesis.core.result import Ok
from schemathesis.core.transport import Response
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from runstream.broker.http_server import NO_HTTP
from runstream.broker.operations import SERVER_SENT_EVENTS
from runstream.gateway.mounting import OPERATIONS
from runstream.schemas import new_agent_id, new_conversation_id
from tests.fuzz.cases import bounded, fuzzed
from tests.support.description import UNDESCRIBED
from tests.support.http import Connection, Reply, parse_events
from tests.support.ingest import writer_of
from tests.support.stack import Stack

PROBES = [f"GET /{name}" for name in ("livez", "readyz", "metrics", "openapi.json")]
Case: TypeAlias = schemathesis.Case[Any]
GATEWAY = [*PROBES, *(f"{each.method} {each.path}" for each in OPERATIONS)]
BROKER = [
    *PROBES,
    "POST /ingest/v1/runs",
    *(f"POST /ingest/v1/runs/{{run_id}}/{what}" for what in ("chunks", "lease", "end", "fail")),
]
SHARE = 0.3 / (len(GATEWAY) + len(BROKER))
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
WITHOUT_A_WRONG_FORM = {"GET /v1/health/", *PROBES}
"""They take nothing, or a header that may be any text."""
SOURCE_STREAM = re.compile(
    rb"retry: \d+\n(?:(?:(?:event: run_error\n)?data: [^\r\n]+\n(?:id: \d+\n)?\n)*data: \[DONE\]\nid: \d+\n\n)?"
)
NAMES = ("as drawn", "one that has ended", "one that ends meanwhile")
"""What a run's id in a path may be."""


@schemathesis.serializer("application/x-ndjson", "application/ndjson", "application/jsonl")
def as_lines(_: Any, value: Any) -> bytes:
    """What is drawn for a body of lines: a line for each chunk, or one that is none."""
    chunks = value if isinstance(value, list) else [value]
    return b"".join(json.dumps(chunk).encode() + b"\n" for chunk in chunks)


class Port:
    """A port, and the requests that what it says of itself gives."""

    def __init__(self, base: str, document: dict[str, Any]) -> None:
        self.base = base
        load_all_checks()
        schema = schemathesis.openapi.from_dict(document)
        found = [each.ok() for each in schema.get_all_operations() if isinstance(each, Ok)]
        self._operations = {each.label: each for each in found}

    @classmethod
    async def at(cls, base: str) -> "Port":
        """Ask a port what it is."""
        async with Connection.open(base) as connection:
            await connection.send("GET", "/openapi.json")
            return cls(base, (await connection.reply()).json)

    @property
    def labels(self) -> set[str]:
        return {*self._operations}

    @functools.cached_property
    def _drawn(self) -> dict[str, st.SearchStrategy[Case]]:
        return {}

    def cases(self, label: str) -> st.SearchStrategy[Case]:
        """Requests for an operation: some that fit its description, and some that do not."""
        if label not in self._drawn:
            operation = self._operations[label]
            modes = [GenerationMode.POSITIVE] if label in WITHOUT_A_WRONG_FORM else [*GenerationMode]
            self._drawn[label] = st.one_of([operation.as_strategy(generation_mode=mode) for mode in modes])
        return self._drawn[label]


@contextlib.asynccontextmanager
async def named(stack: Stack, case: Case, name: str) -> AsyncIterator[None]:
    """Let a request be about things that are there; a run that goes on has ended a moment later."""
    parameters = dict(case.path_parameters or {})
    if name == NAMES[0] or not parameters:
        yield
        return
    ending = None
    if "run_id" in parameters:
        writer = await writer_of(stack.broker_base)
        await writer.append(1)
        parameters["run_id"] = writer.run_id
        if name == NAMES[1]:
            await writer.end()
        else:
            ending = asyncio.create_task(writer.end())
    if "conversation_id" in parameters:
        parameters["conversation_id"] = await stack.conversation() if name == NAMES[1] else new_conversation_id()
    if "agent_id" in parameters:
        parameters["agent_id"] = new_agent_id()
    case.path_parameters = parameters
    try:
        yield
    finally:
        if ending is not None:
            await ending


async def asked(port: Port, case: Case) -> tuple[Reply, requests.PreparedRequest, float]:
    """Send a request as it was drawn, and read the whole answer."""
    request = requests.Request(**case.as_transport_kwargs(base_url=port.base)).prepare()
    body = request.body.encode() if isinstance(request.body, str) else request.body
    assert body is None or isinstance(body, bytes)
    headers = {
        key: value if isinstance(value, str) else value.decode("latin-1") for key, value in request.headers.items()
    }
    since = time.perf_counter()
    async with Connection.open(port.base) as connection:
        await connection.send(request.method or "", request.path_url, body=body, headers=headers)
        return await connection.reply(), request, time.perf_counter() - since


def check(case: Case, reply: Reply, request: requests.PreparedRequest, seconds: float) -> None:
    """Hold an answer against the description: its status, its headers, and its body."""
    event(f"answered {reply.status}")
    assert reply.status < 500 or reply.status == 503, reply
    if reply.status in UNDESCRIBED and str(reply.status) not in case.operation.responses.status_codes:
        return  # Of what was drawn for its path there is nothing, or it has another method.
    if reply.status == 400 and reply.json == {"detail": NO_HTTP}:
        # What aiohttp does not take for HTTP never reaches what is described here: no header has such characters.
        return
    headers = {key: [value] for key, value in reply.headers.items()}
    checks = CHECKS
    if reply.headers.get("content-type", "").startswith(SERVER_SENT_EVENTS):
        # To schemathesis the schema of such a body is that of each event; in OpenAPI 3.1 it is the text's, as any.
        checks = [each for each in CHECKS if each is not response_schema_conformance]
        check_events(reply.body, is_source=case.method == "GET")
    answer = Response(reply.status, headers, reply.body, request, seconds, verify=False, encoding="utf-8")
    case.validate_response(answer, checks=checks)


def check_events(body: bytes, *, is_source: bool) -> None:
    """Look at a stream that was read to its end: an EventSource's, which may be told to come back, or any other."""
    if is_source:
        assert SOURCE_STREAM.fullmatch(body), body
    else:
        assert parse_events(body)[-1].is_done, body


async def checked(stack: Stack, port: Port, label: str, data: st.DataObject) -> None:
    """Draw a request for an operation, send it, and look at what is answered."""
    case = data.draw(port.cases(label))
    if data.draw(st.booleans(), label="without headers"):
        case.headers = type(case.headers)({})
    if label.endswith(("/messages", "/messages/stream")) and isinstance(case.body, dict):
        # Of what may be left out, one thing has to be there: of a hundred bodies drawn, one would start a run.
        case.body = {**case.body, **data.draw(st.sampled_from([{}, {"input": "hello"}]), label="with")}
    async with bounded(), named(stack, case, data.draw(st.sampled_from(NAMES), label="named")):
        check(case, *await asked(port, case))


@pytest.fixture(scope="module")
def ports() -> dict[str, Port]:
    """The ports that were asked what they are."""
    return {}


async def port_of(ports: dict[str, Port], base: str) -> Port:
    """Give a port, asked once: reading what it says takes longer than a case."""
    if base not in ports:
        ports[base] = await Port.at(base)
    return ports[base]


async def test_every_operation_is_among_them(stack: Stack, ports: dict[str, Port]) -> None:
    """What is not asked here is not described either."""
    assert (await port_of(ports, stack.base)).labels == {*GATEWAY}
    assert (await port_of(ports, stack.broker_base)).labels == {*BROKER}


@pytest.mark.parametrize("label", GATEWAY)
@fuzzed(SHARE)
@given(data=st.data())
async def test_the_gateway_answers_as_it_says(
    stack: Stack, ports: dict[str, Port], label: str, data: st.DataObject
) -> None:
    """Whatever is asked, the answer comes, is no defect, and is one that `/openapi.json` has."""
    await checked(stack, await port_of(ports, stack.base), label, data)


@pytest.mark.parametrize("label", BROKER)
@fuzzed(SHARE)
@given(data=st.data())
async def test_the_broker_answers_as_it_says(
    stack: Stack, ports: dict[str, Port], label: str, data: st.DataObject
) -> None:
    """The same of the ingest API."""
    await checked(stack, await port_of(ports, stack.broker_base), label, data)
