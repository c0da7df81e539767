"""NATS goes away under live runs, or its leader dies: no run is lost, none is executed twice."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from runstream.broker.topology import INDEX_STREAM
from tests.lifecycle.processes import Peer
from tests.lifecycle.scene import (
    LEASE_SECONDS,
    Say,
    Scene,
    check_life,
    ending_of,
    opened,
    run_of,
    said_by,
    scene_running,
)
from tests.support.http import EventStream
from tests.support.nats import NatsCluster, NatsServer
from tests.support.outages import paused, stopped
from tests.support.waiting import wait_until

LIVE = 100
CHUNKS = 8
LEADERLESS = 28
"""Chunks of a run that lives through an election: seven seconds of them."""


async def live_runs(
    scene: Scene, gateway: Peer, streams: contextlib.AsyncExitStack, seconds: float
) -> list[EventStream]:
    """Start runs, and follow them: of two one has said something, and one does not until the outage is over."""

    async def start(number: int) -> EventStream:
        is_silent = number % 2 == 1
        asked = {"interval": 0.1, "silence": 1.5 * seconds} if is_silent else {"interval": seconds / 4}
        say: Say = await scene.say(gateway, chunks=CHUNKS, **asked)
        stream = await streams.enter_async_context(opened(gateway, say))
        await stream.take(1 if is_silent else 2)
        return stream

    following = await asyncio.gather(*map(start, range(LIVE)))
    await wait_until(lambda: len(scene.journal("begun")) == LIVE, 30)
    return following


async def outlive(scene: Scene, outage: AbstractAsyncContextManager[None], seconds: float) -> None:
    """Let NATS be away that long while a hundred runs talk, or think; every one of them comes to its own end."""
    gateway = await scene.gateway(lease_seconds=scene.core.settings.lease_seconds)
    brokers = [await scene.broker(lease_seconds=scene.core.settings.lease_seconds) for _ in range(2)]
    async with contextlib.AsyncExitStack() as streams:
        following = await live_runs(scene, gateway, streams, seconds)
        async with outage:
            await asyncio.sleep(seconds)  # how long the outage is
        since = time.monotonic()
        await asyncio.gather(*(stream.rest(deadline=60) for stream in following))
        print(f"{LIVE} runs were complete {time.monotonic() - since:.2f} s after an outage of {seconds:g} s")
    assert {(ending_of(stream.seen), len(said_by(stream.seen))) for stream in following} == {("end_turn", CHUNKS)}
    ids = [str(stream.seen[0].json["run_id"]) for stream in following]
    assert sorted(line.run_id for line in scene.journal("begun")) == sorted(ids), "executed twice, or never"
    for run_id, stream in zip(ids, following, strict=True):
        await check_life(scene, run_id, stream.seen)
    await scene.counted(brokers, "runstream_runs_ended_total", LIVE)


@pytest.mark.parametrize("outage", [stopped, pytest.param(paused, marks=pytest.mark.long)])
async def test_an_outage_of_three_leases(
    scene: Scene, nats_server: NatsServer, outage: Callable[[NatsServer], AbstractAsyncContextManager[None]]
) -> None:
    """A hundred live runs outlive an outage of three leases: nothing is missing, nothing there twice."""
    await outlive(scene, outage(nats_server), 3 * LEASE_SECONDS)


@pytest.mark.long
async def test_an_outage_of_half_a_minute(nats_server: NatsServer, tmp_path: Path) -> None:
    """The same with a lease as it is by default, and NATS away for 30 s."""
    async with scene_running(nats_server.url, tmp_path, lease_seconds=10) as scene:
        await outlive(scene, stopped(nats_server), 30)


async def test_the_indexs_leader_dies(nats_cluster: NatsCluster, tmp_path: Path) -> None:
    """While the index of a cluster has no leader nobody can renew a lease, and nobody's run is ended for it."""
    async with scene_running(",".join(nats_cluster.urls), tmp_path, replicas=3) as scene:
        await nats_cluster.wait_ready(all_current=True)
        gateway, watchdog = await scene.gateway(), await scene.broker(has_agent=False)
        writer = await scene.broker()
        async with contextlib.AsyncExitStack() as streams:
            says = [await scene.say(gateway, chunks=LEADERLESS, interval=0.25) for _ in range(10)]
            following = [await streams.enter_async_context(opened(gateway, say)) for say in says]
            ids = [await run_of(stream) for stream in following]
            await asyncio.gather(*(stream.take(1) for stream in following))
            name = await wait_until(lambda: scene.core.leader(INDEX_STREAM))
            number = nats_cluster.names.index(name)
            await nats_cluster.kill(number)
            await asyncio.gather(*(stream.rest(deadline=40) for stream in following))
        await nats_cluster.heal()  # other streams may still be without a leader, and could not be asked
        assert {(ending_of(stream.seen), len(said_by(stream.seen))) for stream in following} == {
            ("end_turn", LEADERLESS)
        }
        for run_id, stream in zip(ids, following, strict=True):
            await check_life(scene, run_id, stream.seen)
        await scene.counted([writer, watchdog], "runstream_runs_ended_total", len(ids))
        assert sorted(line.run_id for line in scene.journal("begun")) == sorted(ids)
