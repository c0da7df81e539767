"""Which pages may read what is answered: those of the origins that are listed, and no others."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import pytest_asyncio

from runstream.broker.errors import InvalidSettings
from runstream.broker.settings import resolved
from runstream.gateway.settings import GatewaySettings
from runstream.schemas import new_agent_id, new_run_id
from tests.support.eventsource import source_path
from tests.support.http import Connection, Reply, open_stream
from tests.support.stack import Stack, stack_running

APP = "https://app.example.com"
LOCAL = "http://localhost:3000"
STRANGERS = ["https://evil.example", "https://app.example.com.evil.example", "http://app.example.com", "null", ""]
UNKNOWN = "123e4567-e89b-42d3-8456-426614174000"
ASKED = "content-type, x-stainless-os, no header"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": ASKED}
READABLE = "Deprecation, Retry-After, WWW-Authenticate, X-Request-ID, x-should-retry"
SENDABLE = "Authorization, Content-Type, Last-Event-ID, traceparent, tracestate, X-Request-ID"


async def running_with(nats_url: str, origins: str | None) -> AsyncIterator[Stack]:
    settings = resolved(GatewaySettings, {"cors_origins": origins})
    async with stack_running(nats_url, gateway={"cors_origins": settings.cors_origins}) as running:
        yield running


@pytest_asyncio.fixture(scope="module")
async def listed(nats_url: str) -> AsyncIterator[Stack]:
    """A runstream for pages of two origins."""
    async for running in running_with(nats_url, f"{APP}, {LOCAL}"):
        yield running


@pytest_asyncio.fixture(scope="module")
async def open_to_all(nats_url: str) -> AsyncIterator[Stack]:
    """A runstream for every page there is."""
    async for running in running_with(nats_url, "*"):
        yield running


@pytest_asyncio.fixture(scope="module")
async def closed(nats_url: str) -> AsyncIterator[Stack]:
    """A runstream without the setting."""
    async for running in running_with(nats_url, None):
        yield running


def cors_of(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("access-control-") or name == "vary"}


async def answers(stack: Stack, origin: str | None) -> dict[str, Reply]:
    """What a page of that origin is answered: what it wants, and all kinds of refusals."""
    run_id, events = await stack.finished({"chunks": 1})
    agent_id = new_agent_id()
    last = {"Last-Event-ID": str(events[2].seq_id)}
    asked: dict[str, tuple[str, str, dict[str, Any]]] = {
        "run": ("GET", f"/v1/runs/{run_id}", {}),
        "conversation": ("POST", f"/v1/conversations/?agent_id={agent_id}", {"json": {}}),
        "stream": ("POST", source_path(run_id), {"json": {}}),
        "event source": ("GET", source_path(run_id), {"headers": last}),
        "nothing follows": ("GET", source_path(run_id), {"headers": {"Last-Event-ID": str(2**40)}}),
        "run is created": ("POST", f"/v1/agents/{agent_id}/messages/stream", {"json": {"input": '{"chunks": 1}'}}),
        "400": ("GET", "/v1/runs/run-1", {}),
        "404": ("GET", f"/v1/runs/{new_run_id()}", {}),
        "no such path": ("GET", "/v1/nothing", {}),
        "405": ("PUT", f"/v1/runs/{run_id}", {}),
        "422": ("GET", source_path(run_id, starting_after="x"), {}),
        "malformed user": ("GET", f"/v1/runs/{run_id}", {"headers": {"user_id": "x"}}),
        "307": ("GET", f"/v1/runs/{run_id}/", {}),
    }
    found = {}
    for name, (method, path, options) in asked.items():
        headers = {**options.pop("headers", {}), **({} if origin is None else {"Origin": origin})}
        found[name] = await stack.fetch(method, path, headers=headers, **options)
    return found


@pytest.mark.parametrize("origin", [APP, LOCAL])
async def test_listed_origin_may_read_everything(listed: Stack, origin: str) -> None:
    """Every answer, refusals and streams included, names the origin that asked, and that others are not meant."""
    for name, reply in (await answers(listed, origin)).items():
        assert cors_of(reply.headers) == {
            "vary": "Origin",
            "access-control-allow-origin": origin,
            "access-control-allow-credentials": "true",
            "access-control-expose-headers": READABLE,
        }, name


@pytest.mark.parametrize("origin", [None, *STRANGERS])
async def test_others_are_told_nothing(listed: Stack, origin: str | None) -> None:
    """A page of another origin finds nothing that lets it read; a cache is told that this depends on who asks."""
    for name, reply in (await answers(listed, origin)).items():
        assert cors_of(reply.headers) == {"vary": "Origin"}, name


@pytest.mark.parametrize("origin", [None, APP, "https://evil.example"])
async def test_star_is_for_all(open_to_all: Stack, origin: str | None) -> None:
    """With `*` every answer is for everybody, and the same for all."""
    for name, reply in (await answers(open_to_all, origin)).items():
        assert cors_of(reply.headers) == {
            "access-control-allow-origin": "*",
            "access-control-expose-headers": READABLE,
        }, name


@pytest.mark.parametrize("origin", [None, APP])
async def test_without_the_setting_nothing_is_said(closed: Stack, origin: str | None) -> None:
    """No page of another origin may read anything, and no answer differs from what it was."""
    for name, reply in (await answers(closed, origin)).items():
        assert cors_of(reply.headers) == {}, name
    reply = await closed.fetch("OPTIONS", source_path(new_run_id()), headers={"Origin": APP, **PREFLIGHT})
    assert (reply.status, cors_of(reply.headers)) == (405, {})


async def test_temporary_refusal_is_signed(nats_url: str) -> None:
    """What an EventSource is told when it has to come back must be readable, else it would stop for good."""
    async with stack_running(nats_url, gateway={"cors_origins": frozenset([APP]), "max_followers": 1}) as full:
        run_id, _ = await full.finished({"chunks": 1})
        async with full.create({"silence_ms": 60_000}) as stream:
            await stream.take(1)
            turned_away = await full.fetch("GET", source_path(run_id), headers={"Origin": APP})
            refused = await full.fetch("POST", source_path(run_id), json={}, headers={"Origin": APP})
            assert (turned_away.status, refused.status) == (200, 503)
            for reply in (turned_away, refused):
                assert reply.headers["access-control-allow-origin"] == APP
            assert refused.headers["retry-after"] == "2"


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        (f"/v1/runs/run-{UNKNOWN}", "DELETE, GET"),
        (source_path(f"run-{UNKNOWN}"), "GET, POST"),
        (f"/v1/agents/agent-{UNKNOWN}/messages/stream", "POST"),
        ("/v1/conversations/", "GET, POST"),
        ("/v1/conversations/default/stream", "POST"),
    ],
)
async def test_preflight(listed: Stack, open_to_all: Stack, path: str, methods: str) -> None:
    """Before it sends JSON or a credential a browser asks, and is told the path's methods, and that any header may.

    Cookies may be sent by pages of listed origins only, where a star would not stand for all headers.
    """
    for stack, granted in ((listed, APP), (open_to_all, "*")):
        reply = await stack.fetch("OPTIONS", path, headers={"Origin": APP, **PREFLIGHT})
        assert (reply.status, reply.body) == (204, b"")
        assert reply.headers["access-control-allow-origin"] == granted
        assert reply.headers["access-control-allow-methods"] == methods
        also = "*" if granted == "*" else "x-stainless-os"
        assert reply.headers["access-control-allow-headers"] == f"{SENDABLE}, {also}"
        assert reply.headers.get("access-control-allow-credentials") == (None if granted == "*" else "true")
        assert reply.headers["access-control-max-age"] == "600"


async def test_preflight_of_others(listed: Stack) -> None:
    """Another origin's preflight is refused as the method that it is, and so is OPTIONS that asks for nothing."""
    path = source_path(new_run_id())
    for origin in STRANGERS:
        reply = await listed.fetch("OPTIONS", path, headers={"Origin": origin, **PREFLIGHT})
        assert (reply.status, cors_of(reply.headers)) == (405, {"vary": "Origin"}), origin
    plain = await listed.fetch("OPTIONS", path, headers={"Origin": APP})
    assert (plain.status, plain.headers["allow"]) == (405, "GET,POST")
    nowhere = await listed.fetch("OPTIONS", "/v1/nothing", headers={"Origin": APP, **PREFLIGHT})
    assert nowhere.status == 404


