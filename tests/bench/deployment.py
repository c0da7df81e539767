"""runstream as it is deployed: a nats-server, a broker with the demo agent and a gateway, a process each."""

import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from runstream.broker.embedded import EmbeddedServer
from runstream.schemas import new_agent_id
from tests.bench.exchange import post
from tests.bench.load import Load, LoadProcess
from tests.bench.peers.contender import Entry, Processes
from tests.support.http import fetch
from tests.support.processes import RunningProcess, running, runstream

START_SECONDS = 60.0


class Deployment:
    """What runs. Runs are written by a platform's process, through the library, which is not counted."""

    def __init__(self, nats: EmbeddedServer, broker: RunningProcess, gateway: RunningProcess, load: Load) -> None:
        assert nats.pid is not None
        self.nats_url = nats.url
        self.nats_pid, self.broker_pid, self.gateway_pid = nats.pid, broker.pid, gateway.pid
        self.base = _url(gateway)
        self.broker_base = _url(broker)
        self.processes = Processes((self.gateway_pid,), (self.nats_pid,))
        self._load = load

    async def writer(self) -> LoadProcess:
        """Give the platform's process."""
        return await self._load.process("writer")

    async def open(self) -> str:
        run: str = await (await self.writer()).call("open")
        return run

    def request(self, run: str) -> str:
        return post(path_of(run), {}).decode()

    async def write(self, run: str, count: int, per_second: float) -> None:
        await (await self.writer()).call("publish", run_id=run, chunks=count, per_second=per_second)

    async def close(self, run: str) -> None:
        await (await self.writer()).call("end", run_id=run)

    async def metric(self, name: str) -> float:
        """One of the gateway's metrics."""
        text = (await fetch(self.base, "GET", "/metrics")).body.decode()
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


def path_of(run: str) -> str:
    """Where a run is followed, and resumed."""
    return f"/v1/runs/{run}/stream"


def create_request() -> tuple[str, dict[str, object]]:
    """Ask the demo agent for one chunk: a path and a body."""
    return f"/v1/agents/{new_agent_id()}/messages/stream", {
        "background": True,
        "input": '{"chunks": 1, "interval_ms": 0}',
    }


def _url(service: RunningProcess) -> str:
    return next(line for line in service.lines if line.startswith("ready ")).split()[1]


@contextlib.asynccontextmanager
async def serving(load: Load) -> AsyncIterator[Deployment]:
    """Start all of it on free ports, with a store of its own."""
    with tempfile.TemporaryDirectory(prefix="runstream-bench-") as directory:
        async with (
            EmbeddedServer(Path(directory), start_timeout=START_SECONDS) as nats,
            _services(nats.url) as services,
        ):
            deployment = Deployment(nats, *services, load)
            writer = await deployment.writer()
            await writer.call("connect", nats_url=nats.url)
            try:
                yield deployment
            finally:
                await writer.call("disconnect")


@contextlib.asynccontextmanager
async def _services(nats_url: str) -> AsyncIterator[tuple[RunningProcess, RunningProcess]]:
    given = ("--nats-url", nats_url, "--port", "0", "--log-level", "warning")
    async with running(*runstream("broker", *given, "--agent", "demo")) as broker:
        await broker.wait_for_line("^ready ", timeout=START_SECONDS)
        async with running(*runstream("gateway", *given)) as gateway:
            await gateway.wait_for_line("^ready ", timeout=START_SECONDS)
            yield broker, gateway


ENTRY = Entry("runstream", "runstream", serving)
