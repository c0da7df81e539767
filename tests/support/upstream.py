"""A platform that an HTTP agent asks: it records the requests, and answers byte for byte what the test says."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec

from tests.support.http import DEADLINE_SECONDS

EVENT_STREAM: Mapping[str, str] = {"Content-Type": "text/event-stream"}
CHUNKED: Mapping[str, str] = {"Transfer-Encoding": "chunked"}


@dataclass(frozen=True)
class Asked:
    """One request as it came; header names in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        parsed: dict[str, Any] = msgspec.json.decode(self.body)
        return parsed


@dataclass
class Exchange:
    """One request and what is answered to it: bytes go out at once, and nothing goes out unasked."""

    asked: Asked
    writer: asyncio.StreamWriter
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the agent has hung up."""
    sent_bytes: int = 0
    """How much of the body the kernel has taken."""

    async def raw(self, data: bytes) -> None:
        """Send bytes as they are. It may be that nobody listens any more."""
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def head(self, status: str = "200 OK", headers: Mapping[str, str] | None = None) -> None:
        """Send status and headers: of a chunked event stream unless told otherwise."""
        lines = {**EVENT_STREAM, **CHUNKED} if headers is None else headers
        await self.raw(f"HTTP/1.1 {status}\r\n".encode() + b"".join(f"{k}: {v}\r\n".encode() for k, v in lines.items()))
        await self.raw(b"\r\n")

    async def say(self, *pieces: bytes) -> None:
        """Send each piece as a chunk of its own."""
        for piece in pieces:
            await self.raw(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.sent_bytes += len(piece)

    async def end(self) -> None:
        """End a chunked body in good order."""
        await self.raw(b"0\r\n\r\n")

    def cut(self) -> None:
        """Close the connection with what has been sent on its way."""
        self.writer.close()

    def reset(self) -> None:
        """Reset the connection, as a machine that was killed and started again."""
        bound: socket.socket = self.writer.get_extra_info("socket")
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def refuse(self, status: str, body: bytes = b"", **headers: str) -> None:
        """Answer with a status and a body."""
        lines = {name.replace("_", "-"): value for name, value in headers.items()}
        await self.head(status, {**lines, "Content-Length": str(len(body))})
        await self.raw(body)


Script: TypeAlias = Callable[[Exchange], Awaitable[None]]
"""What the platform does with a request. What it leaves open is reset when the platform is stopped."""


class Upstream:
    """A platform on a loopback port of its own, which does what `script` says with each request."""

    def __init__(self, script: Script, bound: socket.socket | None = None) -> None:
        self.script = script
        self.exchanges: list[Exchange] = []
        self._bound = bound or socket.create_server(("127.0.0.1", 0))
        self._serving: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.url = f"http://127.0.0.1:{self._bound.getsockname()[1]}"

    @property
    def asked(self) -> list[Asked]:
        """The requests so far."""
        return [exchange.asked for exchange in self.exchanges]

    async def start(self) -> None:
        """Answer from now on."""
        self._server = await asyncio.start_server(self._serve, sock=self._bound)

    async def stop(self) -> None:
        """End everything; a script that failed fails the test."""
        if self._server is not None:
            self._server.close()
        for exchange in self.exchanges:
            exchange.writer.transport.abort()
        for task in self._serving:
            task.cancel()
        for result in await asyncio.gather(*self._serving, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
        self._bound.close()

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.create_task(self._answer(reader, writer), name="upstream")
        self._serving.add(serving)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await self._play(Exchange(await _request(reader), writer), reader)
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _play(self, exchange: Exchange, reader: asyncio.StreamReader) -> None:
        self.exchanges.append(exchange)
        script = asyncio.create_task(_awaited(self.script(exchange)), name="script")
        listening = asyncio.create_task(_until_left(reader, exchange.left), name="listening")
        try:
            await asyncio.wait({script, listening}, return_when=asyncio.FIRST_EXCEPTION)
            if script.done():
                script.result()
        finally:
            script.cancel()
            listening.cancel()


async def _until_left(reader: asyncio.StreamReader, left: asyncio.Event) -> None:
    with contextlib.suppress(ConnectionError):
        await reader.read()  # The agent says nothing more: this ends when it hangs up.
    left.set()


async def _awaited(answer: Awaitable[None]) -> None:
    await answer


async def _request(reader: asyncio.StreamReader) -> Asked:
    async with asyncio.timeout(DEADLINE_SECONDS):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request_line, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
        method, target, _ = request_line.split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        if "chunked" in headers.get("transfer-encoding", ""):
            body = await _chunked(reader)
        else:
            body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Asked(method, target, headers, body)


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        parts.append((await reader.readexactly(size + 2))[:-2])
    assert await reader.readuntil(b"\r\n") == b"\r\n"
    return b"".join(parts)


@contextlib.asynccontextmanager
async def upstream_running(script: Script, bound: socket.socket | None = None) -> AsyncIterator[Upstream]:
    """A platform that answers while the block lasts, on a free port unless a socket has been bound for it."""
    upstream = Upstream(script, bound)
    await upstream.start()
    try:
        yield upstream
    finally:
        await upstream.stop()


def event(data: str | Mapping[str, Any], name: str | None = None) -> bytes:
    """One event; a mapping is JSON."""
    text = data if isinstance(data, str) else msgspec.json.encode(data).decode()
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


DONE = event("[DONE]")


def plays(pieces: Iterable[bytes], *, ends: bool = True) -> Script:
    """A platform that streams these pieces, each in a chunk of its own, and ends in good order or not at all."""
    played = list(pieces)

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.say(*played)
        if ends:
            await exchange.end()

    return script
