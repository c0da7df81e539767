"""Fixtures of the core's tests: a connection with everything on it, new for each test."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.support.core import Core, core_running
from tests.support.nats import NatsServer


@pytest_asyncio.fixture
async def core(nats_server: NatsServer) -> AsyncIterator[Core]:
    """The core on this module's server, provisioned, with a connection of its own."""
    await nats_server.wait_ready()
    async with core_running(nats_server.url) as running:
        yield running
