"""The system under test: nats-servers, brokers and gateways, each a process of its own, and a line between any two.

Ports stay as they are for as long as the world lasts, so that whoever is started again is found again. Everything is
gone when it is left.

Two nats-servers of a cluster have several connections, some made by the one and some by the other, and which is chance:
they are all on the one line of those two. Every server names the others by their junctions, and advertises its own, so
that a route that it was told of leads there, too.
"""

import asyncio
import contextlib
import dataclasses
import functools
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from runstream.broker.embedded import EmbeddedServer
from runstream.schemas import new_run_id
from tests.chaos.disk import SmallDisk, small_disk
from tests.chaos.proxy import FAIR, HOST, Junction, Line, Link, Way, Weather
from tests.chaos.services import READY_SECONDS, Node, Service, ready
from tests.chaos.sockets import caller_of
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
HEARD_SECONDS = 4.0
"""A leader hears of each copy every second or two. One that has not heard of it for so long holds an election."""
LEAST_FREE_BYTES = 64 * 2**20
"""A small disk with less than this would soon be full by itself."""
KINDS = ("reader-gateway", "writer-broker", "gateway-nats", "broker-nats", "library-nats")
"""Who talks to whom, each by a link."""
ROUTES = "nats-nats"
"""The nats-servers of a cluster among each other."""


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
    def port_count(self) -> int:
        """How many it takes: a nats-server two, its junction, a link of the library's; a service two, and its links."""
        return 4 * self.nodes + (self.brokers + self.gateways) * (2 + self.nodes)

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
    """What runs, and the lines between."""

    def __init__(self, plan: Plan, nodes: list[Node], routes: list[Line], disk: SmallDisk | None) -> None:
        self.plan = plan
        self.nodes = nodes
        self.routes = routes
        """Between any two nodes of a cluster one."""
        self.disk = disk
        self.brokers: list[Service] = []
        self.gateways: list[Service] = []
        self.writers: list[Service] = []
        """Processes of writers: the load's, which puts them here."""
        self.links: dict[str, list[Link]] = {kind: [] for kind in KINDS}
        self.cursors: Callable[[], Sequence[int]] = tuple
        """Where readers stand: the load's, which puts it here."""
        self._apart: set[str] = set()

    def lines(self, place: str) -> Sequence[Line]:
        """All lines between two kinds."""
        return self.routes if place == ROUTES else self.links[place]

    @property
    def services(self) -> list[Service]:
        """Everything of runstream's that runs here."""
        return [*self.brokers, *self.gateways, *self.writers]

    @property
    def gateway_urls(self) -> list[str]:
        """Where readers find the gateways."""
        return [f"http://{HOST}:{link.port}" for link in self.links["reader-gateway"]]

    @property
    def broker_urls(self) -> list[str]:
        """Where writers find the brokers' ingest API."""
        return [f"http://{HOST}:{link.port}" for link in self.links["writer-broker"]]

    @property
    def library_nats_url(self) -> str:
        """Where library writers find NATS."""
        return nats_url(self.links["library-nats"])

    async def asked(self, subject: str, body: bytes = b"") -> dict[str, Any] | None:
        """One request to a node that runs, by no link: what is done is looked at from outside. None: no answer.

        Nobody asks one that the others are kept from: it still knows what was.
        """
        for node in self.nodes:
            if node.is_awake and node.name not in self._apart:
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

    async def unheard_seconds(self, name: str, stream: str = LOG) -> float:
        """How long the leader of a stream has not heard of a node's copy; 0 while nobody leads, or that node does."""
        info = await self.asked(f"$JS.API.STREAM.INFO.{stream}") or {}
        copies = info.get("cluster", {}).get("replicas") or []
        return next((copy["active"] / 1e9 for copy in copies if copy["name"] == name), 0.0)

    @contextlib.contextmanager
    def isolated(self, node: Node, weather: Weather) -> Iterator[Sequence[Line]]:
        """Put a weather on all that passes between a node and the others, in both directions, while the block lasts.

        It is a partition of the servers, and of nobody else: clients reach it as before. It answers them from what it
        has, stores nothing, and if it led anything, believes for some seconds that it still does.
        """
        lines = [line for line in self.routes if node.name in line.name.split("->")]
        self._apart.add(node.name)
        for line in lines:
            line.weather = weather
        try:
            yield lines
        finally:
            for line in lines:
                line.weather = FAIR
            self._apart.discard(node.name)

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

    @property
    def has_room(self) -> bool:
        """Whether what is stored goes on having room on the small disk, if there is one."""
        return self.disk is None or self.disk.free_bytes > LEAST_FREE_BYTES

    async def healed(self) -> None:
        """Wait until everything serves again. Raises `AssertionError` if it does not, or a line is not as it was."""
        assert not self.dead(), "; ".join(self.dead())
        lines = [line for place in (*KINDS, ROUTES) for line in self.lines(place)]
        foul = [line.name for line in lines if line.weather is not FAIR]
        assert not foul, f"no fair weather at {foul}"
        for node in self.nodes:
            await ready(node)
        if len(self.nodes) > 1:
            # Of two that have lost each other each comes to the third, and all streams lead: it is no whole cluster.
            await wait_until(lambda: all(line.passages for line in self.routes), CLUSTER_SECONDS, "routes are missing")
            for node in self.nodes:
                # A node that was away may have begun an election, which nobody hears of before they hear of it.
                settled = functools.partial(
                    streams_lead, node.embedded.url, all_current=True, heard_seconds=HEARD_SECONDS
                )
                await wait_until(settled, CLUSTER_SECONDS, f"the cluster has not settled, says {node.name}")
        await wait_until(self.is_writable, HEAL_SECONDS, f"{LOG} takes no message")
        for service in self.services:
            await ready(service)


