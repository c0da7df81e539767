"""A TCP proxy between two that talk, whose weather changes while connections are open.

A `Link` listens on a port of its own and takes each connection to one target. What it was told of an end, a close or
a reset is passed on in its turn, behind the bytes that came before: who is held up hears nothing at all.
"""

import asyncio
import contextlib
import dataclasses
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from enum import Enum
from typing import TypeAlias, cast

QUEUE_BYTES = 256 * 2**10
"""What one direction of a connection takes while nothing moves: then its sender's socket fills, as on a real way."""
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER, on, for no time: closing sends a reset."""


class Way(Enum):
    """A direction, as seen from whoever connected."""

    UP = "up"
    DOWN = "down"


BOTH = frozenset(Way)


@dataclasses.dataclass(frozen=True)
class Weather:
    """What a link does to what passes it; fair unless told otherwise."""

    delay_seconds: float = 0.0
    bytes_per_second: float = 0.0
    """0: as fast as it goes."""
    segment_bytes: int = 0
    """0: as it comes."""
    held: frozenset[Way] = frozenset()
    """Nothing passes in these directions, and nothing is lost: a network that is away."""
    swallowed: frozenset[Way] = frozenset()
    """What is sent in these directions is lost, and nobody is told: a host that is gone. A connection that has lost
    something is reset when the weather changes: TCP could not go on with it, either."""


FAIR = Weather()


@dataclasses.dataclass
class Counts:
    """What a link has seen so far."""

    accepted: int = 0
    refused: int = 0
    """Connections that were reset at once, because nobody was there to take them to."""
    passed_bytes: int = 0
    hampered_bytes: int = 0
    """Of these, those that came late, slowly or in pieces."""
    held_bytes: int = 0
    swallowed_bytes: int = 0
    cut: int = 0
    reset: int = 0


class Word(Enum):
    """What follows the last byte."""

    END = "end"
    """In good order: the sender has no more to say."""
    RESET = "reset"


Piece: TypeAlias = tuple[float, bytes | Word]


class Pipe:
    """One direction of a passage: what has come in, when it may go out."""

    def __init__(self, passage: "Passage", way: Way) -> None:
        self.way = way
        self.source: asyncio.Transport | None = None
        self.sink: asyncio.Transport | None = None
        self._passage = passage
        self._link = passage.link
        self._pieces: deque[Piece] = deque()
        self._waiting_bytes = 0
        self._sink_is_full = False
        self._free_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def feed(self, data: bytes | Word) -> None:
        """Take what the source has sent."""
        weather = self._link.weather
        if weather is FAIR and not self._pieces and self.sink is not None and isinstance(data, bytes):
            self._link.counts.passed_bytes += len(data)
            self.sink.write(data)
            return
        if isinstance(data, bytes):
            if self.way in weather.swallowed:
                self._link.counts.swallowed_bytes += len(data)
                self._passage.has_lost = True
                return
            self._link.counts.held_bytes += len(data) * (self.way in weather.held)
            self._waiting_bytes += len(data)
        self._pieces.append((asyncio.get_running_loop().time() + weather.delay_seconds, data))
        self._choke()
        self.pump()

    def pump(self) -> None:
        """Pass on what may pass now, and come back for the rest when its time has come."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = asyncio.get_running_loop().time()
        while self._pieces and self.sink is not None:
            weather = self._link.weather
            due, piece = self._pieces[0]
            due = max(due if weather.delay_seconds else now, self._free_at)
            if self.way in weather.held or self.way in weather.swallowed or self._sink_is_full:
                return
            if due > now:
                self._timer = asyncio.get_running_loop().call_at(due, self.pump)
                return
            if isinstance(piece, Word):
                self._pieces.popleft()
                self._passage.told(self, piece)
            else:
                self._send(piece, weather, now)
        self._choke()

    def _send(self, piece: bytes, weather: Weather, now: float) -> None:
        """Write the first piece, or what of it is one segment."""
        assert self.sink is not None
        # A rate without segments would be one long silence, and then all of it.
        most = weather.segment_bytes or (max(1, int(weather.bytes_per_second / 20)) if weather.bytes_per_second else 0)
        head, rest = (piece[:most], piece[most:]) if most else (piece, b"")
        if rest:
            self._pieces[0] = (self._pieces[0][0], rest)
        else:
            self._pieces.popleft()
        self._waiting_bytes -= len(head)
        self._link.counts.passed_bytes += len(head)
        self._link.counts.hampered_bytes += len(head) * (weather is not FAIR)
        if weather.bytes_per_second:
            self._free_at = now + len(head) / weather.bytes_per_second
        self.sink.write(head)

    def sink_is_full(self, is_full: bool) -> None:
        """Heed what the sink's transport says of itself."""
        self._sink_is_full = is_full
        self._choke()
        if not is_full:
            self.pump()

    def _choke(self) -> None:
        """Read no more than may wait."""
        if self.source is None or self.source.is_closing():
            return
        with contextlib.suppress(RuntimeError):  # it reads, or does not read, already
            if self._sink_is_full or self._waiting_bytes > QUEUE_BYTES:
                self.source.pause_reading()
            else:
                self.source.resume_reading()

    def close(self) -> None:
        """Forget what waits."""
        if self._timer is not None:
            self._timer.cancel()
        self._pieces.clear()


