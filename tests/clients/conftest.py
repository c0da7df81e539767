"""A runstream and Letta's own clients for each module."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from letta_client import AsyncLetta, Letta

from tests.support.letta import Caller
from tests.support.stack import Stack, stack_running


@pytest_asyncio.fixture(scope="module")
async def stack(nats_url: str) -> AsyncIterator[Stack]:
    """A runstream on this module's nats-server."""
    async with stack_running(nats_url) as running:
        yield running


@pytest_asyncio.fixture(scope="module")
async def letta(stack: Stack) -> AsyncIterator[AsyncLetta]:
    """Letta's client for asyncio."""
    async with AsyncLetta(base_url=stack.base, api_key="dummy") as client:
        yield client


@pytest.fixture(scope="module")
def blocking_letta(stack: Stack) -> Iterator[Letta]:
    """Letta's client for threads."""
    with Letta(base_url=stack.base, api_key="dummy") as client:
        yield client


@pytest.fixture(params=["asyncio", "threads"])
def call(request: pytest.FixtureRequest, letta: AsyncLetta, blocking_letta: Letta) -> Caller:
    """Either of them, called in the same way: what is said of one is said of both."""
    return Caller(letta if request.param == "asyncio" else blocking_letta)
