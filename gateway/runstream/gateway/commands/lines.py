"""Lines of stdin, and what a run is to say of each: read in a thread, no further ahead than may wait."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections import deque
from typing import Any, Final

from runstream.gateway.commands.exits import Usage

__all__ = ["Input", "Parsed", "chunk_of_line", "parsed"]

READ_BYTES: Final = 2**16
LONGEST_LINE: Final = 64 * 2**20
"""What no message of NATS's has room for, by far."""
LINE_BYTES: Final = 64
"""What a line takes of memory beside its own bytes, about: of empty ones there may be a billion."""
MOST_WAITING: Final = 8 * 2**20
"""Bytes that are held of what is read ahead, give or take one read and one line; then whoever writes to the pipe waits.
"""
PING: Final = "ping"
"""What is said to keep a stream alive, and is not stored."""
ENDINGS: Final = ("stop_reason", "usage_statistics", "error_message")
"""What says how a run ends. No set: what a chunk has for its type may be anything, and need not have a hash."""


class Input:
    """The lines of a file descriptor, as they come. `is_over` once the last one was taken."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._loop = asyncio.get_running_loop()
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._is_ended = False
        self._error: Usage | None = None
        self.news = asyncio.Event()
        """Set when there is something to take, or nothing more."""
        self._room = threading.Event()
        self._room.set()
        # A daemon, and reading the bare descriptor: a read that waits for a terminal keeps no process from its end.
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    @property
    def is_over(self) -> bool:
        """Whether everything was taken, and nothing will come; what reading has failed with is still to be taken."""
        return self._is_ended and not self._lines and self._error is None

    def take(self) -> bytes | None:
        """Take the next line, without its end; None if there is none yet. Raises `Usage` for what cannot be read."""
        if not self._lines:
            if self._error is not None:
                raise self._error
            self.news.clear()
            if self._is_ended:
                self.news.set()
            return None
        line = self._lines.popleft()
        self._bytes -= LINE_BYTES + len(line)
        if self._bytes < MOST_WAITING:
            self._room.set()
        return line

    def _read(self) -> None:
        held: list[bytes] = []  # What there is of a line, in pieces: put together once, as it may be long.
        size = 0
        failure: Usage | None = None
        try:
            while piece := os.read(self._descriptor, READ_BYTES):
                *whole, rest = piece.split(b"\n")
                if whole:
                    whole[0] = b"".join([*held, whole[0]])
                    held, size = [], 0
                held.append(rest)
                size += len(rest)
                self._hand_over(whole)
                if size > LONGEST_LINE:
                    raise Usage(f"A line of stdin has more than {LONGEST_LINE} bytes: is it text?")
            self._hand_over([b"".join(held)] if size else [])
        except OSError as error:
            failure = Usage(f"stdin cannot be read: {error.strerror}.")
        except Usage as error:
            failure = error
        self._call(self._end, failure)

    def _hand_over(self, lines: list[bytes]) -> None:
        """Give lines to the event loop, and wait until it has them and there is room: this thread is much faster."""
        if lines:
            self._room.clear()
            self._call(self._add, lines)
            self._room.wait()

    def _call(self, what: Any, about: object) -> None:
        try:
            self._loop.call_soon_threadsafe(what, about)
        except RuntimeError:
            return  # The loop is closed: nobody listens any more.

    def _add(self, lines: list[bytes]) -> None:
        self._lines.extend(lines)
        self._bytes += LINE_BYTES * len(lines) + sum(map(len, lines))
        if self._bytes < MOST_WAITING:
            self._room.set()
        self.news.set()

    def _end(self, failure: Usage | None) -> None:
        self._is_ended, self._error = True, failure
        self.news.set()


class Parsed:
    """What a line of NDJSON comes to: a chunk to be stored, or what the run's end is to say."""

    def __init__(self, *, chunk: bytes | None = None, ending: tuple[str, dict[str, Any]] | None = None) -> None:
        self.chunk = chunk
        self.ending = ending


def chunk_of_line(line: bytes, message_id: str) -> bytes:
    """Make the chunk that says a line of text, with its end: the same bytes for the same line, whenever it is made."""
    text = line.decode(errors="replace").removesuffix("\r")
    chunk = {"id": message_id, "message_type": "assistant_message", "content": f"{text}\n"}
    return json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode()


def parsed(line: bytes, number: int) -> Parsed:
    """Read a line of NDJSON. Raises `Usage` for what is no JSON object."""
    if not line.strip():
        return Parsed()
    try:
        chunk = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Usage(f"Line {number} of stdin is not JSON: {error}.") from error
    if not isinstance(chunk, dict) or not chunk:
        raise Usage(f"Line {number} of stdin is not a JSON object with a key.")
    kind = chunk.get("message_type")
    if kind == PING:
        return Parsed()
    if kind in ENDINGS:
        return Parsed(ending=(str(kind), chunk))
    # As it was written: what is sent again must come to the same bytes.
    return Parsed(chunk=line.strip())
