"""Each fault takes effect, and the world heals from it: else a run of the chaos would prove nothing."""

import asyncio
import contextlib
import itertools
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from runstream.schemas import new_agent_id
from tests.chaos.faults import ROLES, Fault, Injected, catalogue, line_faults
from tests.chaos.services import Service
from tests.chaos.world import KINDS, ROUTES, Plan, World, world_running
from tests.support.http import Cut, Event, fetch, open_stream
from tests.support.ingest import said
from tests.support.processes import python
from tests.support.waiting import wait_until

BRIEF = 0.1
MEBIBYTE = 2**20
AWAY = (OSError, Cut, AssertionError, TimeoutError)
"""What whoever talks to something that is being broken may meet."""

ON_LINKS = [fault.name for place in KINDS for fault in line_faults(place)]
ON_ROUTES = [fault.name for fault in line_faults(ROUTES)]
ON_PROCESSES = [f"{what} {role}" for role in ROLES for what in ("kill", "restart", "pause")]
ON_STORES = ["log full", "retention"]
ON_NODES = [f"{what} {which}" for which in ("leader", "follower") for what in ("kill", "restart", "pause", "isolate")]


# A writer that was away for a lease is fenced, and begins another run.
LIBRARY = """
import asyncio, sys, time
from runstream.broker.errors import BrokerError
from runstream.schemas import new_agent_id, new_conversation_id
from tests.support.library_writer import main
print("ready")
while True:
    try:
        asyncio.run(main(sys.argv[1], new_agent_id(), new_conversation_id(), "steady"))
    except BrokerError as error:
        print(repr(error))
        time.sleep(0.2)
"""


class Load:
    """Somebody on every link: what nobody uses shows nothing of what is done to it."""

    def __init__(self, world: World, directory: Path) -> None:
        self.world = world
        self.cursors: dict[str, int] = {}
        self._directory = directory

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        """Read at every gateway, write at every broker and in a process of its own, and go on whatever happens."""
        world = self.world
        world.writers.append(Service("library", python("-c", LIBRARY, world.library_nats_url), self._directory))
        world.cursors = lambda: list(self.cursors.values())
        await world.writers[0].start()
        tasks = [asyncio.create_task(self._again(self._read, url)) for url in world.gateway_urls]
        tasks += [asyncio.create_task(self._again(self._write, url)) for url in world.broker_urls]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _again(self, once: Callable[[str], Awaitable[None]], url: str) -> None:
        while True:
            with contextlib.suppress(*AWAY):
                await once(url)
            await asyncio.sleep(0.1)  # before it tries again

    async def _read(self, url: str) -> None:
        async with open_stream(url, f"/v1/agents/{new_agent_id()}/messages/stream", asking(10_000)) as stream:
            while (event := await stream.next(deadline=5)) is not None:
                if event.seq_id is not None:
                    self.cursors[url] = event.seq_id

    async def _write(self, url: str) -> None:
        opened = await fetch(url, "POST", "/ingest/v1/runs", json={"agent_id": new_agent_id()})
        assert opened.status == 201, opened
        run_id = opened.json["run_id"]
        for number in itertools.count():
            async with asyncio.timeout(5):
                stored = await fetch(url, "POST", f"/ingest/v1/runs/{run_id}/chunks", json=said(number))
            assert stored.status == 200, stored
            await asyncio.sleep(0.02)  # its pace


def asking(chunks: int) -> dict[str, object]:
    """A request to the demo agent."""
    return {"background": True, "input": json.dumps({"chunks": chunks, "interval_ms": 20})}


async def whole_run(url: str) -> list[Event]:
    """A run of five chunks, read to its end."""
    async with open_stream(url, f"/v1/agents/{new_agent_id()}/messages/stream", asking(5)) as stream:
        return await stream.rest()


@contextlib.asynccontextmanager
async def loaded(plan: Plan) -> AsyncIterator[World]:
    """A world with somebody on every link."""
    async with world_running(plan) as world, Load(world, plan.directory).running():
        yield world


@pytest_asyncio.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One nats-server, two brokers, two gateways."""
    async with loaded(Plan(tmp_path_factory.mktemp("world"), pace=BRIEF)) as running:
        yield running


@pytest_asyncio.fixture(scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Three nats-servers, a broker, a gateway."""
    plan = Plan(tmp_path_factory.mktemp("cluster"), nodes=3, brokers=1, gateways=1, pace=BRIEF)
    async with loaded(plan) as running:
        yield running


def fault_named(world: World, name: str) -> Fault:
    return next(fault for fault in catalogue(world) if fault.name == name)


