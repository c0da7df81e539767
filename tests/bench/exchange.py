"""The smallest HTTP client that will do: one request on one connection, every block of bytes stamped as it arrives.

Nothing is parsed while anything is measured. The clock is CLOCK_MONOTONIC, which all processes of a machine share, so
that a stamp which one process puts into a chunk can be compared with the moment at which another receives it.
"""

import asyncio
import gc
import json
import time
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, NamedTuple, cast

LAST_CHUNK = b"0\r\n\r\n"
"""How a response ends. No event does: those end with two line feeds and no carriage return in between."""
DEADLINE_SECONDS = 30.0


class Refused(Exception):
    """The response is not the stream that was asked for, or is not complete."""


class Event(NamedTuple):
    """One event, with the moments, in nanoseconds, at which its first byte and its last byte had arrived."""

    data: bytes
    began_ns: int
    ended_ns: int

    @property
    def is_done(self) -> bool:
        return self.data == b"data: [DONE]"

    @property
    def json(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.data.partition(b"data: ")[2])
        return parsed


class Exchange(asyncio.Protocol):
    """One request and its streaming response. `begun` is set by the first event, `ended` by the end or a failure."""

    def __init__(self, request: bytes) -> None:
        self.blocks: list[bytes] = []
        self.times_ns: list[int] = []
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()
        self.sent_ns = 0
        """When the client began to connect: a client that comes back pays for its connection, too."""
        self._request = request
        self._newest = b""
        self._transport: asyncio.WriteTransport | None = None

    async def send(self, host: str, port: int) -> None:
        """Connect and send the request; returns when it is sent."""
        self.sent_ns = time.monotonic_ns()
        await asyncio.get_running_loop().create_connection(lambda: self, host, port)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.times_ns.append(time.monotonic_ns())
        self.blocks.append(data)
        if not self.begun.is_set() and b"data: " in b"".join(self.blocks):
            self.begun.set()
        self._newest = (self._newest + data[-len(LAST_CHUNK) :])[-len(LAST_CHUNK) :]
        # Not before an event: headers may end with the same bytes (`Deprecation: @1778716800`, for one).
        if (self.begun.is_set() and self._newest == LAST_CHUNK) or not self.blocks[0].startswith(b"HTTP/1.1 200 "):
            self.ended.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self.begun.set()
        self.ended.set()

    def hang_up(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    @property
    def size(self) -> int:
        """Bytes received, headers and framing included."""
        return sum(map(len, self.blocks))

    @property
    def headers_ns(self) -> int:
        """When the first byte of the headers had arrived."""
        return self.times_ns[0]

    def events(self) -> Iterator[Event]:
        """Read what has arrived as events. Raises `Refused` unless the response is a stream."""
        raw, ends = b"".join(self.blocks), list(accumulate(map(len, self.blocks)))
        at = raw.find(b"\r\n\r\n") + 4
        if not raw.startswith(b"HTTP/1.1 200 ") or b"chunked" not in raw[:at].lower():
            raise Refused(raw[:500].decode(errors="replace"))
        while (line_end := raw.find(b"\r\n", at)) > 0 and (size := int(raw[at:line_end], 16)):
            start = line_end + 2
            if start + size > len(raw):
                return  # Hung up within it.
            for data in raw[start : start + size].split(b"\n\n")[:-1]:
                last = start + len(data) + 1
                yield Event(data, *(self.times_ns[bisect_left(ends, each + 1)] for each in (start, last)))
                start = last + 1
            at = line_end + 2 + size + 2

    def complete(self) -> list[Event]:
        """Give all events. Raises `Refused` unless the run's end was the last of them, and the last chunk followed."""
        events = list(self.events())
        if not events or not events[-1].is_done or self._newest != LAST_CHUNK:
            raise Refused(f"incomplete after {len(events)} events: {b''.join(self.blocks)[-500:]!r}")
        return events


def post(path: str, body: object) -> bytes:
    """Make a request."""
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


class quiet:  # noqa: N801  # reads as what it makes of the block
    """No garbage collection in this process while the block lasts: its pauses would be taken for the server's."""

    def __enter__(self) -> None:
        gc.collect()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        gc.enable()
