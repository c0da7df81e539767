"""Real nats-servers for tests: one, or a cluster of three, that can be killed, stopped and paused."""

import asyncio
import contextlib
import functools
import json
import math
import os
import random
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

from testcontainers.core.container import DockerContainer

from runstream.broker.embedded import EmbeddedServer, read_info
from tests.support.processes import is_stopped
from tests.support.waiting import wait_until

IMAGE = "nats:2.12-alpine"
# A SIGKILLed server is back in a tenth of a second, a container in some seconds; CI machines are slow.
READY_SECONDS = 20.0
# An election takes 4 to 9 s, and a machine of two cores runs three servers and the tests.
CLUSTER_SECONDS = 60.0
PORTS = (10_000, 32_000)


class NatsServer(Protocol):
    """One nats-server with JetStream, at the same `url` for as long as the test module runs.

    `kill` (SIGKILL) returns when the server is dead, and a supervisor starts it again; `stop` and `start`
    make an outage as long as the test wants; `pause` and `resume` one in which connections stay open.
    `wait_ready` returns when it answers and JetStream is ready.
    """

    url: str

    @property
    def pid(self) -> int: ...
    async def kill(self) -> None: ...
    async def stop(self, how: signal.Signals = signal.SIGTERM) -> None: ...
    async def start(self) -> None: ...
    async def pause(self) -> None: ...
    async def resume(self) -> None: ...
    async def wait_ready(self, timeout: float = READY_SECONDS) -> None: ...


