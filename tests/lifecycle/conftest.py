"""Fixtures for the life of a run: a scene for each test, on its module's nats-server."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.lifecycle.scene import Scene, scene_running
from tests.support.nats import NatsServer


@pytest_asyncio.fixture
async def scene(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Scene]:
    """A scene without actors, and without the runs of other tests: watchdogs would look after those, too."""
    await nats_server.wait_ready()
    async with scene_running(nats_server.url, tmp_path) as running:
        await running.sweep()
        yield running
