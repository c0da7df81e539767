"""A strict, small HTTP client over a bare socket: it sees every byte, forgives nothing, and never waits for ever.

Strict on purpose. A library would pass over a comment between events, a missing last chunk, an event in two chunks:
all the things that the tests are about.
"""

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from tests.support.description import check_body, check_status

DEADLINE_SECONDS = 10.0
"""No single read of a test takes this long unless something hangs, which is a failure."""

LINE_LIMIT = 4 * 2**20

_EVENT = re.compile(r"(?:event: (?P<event>error)\n)?data: (?P<data>[^\n\r]+)")
NO_BODY: Any = object()
"""A request without a body, which is not the same as one whose body is null."""


class Cut(Exception):
    """The connection ended before the response did."""


class Event(NamedTuple):
    """One Server-Sent Event: the name (None or `error`), and the data as it was sent.

    `id` is the event's own, which only an EventSource's events have: see `tests.support.eventsource`.
    """

    event: str | None
    data: str
    id: int | None = None

    @property
    def is_done(self) -> bool:
        return (self.event, self.data) == (None, "[DONE]")

    @property
    def json(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.data)
        return parsed

    @property
    def seq_id(self) -> int | None:
        """The cursor, None where there is none."""
        return None if self.is_done else self.json.get("seq_id")

    @property
    def message_type(self) -> str | None:
        """What kind of message it is; None for `[DONE]`."""
        return None if self.is_done else str(self.json["message_type"])


DONE = Event(None, "[DONE]")


