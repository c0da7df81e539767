"""A load process: a process of its own that does what it is told, one call at a time, over lines of JSON.

    python -m tests.bench.load reader|writer

The server's process is the one measured, so nothing else may run in it; and a reader that shared an interpreter with
the writer would wait for it.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import uvloop

from runstream.gateway.logs import configure_logs
from tests.bench.reader import Reader
from tests.bench.writer import Writer

LINE_LIMIT = 64 * 2**20
"""The longest answer: the times of all deliveries to all followers of one round."""
GRACE_SECONDS = 5.0
_ROLES: dict[str, type[Reader | Writer]] = {"reader": Reader, "writer": Writer}


class LoadFailed(Exception):
    """The load process could not do as it was told."""


class LoadProcess:
    """The other side of a load process: `await process.call("publish", count=100)`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, role: str) -> AsyncIterator["LoadProcess"]:
        """Start one; it is gone when the block ends."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.bench.load", role),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_LIMIT,
            process_group=0,
        )
        try:
            yield cls(process)
        finally:
            if process.stdin is not None:
                process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), GRACE_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()

    async def call(self, do: str, **given: Any) -> Any:
        """Have one thing done; returns its result. Raises `LoadFailed`."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps({"do": do, "given": given}).encode() + b"\n")
        await stdin.drain()
        line = await stdout.readline()
        answer = json.loads(line or b'{"failure": "the load process has ended"}')
        if "failure" in answer:
            raise LoadFailed(f"{do}: {answer['failure']}")
        return answer["result"]


async def _lines() -> AsyncIterator[bytes]:
    stream = asyncio.StreamReader(limit=LINE_LIMIT)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), sys.stdin)
    async for line in stream:
        yield line


async def _serve(role: str) -> None:
    """Do what the lines say until there are no more of them."""
    async with _ROLES[role]() as worker:
        async for line in _lines():
            asked = json.loads(line)
            try:
                answer: dict[str, Any] = {"result": await getattr(worker, asked["do"])(**asked["given"])}
            except Exception as error:  # noqa: BLE001  # whatever it is, the other side reports it
                answer = {"failure": f"{type(error).__name__}: {error}"}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    configure_logs(level="warning", as_json=False)
    uvloop.run(_serve(sys.argv[1]))
