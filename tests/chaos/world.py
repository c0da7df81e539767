"""The system under test: nats-servers, brokers and gateways, each a process of its own, and a link between any two.

Ports stay as they are for as long as the world lasts, so that whoever is started again is found again. Everything is
gone when it is left.
"""

import asyncio
import contextlib
import dataclasses
import functools
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from runstream.broker.embedded import EmbeddedServer
from runstream.schemas import new_run_id
from tests.chaos.disk import SmallDisk, small_disk
from tests.chaos.proxy import FAIR, Link
from tests.chaos.services import READY_SECONDS, Node, Service, ready
from tests.support.nats import free_ports, request, streams_lead
from tests.support.processes import runstream
from tests.support.waiting import wait_until

LOG = "RUNS_0"
SILENCE = "no answer"
"""What a write came to that nobody answered."""
UNAVAILABLE = 503
"""What the JetStream API says while nobody leads."""
ASK_SECONDS = 2.0
CLUSTER_SECONDS = 90.0
"""An election takes 4 to 9 s, and a node that was away has to catch up, on two cores that are busy."""
HEAL_SECONDS = 60.0
KINDS = ("reader-gateway", "writer-broker", "gateway-nats", "broker-nats", "library-nats")
"""Who talks to whom."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a world is to be made of."""

    directory: Path
    nodes: int = 1
    """1, or 3: a cluster, with three copies of everything."""
    brokers: int = 2
    gateways: int = 2
    agent: str = "demo"
    disk_bytes: int = 0
    """The size of a file system of its own for the nats-server; 0: it has what the directory has."""
    pace: float = 1.0
    """How long faults last, of what they would by themselves."""
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def settings(self) -> dict[str, str]:
        """The environment of every service: short bounds, so that minutes show what would take hours."""
        return {
            "RUNSTREAM_LEASE_SECONDS": "2",
            "RUNSTREAM_DRAIN_SECONDS": "2",
            "RUNSTREAM_KEEPALIVE_SECONDS": "5",
            "RUNSTREAM_REPLICAS": str(self.nodes),
            "RUNSTREAM_LOG_JSON": "true",
            **self.env,
        }


