"""One follower: a response, the cursor it has come to, and the watch over all of them in a silence."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from runstream.gateway.sse import Style, periodic_ping
from runstream.gateway.wheel import Wheel
from runstream.gateway.window import piece_of
from runstream.schemas import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runstream.gateway.framing import Framing, Piece
    from runstream.gateway.response import EventResponse
    from runstream.gateway.window import Frame

__all__ = ["Follower", "Wake", "Watch"]

CLOCK_SLACK_SECONDS = 0.01
"""What was written a moment before a look was agreed on must not make it come to nothing."""
TICKS = 200
"""Moments at which followers are looked at, in the time after which one is: a tenth of a second apart by default. Those
who came at one time are pinged together, and that is not to keep others waiting."""

BEFORE_CHUNKS = frozenset({Kind.PING, Kind.ATTEMPT})
"""What a log begins with before its agent has said anything."""


class Follower:
    """One response, and how far it has come."""

    __slots__ = (
        "_seen",
        "began_after",
        "began_at",
        "cursor",
        "following",
        "framing",
        "index",
        "is_done",
        "on_chunk",
        "read_ahead",
        "response",
        "run_id",
        "woken",
        "written_at",
    )

    def __init__(
        self, response: EventResponse, run_id: str, cursor: int, framing: Framing, *, index: int | None = None
    ) -> None:
        self.response = response
        self.run_id = run_id
        self.began_after = cursor
        self.began_at = time.monotonic()
        self.cursor = cursor
        self.index = index
        """The index of the entry at the cursor, None while it is not known; -1 where the log begins."""
        self.following: int | None = None
        """How many messages of the log follow, as far as is known: whoever reads it reads more at a time of more."""
        self.read_ahead: asyncio.Task[None] | None = None
        """What has the next piece of the log be read while the last one is written."""
        self.framing = framing
        self.is_done = False
        self.woken = Wake()
        self.written_at = time.monotonic()
        self.on_chunk: Callable[[], None] | None = None
        """Called once, when the first chunk was written."""
        self._seen: int | None = None

    @property
    def style(self) -> Style:
        """Which events its response is made of."""
        return self.framing.style

    def write_beyond(self, frames: Sequence[Frame]) -> None:
        """Write what lies beyond a cursor that is ahead of what this gateway knew of the run; and the end in any case.

        Not to an EventSource that has seen it: its response ends, and when it comes back it is told by a 204.
        """
        last, now = frames[-1], time.monotonic()
        if beyond := [frame for frame in frames if frame.entry.seq > self.cursor]:
            self.write(piece_of(beyond, self.framing), now)
        elif last.entry.kind is Kind.END and self.style is Style.EVENT_SOURCE:
            self.write(piece_of([last], self.framing)._replace(data=b""), now)
        elif last.entry.kind is Kind.END:
            self.write(piece_of([last], self.framing), now)

    def write(self, piece: Piece, now: float) -> None:
        """Write what follows the cursor, and move it. Never waits."""
        self.response.write(piece.data)
        self.cursor = piece.seq
        self.index = piece.at_index
        self.following = piece.following
        self.written_at = now
        if piece.seq_id is not None:
            self._seen = piece.seq_id
        kind = piece.kind
        if self.on_chunk is not None and kind not in BEFORE_CHUNKS:
            self.on_chunk()
            self.on_chunk = None
        if kind is Kind.END:
            self.is_done = True
            self.woken.set()

    def keep_alive(self) -> None:
        """Write a ping that repeats the last `seq_id` written."""
        seq_id = None if self.style is Style.FOREGROUND else self._seen
        self.response.write_event(periodic_ping(self.run_id, seq_id))
        self.written_at = time.monotonic()


class Wake:
    """An `asyncio.Event` for one who waits: a tenth of its size, and each follower has one."""

    __slots__ = ("_is_set", "_waiting")

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Wake who waits, or who will."""
        self._is_set = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def clear(self) -> None:
        """Have the next one wait."""
        self._is_set = False

    async def wait(self) -> None:
        """Return when it is set."""
        while not self._is_set:
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None


class Watch:
    """Looks after followers in a silence: pings them, or calls `on_blocked` with one that takes nothing any more.

    What a socket holds is no silence: more bytes would not wake its reader, and a run that stays silent would never
    find out that nobody is there.
    """

    def __init__(self, *, keepalive: float, deadline: float, on_blocked: Callable[[Follower], None]) -> None:
        self._keepalive = keepalive
        self._deadline = deadline
        self._on_blocked = on_blocked
        self._patience = min(keepalive, deadline)
        self._looks = Wheel(self._patience / TICKS, self._look)

    def begin(self, follower: Follower) -> None:
        """Look after one more."""
        self._looks.put(follower, self._patience)

    def end(self, follower: Follower) -> None:
        """Look after it no more."""
        self._looks.remove(follower)

    def _look(self, follower: Follower) -> None:
        silent = time.monotonic() - follower.written_at + CLOCK_SLACK_SECONDS
        is_full = bool(follower.response.buffered)
        if is_full and silent >= self._deadline:
            self._on_blocked(follower)
            return
        if not is_full and silent >= self._keepalive:
            if follower.framing.include_pings and not follower.is_done:
                follower.keep_alive()
            silent = 0.0
        # At the next of both moments that a silence may come to, and soon enough for one that begins meanwhile.
        left = [seconds - silent for seconds in (self._keepalive, self._deadline) if seconds > silent]
        self._looks.put(follower, min(self._patience, *left))
