"""One streaming response on its socket: written to directly, in whole events, with the buffer in sight.

aiohttp prepares the response and owns its end; in between events go to the transport as they are, framed for chunked
encoding beforehand. Going through `StreamResponse.write` costs as much again as the kernel's send, for each reader.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING

from aiohttp import HttpVersion11, hdrs, web
from multidict import istr

from runstream.gateway.sse import chunked

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["EventResponse", "cut", "reset"]

FAREWELL_SECONDS = 5.0
"""How long the last event of a cut response may take to go out."""

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER, on, for no time: closing sends a reset."""
AS_EVER = struct.pack("ii", 0, 0)
"""SO_LINGER, off."""

HEADERS: dict[str, str] = {
    hdrs.CONTENT_TYPE: "text/event-stream; charset=utf-8",
    hdrs.CACHE_CONTROL: "no-cache",
    # Asks nginx and those who copied it not to buffer.
    istr("X-Accel-Buffering"): "no",
}


def cut(transport: asyncio.Transport) -> None:
    """End a response that is framed as incomplete. What is written still goes out, for a moment.

    Closing waits for a client that takes nothing without end.
    """
    transport.close()
    asyncio.get_running_loop().call_later(FAREWELL_SECONDS, transport.abort)


def reset(transport: asyncio.Transport) -> None:
    """End a response at once, and visibly to a client that counts on nothing but its end."""
    # Closed in the ordinary way the connection would look complete to a client that counts on its end.
    _linger(transport, RESET)
    transport.abort()


def _linger(transport: asyncio.Transport, how: bytes) -> None:
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, how)


class EventResponse:
    """A response to one request. `open` sends the headers at once; then `finish` or `cut`, exactly one of them."""

    __slots__ = ("_is_chunked", "_request", "_response", "_transport")

    def __init__(self, request: web.Request, headers: Mapping[str, str] | None = None) -> None:
        self._request = request
        self._response = web.StreamResponse(headers={**HEADERS, **(headers or {})})
        self._is_chunked = request.version >= HttpVersion11
        self._transport: asyncio.Transport | None = None

    async def open(self) -> None:
        """Send status and headers; an HTTP/1.0 client gets bare events and the end of the connection."""
        if self._is_chunked:
            self._response.enable_chunked_encoding()
        else:
            self._response.force_close()
        await self._response.prepare(self._request)
        self._transport = self._request.transport
        if not self._is_chunked and self._transport is not None:
            # It counts on nothing but the end of its connection: whoever ends that before `finish`, were it a kill,
            # must not seem to have sent it all.
            _linger(self._transport, RESET)

    @property
    def prepared(self) -> web.StreamResponse:
        """What the handler returns to aiohttp."""
        return self._response

    @property
    def is_chunked(self) -> bool:
        """Whether events have to be framed for chunked encoding."""
        return self._is_chunked

    @property
    def buffered(self) -> int:
        """Bytes written that the kernel has not taken yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    @property
    def is_closed(self) -> bool:
        """Whether the client has gone."""
        return self._transport is None or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Write events that are framed already, as `is_chunked` asks. Never waits, never fails."""
        transport = self._transport
        if data and transport is not None and not transport.is_closing():
            transport.write(data)

    def write_event(self, event: bytes) -> None:
        """Write one event that is not framed yet."""
        self.write(chunked(event) if self._is_chunked else event)

    async def drained(self, seconds: float) -> None:
        """Wait until the client has taken most of what was written. Raises TimeoutError after `seconds`."""
        async with asyncio.timeout(seconds):
            await self._request.writer.drain()

    async def finish(self, seconds: float) -> None:
        """End the response as complete. Raises TimeoutError when the client has not taken it after `seconds`."""
        if not self._is_chunked and self._transport is not None:
            _linger(self._transport, AS_EVER)
        async with asyncio.timeout(seconds):
            await self._response.write_eof()

    def cut(self) -> None:
        """End the response as incomplete: without the last chunk, every HTTP library reports that it was cut off.

        What is written still goes out, for a moment: closing waits for a client that takes nothing without end. An
        HTTP/1.0 client has no last chunk to miss: its connection is reset instead.
        """
        if self._transport is None:
            return
        if self._is_chunked:
            cut(self._transport)
        else:
            self.abort()

    def abort(self) -> None:
        """End the response of a client that takes nothing: its connection is reset, and what waits is dropped."""
        if self._transport is not None:
            reset(self._transport)
