"""A NATS with a user for each role, for the module that asks for it."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from runstream.gateway.provisioning import provision_once
from tests.security.nats import GuardedNats, guarded_nats


@pytest_asyncio.fixture(scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GuardedNats]:
    """A fresh nats-server with the configuration of `deploy/nats/`, in which `provision` has made the streams."""
    async with guarded_nats(tmp_path_factory.mktemp("nats")) as server:
        await provision_once(server.settings("provision"), rebuild_index=False, tell=lambda _: None)
        yield server
