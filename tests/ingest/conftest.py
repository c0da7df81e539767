"""A runstream for each module, and a second broker beside its own: any of them serves any run."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from runstream.broker.agents.demo import demo
from runstream.broker.service import Broker
from tests.support.core import SETTINGS
from tests.support.nats import NatsServer
from tests.support.stack import Stack, listener, stack_running, url_of


@pytest_asyncio.fixture(scope="module")
async def stack(nats_server: NatsServer) -> AsyncIterator[Stack]:
    """A broker and a gateway, with a short lease."""
    await nats_server.wait_ready()
    broker = {**SETTINGS, "max_run_messages": 600}
    async with stack_running(nats_server.url, agent=demo, broker=broker, is_patient=False) as serving:
        yield serving


@pytest.fixture(scope="module")
def broker(stack: Stack) -> str:
    """Where the broker is."""
    return stack.broker_base


@pytest_asyncio.fixture(scope="module")
async def other_broker(stack: Stack) -> AsyncIterator[str]:
    """Where another broker is, that has no agent."""
    with listener() as bound:
        async with Broker(stack.settings, agent=None, listener=bound):
            yield url_of(bound)
