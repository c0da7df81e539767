"""A runstream for each module of the contract."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.support.stack import Stack, stack_running


@pytest_asyncio.fixture(scope="module")
async def stack(nats_url: str) -> AsyncIterator[Stack]:
    """A runstream with one shard, on this module's nats-server."""
    async with stack_running(nats_url) as running:
        yield running
