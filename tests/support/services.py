"""`runstream gateway` and `runstream broker` as processes of their own, each on a port that was chosen beforehand."""

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from tests.support.http import Cut, Reply, fetch
from tests.support.nats import free_ports
from tests.support.processes import RunningProcess, running, runstream

ROOT = Path(__file__).parents[2]
SOURCE = {"PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("schemas", "broker", "gateway"))}
START_SECONDS = 20.0
QUICK = {"RUNSTREAM_LEASE_SECONDS": "1", "RUNSTREAM_DRAIN_SECONDS": "0"}
"""What tests do not wait for, unless it is what they are about."""


class Service:
    """A process that serves HTTP on a port that was chosen beforehand."""

    def __init__(self, process: RunningProcess, port: int) -> None:
        self.process = process
        self.port = port
        self.base = f"http://127.0.0.1:{port}"

    async def get(self, path: str) -> Reply:
        return await fetch(self.base, "GET", path)

    async def answers(self, path: str, status: int) -> bool:
        with contextlib.suppress(OSError, EOFError, Cut):
            return (await self.get(path)).status == status
        return False

    async def is_ready(self) -> None:
        await self.process.wait_for_line("^ready ", START_SECONDS)

    async def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        assert await self.process.wait() == -signal.SIGKILL


@contextlib.asynccontextmanager
async def service(
    kind: str, nats_url: str, *args: str, env: Mapping[str, str] | None = None, port: int | None = None
) -> AsyncIterator[Service]:
    """One of the two commands; whether it is ready is for the test to find out."""
    if port is None:
        (port,) = free_ports(1)
    argv = runstream(kind, "--nats-url", nats_url, "--port", str(port), *args)
    async with running(*argv, env={**SOURCE, **QUICK, **(env or {})}) as process:
        yield Service(process, port)
