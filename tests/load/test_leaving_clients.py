"""Clients that come and leave, ten thousand a minute: memory does not grow, and nothing of them is left."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
import pytest_asyncio

from runstream.schemas import new_agent_id
from tests.load.census import MIB, Census, census, keys, logs, memory_bytes, metric
from tests.load.clients import Leaving
from tests.load.form import FORM
from tests.support.http import EventStream, open_stream
from tests.support.services import Service, service
from tests.support.stack import Puppet, message, stack_running
from tests.support.tasks import tasks
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(FORM.seconds)

WARM_UP = 0.4
"""The part of the clients that come before memory is looked at first: until then it grows by caches, and by what the
allocator keeps for the largest crowd there is."""
GROWTH = 8 * MIB
"""What memory may have grown by from then on: the allocator's, whose pieces come and go by the megabyte. In the long
form it is 140 bytes for each client; the least that could be left of one, a task or a follower, has a kilobyte."""
SETTLED_SECONDS = 30.0


class Scene(NamedTuple):
    """Processes under load, and what knows of them."""

    gateway: Service
    broker: Service
    nats_url: str
    monitor: str


@pytest_asyncio.fixture(scope="module")
async def scene(monitored_nats: tuple[str, str]) -> AsyncIterator[Scene]:
    """A gateway that lists a hundred runs, so that what it must remember is no growth; and a broker."""
    nats_url, monitor = monitored_nats
    few = {"RUNSTREAM_VIEW_RUNS": "100"}
    async with (
        service("broker", nats_url, "--agent", "demo") as broker,
        service("gateway", nats_url, env=few) as gateway,
    ):
        await broker.is_ready()
        await gateway.is_ready()
        yield Scene(gateway, broker, nats_url, monitor)


async def begun(base: str, stack: contextlib.AsyncExitStack, **knobs: float) -> tuple[str, EventStream]:
    """Start a run, and follow it; returns its id, too."""
    opened = open_stream(base, f"/v1/agents/{new_agent_id()}/messages/stream", message(knobs))
    stream = await stack.enter_async_context(opened)
    (ping,) = await stream.take(1)
    return str(ping.json["run_id"]), stream


async def counted_in(scene: Scene) -> list[Census]:
    """What the gateway and the broker have."""
    return [await census(each, scene.nats_url, scene.monitor) for each in (scene.gateway, scene.broker)]


async def nothing_is_new(scene: Scene, before: list[Census]) -> None:
    """Wait until nothing is there that was not there before."""
    now = await counted_in(scene)
    try:
        async with asyncio.timeout(SETTLED_SECONDS):
            while not all(each.is_within(was) for each, was in zip(now, before, strict=True)):
                now = await counted_in(scene)
    except TimeoutError:
        assert now == before


async def test_nothing_is_left_of_clients_that_leave(scene: Scene) -> None:
    """Creates, resumes and EventSources, of runs that go on and of one that has ended; closed, half closed and reset;
    before the headers, after them, and after an event."""
    gateway, broker, nats_url, _ = scene
    async with contextlib.AsyncExitStack() as stack:
        ended, stream = await begun(gateway.base, stack, chunks=50, interval_ms=0)
        await stream.rest()
        silent, stream = await begun(gateway.base, stack, silence_ms=3_600_000)
        slow, slowly = await begun(gateway.base, stack, chunks=1_000_000, interval_ms=100)
        leaving = Leaving(gateway.base, [new_agent_id() for _ in range(16)], [ended, silent, slow])
        warm_up = int(FORM.clients * WARM_UP)
        await leaving.come(64, FORM.clients_per_minute)  # Connections to NATS make their inboxes at the first use.

        async def is_quiet() -> bool:
            # Not by the keys: to read those of a hundred thousand runs takes most of a minute.
            followers, tails = [await metric(gateway, f"runstream_{what}") for what in ("followers", "live_tails")]
            return (followers, tails, await metric(broker, "runstream_runs_live")) == (2, 2, 2)

        await wait_until(is_quiet, 60, "clients that have left still follow")
        before = await counted_in(scene)
        rates = [await leaving.come(warm_up, FORM.clients_per_minute)]
        await wait_until(is_quiet, 60, "clients that have left still follow")
        warm = [memory_bytes(service.process.pid) for service in (gateway, broker)]
        rates.append(await leaving.come(FORM.clients - warm_up, FORM.clients_per_minute))
        await wait_until(is_quiet, 60, "clients that have left still follow")
        # Both times when nobody is there: a busy machine has more of them at once, and more so in the end.
        hot = [memory_bytes(service.process.pid) for service in (gateway, broker)]
        await nothing_is_new(scene, before)
        assert leaving.statuses == {200}
        counted = await keys(nats_url)
        assert counted == {
            "run": await logs(nats_url),
            "request": 2,
            "lease": 2,
            "agent": len(leaving.agents) + 3,
            "pulse": 1,
        }
        growth = [after - before for before, after in zip(warm, hot, strict=True)]
        print(
            f"\n{leaving.gone} clients, {min(rates):.0f} a minute; {counted['run']} runs; memory of gateway and broker "
            f"{[round(size / MIB, 1) for size in hot]} MiB, grown by {[round(size / MIB, 1) for size in growth]} MiB"
        )
        assert max(growth) <= GROWTH
        assert not slowly.is_complete


async def test_no_task_is_left_of_clients_that_leave(nats_url: str) -> None:
    """The same within one event loop, where tasks can be counted."""
    async with stack_running(nats_url, agent=Puppet()) as stack, contextlib.AsyncExitStack() as opened:
        ended, _ = await stack.finished({"chunks": 50, "interval_ms": 0})
        live, stream = await opened.enter_async_context(stack.live(1))
        leaving = Leaving(stack.base, [new_agent_id()], [ended, live])

        async def is_quiet() -> bool:
            leases = (await keys(nats_url))["lease"]
            return (stack.hub.seats.taken, stack.hub.live_tails, leases) == (1, 1, 1)

        await leaving.come(20, FORM.clients_per_minute)
        await wait_until(is_quiet, 20)
        before = tasks()
        await leaving.come(FORM.clients_in_process, FORM.clients_per_minute)
        await wait_until(is_quiet, 20, "clients that have left still follow")
        await wait_until(lambda: tasks() <= before, message="tasks are left")
        assert not stream.is_complete