class LocalServer:
    """The embedded server, as the product runs it."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.embedded = server
        self.url = server.url

    async def kill(self) -> None:
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        await wait_until(lambda: self.embedded.pid != pid, READY_SECONDS, "the killed server still runs")

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        await self.embedded.stop(how)

    async def start(self) -> None:
        await self.embedded.start()

    async def pause(self) -> None:
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)
        # The signal has been sent, and its threads stop one after the other: until then they answer.
        await wait_until(lambda: is_stopped(pid), message="the server does not stop")

    async def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    async def wait_ready(self, timeout: float = READY_SECONDS) -> None:
        await wait_until(lambda: answers(self.url), timeout, f"no JetStream at {self.url}")

    @property
    def pid(self) -> int:
        """Its process."""
        assert self.embedded.pid is not None, "the server does not run"
        return self.embedded.pid


class ContainerServer:
    """A server in a container, for machines that have Docker and want the image that production runs."""

    def __init__(self, container: DockerContainer, url: str) -> None:
        self._container = container
        self.url = url

    @property
    def pid(self) -> int:
        """Its process, as the host sees it."""
        wrapped: Any = self._container.get_wrapped_container()
        wrapped.reload()
        return int(wrapped.attrs["State"]["Pid"])

    async def kill(self) -> None:
        await self._docker("kill")
        await self.start()

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        await self._docker("kill", signal=how.name)
        await self._docker("wait")

    async def start(self) -> None:
        await self._docker("start")
        await self.wait_ready()

    async def pause(self) -> None:
        await self._docker("pause")

    async def resume(self) -> None:
        await self._docker("unpause")

    async def wait_ready(self, timeout: float = READY_SECONDS) -> None:
        await wait_until(lambda: answers(self.url), timeout, f"no JetStream at {self.url}")

    async def _docker(self, verb: str, **options: str) -> None:
        wrapped: Any = self._container.get_wrapped_container()
        await asyncio.to_thread(getattr(wrapped, verb), **options)


@contextlib.asynccontextmanager
async def nats_server_running(directory: Path) -> AsyncIterator[NatsServer]:
    """A fresh server below `directory`; RUNSTREAM_TEST_NATS=testcontainers puts it in a container."""
    chosen = os.environ.get("RUNSTREAM_TEST_NATS", "embedded")
    if chosen == "embedded":
        async with EmbeddedServer(directory, start_timeout=READY_SECONDS) as server:
            yield LocalServer(server)
    elif chosen == "testcontainers":
        (port,) = free_ports(1)
        container = DockerContainer(IMAGE).with_command("-js").with_bind_ports(4222, port)
        await asyncio.to_thread(container.start)
        try:
            host = await asyncio.to_thread(container.get_container_host_ip)
            in_container = ContainerServer(container, f"nats://{host}:{port}")
            await in_container.wait_ready()
            yield in_container
        finally:
            await asyncio.to_thread(container.stop)
    else:
        complaint = f"RUNSTREAM_TEST_NATS is embedded or testcontainers, not {chosen!r}"
        raise AssertionError(complaint)


class NatsCluster:
    """Three nats-servers, one JetStream cluster; node i is reached at `urls[i]`, dead or alive."""

    def __init__(self, nodes: list[EmbeddedServer]) -> None:
        self._nodes = nodes

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self._nodes]

    @property
    def names(self) -> list[str]:
        """The server names, as stream and consumer infos give them for leaders and replicas."""
        return [node_name(number) for number in range(len(self._nodes))]

    async def kill(self, number: int) -> None:
        """SIGKILL; it stays down until `start`."""
        await self._nodes[number].stop(signal.SIGKILL)

    async def stop(self, number: int) -> None:
        """In order; it stays down until `start`."""
        await self._nodes[number].stop()

    async def start(self, number: int) -> None:
        """Back with its data, and up to date if the others run."""
        await self._nodes[number].start()
        await self.wait_ready(all_current=all(node.pid is not None for node in self._nodes))

    def pause(self, number: int) -> None:
        """SIGSTOP: its connections stay open, and nothing moves on them."""
        self._signal(number, signal.SIGSTOP)

    def resume(self, number: int) -> None:
        self._signal(number, signal.SIGCONT)

    async def heal(self) -> None:
        """All nodes running again, whatever a test did to them, and all replicas up to date."""
        for number, node in enumerate(self._nodes):
            if node.pid is not None:
                self.resume(number)
            await node.start()
        await self.wait_ready(all_current=True)

    async def wait_ready(self, timeout: float = CLUSTER_SECONDS, *, all_current: bool = False) -> None:
        """Every node that runs answers JetStream requests, and every stream has a leader."""
        for node in self._nodes:
            if node.pid is not None:
                settled = functools.partial(streams_lead, node.url, all_current=all_current)
                complaint = f"the cluster has not settled, says {node.url}: see {node.log_file}"
                await wait_until(settled, timeout, complaint)

    def _signal(self, number: int, what: signal.Signals) -> None:
        pid = self._nodes[number].pid
        assert pid is not None, f"node {number} does not run"
        os.kill(pid, what)


@contextlib.asynccontextmanager
async def nats_cluster_running(directory: Path, size: int = 3) -> AsyncIterator[NatsCluster]:
    """A cluster of `size` nodes with a leader, each with its own store below `directory`."""
    routes = free_ports(size)
    nodes = [
        EmbeddedServer(
            directory / node_name(number),
            server_name=node_name(number),
            start_timeout=READY_SECONDS,
            extra_config=_cluster_config(routes, number),
        )
        for number in range(size)
    ]
    cluster = NatsCluster(nodes)
    try:
        for node in nodes:
            await node.start()
        await cluster.wait_ready()
        yield cluster
    finally:
        for node in nodes:
            if node.pid is not None:
                os.kill(node.pid, signal.SIGCONT)
        await asyncio.gather(*(node.stop() for node in nodes))


def node_name(number: int) -> str:
    return f"node-{number}"


def _cluster_config(routes: list[int], number: int) -> str:
    others = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
    return f'cluster {{ name: "tests", listen: "127.0.0.1:{routes[number]}", routes: [{others}] }}'


def free_ports(count: int) -> list[int]:
    """Loopback ports that were free a moment ago, all different.

    From below those that systems give to whoever asks for any: another process, or a connection of this one, would
    have taken one of these again before its server is there.
    """
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            bound = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                port = random.SystemRandom().randrange(*PORTS)
                bound.bind(("127.0.0.1", port))
                found.append(port)
    return found


async def answers(url: str) -> bool:
    """Whether a nats-server with JetStream is there now."""
    host, _, port = url.removeprefix("nats://").rpartition(":")
    try:
        # A paused server accepts connections, the kernel does that for it, and says nothing.
        async with asyncio.timeout(1):
            return (await read_info(host, int(port))).jetstream
    except (OSError, ValueError):
        return False


async def jetstream_answers(url: str) -> bool:
    """Whether the JetStream API answers there now: in a cluster it does not without a leader."""
    return await ask(url, "$JS.API.INFO") is not None


async def streams_lead(url: str, *, all_current: bool, heard_seconds: float = math.inf) -> bool:
    """Whether every stream has a leader, and, if asked for, no replica that lags behind or is away.

    `heard_seconds` is how long a leader may not have heard of a replica: that one is away it says only 10 s later.
    """
    listed = await ask(url, "$JS.API.STREAM.LIST")
    if listed is None or listed.get("missing"):
        return False
    clusters = [stream.get("cluster", {}) for stream in listed["streams"] or []]
    replicas = [replica for cluster in clusters for replica in cluster.get("replicas") or []]
    whole = all(
        replica["current"] and not replica.get("offline") and replica["active"] < heard_seconds * 1e9
        for replica in replicas
    )
    return all("leader" in cluster for cluster in clusters) and (whole or not all_current)


async def ask(url: str, subject: str, timeout: float = 1.0) -> dict[str, Any] | None:
    """One request to the JetStream API and its answer; None for an error, silence or no server."""
    answer = await request(url, subject, timeout=timeout)
    return None if answer is None or "error" in answer else answer


async def request(url: str, subject: str, body: bytes = b"", *, timeout: float = 1.0) -> dict[str, Any] | None:
    """One request and its answer, which may be an error; None for silence or no server.

    The NATS protocol by hand: nats-py leaks the socket of a connection that fails half made.
    """
    host, _, port = url.removeprefix("nats://").rpartition(":")
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        async with asyncio.timeout(timeout), connected(host, int(port)) as (reader, writer):
            writer.write(b'CONNECT {"verbose":false}\r\nSUB answer 1\r\n')
            writer.write(f"PUB {subject} answer {len(body)}\r\n".encode() + body + b"\r\n")
            while True:
                line = await reader.readuntil(b"\n")
                if line.startswith(b"MSG"):
                    answer: dict[str, Any] = json.loads(await reader.readexactly(int(line.split()[-1])))
                    return answer
    return None


@contextlib.asynccontextmanager
async def connected(host: str, port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A TCP connection, closed when the block ends."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
