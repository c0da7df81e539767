"""A history as it may be, record by record: what the tests of the checker spoil, and put faults beside."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from msgspec.structs import replace

from tests.chaos.checker import Checker
from tests.chaos.content import content_of, digest_of
from tests.chaos.history import (
    Cancelling,
    Connected,
    Disconnected,
    Ended,
    Ending,
    Fault,
    FaultKind,
    GaveUp,
    Got,
    How,
    Joined,
    Opened,
    Opening,
    Record,
    Said,
    Stored,
)
from tests.chaos.verdict import Bounds, Verdict

STEP = 0.01
CHUNKS = 30
RecordType = TypeVar("RecordType", bound=Record)


@dataclass
class Story:
    """A history as it may be: two runs in one stream, each read live, late, and in pieces, by clients of both kinds."""

    chance: random.Random
    ends: str = "end_turn"
    written: list[Record] = field(default_factory=list)
    read: list[Record] = field(default_factory=list)
    seq: int = 28_019_014_522_000

    def tell(self) -> "Story":
        """Write it down."""
        for number, token in enumerate(("first", "second")):
            self._run(token, 100.0 + number * 0.003)
        return self

    def _run(self, token: str, begun: float) -> None:
        self.written += [Opening(at=begun, token=token, mode="library"), Opened(at=begun, token=token, run_id=token)]
        at, shown = begun, []
        self.seq += 1
        shown.append(Got(at=at, reader="", seq=self.seq, kind="ping"))
        for index in range(CHUNKS):
            at += STEP
            self.seq += self.chance.randrange(2, 5)
            digest = digest_of(content_of(token, index))
            self.written.append(Said(at=at, token=token, index=index, digests=[digest]))
            self.written.append(Stored(at=at + 0.002, token=token, index=index, count=1, sent=at, last_seq=self.seq))
            shown.append(Got(at=at + 0.001, reader="", seq=self.seq, token=token, index=index, digest=digest))
        shown += self._end(token, at + STEP)
        self._live(token, shown)
        self._late(token, shown)
        self._in_pieces(token, shown, is_source=True)
        self._in_pieces(token, shown, is_source=False)

    def _end(self, token: str, at: float) -> list[Got]:
        middle = [Got(at=at, reader="", seq=self.seq + 2, kind="usage", digest=2)]
        if self.ends == "cancelled":
            self.written.append(Cancelling(at=at - STEP, token=token))
            middle = []
        elif self.ends == "end_turn":
            self.written.append(Ending(at=at - STEP, token=token, stop_reason=self.ends))
            self.written.append(Ended(at=at, token=token, stop_reason=self.ends))
        else:
            middle = [Got(at=at, reader="", seq=self.seq + 2, kind="error", text="run_lost", digest=3)]
            self.written.append(GaveUp(at=at - STEP, token=token, why="Fenced", place="nats"))
            self.written.append(Fault(at=at - 3 * STEP, ended=at, name="pause", target=token))
        ends = [Got(at=at, reader="", seq=self.seq + 1, kind="stop", text=self.ends, digest=1), *middle]
        self.seq += 3
        return [*ends, Got(at=at, reader="", seq=self.seq, kind="done")]

    def _show(self, reader: str, shown: list[Got], *, is_source: bool, delay: float = 0.0) -> None:
        hidden = {"done"} if is_source else {"done", "stop", "usage"}
        for got in shown:
            seq = None if got.kind in hidden and not is_source else got.seq
            if got.kind != "ping" or not is_source:
                self.read.append(replace(got, reader=reader, at=got.at + delay, seq=seq))

    def _live(self, token: str, shown: list[Got]) -> None:
        name = f"live-{token}"
        self.read += [
            Joined(at=shown[0].at, reader=name, token=token, kind="letta"),
            Connected(at=shown[0].at, reader=name, gateway="gateway-1"),
        ]
        self._show(name, shown, is_source=False)
        self.read.append(Disconnected(at=shown[-1].at, reader=name, gateway="gateway-1", how="done"))

    def _late(self, token: str, shown: list[Got]) -> None:
        """Begin with somebody's cursor, after the end."""
        name, at = f"late-{token}", shown[-1].at + 1
        after = self.chance.randrange(1, CHUNKS)
        cursor = shown[after].seq or 0
        self.read += [
            Joined(at=at, reader=name, token=token, kind="letta", after=cursor),
            Connected(at=at, reader=name, gateway="gateway-2", after=cursor),
        ]
        self._show(name, [replace(got, at=at) for got in shown[after + 1 :]], is_source=False)
        self.read.append(Disconnected(at=at, reader=name, gateway="gateway-2", how="done"))

    def _in_pieces(self, token: str, shown: list[Got], *, is_source: bool) -> None:
        """Lose the connection a few times, with a cursor that may lie before a part of the end."""
        name, cursor = f"{'source' if is_source else 'pieces'}-{token}", 0
        self.read.append(
            Joined(at=shown[0].at, reader=name, token=token, kind="event_source" if is_source else "letta")
        )
        cuts = sorted(self.chance.sample(range(1, len(shown)), 3))
        for begin, end in zip([0, *cuts], [*cuts, len(shown)], strict=True):
            while begin and not is_source and shown[begin - 1].kind in {"stop", "usage"}:
                begin -= 1  # noqa: PLW2901  # what has no cursor comes again
            piece = shown[begin:end]
            self.read.append(Connected(at=piece[0].at, reader=name, gateway="gateway-1", after=cursor))
            self._show(name, piece, is_source=is_source, delay=0.05)
            seqs = [got.seq for got in self.read if isinstance(got, Got) and got.reader == name and got.seq is not None]
            cursor = max(seqs, default=0)
            how: How = "done" if end == len(shown) else "cut"
            self.read.append(Disconnected(at=piece[-1].at + 0.05, reader=name, gateway="gateway-1", how=how))
            if how == "cut":
                self.written.append(Fault(at=piece[-1].at, ended=piece[-1].at + 0.04, name="kill", target="gateway-1"))

    def verdict(self) -> Verdict:
        """Have it checked."""
        checker = Checker(Bounds(end_told=2, lost=3, recovery=0.1))
        for record in self.written:
            checker.learn(record)
        for record in self.read:
            checker.follow(record)
        return checker.judge()

    def places(self, kind: type[RecordType], fits: Callable[[RecordType], bool]) -> list[int]:
        """Where such records of readers are."""
        return [at for at, record in enumerate(self.read) if isinstance(record, kind) and fits(record)]

    def chunk(self, reader: str = "live-first", *, last: bool = False) -> int:
        """Where a reader is shown a chunk: somewhere in the middle, or the last one."""
        places = self.places(Got, lambda got: got.reader == reader and got.kind == "chunk")
        return places[-1] if last else self.chance.choice(places[2:-2])

    def mend(self, place: int, /, **changes: object) -> None:
        """Change a record of a reader's."""
        self.read[place] = replace(self.read[place], **changes)

    def delay(self, at: int, seconds: float) -> None:
        """Let a record of a reader's be later."""
        self.mend(at, at=self.read[at].at + seconds)

    def seq_at(self, at: int) -> int:
        """Under which sequence a reader was shown something."""
        got = self.read[at]
        assert isinstance(got, Got)
        assert got.seq is not None
        return got.seq

    def refuse(self, at: float, how: How = "cut", detail: str = "", gateway: str = "gateway-2") -> None:
        """Let the late reader be refused before it was served."""
        (place,) = self.places(Connected, lambda record: record.reader == "late-first")
        refused = Disconnected(at=at, reader="late-first", gateway=gateway, how=how, detail=detail)
        self.read.insert(place, refused)

    def fault(self, target: str, kind: FaultKind = "outage", *, effective: bool = True) -> None:
        """Let there be a fault from 149 to 150."""
        self.written.append(Fault(at=149, ended=150, name="any", target=target, kind=kind, effective=effective))

    def without(self, kind: type[Record], **facts: object) -> None:
        """Leave out such records of writers."""
        self.written = [
            record
            for record in self.written
            if not isinstance(record, kind) or any(getattr(record, name) != fact for name, fact in facts.items())
        ]


def delay_the_end(story: Story) -> None:
    """A reader is told long after the end was there."""
    (at,) = story.places(Got, lambda got: got.reader == "live-first" and got.kind == "done")
    story.delay(at, 2.5)


def end_late(story: Story) -> None:
    """A run that nobody writes any more is ended long after."""
    story.without(Ended, token="first")
    ends = {"stop", "usage", "done"}
    for at in story.places(Got, lambda got: got.reader.endswith("first") and got.kind in ends):
        story.delay(at, 5)