class World:
    """What runs, and the links between."""

    def __init__(self, plan: Plan, nodes: list[Node], disk: SmallDisk | None) -> None:
        self.plan = plan
        self.nodes = nodes
        self.disk = disk
        self.brokers: list[Service] = []
        self.gateways: list[Service] = []
        self.writers: list[Service] = []
        """Processes of writers: the load's, which puts them here."""
        self.links: dict[str, list[Link]] = {kind: [] for kind in KINDS}
        self.cursors: Callable[[], Sequence[int]] = tuple
        """Where readers stand: the load's, which puts it here."""

    @property
    def services(self) -> list[Service]:
        """Everything of runstream's that runs here."""
        return [*self.brokers, *self.gateways, *self.writers]

    @property
    def gateway_urls(self) -> list[str]:
        """Where readers find the gateways."""
        return [f"http://127.0.0.1:{link.port}" for link in self.links["reader-gateway"]]

    @property
    def broker_urls(self) -> list[str]:
        """Where writers find the brokers' ingest API."""
        return [f"http://127.0.0.1:{link.port}" for link in self.links["writer-broker"]]

    @property
    def library_nats_url(self) -> str:
        """Where library writers find NATS."""
        return nats_url(self.links["library-nats"])

    async def asked(self, subject: str, body: bytes = b"") -> dict[str, Any] | None:
        """One request to a node that runs, by no link: what is done is looked at from outside. None: no answer."""
        for node in self.nodes:
            if node.is_awake:
                return await request(node.embedded.url, subject, body, timeout=ASK_SECONDS)
        return None

    async def api(self, call: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Call the JetStream API, and again until it answers. Raises `AssertionError` for what it refuses."""

        async def answered() -> dict[str, Any] | None:
            answer = await self.asked(f"$JS.API.{call}", b"" if body is None else msgspec.json.encode(body))
            is_final = answer is not None and answer.get("error", {}).get("code") != UNAVAILABLE
            return answer if is_final else None

        answer = await wait_until(answered, CLUSTER_SECONDS, f"JetStream does not answer {call}") or {}
        assert "error" not in answer, f"{call} is refused: {answer['error']}"
        return answer

    async def state(self, stream: str = LOG) -> dict[str, Any]:
        """What JetStream knows of a stream: `config`, `state`, `cluster`."""
        return await self.api(f"STREAM.INFO.{stream}")

    async def leader(self, stream: str = LOG) -> str:
        """The name of the node that leads a stream; empty while none does."""
        info = await self.asked(f"$JS.API.STREAM.INFO.{stream}") or {}
        return str(info.get("cluster", {}).get("leader", ""))

    async def linger(self, seconds: float) -> None:
        """Leave things as they are for so long, at the plan's pace."""
        await asyncio.sleep(seconds * self.plan.pace)

    async def probe(self, size: int = 1024) -> str:
        """Store a message that belongs to no run; returns why it was refused, empty if it was stored."""
        answer = await self.asked(f"runs.0.{new_run_id()}", b"." * size)
        if answer is None:
            return SILENCE
        return f"{answer['error']['err_code']} {answer['error']['description']}" if "error" in answer else ""

    async def is_writable(self) -> bool:
        """Whether the log takes a message."""
        return not await self.probe()

    async def close(self) -> None:
        """End all services, at once."""
        await asyncio.gather(*(service.close() for service in self.services))

    def dead(self) -> list[str]:
        """Who has ended without being asked to, and how."""
        return [service.obituary() for service in self.services if service.pid is None]

    async def healed(self) -> None:
        """Wait until everything serves again. Raises `AssertionError` if it does not, or a link is not as it was."""
        assert not self.dead(), "; ".join(self.dead())
        foul = [link.name for links in self.links.values() for link in links if link.weather is not FAIR]
        assert not foul, f"no fair weather at {foul}"
        for node in self.nodes:
            await ready(node)
        if len(self.nodes) > 1:
            for node in self.nodes:
                settled = functools.partial(streams_lead, node.embedded.url, all_current=True)
                await wait_until(settled, CLUSTER_SECONDS, f"the cluster has not settled, says {node.name}")
        await wait_until(self.is_writable, HEAL_SECONDS, f"{LOG} takes no message")
        for service in self.services:
            await ready(service)


def nats_url(links: Iterable[Link]) -> str:
    """Where NATS is, for one who comes by these links."""
    return ",".join(f"nats://127.0.0.1:{link.port}" for link in links)


@contextlib.asynccontextmanager
async def world_running(plan: Plan) -> AsyncIterator[World]:
    """A world in which everything serves."""
    async with contextlib.AsyncExitStack() as stack:
        disk = await stack.enter_async_context(small_disk(plan.disk_bytes)) if plan.disk_bytes else None
        nodes = await _nodes(plan, disk, stack)
        world = World(plan, nodes, disk)
        await _links(world, "library", stack)
        for number in range(plan.brokers):
            argv = ["broker", "--agent", plan.agent]
            world.brokers.append(await _service(world, f"broker-{number}", argv, "writer", stack))
        for number in range(plan.gateways):
            world.gateways.append(await _service(world, f"gateway-{number}", ["gateway"], "reader", stack))
        # Above the links: what is told to end must still be able to reach NATS.
        stack.push_async_callback(world.close)
        for service in world.services:
            await service.start()
        for service in world.services:
            await ready(service, READY_SECONDS)
        yield world


async def _nodes(plan: Plan, disk: SmallDisk | None, stack: contextlib.AsyncExitStack) -> list[Node]:
    """The nats-servers, each with its own store."""
    ports, routes = free_ports(plan.nodes), free_ports(plan.nodes)
    nodes = []
    for number in range(plan.nodes):
        name = f"nats-{number}"
        server = EmbeddedServer(
            (plan.directory if disk is None else disk.path) / name,
            port=ports[number],
            server_name=name,
            start_timeout=READY_SECONDS,
            extra_config=_cluster_config(routes, number) if plan.nodes > 1 else "",
        )
        nodes.append(Node(name, server))
        stack.push_async_callback(nodes[-1].close)
        await server.start()
    for node in nodes:
        settled = functools.partial(streams_lead, node.embedded.url, all_current=False)
        await wait_until(settled, CLUSTER_SECONDS, f"{node.name} has no JetStream")
    return nodes


def _cluster_config(routes: Sequence[int], number: int) -> str:
    others = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
    # A client that was told where the others are would go there by no link.
    return f"""cluster {{
  name: "chaos", listen: "127.0.0.1:{routes[number]}", no_advertise: true
  routes: [{others}]
}}"""


async def _links(world: World, name: str, stack: contextlib.AsyncExitStack) -> str:
    """Links from `name` to every nats-server; where it finds NATS by them."""
    links = [
        Link(f"{name}->{node.name}", port, node.address)
        for node, port in zip(world.nodes, free_ports(len(world.nodes)), strict=True)
    ]
    world.links[f"{name.partition('-')[0]}-nats"] += links
    for link in links:
        await stack.enter_async_context(link.running())
    return nats_url(links)


async def _service(
    world: World, name: str, command: Sequence[str], who: str, stack: contextlib.AsyncExitStack
) -> Service:
    """A service, not started yet, with its links to NATS, and one for those who come to it."""
    port, near = free_ports(2)
    url = await _links(world, name, stack)
    argv = runstream(*command, "--port", str(port), "--nats-url", url)
    service = Service(name, argv, world.plan.directory, env=world.plan.settings, url=f"http://127.0.0.1:{port}")
    link = await stack.enter_async_context(Link(f"{who}->{name}", near, ("127.0.0.1", port)).running())
    world.links[f"{who}-{name.partition('-')[0]}"].append(link)
    return service