def nats_url(links: Iterable[Link]) -> str:
    """Where NATS is, for one who comes by these links."""
    return ",".join(f"nats://{HOST}:{link.port}" for link in links)


@contextlib.asynccontextmanager
async def world_running(plan: Plan) -> AsyncIterator[World]:
    """A world in which everything serves."""
    async with contextlib.AsyncExitStack() as stack:
        disk = await stack.enter_async_context(small_disk(plan.disk_bytes)) if plan.disk_bytes else None
        # All at once: of two that are drawn one after the other, the second may be the first, which nobody has yet.
        ports = iter(free_ports(plan.port_count))
        nodes, routes = await _nodes(plan, disk, ports, stack)
        world = World(plan, nodes, routes, disk)
        await _links(world, "library", ports, stack)
        for number in range(plan.brokers):
            argv = ["broker", "--agent", plan.agent]
            service = await _service(world, f"broker-{number}", argv, "writer", ports=ports, stack=stack)
            world.brokers.append(service)
        for number in range(plan.gateways):
            service = await _service(world, f"gateway-{number}", ["gateway"], "reader", ports=ports, stack=stack)
            world.gateways.append(service)
        # Above the links: what is told to end must still be able to reach NATS.
        stack.push_async_callback(world.close)
        for service in world.services:
            await service.start()
        for service in world.services:
            await ready(service, READY_SECONDS)
        yield world


async def _nodes(
    plan: Plan, disk: SmallDisk | None, ports: Iterator[int], stack: contextlib.AsyncExitStack
) -> tuple[list[Node], list[Line]]:
    """The nats-servers, each with its own store, and the lines between them."""
    names = [f"nats-{number}" for number in range(plan.nodes)]
    for_clients, for_routes, doors = (dict(zip(names, ports, strict=False)) for _ in range(3))
    nodes: list[Node] = []
    lines = {pair: Line("->".join(pair)) for pair in itertools.combinations(names, 2)}

    def who(at: int, port: int) -> str | None:
        return caller_of(port, at, {node.name: node.pid for node in nodes})

    for name in names if lines else ():
        target, callers = (HOST, for_routes[name]), _callers(name, lines)
        junction = Junction(doors[name], target, callers, functools.partial(who, doors[name]))
        await stack.enter_async_context(junction.running())
    for name in names:
        server = EmbeddedServer(
            (plan.directory if disk is None else disk.path) / name,
            port=for_clients[name],
            server_name=name,
            start_timeout=READY_SECONDS,
            extra_config=_cluster_config(for_routes[name], name, doors) if lines else "",
        )
        nodes.append(Node(name, server))
        stack.push_async_callback(nodes[-1].close)
        await server.start()
    for node in nodes:
        settled = functools.partial(streams_lead, node.embedded.url, all_current=False)
        await wait_until(settled, CLUSTER_SECONDS, f"{node.name} has no JetStream")
    return nodes, list(lines.values())


def _callers(name: str, lines: Mapping[tuple[str, str], Line]) -> dict[str, tuple[Line, Way]]:
    """Whose connections come to a node: the line of each, and in which direction of it goes what they say."""
    firsts = {near: (line, Way.UP) for (near, far), line in lines.items() if far == name}
    seconds = {far: (line, Way.DOWN) for (near, far), line in lines.items() if near == name}
    return {**firsts, **seconds}


def _cluster_config(port: int, name: str, doors: Mapping[str, int]) -> str:
    others = ", ".join(f'"nats://{HOST}:{door}"' for other, door in doors.items() if other != name)
    # A client that was told where the others are would go there by no link. A server is told so as well, and goes there
    # unless that is one of its routes already, by their very words: what is advertised is what the others have.
    return f"""cluster {{
  name: "chaos", listen: "{HOST}:{port}", advertise: "{HOST}:{doors[name]}", no_advertise: true
  routes: [{others}]
}}"""


async def _links(world: World, name: str, ports: Iterator[int], stack: contextlib.AsyncExitStack) -> str:
    """Links from `name` to every nats-server; where it finds NATS by them."""
    links = [Link(f"{name}->{node.name}", next(ports), node.address) for node in world.nodes]
    world.links[f"{name.partition('-')[0]}-nats"] += links
    for link in links:
        await stack.enter_async_context(link.running())
    return nats_url(links)


async def _service(
    world: World,
    name: str,
    command: Sequence[str],
    who: str,
    *,
    ports: Iterator[int],
    stack: contextlib.AsyncExitStack,
) -> Service:
    """A service, not started yet, with its links to NATS, and one for those who come to it."""
    port, near = next(ports), next(ports)
    url = await _links(world, name, ports, stack)
    argv = runstream(*command, "--port", str(port), "--nats-url", url)
    service = Service(name, argv, world.plan.directory, env=world.plan.settings, url=f"http://{HOST}:{port}")
    link = await stack.enter_async_context(Link(f"{who}->{name}", near, (HOST, port)).running())
    world.links[f"{who}-{name.partition('-')[0]}"].append(link)
    return service