@dataclass(frozen=True)
class Reply:
    """A whole response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def detail(self) -> str:
        return str(self.json["detail"])


class Connection:
    """One TCP connection to a server under test. `open` makes one; leaving the block resets what is left of it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.raw = bytearray()
        """Every byte of the current response's body, chunk framing included."""
        self._asked: tuple[str, str] | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, base: str, *, receive_buffer: int | None = None) -> AsyncIterator[Self]:
        """Connect to `http://host:port`; `receive_buffer` bounds what is read ahead of the test, in bytes."""
        parts = urlsplit(base)
        host = parts.hostname or ""
        with contextlib.ExitStack() as undo:
            bare = undo.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
            if receive_buffer is not None:
                # The kernel would take megabytes for a reader that is not there.
                bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            bare.setblocking(False)
            await asyncio.get_running_loop().sock_connect(bare, (host, parts.port))
            undo.pop_all()
        reader, writer = await asyncio.open_connection(sock=bare, limit=receive_buffer or LINE_LIMIT)
        try:
            yield cls(reader, writer)
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def send(
        self,
        method: str,
        path: str,
        *,
        json: Any = NO_BODY,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        version: str = "1.1",
    ) -> None:
        """Send one request; `json` is encoded and declared as JSON, `body` goes as it is."""
        self._asked = (method, path)
        lines = {"Host": "test"}
        if json is not NO_BODY:
            body = encoded(json)
            lines["Content-Type"] = "application/json"
        if body is not None:
            lines["Content-Length"] = str(len(body))
        lines.update(headers or {})
        head = f"{method} {path} HTTP/{version}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        await self.send_raw(head.encode("latin-1") + b"\r\n" + (body or b""))

    async def send_raw(self, data: bytes) -> None:
        """Send bytes as they are. A server that has stopped listening may already have answered."""
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(DEADLINE_SECONDS):
                await self.writer.drain()

    async def trickle(self, data: bytes) -> Reply:
        """Send a byte every 30 ms until something is answered; returns that."""
        answer = asyncio.ensure_future(self.reply())
        for byte in data:
            await self.send_raw(bytes([byte]))
            if (await asyncio.wait({answer}, timeout=0.03))[0]:
                break
        return await answer

    async def head(self) -> tuple[int, dict[str, str]]:
        """Read a status line and headers, their names in lower case."""
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                block = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            raise Cut(f"the connection ended within the headers: {error.partial!r}") from error
        status_line, *lines = block.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(": ")
            assert name.lower() not in headers, f"{name} is there twice"
            headers[name.lower()] = value
        status = int(status_line.split(" ")[1])
        if self._asked is not None and headers.get("server") == "runstream":
            check_status(*self._asked, status)
        return status, headers

    async def reply(self) -> Reply:
        """Read a whole response."""
        self.raw.clear()
        status, headers = await self.head()
        if "content-length" in headers:
            body = await self._exactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            parts = []
            while (part := await self.chunk()) is not None:
                parts.append(part)
            body = b"".join(parts)
        elif status in {204, 304}:
            body = b""
        else:
            async with asyncio.timeout(DEADLINE_SECONDS):
                body = await self.reader.read()
        if self._asked is not None and body and headers.get("content-type") == "application/json":
            check_body(*self._asked, status, json.loads(body))
        return Reply(status, headers, body)

    async def chunk(self, deadline: float = DEADLINE_SECONDS) -> bytes | None:
        """Read one chunk of a chunked body; None for the last one. Raises `Cut` when the connection ends instead."""
        size_line = await self._line(deadline)
        assert re.fullmatch(rb"[0-9a-fA-F]+\r\n", size_line), f"no chunk begins with {size_line[:80]!r}"
        size = int(size_line, 16)
        data = await self._exactly(size + 2, deadline)
        assert data.endswith(b"\r\n"), f"a chunk of {size} bytes ends with {data[-20:]!r}"
        return data[:-2] if size else None

    async def ends(self) -> bool:
        """Whether the server closes the connection, with nothing more said."""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(DEADLINE_SECONDS):
                return await self.reader.read(1) == b""
        return True

    async def _line(self, deadline: float) -> bytes:
        try:
            async with asyncio.timeout(deadline):
                line = await self.reader.readuntil(b"\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            self.raw += getattr(error, "partial", b"")
            raise Cut("the connection ended between two chunks") from error
        self.raw += line
        return line

    async def _exactly(self, size: int, deadline: float = DEADLINE_SECONDS) -> bytes:
        try:
            async with asyncio.timeout(deadline):
                data = await self.reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            self.raw += getattr(error, "partial", b"")
            raise Cut("the connection ended within the body") from error
        self.raw += data
        return data


class EventStream:
    """A streaming response. Iterate over its events, or `take` some, or the `rest`; leaving the block hangs up."""

    def __init__(self, connection: Connection, status: int, headers: Mapping[str, str]) -> None:
        self.connection = connection
        self.status = status
        self.headers = headers
        self.seen: list[Event] = []
        self.is_complete = False
        """Whether the last chunk has come: the server said that this was all."""
        self._is_chunked = headers.get("transfer-encoding") == "chunked"
        self._events: list[Event] = []

    @property
    def raw(self) -> bytes:
        """The body as it was on the wire so far."""
        return bytes(self.connection.raw)

    @property
    def cursor(self) -> int:
        """The last `seq_id` seen, as a client keeps it; 0 before any."""
        return next((event.seq_id for event in reversed(self.seen) if event.seq_id is not None), 0)

    async def next(self, deadline: float = DEADLINE_SECONDS) -> Event | None:
        """Give the next event, None at the complete end. Raises `Cut` when the response ends incomplete."""
        while not self._events:
            if self.is_complete:
                return None
            try:
                data = await (self.connection.chunk(deadline) if self._is_chunked else self._bare(deadline))
            except Cut as cut:
                complaint = f"{cut}; the last of {len(self.seen)} events: {self.seen[-1:]}"
                raise Cut(complaint) from cut
            if data is None:
                self.is_complete = True
            else:
                self._events = self.parse(data)
        event = self._events.pop(0)
        self.seen.append(event)
        return event

    def parse(self, data: bytes) -> list[Event]:
        """Read what came as one HTTP chunk: whole events of this stream's kind."""
        return parse_events(data)

    async def _bare(self, deadline: float) -> bytes | None:
        try:
            async with asyncio.timeout(deadline):
                return await self.connection.reader.readuntil(b"\n\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise Cut("the connection ended within an event") from error
            return None

    def leave(self) -> None:
        """Hang up without a word, as a client that crashes."""
        self.connection.writer.transport.abort()

    async def take(self, count: int, deadline: float = DEADLINE_SECONDS) -> list[Event]:
        """Give the next `count` events, which must be there."""
        events = []
        for _ in range(count):
            event = await self.next(deadline)
            assert event is not None, f"the response ended after {self.seen!r}"
            events.append(event)
        return events

    async def rest(self, deadline: float = DEADLINE_SECONDS) -> list[Event]:
        """Give all that comes until the complete end."""
        events = []
        while (event := await self.next(deadline)) is not None:
            events.append(event)
        return events

    async def until(self, message_type: str) -> Event:
        """Read on up to the first event of that type."""
        while (event := await self.next()) is not None:
            if event.message_type == message_type:
                return event
        complaint = f"no {message_type} in {self.seen!r}"
        raise AssertionError(complaint)


class open_stream:  # noqa: N801  # reads as the call it stands for
    """Open a streaming response, with POST. A server that refuses is an AssertionError."""

    method = "POST"
    stream_type = EventStream

    def __init__(
        self,
        base: str,
        path: str,
        json: Any = NO_BODY,
        *,
        headers: Mapping[str, str] | None = None,
        version: str = "1.1",
        receive_buffer: int | None = None,
    ) -> None:
        self._base, self._path = base, path
        self._json = json
        self._headers, self._version, self._receive_buffer = headers, version, receive_buffer
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> EventStream:
        opening = Connection.open(self._base, receive_buffer=self._receive_buffer)
        async with contextlib.AsyncExitStack() as stack:
            connection = await stack.enter_async_context(opening)
            await connection.send(
                self.method, self._path, json=self._json, headers=self._headers, version=self._version
            )
            status, headers = await connection.head()
            if status != 200:
                body = await connection.reader.read(int(headers.get("content-length", 0)))
                complaint = f"{self.method} {self._path}: {status} {body!r}"
                raise AssertionError(complaint)
            assert headers["content-type"] == "text/event-stream; charset=utf-8"
            self._stack = stack.pop_all()
        return self.stream_type(connection, status, headers)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()


async def fetch(
    base: str,
    method: str,
    path: str,
    *,
    json: Any = NO_BODY,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """One request on a connection of its own, and its whole answer."""
    async with Connection.open(base) as connection:
        await connection.send(method, path, json=json, body=body, headers=headers)
        return await connection.reply()


async def events_of(base: str, path: str, json: Any = NO_BODY) -> list[Event]:
    """All events of a streaming response, to its complete end."""
    async with open_stream(base, path, json) as stream:
        return await stream.rest()


def parse_events(data: bytes) -> list[Event]:
    """Whole events and nothing else, or AssertionError: no comment, no `id:`, no `retry:`, no half event."""
    text = data.decode("utf-8")
    assert text.endswith("\n\n"), f"half an event: {text[-80:]!r}"
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        match = _EVENT.fullmatch(block)
        assert match is not None, f"not an event of this protocol: {block!r}"
        events.append(Event(match["event"], match["data"]))
    return events


def encoded(value: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
