"""The floor: what the kernel's `send` costs, called from a loop in Python, with the bytes that runstream sends."""

import contextlib
import sys
from collections.abc import AsyncIterator

from tests.bench.load import Load, LoadProcess
from tests.bench.peers.contender import Entry, Processes, get
from tests.bench.peers.serving import SERVERS, ready


class Floor:
    """A process that does nothing else. It makes its own chunks, and has one run at a time."""

    def __init__(self, base: str, processes: Processes, sender: LoadProcess) -> None:
        self.base, self.processes = base, processes
        self._sender = sender

    async def open(self) -> str:
        await self._sender.call("connect", base=self.base)
        return "run"

    def request(self, run: str) -> str:
        return get(f"/{run}")

    async def write(self, run: str, count: int, per_second: float) -> None:
        path = f"/{run}?count={count}&per_second={per_second}"
        await self._sender.call("ask", method="POST", path=path)

    async def close(self, run: str) -> None:
        await self.write(run, 0, 1)


@contextlib.asynccontextmanager
async def serving(load: Load) -> AsyncIterator[Floor]:
    """Start it."""
    async with ready(sys.executable, SERVERS / "floor.py") as (process, base):
        yield Floor(base, Processes((process.pid,)), await load.process("sender"))


ENTRY = Entry("floor", "the floor: a loop of `send`", serving)
