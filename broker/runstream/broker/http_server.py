"""The connections of a port: how many there may be, and how long one may take to say what it wants, or to be told.

aiohttp waits for the rest of a request's head, and for a reader to take what it was answered, as long as a connection
is open, and answers what is no HTTP with a line of text. A body's time is for whoever reads it, a stream's for whoever
writes it: this is about everything before, between and after them.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import uuid
from collections import Counter
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from aiohttp import EMPTY_PAYLOAD, hdrs, web, web_protocol
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from runstream.broker.http_guard import sign
from runstream.broker.http_pipeline import Pipeline
from runstream.broker.limits.addresses import is_among, source_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aiohttp import StreamReader

    from runstream.broker.limits.settings import LimitSettings

__all__ = ["LONG_HEAD", "MOST_HEAD_BYTES", "NO_HTTP", "Doors", "listening"]

SHUTDOWN_SECONDS: Final = 1.0
"""How long open requests may take when their server stops: what is open for longer was told before."""

MOST_HEAD_BYTES: Final = 64 * 2**10
"""Of a head that is not complete: eight of the longest lines. aiohttp would take 128 of them, a megabyte."""
MOST_HEADS_AHEAD: Final = 2
"""Of requests behind one that is being answered, before nothing more is read: aiohttp would take 32 of them."""
web_protocol.MAX_MSG_QUEUE_SIZE = MOST_HEADS_AHEAD

MOST_LINE_BYTES: Final = 8190
MOST_HEADERS: Final = 128

SPARE_DESCRIPTORS: Final = 64
"""Kept for NATS, for files, and for what others are asked: a process that has none can do nothing of it, and asyncio
then accepts nobody for a second at a time."""

READ_BYTES_PER_SECOND: Final = 64 * 2**10

WRITTEN_FREELY_BYTES: Final = 32 * 2**10
"""Of an answer that nothing waits for: half of what a transport holds before it has its writer wait, 64 KiB."""

TOO_MANY_HEADERS: Final = "Too many headers received"
"""What aiohttp calls it: the error itself is like any other."""

NO_HTTP: Final = "What was sent is no HTTP request."
LONG_HEAD: Final = (
    f"The head of the request is too long: {MOST_HEADERS} headers, {MOST_LINE_BYTES} bytes each and in the request "
    f"line, {MOST_HEAD_BYTES} in all."
)


class Doors:
    """Who may be connected to one port. `refused` is called with the name of a limit that was reached."""

    def __init__(self, settings: LimitSettings, refused: Callable[[str], None]) -> None:
        self.settings = settings
        self.refused = refused
        self.open = 0
        """How many connections there are."""
        self._most = min(settings.max_connections, _most_descriptors())
        self._by_source: Counter[str] = Counter()

    @property
    def is_full(self) -> bool:
        """Whether there are as many connections as may be: whoever comes is turned away."""
        return self.open >= self._most

    def enter(self, peer: str | None) -> bool:
        """Count a connection, unless there are as many as may be."""
        if self.is_full:
            self.refused("connections")
            return False
        if self._is_counted(peer):
            source = source_of(peer, (), ())
            if self._by_source[source] >= self.settings.address_connections:
                self.refused("address_connections")
                return False
            self._by_source[source] += 1
        self.open += 1
        return True

    def leave(self, peer: str | None) -> None:
        """Count one that was let in no more."""
        self.open -= 1
        if self._is_counted(peer):
            source = source_of(peer, (), ())
            self._by_source[source] -= 1
            if not self._by_source[source]:
                del self._by_source[source]

    def _is_counted(self, peer: str | None) -> bool:
        """Whether it counts where a connection is from; a trusted proxy's are everybody's."""
        return bool(self.settings.address_connections) and not is_among(peer, self.settings.trusted_proxies or ())


@asynccontextmanager
async def listening(
    app: web.Application,
    listener: socket.socket,
    doors: Doors,
    *,
    handler_cancellation: bool = False,
    backlog: int = 1024,
) -> AsyncIterator[None]:
    """Serve an application on a bound socket while the block lasts, to whoever the doors let in."""
    loop = asyncio.get_running_loop()
    runner = web.AppRunner(app, handler_cancellation=handler_cancellation, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    manager = runner.server
    assert manager is not None  # noqa: S101  # it was just set up
    try:
        server = await _server(lambda: _Connection(manager, doors, loop), listener, backlog)
        try:
            yield
        finally:
            server.close()
    finally:
        await runner.cleanup()


async def _server(made: Callable[[], _Connection], listener: socket.socket, backlog: int) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    if listener.family == socket.AF_UNIX:
        return await loop.create_unix_server(made, sock=listener, backlog=backlog)
    return await loop.create_server(made, sock=listener, backlog=backlog)


class _Connection(web.RequestHandler):
    """One connection. It waits for a head, and not for longer than it may; all else is aiohttp's."""

    __slots__ = ("_doors", "_end_timer", "_head_bytes", "_head_timer", "_is_in", "_newest_body", "_peer")

    def __init__(self, manager: web.Server, doors: Doors, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            manager,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # as AppRunner has it for none
            # Bodies are unpacked where they are read, if at all: aiohttp would do it far ahead, all of a piece at once.
            auto_decompress=False,
            keepalive_timeout=doors.settings.idle_seconds,
            max_line_size=MOST_LINE_BYTES,
            max_field_size=MOST_LINE_BYTES,
            max_headers=MOST_HEADERS,
        )
        self._messages = Pipeline()  # type: ignore[assignment]  # as aiohttp uses it
        self._doors = doors
        self._peer: str | None = None
        self._is_in = False
        self._newest_body: StreamReader = EMPTY_PAYLOAD
        """Of the last request whose head has come: what comes once that is complete is a head's."""
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._end_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let somebody in, or close the connection at once."""
        peer = transport.get_extra_info("peername")
        self._peer = str(peer[0]) if isinstance(peer, tuple) else None
        self._is_in = self._doors.enter(self._peer)
        if not self._is_in:
            transport.abort()  # type: ignore[attr-defined]  # a server's transports have it
            return
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Give the place back."""
        self._head_has_come()
        if self._end_timer is not None:
            self._end_timer.cancel()
        if self._is_in:
            self._is_in = False
            self._doors.leave(self._peer)
        super().connection_lost(exc)

    async def start(self) -> None:
        """Answer what comes, to the connection's end; a close waits for the reader, and not for longer than it may."""
        transport = self.transport
        try:
            await super().start()
        finally:
            if self._is_in and transport is not None:
                self._end_timer = self._loop.call_later(self._doors.settings.answer_seconds, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Take what came. What is of no body, and completes no head, is a part of one, whatever is being answered."""
        if not self._is_in or self._close or self._force_close:
            return
        known, is_of_a_head = self._request_count, self._newest_body.is_eof()
        super().data_received(data)
        if self._request_count != known:
            self._newest_body = body = self._messages[-1][1]
            self._head_has_come()
            if not body.is_eof():
                body.on_eof(partial(self._body_has_come, body))
        elif data and is_of_a_head:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self._head_is_long()
            elif self._waits and self._head_timer is None:
                self._wait_for_head()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP as everything else is answered; it is not logged, as anybody may send it."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        is_long = isinstance(exc, LineTooLong) or exc.message == TOO_MANY_HEADERS
        if is_long:
            self._doors.refused("head_bytes")
        refused = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if is_long else HTTPStatus.BAD_REQUEST
        headers, body = _refusal(LONG_HEAD if is_long else NO_HTTP)
        response = web.Response(status=refused, headers=headers, body=body)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer. Who does not take one that is whole, and no stream, is cut off, and all of it is free."""
        if not isinstance(resp, web.Response) or self._is_taken_at_once(resp):
            return await super().finish_response(request, resp, start_time)
        seconds = self._doors.settings.answer_seconds + (resp.content_length or 0) / READ_BYTES_PER_SECOND
        try:
            async with asyncio.timeout(seconds):
                return await super().finish_response(request, resp, start_time)
        except TimeoutError:
            self._doors.refused("answer_seconds")
            if self.transport is not None:
                self.transport.abort()
            return resp, True

    def _is_taken_at_once(self, resp: web.Response) -> bool:
        """Whether an answer fits into what the transport takes without anybody reading: most do, and need no timer."""
        buffered = 0 if self.transport is None else self.transport.get_write_buffer_size()
        return not buffered and (resp.content_length or 0) <= WRITTEN_FREELY_BYTES

    def _body_has_come(self, body: StreamReader) -> None:
        """Take note of a body's end. Of a request that was begun before, aiohttp's parser has to be told.

        It counts a request in when its last byte has come, and out when it is begun. One that is begun first would
        never be counted out, and after `MOST_HEADS_AHEAD` of them what comes behind another would not be read.
        """
        if not any(waiting is body for _, waiting in self._messages):
            self._loop.call_soon(self._count_out)  # It is counted in after this.

    def _count_out(self) -> None:
        if self._parser is not None:
            self._parser.message_consumed()
            self.data_received(b"")

    @property
    def _waits(self) -> bool:
        """Whether nothing is being answered, and the next head is waited for."""
        return self._waiter is not None and not self._waiter.done()

    def _wait_for_head(self) -> None:
        self._head_timer = self._loop.call_later(self._doors.settings.head_seconds, self._head_is_late)

    def _head_has_come(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        if self._keepalive_handle is not None:
            # Nobody has to look whether a connection is idle that has a request: it is set anew behind its answer.
            self._keepalive_handle.cancel()
            self._keepalive_handle = None

    def _head_is_long(self) -> None:
        self._doors.refused("head_bytes")
        if self._waits:
            self._give_up(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, LONG_HEAD)
        else:
            self.close()  # Once what is being answered is: a stream goes on to its end. What waits behind is not begun.

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self._waits:
            return
        if not self._head_bytes:
            self.force_close()  # Browsers connect ahead of what they may ask for.
            return
        self._doors.refused("head_seconds")
        seconds = self._doors.settings.head_seconds
        self._give_up(HTTPStatus.REQUEST_TIMEOUT, f"The head of the request was not there after {seconds:g} s.")

    def _give_up(self, status: HTTPStatus, detail: str) -> None:
        """Say why, and close. There is no request that could be answered."""
        headers, body = _refusal(detail)
        headers[hdrs.CONTENT_LENGTH] = str(len(body))
        lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in headers.items())]
        if self.transport is not None:
            self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.force_close()


def _most_descriptors() -> float:
    """Return how many connections this process may have descriptors for."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return float("inf") if most == resource.RLIM_INFINITY else max(1, most - SPARE_DESCRIPTORS)


def _refusal(detail: str) -> tuple[dict[str, str], bytes]:
    headers: dict[str, Any] = {hdrs.CONTENT_TYPE: "application/json", hdrs.CONNECTION: "close"}
    sign(headers, uuid.uuid4().hex)
    return headers, json.dumps({"detail": detail}).encode()
