"""NATS is away before a request has its headers: it is told to come back, within two seconds, whatever it asked for."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from runstream.schemas import new_agent_id, new_otid
from tests.support.half_open import HalfOpen
from tests.support.http import Reply, fetch
from tests.support.nats import NatsServer
from tests.support.outages import paused, stopped
from tests.support.stack import Stack, message, stack_running
from tests.support.standstill import check_timely, measured_again

ANSWERED_SECONDS = 2.0


@dataclass(frozen=True)
class Scene:
    """A runstream with every setting at its default, on a nats-server that it reaches through a proxy."""

    stack: Stack
    proxy: HalfOpen


@pytest_asyncio.fixture(scope="module")
async def scene(nats_url: str) -> AsyncIterator[Scene]:
    async with HalfOpen.before(nats_url) as proxy, stack_running(proxy.url, is_patient=False) as running:
        yield Scene(running, proxy)


@asynccontextmanager
async def black_hole(scene: Scene, _: NatsServer) -> AsyncIterator[None]:
    """Connections stay open and pass nothing, and so do those that are made meanwhile."""
    scene.proxy.is_black_hole = True
    scene.proxy.shut()
    try:
        yield
    finally:
        scene.proxy.heal()
        scene.proxy.cut()


def killed(_: Scene, server: NatsServer) -> AbstractAsyncContextManager[None]:
    return stopped(server)


def hanging(_: Scene, server: NatsServer) -> AbstractAsyncContextManager[None]:
    return paused(server)


Outage = Callable[[Scene, NatsServer], AbstractAsyncContextManager[None]]
OUTAGES = [killed, hanging, black_hole]


@dataclass(frozen=True)
class Asked:
    """A request, and what came of it."""

    method: str
    path: str
    body: Mapping[str, Any] | None
    reply: Reply
    seconds: float


async def asked(stack: Stack, method: str, path: str, body: Mapping[str, Any] | None) -> Asked:
    since = time.monotonic()
    options: dict[str, Any] = {} if body is None else {"json": body}
    reply = await fetch(stack.base, method, path, **options)
    return Asked(method, path, body, reply, time.monotonic() - since)


def requests(agent_id: str, conversation_id: str, run_id: str) -> list[tuple[str, str, Mapping[str, Any] | None]]:
    """One of each kind that needs NATS."""
    agent, conversation, run = f"/v1/agents/{agent_id}", f"/v1/conversations/{conversation_id}", f"/v1/runs/{run_id}"
    said = message("hello")
    with_otid = {"messages": [{"role": "user", "content": "hello", "otid": new_otid()}], "background": True}
    return [
        ("POST", f"{agent}/messages/stream", said),
        ("POST", f"{agent}/messages/stream", with_otid),
        ("POST", f"{agent}/messages", said),
        ("POST", f"{agent}/messages", {**said, "streaming": True}),
        ("POST", f"{conversation}/messages", said),
        ("POST", f"{conversation}/messages", {**said, "streaming": False}),
        ("POST", f"{run}/stream", {}),
        ("POST", f"{conversation}/stream", {}),
        ("POST", f"{conversation}/stream", {"run_id": run_id}),
        ("POST", f"{conversation}/stream", {"otid": "x"}),
        ("POST", "/v1/conversations/default/stream", {"agent_id": agent_id}),
        ("POST", f"{conversation}/cancel", None),
        ("POST", f"{agent}/messages/cancel", {}),
        ("POST", f"{agent}/messages/cancel", {"run_ids": [run_id]}),
        ("POST", f"/v1/conversations/?agent_id={agent_id}", {}),
        ("GET", "/v1/conversations/", None),
        ("GET", conversation, None),
        ("PATCH", conversation, {"summary": "said"}),
        ("DELETE", conversation, None),
        ("GET", "/v1/runs/", None),
        ("GET", f"/v1/runs/?after={run_id}", None),
        ("GET", "/v1/runs/active", None),
        ("GET", run, None),
        ("GET", f"{run}/messages", None),
        ("GET", f"{run}/usage", None),
        ("DELETE", run, None),
    ]


@pytest.mark.parametrize("outage", OUTAGES)
@measured_again
async def test_every_kind_of_request_is_told_to_come_back(
    scene: Scene, nats_server: NatsServer, outage: Outage
) -> None:
    """503 with `Retry-After` in under two seconds, by default settings, also while connections still look open."""
    stack = scene.stack
    await stack.is_back()
    conversation_id, agent_id = await stack.conversation(), new_agent_id()
    run_id, events = await stack.finished({"chunks": 2}, agent_id=agent_id)
    async with outage(scene, nats_server):
        everything = requests(agent_id, conversation_id, run_id)
        found = await asyncio.gather(*(asked(stack, *each) for each in everything))
        slowest = max(found, key=lambda each: each.seconds)
        print(f"{len(found)} requests, the slowest {slowest.seconds:.2f} s: {slowest.method} {slowest.path}")
        for each in found:
            assert each.reply.status == 503, each
            assert int(each.reply.headers["retry-after"]) > 0, each
            assert "x-should-retry" not in each.reply.headers, each
            check_timely(each.seconds < ANSWERED_SECONDS, each)
        # A 503 would stop an EventSource for good.
        source = await asked(stack, "GET", f"/v1/runs/{run_id}/stream", None)
        assert (source.reply.status, source.reply.body.startswith(b"retry: ")) == (200, True), source
        check_timely(source.seconds < ANSWERED_SECONDS, source)
        alive = await asked(stack, "GET", "/livez", None)
        assert alive.reply.status == 200
        check_timely(alive.seconds < 1, alive)
        ready = await asked(stack, "GET", "/readyz", None)
        assert ready.reply.status == 503
        check_timely(ready.seconds < ANSWERED_SECONDS, ready)
    await stack.is_back()
    # Nothing was half done: what was refused was refused as a whole.
    assert (await stack.fetch("GET", f"/v1/conversations/{conversation_id}")).json["summary"] is None
    async with stack.resume(run_id) as stream:
        assert await stream.rest() == events
    async with stack.say_in(conversation_id, {"chunks": 1}) as stream:
        assert (await stream.rest())[-1].is_done
