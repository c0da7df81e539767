"""resumable-stream on Node: who makes a stream publishes each chunk for each follower through Redis."""

import contextlib
import uuid
from collections.abc import AsyncIterator

from tests.bench.environments import NODE, node_with_peers, redis_server
from tests.bench.load import Load, LoadProcess
from tests.bench.peers.contender import Entry, Processes, get
from tests.bench.peers.serving import ready, redis


class ResumableStream:
    """One Node process that makes streams and has them followed."""

    def __init__(self, base: str, processes: Processes, sender: LoadProcess) -> None:
        self.base, self.processes = base, processes
        self._sender = sender

    async def open(self) -> str:
        await self._sender.call("connect", base=self.base)
        run = str(uuid.uuid4())
        await self._sender.call("begin_upload", path=f"/{run}")
        return run

    def request(self, run: str) -> str:
        return get(f"/{run}")

    async def write(self, run: str, count: int, per_second: float) -> None:
        await self._sender.call("upload", path=f"/{run}", count=count, per_second=per_second)

    async def close(self, run: str) -> None:
        await self._sender.call("end_upload", path=f"/{run}")


@contextlib.asynccontextmanager
async def serving(load: Load) -> AsyncIterator[ResumableStream]:
    """Start it, on a redis-server."""
    node = node_with_peers()
    async with (
        redis() as (redis_pid, port),
        ready(node, NODE / "resumable_stream.js", REDIS_URL=f"redis://127.0.0.1:{port}") as (process, base),
    ):
        yield ResumableStream(base, Processes((process.pid,), (redis_pid,)), await load.process("sender"))


def install() -> None:
    """Install it, and what it needs."""
    node_with_peers()
    redis_server()


ENTRY = Entry("resumable-stream", "resumable-stream 2.2.13", serving, install)
