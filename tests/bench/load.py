"""A load process: a process of its own that does what it is told, one call at a time, over lines of JSON.

    python -m tests.bench.load reader|writer|crowd|sender

The server's process is the one measured, so nothing else may run in it; and a reader that shared an interpreter with
the writer would wait for it.
"""

import asyncio
import contextlib
import importlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import uvloop

from runstream.gateway.logs import configure_logs
from tests.bench.environments import ROOT

LINE_LIMIT = 64 * 2**20
"""The longest line: the requests of ten thousand readers."""
GRACE_SECONDS = 5.0
ROLES = ("reader", "writer", "crowd", "sender")
"""Each is a module with a class of its name: what a process does not need it does not import."""


class LoadFailed(Exception):
    """The load process could not do as it was told."""


class Lines:
    """A process that answers a line with a line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, *argv: str | Path, **env: str) -> AsyncIterator[Self]:
        """Start one; it is gone when the block ends."""
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **env},
            cwd=ROOT,
            limit=LINE_LIMIT,
            process_group=0,
        )
        try:
            lines = cls(process)
            await lines.answer()
            yield lines
        finally:
            if process.stdin is not None:
                process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), GRACE_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()

    async def ask(self, line: str) -> bytes:
        """Say a line; returns what it is answered."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(line.encode() + b"\n")
        await stdin.drain()
        return await self.answer()

    async def answer(self) -> bytes:
        """Read a line. Raises `LoadFailed` when there are no more."""
        stdout = self._process.stdout
        assert stdout is not None
        line = await stdout.readline()
        if not line:
            raise LoadFailed("the load process has ended")
        return line


class LoadProcess(Lines):
    """The other side of a load process: `await process.call("publish", count=100)`."""

    async def call(self, do: str, **given: Any) -> Any:
        """Have one thing done; returns its result. Raises `LoadFailed`."""
        answer = json.loads(await self.ask(json.dumps({"do": do, "given": given})))
        if "failure" in answer:
            raise LoadFailed(f"{do}: {answer['failure']}")
        return answer["result"]


class Load:
    """The load processes of one scenario, each started when it is first asked for, and gone with the block."""

    def __init__(self, stack: contextlib.AsyncExitStack) -> None:
        self._stack = stack
        self._processes: dict[str, LoadProcess] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls) -> AsyncIterator[Self]:
        async with contextlib.AsyncExitStack() as stack:
            yield cls(stack)

    async def process(self, role: str) -> LoadProcess:
        """Give the one with that role."""
        if role not in self._processes:
            command = (sys.executable, "-m", "tests.bench.load", role)
            self._processes[role] = await self._stack.enter_async_context(LoadProcess.of(*command))
        return self._processes[role]


async def _lines() -> AsyncIterator[bytes]:
    stream = asyncio.StreamReader(limit=LINE_LIMIT)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), sys.stdin)
    async for line in stream:
        yield line


def _say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def _serve(role: str) -> None:
    """Do what the lines say until there are no more of them."""
    module = importlib.import_module(f"tests.bench.{role}")
    async with getattr(module, role.capitalize())() as worker:
        _say("ready")
        async for line in _lines():
            asked = json.loads(line)
            try:
                answer: dict[str, Any] = {"result": await getattr(worker, asked["do"])(**asked["given"])}
            except Exception as error:  # noqa: BLE001  # whatever it is, the other side reports it
                answer = {"failure": f"{type(error).__name__}: {error}"}
            _say(answer)


if __name__ == "__main__":
    configure_logs(level="warning", as_json=False)
    uvloop.run(_serve(sys.argv[1]))
