"""A runstream for each module, whose agent says what tests let it say."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.support.core import SETTINGS
from tests.support.nats import NatsServer
from tests.support.stack import Puppet, Stack, stack_running


@pytest_asyncio.fixture(scope="module")
async def stack(nats_server: NatsServer) -> AsyncIterator[Stack]:
    """A broker and a gateway, with a short lease."""
    await nats_server.wait_ready()
    async with stack_running(nats_server.url, agent=Puppet(), broker=SETTINGS) as serving:
        yield serving
