"""A run and a reader as a checker knows them: what was recorded of each so far, as its judgement needs it."""

from array import array

import msgspec

from tests.chaos.history import (
    Ended,
    Ending,
    GaveUp,
    Got,
    Mode,
    Refused,
)

OVER = frozenset({"run_ended", "run_cancelled"})
"""What a writer gives up for that is told that its run has ended."""


class ReaderAccount(msgspec.Struct):
    """A reader, as far as its file was read."""

    name: str
    run: "RunAccount"
    after: int
    joined: float
    is_source: bool
    visits: list[tuple[float, str]] = msgspec.field(default_factory=list)
    """From when on it has asked which gateway."""
    connections: int = 0
    index: int = 0
    """Which chunk comes next; -1 where it depends on the cursor that was joined with."""
    first: int = 0
    seq: int = 0
    """The last sequence that was shown."""
    response_seq: int | None = None
    missing: set[int] = msgspec.field(default_factory=set)
    ending: list[Got] = msgspec.field(default_factory=list)
    done_at: float | None = None
    stalls: list[tuple[float, float]] = msgspec.field(default_factory=list)
    connected: float = 0.0
    left: str | None = None
    left_at: float = 0.0

    def visit(self, gateway: str, at: float) -> None:
        """Note which gateway it asks."""
        if not self.visits or self.visits[-1][1] != gateway:
            self.visits.append((at, gateway))

    def visited(self, since: float, until: float) -> set[str]:
        """Which gateways it asked in between, and the one that it was at."""
        before = [gateway for at, gateway in self.visits if at <= since][-1:]
        return {*before, *(gateway for at, gateway in self.visits if since < at <= until)}


class RunAccount(msgspec.Struct):
    """A run: what its writer knows of it, and what its readers have been shown so far."""

    token: str
    opening: float
    mode: Mode
    background: bool
    run_id: str = ""
    said: "array[float]" = msgspec.field(default_factory=lambda: array("d"))
    digests: "array[int]" = msgspec.field(default_factory=lambda: array("Q"))
    acknowledged: int = 0
    acknowledged_seqs: "array[int]" = msgspec.field(default_factory=lambda: array("q"))
    """By index: the sequence under which a chunk was acknowledged, 0 if none was told."""
    last_sent: float = 0.0
    sign: float = 0.0
    cancelling: float | None = None
    ending: Ending | None = None
    ended: Ended | None = None
    gave_up: GaveUp | None = None
    refusals: list[Refused] = msgspec.field(default_factory=list)
    seqs: "array[int]" = msgspec.field(default_factory=lambda: array("q"))
    """By index: the sequence under which a chunk was shown; 0 if it was not, -1 if it was shown without."""
    newest_shown: float = 0.0
    """When the last of them was shown first."""
    ping_seq: int | None = None
    told: list[Got] | None = None
    told_to: str = ""
    done_at: float | None = None
    readers: list[ReaderAccount] = msgspec.field(default_factory=list)

    @property
    def name(self) -> str:
        return self.run_id or self.token

    @property
    def ending_known(self) -> float | None:
        """When anybody knew first that it has ended."""
        acknowledged = None if self.ended is None else self.ended.at
        refused = self.gave_up.at if self.gave_up is not None and self.gave_up.why in OVER else None
        return min((at for at in (self.done_at, acknowledged, refused) if at is not None), default=None)
