"""A runstream for each module, with the demo agent, and a desk to type at in front of it."""

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from runstream.broker.agents.demo import demo
from tests.support.core import SETTINGS
from tests.support.documents import Desk, desk_in
from tests.support.nats import NatsServer
from tests.support.stack import Stack, stack_running


@pytest_asyncio.fixture(scope="module")
async def stack(nats_server: NatsServer) -> AsyncIterator[Stack]:
    """What `runstream up` would be, in the test's own process."""
    await nats_server.wait_ready()
    async with stack_running(nats_server.url, agent=demo, broker=SETTINGS) as serving:
        yield serving


@pytest.fixture
def desk(stack: Stack, tmp_path: Path) -> Desk:
    """A desk in front of it: what documents have on localhost, and the NATS that they call `nats`, is there."""
    gateway, broker = urlsplit(stack.base).netloc, urlsplit(stack.broker_base).netloc
    there = {"localhost:8283": gateway, "localhost:8284": broker, "localhost:8080": gateway}
    return desk_in(tmp_path, {**there, "nats:4222": urlsplit(stack.settings.nats_url).netloc})
