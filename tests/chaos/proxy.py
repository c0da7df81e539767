"""A TCP proxy between two that talk, whose weather changes while connections are open.

A `Line` is all that passes between two. Most are a `Link`, which listens on a port of its own and takes each connection
to one target; where either of the two may connect, and others come to the same port, a `Junction` listens, and gives
each connection to the line of those two. What a line was told of an end, a close or a reset is passed on in its turn,
behind the bytes that came before: who is held up hears nothing at all.
"""

import asyncio
import contextlib
import dataclasses
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from enum import Enum
from typing import TypeAlias, cast

QUEUE_BYTES = 256 * 2**10
"""What one direction of a connection takes while nothing moves: then its sender's socket fills, as on a real way."""
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER, on, for no time: closing sends a reset."""
HOST = "127.0.0.1"
BACKLOG = 1024
"""Of connections that nobody has taken yet. When a gateway ends, all its readers come at once to the next; who finds no
place tries again a second later, and that would be the proxy's doing."""


class Way(Enum):
    """A direction, as seen from whom a line names first: from who connects, where only one of the two does."""

    UP = "up"
    DOWN = "down"

    @property
    def opposite(self) -> "Way":
        return Way.DOWN if self is Way.UP else Way.UP


BOTH = frozenset(Way)


@dataclasses.dataclass(frozen=True)
class Weather:
    """What a line does to what passes it; fair unless told otherwise."""

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
    """What a line has seen so far."""

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
        self._line = passage.line
        self._pieces: deque[Piece] = deque()
        self._waiting_bytes = 0
        self._sink_is_full = False
        self._free_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def feed(self, data: bytes | Word) -> None:
        """Take what the source has sent."""
        weather = self._line.weather
        if weather is FAIR and not self._pieces and self.sink is not None and isinstance(data, bytes):
            self._line.counts.passed_bytes += len(data)
            self._write(data)
            return
        if isinstance(data, bytes):
            if self.way in weather.swallowed:
                self._line.counts.swallowed_bytes += len(data)
                self._passage.has_lost = True
                return
            self._line.counts.held_bytes += len(data) * (self.way in weather.held)
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
            weather = self._line.weather
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
        # A rate without segments would be one long silence, and then all of it.
        most = weather.segment_bytes or (max(1, int(weather.bytes_per_second / 20)) if weather.bytes_per_second else 0)
        head, rest = (piece[:most], piece[most:]) if most else (piece, b"")
        if rest:
            self._pieces[0] = (self._pieces[0][0], rest)
        else:
            self._pieces.popleft()
        self._waiting_bytes -= len(head)
        self._line.counts.passed_bytes += len(head)
        self._line.counts.hampered_bytes += len(head) * (weather is not FAIR)
        if weather.bytes_per_second:
            self._free_at = now + len(head) / weather.bytes_per_second
        self._write(head)

    def _write(self, data: bytes) -> None:
        # An end that is gone, and of which the other has not been told yet: what comes behind that word may be held up.
        if self.sink is not None and not self.sink.is_closing():
            self.sink.write(data)

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
    """One connection, from whoever came to `target`; what he says goes in the line's direction `way`."""

    def __init__(self, line: "Line", target: tuple[str, int], way: Way = Way.UP) -> None:
        self.line = line
        self.is_closed = False
        self.has_lost = False
        """Whether bytes were swallowed."""
        self.there, self.back = Pipe(self, way), Pipe(self, way.opposite)
        self._target = target
        self._ended: set[Way] = set()
        self._connecting: asyncio.Task[None] | None = None

    def near(self) -> End:
        """The protocol of the end that has come."""
        return End(self, outgoing=self.there, incoming=self.back)

    def made(self, outgoing: Pipe) -> None:
        """Go on when an end is there: to the target, or with what has been said meanwhile."""
        if outgoing is self.there:
            self.line.passages.add(self)
            self.line.counts.accepted += 1
            self._connecting = asyncio.create_task(self._connect(), name=f"{self.line.name} connects")
        else:
            self.there.pump()

    async def _connect(self) -> None:
        far = End(self, outgoing=self.back, incoming=self.there)
        try:
            await asyncio.get_running_loop().create_connection(lambda: far, *self._target)
        except OSError:
            self.line.counts.refused += 1
            self.reset()

    def told(self, pipe: Pipe, word: Word) -> None:
        """Pass on, at its time, that a side has ended."""
        if word is Word.RESET:
            self.reset()
            return
        self._ended.add(pipe.way)
        if self._ended == BOTH:
            self._close()
            for transport in (self.there.sink, self.back.sink):
                if transport is not None:
                    transport.close()
        elif pipe.sink is not None and not pipe.sink.is_closing():
            pipe.sink.write_eof()

    def cut(self) -> None:
        """End both sides in good order, whatever has not passed yet."""
        self._close()
        for transport in (self.there.sink, self.back.sink):
            if transport is not None:
                transport.close()

    def reset(self) -> None:
        """End both sides by a reset."""
        self._close()
        for transport in (self.there.sink, self.back.sink):
            if transport is not None:
                reset(transport)

    def _close(self) -> None:
        self.is_closed = True
        self.line.passages.discard(self)
        self.there.close()
        self.back.close()
        if self._connecting is not None and self._connecting is not asyncio.current_task():
            self._connecting.cancel()


class Line:
    """What passes between two, whoever of them connected, through one `weather`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts = Counts()
        self.passages: set[Passage] = set()
        self._weather = FAIR

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
            passage.there.pump()
            passage.back.pump()

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


class Link(Line):
    """A line on which one of the two connects: it listens at `port`, and takes each connection to `target`."""

    def __init__(self, name: str, port: int, target: tuple[str, int]) -> None:
        super().__init__(name)
        self.port = port
        self.target = target

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Link"]:
        """Pass connections on for as long as the block lasts; what is open then is reset."""
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(
            lambda: Passage(self, self.target).near(), HOST, self.port, backlog=BACKLOG
        )
        try:
            yield self
        finally:
            listening.close()
            self.reset()
            await listening.wait_closed()


class Junction:
    """Listens at `port` for several who come to one `target`, each by a line of its own.

    `lines` has them by the names of who may come, with the direction in which goes what they say; `who` tells a name
    by the port that a connection comes from. One that is nobody's is reset.
    """

    def __init__(
        self,
        port: int,
        target: tuple[str, int],
        lines: Mapping[str, tuple[Line, Way]],
        who: Callable[[int], str | None],
    ) -> None:
        self.port = port
        self._target, self._lines, self._who = target, lines, who

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Junction"]:
        """Pass connections on for as long as the block lasts; what is open on any of the lines then is reset."""
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(lambda: Arrival(self), HOST, self.port, backlog=BACKLOG)
        try:
            yield self
        finally:
            listening.close()
            for line, _ in self._lines.values():
                line.reset()
            await listening.wait_closed()

    def end_for(self, port: int) -> End | None:
        """The protocol for a connection that comes from that port; None if it is nobody's."""
        found = self._lines.get(self._who(port) or "")
        return None if found is None else Passage(found[0], self._target, found[1]).near()


class Arrival(asyncio.Protocol):
    """A connection that is on no line yet."""

    def __init__(self, junction: Junction) -> None:
        self._junction = junction

    def connection_made(self, made: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", made)
        peer = transport.get_extra_info("peername")
        end = self._junction.end_for(peer[1]) if peer else None
        if end is None:
            reset(transport)
            return
        transport.set_protocol(end)
        end.connection_made(transport)


def reset(transport: asyncio.Transport) -> None:
    """Close it by a reset."""
    if not transport.is_closing():
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    transport.abort()
