"""Readers that read nothing, of runs with the largest chunks there are: a gateway holds what docs/bounds.md says.

This bound is an outer one. That nothing is held beside sockets is shown in tests/contract/test_slow_followers.py.
"""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Self

import pytest
import pytest_asyncio

from runstream.broker.embedded import MAX_PAYLOAD_BYTES
from runstream.broker.settings import BrokerSettings
from runstream.gateway.settings import GatewaySettings
from runstream.schemas import new_agent_id
from tests.load.bounds import ALLOCATOR, slow_follower_bytes, tail_bytes
from tests.load.census import MIB, descriptors, forget_peak, memory_bytes, metric
from tests.load.form import FORM
from tests.support.http import EventStream, open_stream
from tests.support.services import Service, service
from tests.support.stack import message
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(FORM.seconds)

CHUNK_BYTES = 1_000_000
RECEIVE_BUFFER = 4096
RUNS = 2
CHUNKS_BETWEEN = 3
GATEWAY = GatewaySettings(write_deadline_seconds=3600, keepalive_seconds=3600)
BROKER = BrokerSettings()


@pytest_asyncio.fixture
async def gateway(nats_url: str) -> AsyncIterator[Service]:
    """A gateway with the default bounds that lets its readers be slow for an hour, and a broker with the demo agent.

    New for each test: what the allocator has kept of a load before would hide the next one.
    """
    patient = {"RUNSTREAM_WRITE_DEADLINE_SECONDS": "1h", "RUNSTREAM_KEEPALIVE_SECONDS": "1h"}
    async with (
        service("broker", nats_url, "--agent", "demo") as broker,
        service("gateway", nats_url, env=patient) as gateway,
    ):
        await broker.is_ready()
        await gateway.is_ready()
        yield gateway


def ask(gateway: Service, chunks: int, interval_ms: float = 0) -> open_stream:
    """Start a run that says so many of the largest chunks."""
    said = {"chunks": chunks, "interval_ms": interval_ms, "chunk_bytes": CHUNK_BYTES}
    return open_stream(gateway.base, f"/v1/agents/{new_agent_id()}/messages/stream", message(said))


async def run_of(creator: EventStream) -> str:
    """Which run a response is of."""
    (ping,) = await creator.take(1)
    return str(ping.json["run_id"])


class Stalled:
    """Readers that are there and take nothing."""

    def __init__(self, gateway: Service) -> None:
        self.count = 0
        self._gateway = gateway
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def add(self, run_id: str, cursor: int = 0) -> None:
        path, body = f"/v1/runs/{run_id}/stream", {"starting_after": cursor}
        stream = open_stream(self._gateway.base, path, body, receive_buffer=RECEIVE_BUFFER)
        await self._stack.enter_async_context(stream)
        self.count += 1

    async def are_there(self) -> bool:
        """Whether they are those whom the gateway serves, and nobody else is."""
        return await metric(self._gateway, "runstream_followers") == self.count

    def bound(self, runs: int) -> int:
        """What the gateway may hold of them, of so many runs: they read nothing, but their sockets took something."""
        held = self.count * slow_follower_bytes(GATEWAY, BROKER, MAX_PAYLOAD_BYTES) + GATEWAY.replay_cache_bytes
        return int(ALLOCATOR * (held + runs * tail_bytes(GATEWAY, MAX_PAYLOAD_BYTES)))


async def growth(gateway: Service, load: Callable[[Stalled], AsyncIterator[None]], runs: int, what: str) -> int:
    """Hold what the gateway takes at its peak under a load against the bound, and see that it is given back.

    Returns how much that was, for each reader.
    """
    pid = gateway.process.pid
    before, open_before = memory_bytes(pid), descriptors(pid)
    forget_peak(pid)
    async with Stalled(gateway) as stalled:
        async for _ in load(stalled):
            pass
        held = memory_bytes(pid, "VmHWM") - before
        bound = stalled.bound(runs)
        # Who has read all, of a run that has ended, is no longer there, and the rest have left by then.
        await wait_until(stalled.are_there, message="readers are missing")
    print(f"\n{what}: {stalled.count} readers, {held / MIB:.0f} MiB of {bound / MIB:.0f} MiB")
    assert held <= bound

    async def nobody_is_left() -> bool:
        return descriptors(pid) <= open_before and await metric(gateway, "runstream_followers") == 0

    await wait_until(nobody_is_left, 60, "the gateway still has those who left")
    left = memory_bytes(pid) - before
    print(f"when they are gone: {left / MIB:.0f} MiB")
    assert left < held / 3 + await metric(gateway, "runstream_replay_cache_bytes")
    return held // stalled.count


async def test_stalled_readers_of_runs_that_have_ended(gateway: Service) -> None:
    """Each is sent the log for as long as its socket takes it, and nothing is held for it but what waits there.

    Of one run it is mostly the same bytes that wait for all of them.
    """

    async def load(stalled: Stalled) -> AsyncIterator[None]:
        for _ in range(RUNS):
            async with ask(gateway, 8) as creator:
                run_id = await run_of(creator)
                await creator.rest()
            for _ in range(FORM.stalled_readers // RUNS):
                await stalled.add(run_id)
                yield

    held = await growth(gateway, load, RUNS, "runs that have ended")
    assert held < CHUNK_BYTES


async def test_stalled_readers_of_a_run_that_goes_on(gateway: Service) -> None:
    """Readers come one after the other, and stall, while the run says its next chunks: what memory had of it when each
    came is not held for it."""

    async def load(stalled: Stalled) -> AsyncIterator[None]:
        async with ask(gateway, (FORM.stalled_readers + 1) * CHUNKS_BETWEEN, 20) as creator:
            run_id = await run_of(creator)
            for _ in range(FORM.stalled_readers):
                chunks = await creator.take(CHUNKS_BETWEEN)
                creator.connection.raw.clear()
                creator.seen.clear()
                await stalled.add(run_id, chunks[0].seq_id or 0)
                yield

    held = await growth(gateway, load, 1, "a run that goes on")
    assert held > GATEWAY.follower_buffer_bytes
