"""Letta's own path of a background run: its writer puts chunks into a Redis stream, its reader polls them out of it.

The writer is in a process of its own that is not counted. Letta has 50 connections to Redis, and each reader holds one
while it asks: with more readers than that, requests fail.
"""

import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

from tests.bench.environments import ROOT, python_of, redis_server
from tests.bench.load import Lines, Load
from tests.bench.peers.contender import Entry, Processes, get
from tests.bench.peers.serving import SERVERS, ready, redis

FOLLOWERS = 50


class Letta:
    """The reader, behind uvicorn, and the writer."""

    def __init__(self, base: str, processes: Processes, writer: Lines) -> None:
        self.base, self.processes = base, processes
        self._writer = writer

    async def open(self) -> str:
        return str(uuid.uuid4())

    def request(self, run: str) -> str:
        return get(f"/runs/{run}/stream")

    async def write(self, run: str, count: int, per_second: float) -> None:
        await self._writer.ask(json.dumps({"run": run, "count": count, "per_second": per_second}))

    async def close(self, run: str) -> None:
        await self.write(run, 0, 1)


@contextlib.asynccontextmanager
async def serving(_: Load) -> AsyncIterator[Letta]:
    """Start both, on a redis-server."""
    python = python_of("letta")
    async with redis() as (redis_pid, port):
        env = {"LETTA_REDIS_HOST": "127.0.0.1", "LETTA_REDIS_PORT": str(port), "PYTHONPATH": str(ROOT)}
        async with (
            ready(python, SERVERS / "letta_reader.py", **env) as (process, base),
            Lines.of(Path(python), SERVERS / "letta_writer.py", **env) as writer,
        ):
            yield Letta(base, Processes((process.pid,), (redis_pid,)), writer)


def install() -> None:
    """Install it, and what it needs."""
    python_of("letta")
    redis_server()


ENTRY = Entry("letta", "Letta 0.16.8", serving, install, FOLLOWERS)