class End(asyncio.Protocol):
    """One end of a passage: what comes here goes into `outgoing`, and `incoming` is written to it."""

    def __init__(self, passage: "Passage", outgoing: Pipe, incoming: Pipe) -> None:
        self._passage = passage
        self._outgoing, self._incoming = outgoing, incoming

    def connection_made(self, made: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", made)  # uvloop's is none by its class
        # A piece of its own must be a segment of its own.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._outgoing.source = self._incoming.sink = transport
        if self._passage.is_closed:
            reset(transport)
        else:
            self._passage.made(self._outgoing)

    def data_received(self, data: bytes) -> None:
        self._outgoing.feed(data)

    def eof_received(self) -> bool:
        self._outgoing.feed(Word.END)
        return True  # the other direction may go on

    def connection_lost(self, _: Exception | None) -> None:
        if not self._passage.is_closed:
            self._outgoing.feed(Word.RESET)

    def pause_writing(self) -> None:
        self._incoming.sink_is_full(True)

    def resume_writing(self) -> None:
        self._incoming.sink_is_full(False)


class Passage:
    """One connection, from whoever came to the target."""

    def __init__(self, link: "Link") -> None:
        self.link = link
        self.is_closed = False
        self.has_lost = False
        """Whether bytes were swallowed."""
        self.up, self.down = Pipe(self, Way.UP), Pipe(self, Way.DOWN)
        self._ended: set[Way] = set()
        self._connecting: asyncio.Task[None] | None = None

    def near(self) -> End:
        """The protocol of the end that has come to the link."""
        return End(self, outgoing=self.up, incoming=self.down)

    def made(self, outgoing: Pipe) -> None:
        """Go on when an end is there: to the target, or with what has been said meanwhile."""
        if outgoing is self.up:
            self.link.passages.add(self)
            self.link.counts.accepted += 1
            self._connecting = asyncio.create_task(self._connect(), name=f"{self.link.name} connects")
        else:
            self.up.pump()

    async def _connect(self) -> None:
        far = End(self, outgoing=self.down, incoming=self.up)
        try:
            await asyncio.get_running_loop().create_connection(lambda: far, *self.link.target)
        except OSError:
            self.link.counts.refused += 1
            self.reset()

    def told(self, pipe: Pipe, word: Word) -> None:
        """Pass on, at its time, that a side has ended."""
        if word is Word.RESET:
            self.reset()
            return
        self._ended.add(pipe.way)
        if self._ended == BOTH:
            self._close()
            for transport in (self.up.sink, self.down.sink):
                if transport is not None:
                    transport.close()
        elif pipe.sink is not None and not pipe.sink.is_closing():
            pipe.sink.write_eof()

    def cut(self) -> None:
        """End both sides in good order, whatever has not passed yet."""
        self._close()
        for transport in (self.up.sink, self.down.sink):
            if transport is not None:
                transport.close()

    def reset(self) -> None:
        """End both sides by a reset."""
        self._close()
        for transport in (self.up.sink, self.down.sink):
            if transport is not None:
                reset(transport)

    def _close(self) -> None:
        self.is_closed = True
        self.link.passages.discard(self)
        self.up.close()
        self.down.close()
        if self._connecting is not None and self._connecting is not asyncio.current_task():
            self._connecting.cancel()


class Link:
    """Listens at `port`, and takes each connection to `target`, through the `weather`."""

    def __init__(self, name: str, port: int, target: tuple[str, int]) -> None:
        self.name = name
        self.port = port
        self.target = target
        self.counts = Counts()
        self.passages: set[Passage] = set()
        self._weather = FAIR

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Link"]:
        """Pass connections on for as long as the block lasts; what is open then is reset."""
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(lambda: Passage(self).near(), "127.0.0.1", self.port)
        try:
            yield self
        finally:
            listening.close()
            self.reset()
            await listening.wait_closed()

    @property
    def weather(self) -> Weather:
        """What it is like now; any that is set holds at once for all connections, open and new."""
        return self._weather

    @weather.setter
    def weather(self, weather: Weather) -> None:
        self._weather = FAIR if weather == FAIR else weather
        for passage in list(self.passages):
            if passage.has_lost and not weather.swallowed:
                self.counts.reset += 1
                passage.reset()
        for passage in list(self.passages):
            passage.up.pump()
            passage.down.pump()

    @contextlib.contextmanager
    def in_weather(self, **weather: object) -> Iterator[None]:
        """That weather while the block lasts, fair weather after it."""
        self.weather = dataclasses.replace(FAIR, **weather)  # type: ignore[arg-type]
        try:
            yield
        finally:
            self.weather = FAIR

    def cut(self) -> int:
        """End all connections in good order; how many they were."""
        return self._end(Passage.cut, "cut")

    def reset(self) -> int:
        """Reset all connections; how many they were."""
        return self._end(Passage.reset, "reset")

    def _end(self, how: Callable[[Passage], None], counted: str) -> int:
        ended = list(self.passages)
        for passage in ended:
            how(passage)
        setattr(self.counts, counted, getattr(self.counts, counted) + len(ended))
        return len(ended)


def reset(transport: asyncio.Transport) -> None:
    """Close it by a reset."""
    if not transport.is_closing():
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    transport.abort()
