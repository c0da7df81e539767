"""A request's JSON body, read strictly and within bounds, on whichever port it came to.

BadBody                 the body cannot be used
├── BodyTooLarge        it has more bytes than are accepted
├── BodyTooSlow         it did not arrive in time
├── BodyUnreadable      it is no text, is nested without end, or has what cannot be stored
└── NotJson             it is text, and no JSON

The exception's text is for the client; the status is for whoever answers.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
from aiohttp import hdrs, web

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = [
    "BadBody",
    "BodyTooLarge",
    "BodyTooSlow",
    "BodyUnreadable",
    "NotJson",
    "parse_body",
    "pieces_of",
    "read_body",
    "unpacked",
]

NESTING_RESERVE = 32
"""Levels of nesting kept free: what a request is stored with is encoded deeper in the stack than it is read."""

WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""What zlib calls the compressions that a body may have."""


class BadBody(Exception):
    """The body cannot be used."""


class BodyTooLarge(BadBody):
    """It has more bytes than are accepted."""


class BodyTooSlow(BadBody):
    """It did not arrive in time."""


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
    """Return the bytes of a body. Raises `BodyTooLarge`, `BodyTooSlow`, and `BodyUnreadable` for a broken encoding."""
    length = request.content_length
    if length is not None and length > limit:
        raise BodyTooLarge(f"The request body has {length} bytes; at most {limit} are accepted.")
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.content.iter_any():
                size += len(part)
                if size > limit:
                    raise BodyTooLarge(
                        f"The request body has more than {limit} bytes, which is as many as are accepted."
                    )
                parts.append(part)
    except web.RequestPayloadError:
        raise BodyUnreadable from None
    except TimeoutError:
        raise BodyTooSlow(f"The request body was not there after {seconds:g} s.") from None
    return b"".join(parts)


def unpacked(raw: bytes, request: web.Request, *, limit: int) -> bytes:
    """Return a compressed body as it was, where the server has not done that; nothing beyond the limit is made of it.

    Raises `BodyTooLarge`, `BodyUnreadable`.
    """
    window = WINDOW.get(request.headers.get(hdrs.CONTENT_ENCODING, "").strip().lower())
    if window is None or not raw:
        return raw
    unpacking = zlib.decompressobj(window)
    try:
        body = unpacking.decompress(raw, limit + 1)
    except zlib.error:
        raise BodyUnreadable from None
    if len(body) > limit:
        raise BodyTooLarge(f"The request body has more than {limit} bytes, which is as many as are accepted.")
    if not unpacking.eof:
        raise BodyUnreadable
    return body


async def pieces_of(request: web.Request) -> AsyncGenerator[bytes]:
    """Yield a body as it comes, all that came.

    Then raises `ConnectionError` when the client is gone, `BodyUnreadable` when the encoding is broken.
    """
    content = request.content
    try:
        async for piece in content.iter_any():
            yield piece
    except (web.RequestPayloadError, ConnectionError) as error:
        # aiohttp tells of what is wrong at once, and then gives nothing any more: what came before it is still there.
        if rest := content._read_nowait(-1):  # noqa: SLF001  # there is no other way to it
            yield rest
        if isinstance(error, ConnectionError):
            raise
        raise BodyUnreadable from None


def parse_body(raw: bytes, *, limit: int) -> Any:
    """Read a body as JSON that can be stored. Raises `NotJson`, `BodyUnreadable`, `BodyTooLarge`."""
    try:
        parsed = json.loads(raw, parse_constant=_no_constant)
        size = _stored_size(parsed)
    except json.JSONDecodeError as error:
        raise NotJson(error.msg, error.pos) from None
    except (UnicodeDecodeError, RecursionError, ValueError):
        raise BodyUnreadable from None
    if size > limit:
        raise BodyTooLarge(f"The request body would be stored with {size} bytes; at most {limit} are accepted.")
    return parsed


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
