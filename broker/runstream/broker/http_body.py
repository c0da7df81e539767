"""A request's body, unpacked, read strictly and within bounds, on whichever port it came to.

BadBody                 the body cannot be used
├── BodyTooLarge        it has more bytes, or more in it, than is accepted
├── BodyPacked          it is compressed in a way that is not read here
├── BodyTooSlow         it did not arrive in time
├── BodyNotFramed       it is not framed as its headers say
├── BodyUnreadable      it is no text, is nested without end, or has what cannot be stored
└── NotJson             it is text, and no JSON

The exception's text is for the client; the status is for whoever answers.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec
from aiohttp import hdrs, web
from aiohttp.web_protocol import _ErrInfo

from runstream.broker.http_pipeline import Pipeline, let_go_of
from runstream.broker.tasks import Turns

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Iterator

    from aiohttp import StreamReader

__all__ = [
    "BadBody",
    "BodyNotFramed",
    "BodyPacked",
    "BodyTooLarge",
    "BodyTooSlow",
    "BodyUnreadable",
    "NotJson",
    "parse_body",
    "pieces_of",
    "raw_pieces_of",
    "read_body",
]

NESTING_RESERVE = 32
"""Levels of nesting kept free: what a request is stored with is encoded deeper in the stack than it is read."""

MOST_VALUES: Final = 50_000
"""Values in one JSON body, each item of a list and each of an object's. A thousand messages of ten fields and a hundred
tools have less than half of it; a megabyte of `{}` has seven times as many, and each is looked at by itself."""

PIECE_BYTES: Final = 64 * 2**10
"""Bytes that are given out, or unpacked, at one time: what is done with them takes milliseconds."""

TAKEN_BYTES: Final = 16 * 2**10
"""Compressed bytes that are taken at one time: what is left of them is copied again and again."""

MOST_FOLD: Final = 100
"""How many times as large as it came a body may become. Text in JSON becomes ten times as large, or twenty."""

UNPACKED_FREELY: Final = 2**20
"""Bytes that may be unpacked whatever came: a small body may repeat itself."""


class BadBody(Exception):
    """The body cannot be used."""


class BodyTooLarge(BadBody):
    """It has more bytes, or more in it, than is accepted."""


class BodyPacked(BadBody):
    """It is compressed in a way that is not read here."""


class BodyTooSlow(BadBody):
    """It did not arrive in time."""


class BodyNotFramed(BadBody):
    """It is not framed as its headers say: a chunk of it is none. What follows cannot be told from it."""

    def __init__(self) -> None:
        super().__init__("The request body is not framed as its headers say.")


class BodyUnreadable(BadBody):
    """It is no text, is nested without end, or has what cannot be stored."""

    def __init__(self) -> None:
        super().__init__("There was an error parsing the body")


class NotJson(BadBody):
    """It is text, and no JSON: what is wrong, and at which character."""

    def __init__(self, reason: str, position: int) -> None:
        self.reason = reason
        self.position = position
        super().__init__(f"The body is not JSON: {reason} at character {position}.")


async def read_body(request: web.Request, *, limit: int, seconds: float) -> bytes:
    """Return the bytes of a body, unpacked. Raises `BadBody`, and `ConnectionError` when the client is gone."""
    length = request.content_length
    if length is not None and length > limit:
        raise BodyTooLarge(f"The request body has {length} bytes; at most {limit} are accepted.")
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds), aclosing(pieces_of(request)) as pieces:
            async for part in pieces:
                size += len(part)
                if size > limit:
                    raise BodyTooLarge(
                        f"The request body has more than {limit} bytes, which is as many as are accepted."
                    )
                parts.append(part)
    except TimeoutError:
        raise BodyTooSlow(f"The request body was not there after {seconds:g} s.") from None
    return b"".join(parts)


async def pieces_of(request: web.Request) -> AsyncGenerator[bytes]:
    """Yield a body unpacked, as it comes, all that came; others on the event loop get their turn, however much it is.

    Then raises `ConnectionError` when the client is gone, `BodyNotFramed`, `BodyUnreadable` when the encoding is
    broken; `BodyTooLarge` as soon as far more is unpacked than came, `BodyPacked` at once.
    """
    unpacking = _unpacking_of(request)
    turns = Turns()
    async with aclosing(raw_pieces_of(request)) as pieces:
        async for piece in pieces:
            for begin in range(0, len(piece), TAKEN_BYTES):
                for unpacked in unpacking.feed(piece[begin : begin + TAKEN_BYTES]):
                    if unpacked:
                        yield unpacked
                    await turns.give()
    unpacking.close()


async def raw_pieces_of(request: web.Request) -> AsyncGenerator[bytes]:
    """Yield a body as it comes, all that came. Then raises `ConnectionError` when the client is gone, `BodyNotFramed`.

    Whatever it raises, the connection is to be closed.
    """
    content = request.content
    with _framing_of(request) as framing:
        try:
            while piece := await framing.next(content):
                yield piece
        except (web.RequestPayloadError, ConnectionError) as error:
            # aiohttp tells of what is wrong at once, and then gives nothing any more: what came before it is still
            # there.
            if rest := content._read_nowait(-1):  # noqa: SLF001  # there is no other way to it
                yield rest
            if isinstance(error, ConnectionError):
                raise
            raise BodyNotFramed from None


class _Framing:
    """Whether a body is still one. Broken, it gives what came before, and then raises `BodyNotFramed`."""

    def __init__(self) -> None:
        self._is_broken = False
        self._waiting: asyncio.Timeout | None = None

    def broken(self) -> None:
        """Say that nothing more will come of the body."""
        if self._waiting is not None and not self._is_broken:
            self._waiting.reschedule(0)
        self._is_broken = True

    async def next(self, content: StreamReader) -> bytes:
        """Read what has come; nothing at the body's end."""
        try:
            async with asyncio.timeout(0 if self._is_broken else None) as self._waiting:
                return await content.readany()
        except TimeoutError:
            raise BodyNotFramed from None
        finally:
            self._waiting = None


