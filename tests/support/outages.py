"""Outages of a nats-server that last as long as a block."""

import contextlib
import signal
from collections.abc import AsyncIterator

from tests.support.nats import NatsServer


@contextlib.asynccontextmanager
async def stopped(server: NatsServer) -> AsyncIterator[None]:
    """Dead by SIGKILL while the block lasts, and ready again after it."""
    await server.stop(signal.SIGKILL)
    try:
        yield
    finally:
        await server.start()
        await server.wait_ready()


@contextlib.asynccontextmanager
async def paused(server: NatsServer) -> AsyncIterator[None]:
    """SIGSTOPped while the block lasts: connections stay open, and nothing moves on them."""
    await server.pause()
    try:
        yield
    finally:
        await server.resume()
        await server.wait_ready()
