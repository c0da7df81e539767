"""The two servers of the Durable Streams protocol, Node's and Python's, both in memory."""

import contextlib
import uuid
from collections.abc import AsyncIterator

from tests.bench.environments import NODE, node_with_peers, python_of
from tests.bench.load import Load, LoadProcess
from tests.bench.peers.contender import Entry, Processes, get
from tests.bench.peers.serving import SERVERS, ready


class DurableStreams:
    """A server of that protocol: a stream of JSON is made with PUT, appended to with POST and followed with GET."""

    def __init__(self, base: str, processes: Processes, sender: LoadProcess) -> None:
        self.base, self.processes = base, processes
        self._sender = sender

    async def open(self) -> str:
        await self._sender.call("connect", base=self.base)
        run = str(uuid.uuid4())
        await self._sender.call("ask", method="PUT", path=f"/{run}")
        return run

    def request(self, run: str) -> str:
        return get(f"/{run}?offset=-1&live=sse")

    async def write(self, run: str, count: int, per_second: float) -> None:
        await self._sender.call("post_each", path=f"/{run}", count=count, per_second=per_second)

    async def close(self, run: str) -> None:
        await self._sender.call("ask", method="DELETE", path=f"/{run}")


@contextlib.asynccontextmanager
async def on_node(load: Load) -> AsyncIterator[DurableStreams]:
    """Start @durable-streams/server."""
    async with ready(node_with_peers(), NODE / "durable_streams.js") as (process, base):
        yield DurableStreams(base, Processes((process.pid,)), await load.process("sender"))


@contextlib.asynccontextmanager
async def on_python(load: Load) -> AsyncIterator[DurableStreams]:
    """Start rakaia-streams."""
    async with ready(python_of("rakaia"), SERVERS / "rakaia_server.py") as (process, base):
        yield DurableStreams(base, Processes((process.pid,)), await load.process("sender"))


NODE_ENTRY = Entry("durable-streams", "@durable-streams/server 0.3.7", on_node, node_with_peers)
PYTHON_ENTRY = Entry("rakaia", "rakaia-streams 0.9.0", on_python, lambda: python_of("rakaia"))
