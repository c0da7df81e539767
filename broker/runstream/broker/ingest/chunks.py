"""What a writer sends, seen without I/O: bytes as lines, and a line or an array's element as a chunk to be stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runstream.broker.errors import ChunkTooLarge
from runstream.broker.ingest.errors import IngestError, translated
from runstream.broker.raw_chunks import raw_array, raw_chunk, written
from runstream.schemas import InvalidChunk, Kind, encode_chunk, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Lines", "bodies_of", "body_of_line"]

SHOWN_CHARACTERS = 200
"""How much of what is no chunk is shown: enough to know it again."""
MOST_ITEMS = 10_000
"""Chunks in one JSON body: two minutes of a fast agent. All of them are checked before any is stored, which takes some
ten microseconds each; more is for an upload, line by line."""
WHITE_SPACE = " \t\r\n"
"""JSON's."""
WHERE_IT_BELONGS = {
    "stop_reason": "POST …/end says why a run stopped",
    "usage_statistics": "POST …/end takes the usage",
    "error_message": "POST …/fail ends a run with an error",
}


class Lines:
    """Cuts bytes, in whatever pieces they come, into lines, the last of which need not end. Empty ones are counted."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held = bytearray()
        self.count = 0
        """How many lines there were, up to the one that was given out last."""

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Take the next bytes; yields the lines that they complete. Raises `IngestError` for one that is too long."""
        *complete, rest = piece.split(b"\n")
        for end in complete:
            if not end and not self._held:
                self.count += 1
                continue
            self._take(end)
            yield self._given()
        self._take(rest)

    def close(self) -> Iterator[bytes]:
        """Take the end of all; yields the last line if it had none."""
        if self._held:
            yield self._given()

    def _take(self, part: bytes) -> None:
        self._held += part
        if len(self._held) > self.limit:
            line = self.count + 1
            raise IngestError("chunk_too_large", f"Line {line} has more than {self.limit} bytes.", line=line)

    def _given(self) -> bytes:
        line = bytes(self._held)
        self._held.clear()
        self.count += 1
        return line


def body_of_line(line: bytes, number: int, *, run_id: str, limit: int) -> bytes | None:
    """Return a line's chunk as it is stored, None for a mere sign of life: a ping, or no chunk at all.

    Raises `IngestError`, with the line.
    """
    try:
        data = line.decode().strip(WHITE_SPACE)
    except UnicodeDecodeError as error:
        raise IngestError("invalid_chunk", f"Line {number} is not UTF-8 ({error}).", line=number) from None
    return _checked(data, f"Line {number}", run_id, limit, line=number) if data else None


def bodies_of(raw: bytes, *, run_id: str, limit: int) -> Iterator[bytes | None]:
    """Yield the chunks of a JSON body, an object or an array of them, as they are stored, and None for pings.

    Raises `IngestError`, with the array's item: then nothing of it is to be stored. How many there are is seen first.
    """
    try:
        data = raw.decode().strip(WHITE_SPACE)
    except UnicodeDecodeError as error:
        raise IngestError("invalid_request", f"The body is not UTF-8 ({error}).") from None
    if not data.startswith("["):
        yield _checked(data, "The body", run_id, limit)
        return
    try:
        elements = raw_array(data)
    except InvalidChunk as error:
        raise IngestError("invalid_chunk", f"The body is {error}: {_shown(data)}") from None
    if len(elements) > MOST_ITEMS:
        detail = f"The array has {len(elements)} items; at most {MOST_ITEMS} are taken at a time: send fewer, or lines."
        raise IngestError("body_too_large", detail)
    for item, element in enumerate(elements):
        yield _checked(written(element), f"Item {item} of the array", run_id, limit, item=item)


def _checked(data: str, what: str, run_id: str, limit: int, **where: int) -> bytes | None:
    try:
        return _stored_form(data, run_id, limit)
    except InvalidChunk as error:
        raise IngestError("invalid_chunk", f"{what} is {error}: {_shown(data)}", **where) from None
    except ChunkTooLarge as error:
        raise IngestError("chunk_too_large", f"{what}: {translated(error).detail}", **where) from None


def _stored_form(data: str, run_id: str, limit: int) -> bytes | None:
    chunk = raw_chunk(data)
    kind = kind_of(chunk)
    if kind is Kind.PING:
        return None
    if kind is not Kind.DATA:
        name = str(chunk["message_type"])
        raise InvalidChunk(f"a {name}, which is no chunk here: {WHERE_IT_BELONGS[name]}")
    body = encode_chunk(chunk, run_id=run_id)
    if len(body) > limit:
        raise ChunkTooLarge(size=len(body), limit=limit)
    return body


def _shown(data: str) -> str:
    return data if len(data) <= SHOWN_CHARACTERS else f"{data[:SHOWN_CHARACTERS]}…"