async def test_probes_are_no_api(open_to_all: Stack) -> None:
    """What operators look at is no page's business."""
    for path in ("/livez", "/readyz", "/metrics"):
        assert cors_of((await open_to_all.fetch("GET", path, headers={"Origin": APP})).headers) == {}
        reply = await open_to_all.fetch("OPTIONS", path, headers={"Origin": APP, **PREFLIGHT})
        assert (reply.status, cors_of(reply.headers)) == (405, {})


async def test_http_1_0(listed: Stack) -> None:
    """An old proxy in between gets the same."""
    run_id, _ = await listed.finished({"chunks": 1})
    async with Connection.open(listed.base) as connection:
        await connection.send("GET", source_path(run_id), headers={"Origin": APP}, version="1.0")
        _, headers = await connection.head()
        assert headers["access-control-allow-origin"] == APP
    async with open_stream(listed.base, source_path(run_id), {}, headers={"Origin": APP}) as stream:
        assert stream.headers["access-control-allow-origin"] == APP


@pytest.mark.parametrize(
    ("written", "origins"),
    [
        ("*", {"*"}),
        (APP, {APP}),
        (" HTTPS://App.Example.com ,http://localhost:3000", {APP, LOCAL}),
        ("chrome-extension://abcdef,http://[::1]:8080", {"chrome-extension://abcdef", "http://[::1]:8080"}),
        ("https://app.example.com:8443", {"https://app.example.com:8443"}),
    ],
)
def test_origins_as_they_are_written(monkeypatch: pytest.MonkeyPatch, written: str, origins: set[str]) -> None:
    """Origins stand in the environment with commas between them."""
    monkeypatch.setenv("RUNSTREAM_CORS_ORIGINS", written)
    assert set(resolved(GatewaySettings).cors_origins or ()) == origins


@pytest.mark.parametrize(
    "written",
    [
        "https://app.example.com/",
        "https://app.example.com/path",
        "app.example.com",
        "https://*.example.com",
        "null",
        f"{APP},,{LOCAL}",
        "https://user@app.example.com",
        "https://app.example.com:443",
        "http://app.example.com:80",
        "https://",
    ],
)
def test_what_no_browser_calls_an_origin(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    """An origin that would never match is refused at the start, with how to write it."""
    monkeypatch.setenv("RUNSTREAM_CORS_ORIGINS", written)
    with pytest.raises(InvalidSettings, match=r"RUNSTREAM_CORS_ORIGINS: .*write origins as https://app\.example\.com"):
        resolved(GatewaySettings)