class _Received(Pipeline):
    """The requests that a connection has received, as aiohttp keeps them, which tells of what is none."""

    __slots__ = ("_broken",)

    def __init__(self, found: Iterable[Any], broken: Callable[[], None]) -> None:
        super().__init__(found)
        self._broken = broken

    def append(self, received: Any) -> None:
        """Take the next request, or what stands for one that cannot be read."""
        super().append(received)
        if isinstance(received[0], _ErrInfo):
            self._broken()


@contextmanager
def _framing_of(request: web.Request) -> Iterator[_Framing]:
    """Watch whether what comes is still the request's body.

    aiohttp's parser tells only whoever serves the next request, which is nobody until this one is answered.
    """
    framing, protocol, content = _Framing(), request.protocol, request.content

    def broken() -> None:
        if not content.is_eof():  # Else it is the next request that is none.
            framing.broken()

    received = _Received(protocol._messages, broken)  # noqa: SLF001  # there is no other way to it
    protocol._messages = received  # type: ignore[assignment]  # noqa: SLF001  # as aiohttp uses it
    if any(isinstance(message, _ErrInfo) for message, _ in received):
        broken()
    try:
        yield framing
    finally:
        protocol._messages = Pipeline(received)  # type: ignore[assignment]  # noqa: SLF001
        let_go_of(content)


