"""Starts the servers of peers, and the redis-server that some of them keep their streams in."""

import contextlib
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from tests.bench.environments import ROOT, redis_server
from tests.support.processes import RunningProcess, running
from tests.support.waiting import wait_until

SERVERS = Path(__file__).parent / "servers"
START_SECONDS = 60.0
"""Letta imports for ten seconds, on a machine that does nothing else."""


@contextlib.asynccontextmanager
async def ready(*argv: str | Path, **env: str) -> AsyncIterator[tuple[RunningProcess, str]]:
    """A server that has said `ready <url>`, and its url."""
    given = {"PYTHONPATH": str(ROOT), "NODE_DISABLE_COMPILE_CACHE": "1", **env}
    async with running(*argv, env=given, cwd=ROOT) as process:
        line = await process.wait_for_line("^ready ", timeout=START_SECONDS)
        yield process, line.split()[1]


def free_port() -> int:
    """A port that nobody has, for servers that cannot find one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def redis() -> AsyncIterator[tuple[int, int]]:
    """A redis-server with nothing in it that keeps nothing: its process and its port."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="runstream-bench-") as directory:
        options = ("--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no", "--dir", directory)
        async with running(redis_server(), *options) as process:
            await wait_until(lambda: _listens(port), START_SECONDS, process.report())
            yield process.pid, port


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def without_settings() -> None:
    """Forget what whoever measures has set for runstream or Letta: it would be measured, too."""
    for name in [name for name in os.environ if name.startswith(("RUNSTREAM_", "LETTA_"))]:
        del os.environ[name]
