"""What the sending load process does: write chunks over HTTP, on connections that it keeps."""

import asyncio
import contextlib
import itertools
import json
import time
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from tests.bench.chunks import due, fresh
from tests.bench.exchange import Refused, quiet

JSON = "application/json"
NDJSON = "application/x-ndjson"


@dataclass
class Line:
    """One connection, on which one request follows the other."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, method: str, path: str, body: bytes = b"", content_type: str = JSON) -> bytes:
        """Send a request; returns the answer's body. Raises `Refused` unless its status says that it was done."""
        head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {content_type}\r\n"
        self.writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return await self.answer()

    async def answer(self) -> bytes:
        """Read one answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        status = int(head.split()[1])
        headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        body = b""
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
        else:
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        if status // 100 != 2:
            raise Refused(f"{head} {body[:500].decode(errors='replace')}")
        return body


class Sender:
    """Writes to one server."""

    def __init__(self) -> None:
        self._host, self._port = "", 0
        self._lines: list[Line] = []
        self._uploads: dict[str, Line] = {}
        self._written: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for line in (*self._lines, *self._uploads.values()):
            line.writer.close()

    async def connect(self, base: str) -> None:
        """Send all requests to `http://host:port`, and forget who was written to before."""
        parts = urlsplit(base)
        self._host, self._port = parts.hostname or "", parts.port or 80
        for line in self._lines:
            line.writer.close()
        self._lines = []

    async def _line(self, at: int = 0) -> Line:
        while len(self._lines) <= at:
            self._lines.append(await self._open())
        return self._lines[at]

    async def _open(self) -> Line:
        return Line(*await asyncio.open_connection(self._host, self._port))

    async def ask(self, method: str, path: str, content_type: str = JSON) -> str:
        """Send one request without a body."""
        # A connection of its own: the server may end it with its answer.
        line = await self._open()
        with contextlib.closing(line.writer):
            return (await line.ask(method, path, content_type=content_type)).decode()

    async def post_each(self, path: str, count: int, per_second: float) -> None:
        """Append a run's next chunks at that pace, a request for each."""
        line, begun = await self._line(), time.monotonic()
        first = self._written.get(path, 0)
        with quiet():
            for number in range(count):
                await asyncio.sleep(due(begun, number, per_second))
                await line.ask("POST", path, fresh(first + number))
        self._written[path] = first + count

    async def begin_upload(self, path: str) -> None:
        """Begin a request whose body is events, and which lasts; returns when its answer's headers are there."""
        line = self._uploads[path] = await self._open()
        line.writer.write(
            f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: text/plain\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        head = await line.reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise Refused(head.decode())

    async def upload(self, path: str, count: int, per_second: float) -> None:
        """Upload a run's next chunks at that pace, an event for each."""
        line, begun = self._uploads[path], time.monotonic()
        first = self._written.get(path, 0)
        with quiet():
            for number in range(count):
                await asyncio.sleep(due(begun, number, per_second))
                event = b"data: %b\n\n" % fresh(first + number)
                line.writer.write(b"%x\r\n%b\r\n" % (len(event), event))
        self._written[path] = first + count

    async def end_upload(self, path: str) -> None:
        """End it."""
        line = self._uploads.pop(path)
        line.writer.write(b"0\r\n\r\n")
        await line.reader.readuntil(b"0\r\n\r\n")
        line.writer.close()

    async def ingest(self, agent_ids: list[str], batches: int, batch: int) -> float:
        """Open a run for each agent, append batches of lines to all of them at once, and end them.

        Gives the seconds from the first batch to the last answer.
        """
        lines = [await self._line(at) for at in range(len(agent_ids))]
        opened = await asyncio.gather(
            *(
                line.ask("POST", "/ingest/v1/runs", json.dumps({"agent_id": agent_id}).encode())
                for line, agent_id in zip(lines, agent_ids, strict=True)
            )
        )
        paths = [f"/ingest/v1/runs/{json.loads(body)['run_id']}" for body in opened]
        begun = time.monotonic()
        with quiet():
            await asyncio.gather(*(_append(*each, batches, batch) for each in zip(lines, paths, strict=True)))
        took = time.monotonic() - begun
        ends = (
            line.ask("POST", f"{path}/end", b'{"stop_reason":"end_turn"}')
            for line, path in zip(lines, paths, strict=True)
        )
        await asyncio.gather(*ends)
        return took


async def _append(line: Line, path: str, batches: int, batch: int) -> None:
    numbers = itertools.count()
    for _ in range(batches):
        body = b"".join(fresh(number) + b"\n" for number in itertools.islice(numbers, batch))
        await line.ask("POST", f"{path}/chunks", body, NDJSON)