class _Plain:
    """A body that is sent as it is."""

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Take what came; yields what it is."""
        yield piece

    def close(self) -> None:
        """Take the end of all."""


class _Unpacking(_Plain):
    """A body in zlib's format, or in gzip's, which may have several members. Each step makes one piece at most."""

    def __init__(self, *, is_gzip: bool) -> None:
        self._is_gzip = is_gzip
        self._member: zlib._Decompress | None = None
        self._is_over = False
        self._came = self._made = 0

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Take what came; yields what it is, and nothing where that was work for nothing."""
        self._came += len(piece)
        is_more = bool(piece)
        while is_more:
            if self._member is None:
                self._member = zlib.decompressobj(self._window(piece[0]))
            try:
                made = self._member.decompress(piece, PIECE_BYTES)
            except zlib.error:
                raise BodyUnreadable from None
            self._made += len(made)
            if self._made > max(UNPACKED_FREELY, MOST_FOLD * self._came):
                raise BodyTooLarge(
                    f"The request body unpacks to more than {MOST_FOLD} times what was sent: send it as it is."
                )
            if self._member.eof:
                piece = self._member.unused_data
                self._member, self._is_over = None, not self._is_gzip
                is_more = bool(piece)
            else:
                piece = self._member.unconsumed_tail
                # A piece that is full may not be all that zlib has, though it has taken everything.
                is_more = bool(piece) or len(made) == PIECE_BYTES
            yield made

    def close(self) -> None:
        """Take the end of all. Raises `BodyUnreadable` in the middle of something."""
        if self._member is not None:
            raise BodyUnreadable

    def _window(self, first: int) -> int:
        """Say how zlib is to read what begins with this byte. Of deflate there are two kinds, and browsers read both.

        Raises `BodyUnreadable` behind the end.
        """
        if self._is_over:
            raise BodyUnreadable
        if self._is_gzip:
            return 16 + zlib.MAX_WBITS
        return zlib.MAX_WBITS if first & 0xF == zlib.DEFLATED else -zlib.MAX_WBITS


def _unpacking_of(request: web.Request) -> _Plain:
    """Find what a body has to be unpacked with. Raises `BodyPacked`."""
    said = ", ".join(request.headers.getall(hdrs.CONTENT_ENCODING, ())).strip()
    match said.lower():
        case "" | "identity":
            return _Plain()
        case "gzip" | "x-gzip" | "deflate" as name:
            return _Unpacking(is_gzip=name != "deflate")
        case _:
            raise BodyPacked(f"Content-Encoding {said} is not read here: send gzip, deflate, or the body as it is.")


def parse_body(raw: bytes, *, limit: int) -> Any:
    """Read a body as JSON that can be stored. Raises `NotJson`, `BodyUnreadable`, `BodyTooLarge`."""
    try:
        parsed = json.loads(raw, parse_constant=_no_constant)
        _check_count(parsed)
        size = _stored_size(parsed)
    except json.JSONDecodeError as error:
        raise NotJson(error.msg, error.pos) from None
    except (UnicodeDecodeError, RecursionError, ValueError):
        raise BodyUnreadable from None
    if size > limit:
        raise BodyTooLarge(f"The request body would be stored with {size} bytes; at most {limit} are accepted.")
    return parsed


def _check_count(parsed: Any) -> None:
    """Raise `BodyTooLarge` for more values than may be: whoever looks at each of them would be busy for seconds."""
    count = 1
    containers = [parsed] if isinstance(parsed, dict | list) else []
    while containers:
        container = containers.pop()
        values = container.values() if isinstance(container, dict) else container
        count += len(values)
        if count > MOST_VALUES:
            raise BodyTooLarge(
                f"The request body has more than {MOST_VALUES} values, which is as many as are accepted."
            )
        containers.extend(value for value in values if isinstance(value, dict | list))


def _stored_size(parsed: Any) -> int:
    """Return the bytes a body has when it is stored, which may be more than were sent: `1e9` is written out.

    Raises UnicodeEncodeError for half a surrogate pair, RecursionError for nesting without end.
    """
    for _ in range(NESTING_RESERVE):
        parsed = [parsed]
    return len(msgspec.json.encode(parsed)) - 2 * NESTING_RESERVE


def _no_constant(name: str) -> NoReturn:
    """Refuse NaN and Infinity, which Python would take and no agent could be sent."""
    raise json.JSONDecodeError(f"{name} is not JSON", name, 0)
