"""Cancelling a run that a platform answers: the platform hears of it at once, in mid-sentence and in silence."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from runstream.broker.agents.http import http_agent
from runstream.broker.agents.http_platform import Platform
from runstream.broker.agents.settings import UpstreamSettings
from runstream.schemas import new_agent_id
from tests.support.stack import Stack, stack_running
from tests.support.upstream import DONE, Exchange, Script, Upstream, event, upstream_running
from tests.support.waiting import wait_until

PING = event({"message_type": "ping", "run_id": "run-theirs", "seq_id": 1})
STOP = event({"message_type": "stop_reason", "stop_reason": "end_turn"})


def word(number: int) -> bytes:
    return event({"message_type": "assistant_message", "content": f"{number} ", "run_id": "run-theirs"})


def talking(*, for_ever: bool) -> Script:
    """A platform that says three words, and goes on for ever or falls silent; its cancel endpoint answers."""

    async def script(exchange: Exchange) -> None:
        if exchange.asked.target.endswith("/cancel"):
            await exchange.refuse("200 OK", b"{}")
            return
        await exchange.head()
        await exchange.say(PING, word(0), word(1), word(2))
        number = 3
        while for_ever and not exchange.left.is_set():
            await exchange.say(word(number))
            number += 1
            await asyncio.sleep(0.001)  # the pace of its words
        await exchange.left.wait()

    return script


@asynccontextmanager
async def platform(
    nats_url: str, script: Script, path: str = "", **settings: Any
) -> AsyncIterator[tuple[Upstream, Stack]]:
    """A platform, and a runstream in front of it."""
    chosen = UpstreamSettings(**{"silence_seconds": 20, "patience_seconds": 0.5, **settings})
    async with (
        upstream_running(script) as upstream,
        http_agent(Platform(upstream.url + path), chosen) as agent,
        stack_running(nats_url, agent=agent) as stack,
    ):
        yield upstream, stack


@pytest.mark.parametrize("path", ["", "/v1", "/chat"])
@pytest.mark.parametrize("for_ever", [True, False])
async def test_a_cancel_reaches_the_platform(nats_url: str, path: str, *, for_ever: bool) -> None:
    """The connection is closed within a second, the stream ends as cancelled, and a Letta platform is told its run."""
    async with platform(nats_url, talking(for_ever=for_ever), path, headers={"X-Key": "secret"}) as (upstream, stack):
        agent = new_agent_id()
        async with stack.create("hello", agent_id=agent) as stream:
            await stream.take(3)
            reply = await stack.fetch("POST", f"/v1/agents/{agent}/messages/cancel")
            assert reply.status == 200
            await wait_until(upstream.exchanges[0].left.is_set, 1)
            events = await stream.rest(deadline=1)
        assert [each.json for each in events[-2:-1]] == [{"message_type": "stop_reason", "stop_reason": "cancelled"}]
        if path == "/chat":
            assert len(upstream.asked) == 1
            return
        await wait_until(lambda: len(upstream.asked) == 2)
        cancel = upstream.asked[1]
        assert (cancel.method, cancel.target) == ("POST", f"/v1/agents/{agent}/messages/cancel")
        assert cancel.json == {"run_ids": ["run-theirs"]}
        assert cancel.headers["x-key"] == "secret"


async def test_a_platform_that_does_not_answer_the_cancel_holds_nobody_up(nats_url: str) -> None:
    """Whether the platform takes the cancel, refuses it or says nothing is no matter to the run's end."""

    async def script(exchange: Exchange) -> None:
        if not exchange.asked.target.endswith("/cancel"):
            await exchange.head()
            await exchange.say(PING, word(0))
        await exchange.left.wait()

    async with platform(nats_url, script) as (upstream, stack):
        agent = new_agent_id()
        async with stack.create("hello", agent_id=agent) as stream:
            await stream.take(2)
            await stack.fetch("POST", f"/v1/agents/{agent}/messages/cancel")
            events = await stream.rest(deadline=1)
        assert events[-1].is_done
        await wait_until(lambda: len(upstream.asked) == 2)


async def test_a_run_that_has_ended_is_not_cancelled_at_the_platform(nats_url: str) -> None:
    """A run that ends by itself, and a platform that lingers after its stop reason, are not told to cancel."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.say(PING, word(0), STOP, DONE)
        await exchange.end()

    async with platform(nats_url, script) as (upstream, stack):
        for _ in range(3):
            async with stack.create("hello") as stream:
                assert (await stream.rest())[-1].is_done
        assert [asked.target.endswith("/cancel") for asked in upstream.asked] == [False] * 3
