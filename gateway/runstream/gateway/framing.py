"""How one response has a log's entries, and a piece of a log so framed: bytes made once for all who share them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from runstream.gateway.sse import Style, chunked, event_of
from runstream.schemas import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runstream.broker.log import Entry

__all__ = ["FRAMINGS", "Framing", "Piece", "framing_of"]

NUMBERED = frozenset({Kind.DATA, Kind.PING, Kind.ERROR})
"""What shows a `seq_id`. Those of stop reason, usage and end stay unseen."""


@dataclass(frozen=True, slots=True, eq=False)
class Framing:
    """All that tells what one response is made of from another of the same run."""

    style: Style
    include_pings: bool
    is_chunked: bool
    """Whether each event is within HTTP/1.1's chunked encoding."""

    def shows(self, entry: Entry) -> bool:
        """Tell whether an entry is sent."""
        return self.include_pings or entry.kind is not Kind.PING

    def frame(self, entry: Entry) -> bytes:
        """Make what is sent of an entry."""
        if not self.shows(entry):
            return b""
        event = event_of(entry, self.style)
        return chunked(event) if self.is_chunked else event


FRAMINGS: Final = {which: Framing(*which) for which in itertools.product(Style, (False, True), (False, True))}
"""All there are: a framing is itself and no other, and looked up by that."""


def framing_of(style: Style, *, include_pings: bool, is_chunked: bool) -> Framing:
    """Return the framing of such a response."""
    return FRAMINGS[style, include_pings, is_chunked]


class Piece(NamedTuple):
    """Entries that follow each other, framed."""

    data: bytes
    seq: int
    """The sequence of the newest of them, also if it is not sent: where its readers' cursors are then."""
    at_index: int
    """The index of the same."""
    kind: Kind
    """And its kind."""
    seq_id: int | None
    """The newest `seq_id` that its readers see, None if they see none."""
    entries: int
    """How many."""
    following: int | None = None
    """How many messages of the log followed them when they were read, where that is known."""

    @property
    def after_index(self) -> int:
        """The index that the entry before them has."""
        return self.at_index - self.entries

    @classmethod
    def of(cls, data: bytes, entries: Sequence[Entry], framing: Framing) -> Self:
        """Make a piece of entries that were framed already."""
        last = entries[-1]
        return cls(data, last.seq, last.index, last.kind, _newest_seq_id(entries, framing), len(entries))


def _newest_seq_id(entries: Sequence[Entry], framing: Framing) -> int | None:
    """Return the last `seq_id` that readers of `entries` see."""
    for entry in reversed(entries):
        if entry.kind in NUMBERED and framing.shows(entry):
            return entry.seq
    return None