async def survived(world: World, fault: Fault) -> Injected:
    """Do it to a world that is well, and see that it is well again, from end to end."""
    await world.healed()
    injected = await fault.inject(world, random.Random(7))
    assert injected.effective, injected
    assert injected.began < injected.ended
    await world.healed()
    for url in world.gateway_urls:

        async def answered(url: str = url) -> bool:
            with contextlib.suppress(*AWAY):
                said = [event.json.get("content") for event in (await whole_run(url)) if not event.is_done]
                return len([content for content in said if content]) == 5
            return False

        await wait_until(answered, 30, f"no whole run at {url} after {injected}")
    return injected


@pytest.mark.parametrize("name", ON_LINKS)
async def test_a_link_is_broken_and_mended(world: World, name: str) -> None:
    """Late, slow, in pieces, dead, cut: bytes or connections are counted that it happened to."""
    await survived(world, fault_named(world, name))


@pytest.mark.parametrize("name", ON_PROCESSES)
async def test_a_process_is_gone_and_comes_back(world: World, name: str) -> None:
    """Killed, stopped or paused: its process is another, or all its threads stood still."""
    await survived(world, fault_named(world, name))


@pytest.mark.parametrize("name", ["roll gateways", "roll brokers"])
async def test_all_of_a_kind_are_restarted(world: World, name: str) -> None:
    """One after the other, each is another process."""
    injected = await survived(world, fault_named(world, name))
    assert len(injected.target.split(",")) == 2


@pytest.mark.parametrize("name", ON_STORES)
async def test_the_log_refuses_and_forgets(world: World, name: str) -> None:
    """A write is refused at the limit; the log begins past where a reader stands."""
    await survived(world, fault_named(world, name))


@pytest.mark.parametrize("name", ON_NODES)
async def test_one_of_three_is_gone_and_comes_back(cluster: World, name: str) -> None:
    """Another leads in the leader's place, and a follower is not missed."""
    await survived(cluster, fault_named(cluster, name))


@pytest.mark.parametrize("name", ON_ROUTES)
async def test_what_is_between_two_nats_servers_is_broken_and_mended(cluster: World, name: str) -> None:
    """Whoever of the two connected, and however it knew of the other: there is no way round the line."""
    injected = await survived(cluster, fault_named(cluster, name))
    assert injected.target in {line.name for line in cluster.routes}


async def test_nats_servers_come_back_on_their_lines(cluster: World) -> None:
    """When all that they have is reset, and when one is started again: each pair has all its connections on its own."""
    await cluster.healed()
    assert [line.name for line in cluster.routes] == ["nats-0->nats-1", "nats-0->nats-2", "nats-1->nats-2"]
    assert all(line.reset() for line in cluster.routes)
    await cluster.healed()
    # Of two routes that were made at once one is given up, which may be a line's only one for a moment.
    await wait_until(lambda: all(line.passages for line in cluster.routes), 20, "a pair has no route on its own line")
    accepted = [line.counts.accepted for line in cluster.routes]
    injected = await survived(cluster, fault_named(cluster, "restart follower"))
    own = [injected.target in line.name.split("->") for line in cluster.routes]
    grown = [line.counts.accepted > before for line, before in zip(cluster.routes, accepted, strict=True)]
    assert sum(own) == 2
    assert all(is_grown for is_grown, is_own in zip(grown, own, strict=True) if is_own)


async def test_a_full_disk(tmp_path: Path) -> None:
    """No byte is free, a write is not answered, and after a restart all is as it was."""
    plan = Plan(tmp_path, brokers=1, gateways=1, disk_bytes=64 * MEBIBYTE, pace=BRIEF)
    async with loaded(plan) as small:
        injected = await survived(small, fault_named(small, "disk full"))
    assert "0 bytes free: no answer" in injected.evidence


def test_every_fault_has_a_test() -> None:
    """Of a world that has everything."""

    class Everything:
        nodes = brokers = gateways = writers = (None,)
        links = dict.fromkeys(KINDS, ())
        disk = True

    single = {fault.name for fault in catalogue(Everything())}  # type: ignore[arg-type]
    Everything.nodes = (None, None, None)  # type: ignore[assignment]
    both = single | {fault.name for fault in catalogue(Everything())}  # type: ignore[arg-type]
    rolled = {"roll gateways", "roll brokers", "disk full"}
    assert both == {*ON_LINKS, *ON_ROUTES, *ON_PROCESSES, *ON_STORES, *ON_NODES, *rolled}
