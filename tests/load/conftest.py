"""A nats-server that says who is connected to it: what is left behind is counted where nobody can forget it."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from runstream.broker.embedded import EmbeddedServer
from tests.support.nats import READY_SECONDS, free_ports


@pytest_asyncio.fixture(scope="module")
async def monitored_nats(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[str, str]]:
    """Where a fresh nats-server is, and where it answers questions about itself."""
    (port,) = free_ports(1)
    directory = tmp_path_factory.mktemp("nats")
    config = f'http: "127.0.0.1:{port}"'
    async with EmbeddedServer(directory, start_timeout=READY_SECONDS, extra_config=config) as server:
        yield server.url, f"http://127.0.0.1:{port}"
