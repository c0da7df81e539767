"""Forms of requests that are deprecated say so, whatever they are answered; no other does."""

import datetime as dt
from typing import Any

import pytest
from letta_client import AsyncLetta

from runstream.gateway.deprecation import SINCE
from tests.support.http import open_stream
from tests.support.letta import chunks_of, types_of
from tests.support.stack import Stack, message, stack_running

# Ids of their own would give each process that collects these tests other names for them.
AGENT = "agent-5b0ae4f1-6f0e-4c0f-9a53-0d3c37a1f7c1"
IDLE_AGENT = "agent-7c2f4b58-93cd-4d4a-8f0e-2b1d7e6a9f02"
TEXT = {"input": '{"chunks": 1, "interval_ms": 0}'}


def test_since_when() -> None:
    """A structured date: the day of the reference's last release."""
    assert SINCE.startswith("@")
    since = dt.datetime.fromtimestamp(int(SINCE[1:]), tz=dt.UTC)
    assert since.isoformat() == "2026-05-14T00:00:00+00:00"


@pytest.mark.parametrize("prefix", ["/v1", "/latest", "/latest/v1"])
@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (f"/agents/{AGENT}/messages/stream", TEXT, 200),
        (f"/agents/{AGENT}/messages/stream", {}, 422),
        (f"/agents/{AGENT}/messages/stream", {"messages": []}, 422),
        ("/agents/agent-1/messages/stream", TEXT, 422),
        (f"/conversations/{AGENT}/messages", TEXT, 200),
        (f"/conversations/{AGENT}/messages", {}, 422),
        (f"/conversations/{IDLE_AGENT}/stream", {}, 400),
        (f"/conversations/{IDLE_AGENT}/cancel", {}, 409),
    ],
)
async def test_deprecated(stack: Stack, prefix: str, path: str, body: dict[str, Any], status: int) -> None:
    """Streams and refusals alike."""
    reply = await stack.fetch("POST", prefix + path, json=body)
    assert (reply.status, reply.headers["deprecation"]) == (status, SINCE)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"/v1/runs/?agent_ids={AGENT}", 200),
        ("/v1/runs/?ascending=true", 200),
        ("/v1/runs/?ascending=false&after=run-x", 400),
        ("/v1/runs/?ascending=true&limit=0", 422),
        ("/latest/runs/?ascending=true", 200),
        ("/v1/runs/active", 200),
        ("/v1/runs/active?background=perhaps", 422),
    ],
)
async def test_deprecated_lists(stack: Stack, path: str, status: int) -> None:
    """Parameters that have a successor, and the list that is one of another's."""
    reply = await stack.fetch("GET", path)
    assert (reply.status, reply.headers["deprecation"]) == (status, SINCE)


async def test_deprecated_and_refused_before_it_is_looked_at(stack: Stack) -> None:
    """The check of the user comes before the path's own."""
    path = f"/v1/agents/{AGENT}/messages/stream"
    reply = await stack.fetch("POST", path, json=TEXT, headers={"user_id": "x"})
    assert (reply.status, reply.headers["deprecation"]) == (400, SINCE)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/conversations/default/messages", {**TEXT, "agent_id": AGENT}),
        ("POST", "/v1/conversations/default/stream", {}),
        ("GET", f"/v1/runs/?agent_id={AGENT}&order=asc&active=true", {}),
        ("POST", f"/v1/agents/{AGENT}/messages/cancel", {"run_ids": []}),
        ("POST", f"/v1/conversations/?agent_id={AGENT}", {}),
        ("GET", f"/v1/agents/{AGENT}/messages/stream", {}),
        ("GET", "/v1/runs/run-1", {}),
        ("GET", "/v1/nothing", {}),
    ],
)
async def test_not_deprecated(stack: Stack, method: str, path: str, body: dict[str, Any]) -> None:
    """The forms that are to be used, and what is not there."""
    assert "deprecation" not in (await stack.fetch(method, path, json=body)).headers


async def test_full_gateway(nats_url: str) -> None:
    """A temporary refusal says so, too."""
    async with (
        stack_running(nats_url, gateway={"max_followers": 1}) as full,
        full.create({"silence_ms": 60_000}, agent_id=AGENT) as stream,
    ):
        await stream.take(1)
        reply = await full.fetch("POST", f"/v1/agents/{AGENT}/messages/stream", json=TEXT)
        assert (reply.status, reply.headers["deprecation"]) == (503, SINCE)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning:tests.contract.test_deprecation")
async def test_lettas_client_is_not_disturbed(stack: Stack) -> None:
    """It reads the stream as ever."""
    async with AsyncLetta(base_url=stack.base, api_key="dummy") as letta:
        seen = [chunk async for chunk in chunks_of(await letta.agents.messages.stream(AGENT, input=TEXT["input"]))]
    assert types_of(seen)[-1] == "usage_statistics"
    async with open_stream(stack.base, f"/v1/agents/{AGENT}/messages/stream", message(TEXT["input"])) as stream:
        assert stream.headers["deprecation"] == SINCE
