"""A NATS with a user for each role, a runstream that takes tokens, for each module, and who has some."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from runstream.gateway.provisioning import provision_once
from tests.security.nats import GuardedNats, guarded_nats
from tests.support.auth import Issuer
from tests.support.nats import NatsServer
from tests.support.stack import Stack, stack_running


@pytest_asyncio.fixture(scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GuardedNats]:
    """A fresh nats-server with the configuration of `deploy/nats/`, in which `provision` has made the streams."""
    async with guarded_nats(tmp_path_factory.mktemp("nats")) as server:
        await provision_once(server.settings("provision"), rebuild_index=False, tell=lambda _: None)
        yield server


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    """Who signs the tokens."""
    return Issuer()


@pytest_asyncio.fixture(scope="module")
async def stack(
    nats_server: NatsServer, issuer: Issuer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    """A runstream that takes the issuer's tokens, signed either way, on both ports."""
    async with issuer.serving() as url:
        auth = issuer.settings(tmp_path_factory.mktemp("auth"), url, auth_leeway_seconds=0)
        async with stack_running(nats_server.url, auth=auth, gateway={"keepalive_seconds": 1}) as running:
            yield running
