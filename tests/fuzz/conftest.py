"""A runstream for each module, with bounds that are short, and the count of what it holds before and after."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import pytest_asyncio

from runstream.broker.agents.http import http_agent
from runstream.broker.agents.http_platform import Platform
from runstream.broker.agents.settings import UpstreamSettings
from runstream.schemas import AssistantMessage, Chunk, RunRequest, StopReason, last_user_text
from tests.fuzz.leaks import held, nothing_is_left
from tests.fuzz.said import MARKED
from tests.support.ingest import writing
from tests.support.stack import Stack, stack_running
from tests.support.upstream import Upstream, plays, upstream_running

BROKER: Mapping[str, Any] = {
    "lease_seconds": 3.0,
    "silence_seconds": 0.5,
    "body_seconds": 0.2,
    "ingest_silence_seconds": 0.2,
}
GATEWAY: Mapping[str, Any] = {"body_seconds": 0.2}
"""So that who waits for the rest of a body is answered soon."""


WORD = [AssistantMessage(content="word "), StopReason(stop_reason="end_turn")]


class Scripted:
    """An agent that says what is laid down for the request's text, or else a word."""

    def __init__(self) -> None:
        self.scripts: dict[str, list[Any]] = {}

    async def __call__(self, request: RunRequest) -> AsyncGenerator[Chunk | Mapping[str, object], None]:
        for chunk in self.scripts.get(last_user_text(request.body) or "", WORD):
            yield {**chunk, MARKED: request.run_id} if isinstance(chunk, dict) and chunk else chunk


@pytest_asyncio.fixture(scope="module")
async def stack(nats_url: str) -> AsyncIterator[Stack]:
    """A runstream of which nothing is left behind by all that the module does to it."""
    async with stack_running(nats_url, agent=Scripted(), broker=BROKER, gateway=GATEWAY) as stack:
        await _warmed_up(stack)
        before = await held(stack)
        yield stack
        await nothing_is_left(stack, before)


@pytest_asyncio.fixture(scope="module")
async def platform() -> AsyncIterator[Upstream]:
    """A platform that streams whatever a test makes its script."""
    async with upstream_running(plays([])) as upstream:
        yield upstream


@pytest_asyncio.fixture(scope="module")
async def fronting(nats_url: str, platform: Upstream) -> AsyncIterator[Stack]:
    """A runstream whose agent is that platform, asked by its URL as it is."""
    settings = UpstreamSettings(silence_seconds=0.5, patience_seconds=0.5)
    async with (
        http_agent(Platform(f"{platform.url}/chat"), settings) as agent,
        stack_running(nats_url, agent=agent, broker=BROKER, gateway=GATEWAY) as stack,
    ):
        await _warmed_up(stack)
        before = await held(stack)
        yield stack
        await nothing_is_left(stack, before)


async def _warmed_up(stack: Stack) -> None:
    """Let everything be opened once that is kept open."""
    async with writing(stack.broker_base) as writer:
        await writer.append(1)
    async with stack.create("hello") as stream:
        await stream.rest()
    await stack.nobody_follows()
