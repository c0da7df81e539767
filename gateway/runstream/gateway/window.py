"""The newest entries of one run, bounded in number and bytes, found by cursor."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

import msgspec

from runstream.broker.log import Entry
from runstream.gateway.framing import Piece
from runstream.gateway.sse import Style, chunked, event_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runstream.gateway.framing import Framing

__all__ = ["Frame", "Window", "piece_of"]


class Frame(msgspec.Struct, gc=False):
    """One entry with its events ready to be written, each made when the first reader needs it.

    Of the two ways in which a run's readers have it, Letta's and an EventSource's, each has a place; Letta's own is one
    of two, and the same for all readers of a run. Nothing here is part of a cycle, and a gateway holds very many: the
    collector passes them over, as it would not if they were in a dictionary.
    """

    entry: Entry
    _style: Style | None = None
    _chunk: bytes = b""
    _identified: bytes = b""

    @property
    def size(self) -> int:
        """The bytes of the entry's body; the events come on top."""
        return len(self.entry.body)

    def chunk(self, style: Style) -> bytes:
        """Return the event within chunked encoding."""
        if style is Style.EVENT_SOURCE:
            if not self._identified:
                self._identified = chunked(event_of(self.entry, style))
            return self._identified
        if style is not self._style:
            self._style, self._chunk = style, chunked(event_of(self.entry, style))
        return self._chunk

    def framed(self, framing: Framing) -> bytes:
        """Return what is sent of it."""
        return (
            self.chunk(framing.style) if framing.is_chunked and framing.shows(self.entry) else framing.frame(self.entry)
        )


def piece_of(frames: Sequence[Frame], framing: Framing) -> Piece:
    """Join frames that follow each other."""
    data = b"".join([frame.framed(framing) for frame in frames])
    return Piece.of(data, [frame.entry for frame in frames], framing)


class Window:
    """The frames after `base`, oldest first, none left out.

    The invariant: *every entry of the log between `base` and the newest frame is here.* So a cursor at or after
    `base` is answered from memory, an older one is not.
    """

    def __init__(self, max_chunks: int, max_bytes: int) -> None:
        self.base = 0
        self._max_chunks = max_chunks
        self._max_bytes = max_bytes
        self._frames: list[Frame] = []
        self._seqs: list[int] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._frames)

    def append(self, entries: Sequence[Entry]) -> list[Frame]:
        """Add the entries that follow the newest frame, and drop the oldest ones beyond the bounds."""
        frames = [Frame(entry) for entry in entries]
        self._frames += frames
        self._seqs += [entry.seq for entry in entries]
        self._bytes += sum(frame.size for frame in frames)
        if len(self._frames) > self._max_chunks or self._bytes > self._max_bytes:
            self._trim()
        return frames

    def _trim(self) -> None:
        """Drop down to three quarters of the bounds, so that it is done once for many entries; keep the newest."""
        surplus = 0
        while surplus < len(self._frames) - 1 and (
            len(self._frames) - surplus > self._max_chunks * 3 // 4 or self._bytes > self._max_bytes * 3 // 4
        ):
            self._bytes -= self._frames[surplus].size
            surplus += 1
        self.base = self._seqs[surplus - 1] if surplus else self.base
        del self._frames[:surplus], self._seqs[:surplus]

    def clear(self) -> None:
        """Let go of all frames."""
        if self._seqs:
            self.base = self._seqs[-1]
        self._frames, self._seqs, self._bytes = [], [], 0

    def reaches(self, cursor: int) -> bool:
        """Tell whether what follows `cursor` is here for certain: nothing that retention removed can be missing."""
        oldest = self.oldest
        return oldest is not None and (oldest.seq <= cursor or oldest.index == 0)

    @property
    def oldest(self) -> Entry | None:
        """The first entry that is here."""
        return self._frames[0].entry if self._frames else None

    def after(self, cursor: int, limit: int) -> list[Frame]:
        """Return the first `limit` frames after `cursor`, which is not before `base`, oldest first."""
        first = bisect_right(self._seqs, cursor)
        return self._frames[first : first + limit]
