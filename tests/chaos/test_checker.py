"""The checker passes good histories, and names what is wrong with each that was spoilt in one way."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.chaos.checker import Bounds, Checker, Rule, Verdict
from tests.chaos.content import content_of, digest_of
from tests.chaos.history import (
    OUT_OF_PATIENCE,
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
    Left,
    Mode,
    Opened,
    Opening,
    Record,
    Recorder,
    Refused,
    Said,
    Stalled,
    Stored,
    Watch,
)

STEP = 0.01
CHUNKS = 30
RecordType = TypeVar("RecordType", bound=Record)
Spoil = Callable[["Story"], None]


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


def lose(story: Story) -> None:
    """One reader is not shown one chunk."""
    del story.read[story.chunk()]


def lose_for_late(story: Story) -> None:
    """One who came with a cursor is not shown the first chunk after it."""
    del story.read[story.places(Got, lambda got: got.reader == "late-first")[0]]


def lose_at_a_cut(story: Story) -> None:
    """The first chunk after a reconnect is not there, the second is."""
    for at in story.places(Connected, lambda record: record.after > 0 and not record.reader.startswith("late")):
        following = story.read[at + 1 : at + 3]
        if all(isinstance(record, Got) and record.kind == "chunk" for record in following):
            del story.read[at + 1]
            return
    lose(story)


def lose_for_all(story: Story) -> None:
    """A chunk was acknowledged that nobody was shown."""
    at = 100 + CHUNKS * STEP
    story.written.append(Said(at=at, token="first", index=CHUNKS, digests=[1]))
    story.written.append(Stored(at=at, token="first", index=CHUNKS, count=1, sent=at))


def duplicate(story: Story) -> None:
    """One reader is shown one chunk twice at once."""
    at = story.chunk()
    story.read.insert(at, story.read[at])


def duplicate_at_a_cut(story: Story) -> None:
    """The last chunk before a cut comes again."""
    at = story.chunk("pieces-first")
    story.read.insert(at + 1, story.read[at])


def swap(story: Story) -> None:
    """One reader is shown two neighbours in the wrong order."""
    at = story.chunk()
    story.read[at], story.read[at + 1] = story.read[at + 1], story.read[at]


def shrink(story: Story) -> None:
    """A sequence does not grow, for anybody."""
    story.without(Stored)
    at = story.chunk()
    seq, before = story.seq_at(at), story.seq_at(at - 1)
    for place, record in enumerate(story.read):
        if isinstance(record, Got) and record.seq == seq:
            story.mend(place, seq=before)
        elif isinstance(record, Connected | Joined) and record.after == seq:
            story.mend(place, after=before)


def hide_a_sequence(story: Story) -> None:
    """One reader is shown a chunk without its sequence."""
    story.mend(story.chunk(), seq=None)


def mix_up(story: Story) -> None:
    """One reader is shown a chunk of the other run in between."""
    foreign = story.read[story.chunk("live-second")]
    story.read.insert(story.chunk(), replace(foreign, reader="live-first"))


def invent(story: Story) -> None:
    """One reader is shown something that is no chunk of ours."""
    story.read.insert(story.chunk(), Got(at=200, reader="live-first", seq=1))


def damage(story: Story) -> None:
    """One chunk reads differently."""
    story.mend(story.chunk(), digest=7)


def foresee(story: Story) -> None:
    """One reader is shown a chunk just before it was sent."""
    story.delay(story.chunk(), -STEP / 5)


def say_more(story: Story) -> None:
    """A reader is shown a chunk that nobody said."""
    at = story.chunk(last=True)
    story.read.insert(at + 1, replace(story.read[at], index=CHUNKS, seq=story.seq_at(at) + 1))


def go_on(story: Story) -> None:
    """A chunk comes after the end."""
    (done,) = story.places(Got, lambda got: got.reader == "live-first" and got.kind == "done")
    story.read.insert(done, story.read.pop(story.chunk(last=True)))


def end_twice(story: Story) -> None:
    """The end is told twice."""
    (at,) = story.places(Got, lambda got: got.reader == "live-first" and got.kind == "done")
    story.read.insert(at + 1, story.read[at])


def store_after(story: Story) -> None:
    """A chunk that was sent after the end was told is acknowledged."""
    story.written.append(Stored(at=150, token="first", index=CHUNKS - 1, count=1, sent=149))


def hide_the_end(story: Story) -> None:
    """A reader who stays is never told."""
    story.read = [
        record
        for record in story.read
        if not (getattr(record, "reader", "") == "live-first" and getattr(record, "kind", "") == "done")
        and not (isinstance(record, Disconnected) and record.reader == "live-first")
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


def end_otherwise(story: Story) -> None:
    """The end is another than its writer was told."""
    at = next(at for at, record in enumerate(story.written) if isinstance(record, Ended))
    story.written[at] = replace(story.written[at], stop_reason="max_steps")


def end_without_a_word(story: Story) -> None:
    """`[DONE]` comes without a stop reason."""
    del story.read[story.places(Got, lambda got: got.reader == "live-first" and got.kind == "stop")[0]]


def end_cleanly(story: Story) -> None:
    """A response is complete, and has not told the end."""
    at = story.places(Disconnected, lambda record: record.reader == "pieces-first")[0]
    story.mend(at, how="clean")


def end_with_nothing(story: Story) -> None:
    """An EventSource is answered 204, and was not told the end."""
    at = story.places(Disconnected, lambda record: record.reader == "source-first")[0]
    story.mend(at, how="no_content")


def disagree_on_a_place(story: Story) -> None:
    """Two readers are shown a chunk under two sequences; those of its acknowledgement are not known."""
    story.without(Stored)
    at = story.chunk()
    story.mend(at, seq=story.seq_at(at) + 1)


def disagree_on_the_end(story: Story) -> None:
    """Two readers are told two ends."""
    at = story.places(Got, lambda got: got.reader == "source-first" and got.kind == "stop")[-1]
    story.mend(at, text="max_steps")


def acknowledge_another(story: Story) -> None:
    """A chunk was acknowledged under another sequence than it is shown with."""
    at = next(at for at, record in enumerate(story.written) if isinstance(record, Stored))
    story.written[at] = replace(story.written[at], last_seq=4)


def refuse(how: How, detail: str = "") -> Spoil:
    """A reader is refused when nothing was wrong."""

    def spoil(story: Story) -> None:
        story.refuse(at=150, how=how, detail=detail)

    return spoil


def refuse_the_writer(story: Story) -> None:
    """A writer is refused for no reason."""
    story.written.append(Refused(at=150, token="first", why="503", place="broker-1"))


def give_up(story: Story) -> None:
    """A writer is fenced for no reason."""
    story.written.append(GaveUp(at=150, token="first", why="Fenced", place="nats"))


SPOILT: list[tuple[Spoil, Rule]] = [
    (lose, Rule.LOST),
    (lose_for_late, Rule.LOST),
    (lose_at_a_cut, Rule.LOST),
    (lose_for_all, Rule.LOST),
    (duplicate, Rule.DUPLICATED),
    (duplicate_at_a_cut, Rule.DUPLICATED),
    (swap, Rule.SWAPPED),
    (shrink, Rule.SWAPPED),
    (hide_a_sequence, Rule.UNNUMBERED),
    (mix_up, Rule.FOREIGN),
    (invent, Rule.FOREIGN),
    (damage, Rule.ALTERED),
    (say_more, Rule.UNSAID),
    (foresee, Rule.EARLY),
    (store_after, Rule.AFTER_END),
    (go_on, Rule.AFTER_END),
    (end_twice, Rule.AFTER_END),
    (hide_the_end, Rule.NO_END),
    (delay_the_end, Rule.LATE_END),
    (end_late, Rule.LATE_END),
    (end_otherwise, Rule.BAD_END),
    (end_cleanly, Rule.BAD_END),
    (end_with_nothing, Rule.BAD_END),
    (disagree_on_a_place, Rule.DISAGREE),
    (disagree_on_the_end, Rule.DISAGREE),
    (acknowledge_another, Rule.DISAGREE),
    (refuse("cut"), Rule.UNEXPLAINED),
    (refuse("refused", "503"), Rule.UNEXPLAINED),
    (refuse("refused", "500"), Rule.UNEXPLAINED),
    (refuse("unreachable"), Rule.UNEXPLAINED),
    (refuse("announced"), Rule.UNEXPLAINED),
    (refuse_the_writer, Rule.UNEXPLAINED),
    (give_up, Rule.UNEXPLAINED),
]


@settings(max_examples=60)
@given(seed=st.integers(), ends=st.sampled_from(["end_turn", "cancelled", "error"]))
def test_a_good_history_passes(seed: int, ends: str) -> None:
    """Cuts, cursors, late readers, clients of both kinds, each end: nothing is wrong with any of it."""
    verdict = Story(random.Random(seed), ends).tell().verdict()
    assert verdict.violations == []
    assert verdict.figures.runs == 2
    assert verdict.figures.chunks == verdict.figures.acknowledged == 2 * CHUNKS
    assert verdict.figures.readers_to_the_end == 8
    assert verdict.figures.reconnects == 12


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("spoil", "rule"), SPOILT, ids=lambda value: getattr(value, "__name__", None))
def test_a_spoilt_history_is_caught_and_named(spoil: Spoil, rule: Rule, seed: int) -> None:
    """What was done to it, and nothing else, is what the checker says."""
    story = Story(random.Random(seed)).tell()
    spoil(story)
    verdict = story.verdict()
    assert list(verdict.count) == [rule], verdict.violations
    assert str(verdict.violations[0]).startswith(f"{rule}: ")


def test_an_end_without_a_stop_reason_is_none() -> None:
    """Its events are held against what an end is, not only against what others were told."""
    story = Story(random.Random(1)).tell()
    end_without_a_word(story)
    assert "live-first was told the end as usage, done" in map(attrgetter("text"), story.verdict().violations)


OUTAGES = (
    *("gateway-1", "gateway-2", "broker-1", "broker-2", "nats-0", "first", "other", "machine"),
    *("reader->gateway-1", "reader->gateway-2", "writer->broker-1", "writer->broker-2", "nats-0->nats-1"),
    *("gateway-1->nats-0", "gateway-2->nats-0", "broker-1->nats-0", "broker-2->nats-0"),
    *("first->nats-0", "other->nats-0"),
)
DRAINS = ("gateway-1", "gateway-2", "broker-1", "broker-2", "first", "other")
EVERYTHING: list[tuple[FaultKind, str]] = [
    *(("outage", target) for target in OUTAGES),
    *(("drain", target) for target in DRAINS),
    ("full", "RUNS_0"),
    ("retention", "RUNS_0"),
]
"""All that may be done to a world. The runs that are looked at are those of the process `first`."""

NATS = "nats-0 nats-0->nats-1 machine"
GATEWAY_2 = "gateway-2 reader->gateway-2 machine"
STORE_OF_GATEWAY_2 = f"gateway-2 gateway-2->nats-0 {NATS}"
STORE_OF_BROKER_1 = f"broker-1 broker-1->nats-0 {NATS}"
STORE_OF_ANY_BROKER = f"{STORE_OF_BROKER_1} broker-2 broker-2->nats-0"
ANY_BROKER = "broker-1 writer->broker-1 broker-2 writer->broker-2 machine"
LIBRARY = f"first first->nats-0 {NATS}"


class Excuse:
    """What an error may be excused by: what outages there may be, and drains, and which of the others."""

    def __init__(self, outage: str = "", drain: str = "", others: str = "") -> None:
        self._targets = {"outage": outage.split(), "drain": drain.split()}
        self._others = others.split()

    def covers(self, kind: FaultKind, target: str) -> bool:
        """Tell whether that is one of them."""
        return kind in self._others if kind in ("full", "retention") else target in self._targets[kind]


def unexplained(story: Story, excuse: Excuse, kind: FaultKind, target: str) -> None:
    """Hold a story with an error in its first run, and a fault, against whether the fault excuses it."""
    found = [violation for violation in story.verdict().violations if violation.run == "first"]
    expected = [] if excuse.covers(kind, target) else [Rule.UNEXPLAINED]
    assert [violation.rule for violation in found] == expected, (kind, target, found)


@pytest.mark.parametrize(
    ("how", "detail", "excuse"),
    [
        ("cut", "", Excuse(GATEWAY_2, "gateway-2")),
        ("cut", "ClientPayloadError", Excuse(GATEWAY_2, "gateway-2")),
        ("unreachable", "ClientOSError", Excuse(GATEWAY_2, "gateway-2")),
        ("announced", "", Excuse(f"{GATEWAY_2} {STORE_OF_GATEWAY_2}", "gateway-2", "full retention")),
        ("cut", "store_unavailable", Excuse(STORE_OF_GATEWAY_2, "gateway-2")),
        ("cut", "store_full", Excuse(others="full")),
        ("cut", "expired", Excuse(others="retention")),
        ("refused", "503", Excuse(STORE_OF_GATEWAY_2, "gateway-2", "full")),
        ("refused", "507", Excuse(others="full")),
        ("refused", "410", Excuse(others="retention")),
        ("refused", "404", Excuse(others="retention")),
        ("refused", "500", Excuse()),
    ],
)
def test_what_a_reader_meets_is_explained_by_its_gateway_and_what_that_needs(
    how: How, detail: str, excuse: Excuse
) -> None:
    """A cut by the gateway and the way to it, a refusal by NATS, too; by no broker, no writer, no other gateway."""
    for kind, target in EVERYTHING:
        story = Story(random.Random(1)).tell()
        story.refuse(149.5, how, detail)
        story.fault(target, kind)
        unexplained(story, excuse, kind, target)


def test_who_asks_from_a_process_that_stood_still_may_not_get_through() -> None:
    """Its own patience ends meanwhile; but nobody cuts it for that."""
    rows: list[tuple[How, str, int]] = [("unreachable", "late", 0), ("unreachable", "other", 1), ("cut", "late", 1)]
    for how, target, wrong in rows:
        story = Story(random.Random(1)).tell()
        story.refuse(149.5, how)
        story.fault(target)
        assert story.verdict().count == ({Rule.UNEXPLAINED: 1} if wrong else {}), (how, target)


@pytest.mark.parametrize(
    ("mode", "error", "excuse"),
    [
        ("library", "run_lost", Excuse(LIBRARY, others="full retention")),
        ("library", "stream_task_cancelled", Excuse(drain="first")),
        (
            "ingest",
            "run_lost",
            Excuse(f"first {ANY_BROKER} {STORE_OF_ANY_BROKER}", others="full retention"),
        ),
        ("ingest", "stream_task_cancelled", Excuse()),
        ("capture", "run_lost", Excuse(STORE_OF_ANY_BROKER, others="full retention")),
        ("capture", "stream_task_cancelled", Excuse(drain="broker-1 broker-2")),
        ("capture", "store_full", Excuse(others="full")),
        ("capture", "internal_error", Excuse()),
    ],
)
def test_what_a_run_fails_with_is_explained_by_who_writes_it(mode: Mode, error: str, excuse: Excuse) -> None:
    """By that process, the brokers if it is theirs, and NATS; by no gateway, and no other process."""
    for kind, target in EVERYTHING:
        story = Story(random.Random(1), "error").tell()
        story.without(Fault, name="pause")
        story.without(GaveUp)
        story.written = [replace(it, mode=mode) if isinstance(it, Opening) else it for it in story.written]
        for at in story.places(Got, lambda got: got.kind == "error"):
            story.mend(at, text=error)
        story.written.append(Fault(at=100.1, ended=100.2, name="any", target=target, kind=kind))
        unexplained(story, excuse, kind, target)


@pytest.mark.parametrize(
    ("why", "place", "excuse"),
    [
        ("cut", "broker-1", Excuse("broker-1 writer->broker-1 first machine", "broker-1")),
        ("unreachable", "broker-1", Excuse("broker-1 writer->broker-1 first machine", "broker-1")),
        ("too_slow", "broker-1", Excuse("broker-1 writer->broker-1 first machine")),
        ("timeout", "broker-1", Excuse(f"first writer->broker-1 {STORE_OF_BROKER_1}", "broker-1")),
        ("store_unavailable", "broker-1", Excuse(STORE_OF_BROKER_1, "broker-1")),
        ("unsettled", "broker-1", Excuse(STORE_OF_BROKER_1)),
        ("broker_stopping", "broker-1", Excuse(drain="broker-1")),
        ("store_full", "broker-1", Excuse(others="full")),
        ("expired", "broker-1", Excuse(others="retention")),
        (
            "fenced",
            "broker-1",
            Excuse(f"first {ANY_BROKER} {STORE_OF_ANY_BROKER}", "broker-1 broker-2", "full retention"),
        ),
        ("internal_error", "broker-1", Excuse()),
        ("Unavailable", "nats", Excuse(LIBRARY)),
        ("StoreUnavailable", "nats", Excuse(LIBRARY)),
        ("Fenced", "nats", Excuse(LIBRARY, others="full retention")),
        ("Draining", "nats", Excuse(drain="first")),
        ("StoreFull", "nats", Excuse(others="full")),
        ("Broken", "nats", Excuse()),
    ],
)
def test_what_a_writer_is_told_is_explained_by_whom_it_asked(why: str, place: str, excuse: Excuse) -> None:
    """By that broker and what it stores by, or the library's own way; by no gateway, and no other process.

    That another has moved a run on may be any broker's doing.
    """
    for kind, target in EVERYTHING:
        story = Story(random.Random(1)).tell()
        story.written.append(Refused(at=149.5, token="first", why=why, place=place))
        story.fault(target, kind)
        unexplained(story, excuse, kind, target)


def test_an_end_is_told_late_by_what_it_comes_to_its_reader() -> None:
    """No broker, no writer and no other gateway keeps it from one who may be told."""
    excuse = Excuse(f"gateway-1 reader->gateway-1 gateway-1->nats-0 {NATS} live", "gateway-1", "full retention")
    for kind, target in [*EVERYTHING, ("outage", "live")]:
        story = Story(random.Random(1)).tell()
        delay_the_end(story)
        story.written.append(Fault(at=100.4, ended=102.5, name="any", target=target, kind=kind))
        expected = {} if excuse.covers(kind, target) else {Rule.LATE_END: 1}
        assert story.verdict().count == expected, (kind, target)


@pytest.mark.parametrize(
    ("mode", "innocent"),
    [
        ("library", "other other->nats-0 writer->broker-1 writer->broker-2"),
        ("ingest", "other other->nats-0 first->nats-0"),
        ("capture", "other other->nats-0 first->nats-0 writer->broker-1 writer->broker-2"),
    ],
)
def test_a_run_ends_late_by_those_who_write_and_end_it(mode: Mode, innocent: str) -> None:
    """Whoever has no part in a run is no reason that it did not end."""
    for kind, target in EVERYTHING:
        story = Story(random.Random(1)).tell()
        end_late(story)
        story.written = [replace(it, mode=mode) if isinstance(it, Opening) else it for it in story.written]
        story.written.append(Fault(at=100.3, ended=105, name="any", target=target, kind=kind))
        is_drained_elsewhere = kind == "drain" and target in {"first", "other"}
        expected = {Rule.LATE_END: 1} if is_drained_elsewhere or target in innocent.split() else {}
        assert story.verdict().count == expected, (kind, target)


@pytest.mark.parametrize(
    ("at", "effective", "kind", "wrong"),
    [
        (149.5, True, "outage", 0),
        (150.05, True, "outage", 0),  # just over
        (150.2, True, "outage", 1),
        (148.9, True, "outage", 1),
        (149.5, False, "outage", 1),
        (149.5, True, "retention", 0),
        (190, True, "retention", 0),  # what it has removed does not come back
        (148.9, True, "retention", 1),
        (149.5, False, "retention", 1),
    ],
)
def test_a_fault_explains_what_is_at_its_time(at: float, effective: bool, kind: FaultKind, wrong: int) -> None:
    """And if it took effect."""
    story = Story(random.Random(1)).tell()
    if kind == "outage":
        story.refuse(at)
    else:
        story.refuse(at, "refused", "410")
    story.fault("gateway-2" if kind == "outage" else "RUNS_0", kind, effective=effective)
    assert story.verdict().count[Rule.UNEXPLAINED] == wrong


def test_an_error_of_the_runs_own_does_not_tell_why_its_response_was_cut() -> None:
    """In the foreground it looks as what a gateway says of itself; behind it the end was on its way."""
    for target, wrong in [("gateway-1", 0), ("broker-1", 1)]:
        story = Story(random.Random(1), "error").tell()
        story.read = [it for it in story.read if getattr(it, "reader", "") == "live-first"]
        story.read = [replace(it, seq=None) if isinstance(it, Got) else it for it in story.read if not _is_done(it)]
        story.written = [
            replace(it, background=False) if isinstance(it, Opening | Opened) else it for it in story.written
        ]
        story.read += [
            Disconnected(at=149.5, reader="live-first", gateway="gateway-1", how="cut", detail="run_lost"),
            Left(at=149.5, reader="live-first", why="it cannot be resumed"),
        ]
        story.fault(target)
        assert story.verdict().count[Rule.UNEXPLAINED] == wrong, target


def _is_done(record: Record) -> bool:
    return isinstance(record, Disconnected) or (isinstance(record, Got) and record.kind == "done")


@pytest.mark.parametrize(("how", "detail"), [("refused", "410"), ("refused", "404"), ("cut", "expired")])
def test_what_the_log_still_holds_has_not_expired(how: How, detail: str) -> None:
    """Retention explains that a cursor was refused if it has passed it, and not that there was any."""
    story = Story(random.Random(1)).tell()
    (cursor,) = (it.after for it in story.read if isinstance(it, Joined) and it.reader == "late-first")
    story.refuse(149.5, how, detail)
    for first_seq, wrong in [(0, 0), (cursor + 1, 0), (cursor, 1)]:
        story.without(Fault, target="RUNS_0")
        story.written.append(
            Fault(at=149, ended=150, name="retention", target="RUNS_0", kind="retention", first_seq=first_seq)
        )
        assert story.verdict().count[Rule.UNEXPLAINED] == wrong, first_seq


def test_nothing_explains_a_defect() -> None:
    """A 500, a clean end without [DONE], or a log that is broken is wrong whatever was done to the services."""
    defects: list[tuple[How, str]] = [("refused", "500"), ("refused", "422"), ("clean", "")]
    defects += [("cut", notice) for notice in ("log_broken", "credential_expired", "nonsense")]
    for how, detail in defects:
        story = Story(random.Random(1)).tell()
        for kind, target in EVERYTHING:
            story.fault(target, kind)
        story.refuse(149.5, how, detail)
        assert story.verdict().total == 1


def test_a_fault_puts_off_when_the_end_is_due() -> None:
    """Who is told late because of it was told in time: only seconds without a fault count."""
    for ended, late in [(102.5, 0), (100.5, 1)]:
        story = Story(random.Random(1)).tell()
        delay_the_end(story)
        story.written.append(Fault(at=100.4, ended=ended, name="pause", target="gateway-1"))
        assert story.verdict().count[Rule.LATE_END] == late


def test_what_a_fault_did_may_be_felt_for_longer() -> None:
    """A fault that takes longer to get over says so."""
    for recovery, wrong in [(0.0, 1), (1.0, 0)]:
        story = Story(random.Random(1)).tell()
        story.refuse(150.9, "refused", "503")
        story.written.append(Fault(at=149, ended=150, name="kill leader", target="nats-1", recovery=recovery))
        assert story.verdict().count[Rule.UNEXPLAINED] == wrong


@pytest.mark.parametrize(("kind", "wrong"), [("stop", 0), ("usage", 0), ("done", 1)])
def test_a_silent_end_is_kept_company(kind: str, wrong: int) -> None:
    """A ping may come while the end waits for NATS, and none after the end."""
    story = Story(random.Random(1)).tell()
    (at,) = story.places(Got, lambda got: (got.reader, got.kind) == ("live-first", kind))
    story.read.insert(at + 1, Got(at=story.read[at].at, reader="live-first", kind="ping"))
    assert story.verdict().count[Rule.AFTER_END] == wrong


def test_an_answer_is_explained_by_what_was_when_it_was_asked_for() -> None:
    """A refusal may take as long as a writer's patience, and a connection that is dead as long as a reader's."""
    for since, wrong in [(None, 2), (150.5, 2), (149.5, 0)]:
        story = Story(random.Random(1)).tell()
        story.fault("gateway-2,broker-1")
        story.refuse(155)
        (at,) = story.places(Disconnected, lambda record: record.at == 155)
        story.mend(at, since=since)
        story.written.append(Refused(at=155, token="first", why="timeout", place="broker-1", since=since))
        assert story.verdict().count[Rule.UNEXPLAINED] == wrong


def test_a_stall_of_its_own_explains_what_a_reader_meets() -> None:
    """Who reads nothing is told late, and may be cut."""
    story = Story(random.Random(1)).tell()
    delay_the_end(story)
    (at,) = story.places(Got, lambda got: got.reader == "live-first" and got.kind == "done")
    told = story.read[at].at
    story.read[at:at] = [
        Stalled(at=told - 0.1, reader="live-first", since=told - 2.4),
        Disconnected(at=told - 0.05, reader="live-first", gateway="gateway-1", how="cut"),
        Connected(at=told, reader="live-first", gateway="gateway-1", after=story.seq_at(story.chunk(last=True))),
        *(story.read[place] for place in (at - 2, at - 1)),
    ]
    assert story.verdict().violations == []


@pytest.mark.parametrize(
    ("how", "detail"),
    [("clean", ""), ("refused", "500"), ("refused", "410"), ("cut", "log_broken"), ("unreachable", "")],
)
def test_a_stall_explains_nothing_but_a_cut(how: How, detail: str) -> None:
    """What a gateway answers, or says before it cuts, has the reasons that it has for who takes all that comes."""
    story = Story(random.Random(1)).tell()
    story.refuse(150, how, detail)
    (at,) = story.places(Disconnected, lambda record: record.at == 150)
    story.read.insert(at, Stalled(at=150, reader="late-first", since=149))
    assert story.verdict().total == 1


def test_who_leaves_is_owed_no_end() -> None:
    """Nor what would have come later; but what it was shown has to be right."""
    story = Story(random.Random(1)).tell()
    places = story.places(Got, lambda got: got.reader == "live-first")
    story.read[places[10] : places[-1] + 2] = [Left(at=100.1, reader="live-first", why="leaves")]
    assert story.verdict().violations == []
    del story.read[places[5]]
    assert list(story.verdict().count) == [Rule.LOST]


@pytest.mark.parametrize(
    ("seconds", "faulty", "wrong"),
    [(1.5, False, 0), (2.5, False, 1), (2.5, True, 0)],
)
def test_who_is_out_of_patience_was_owed_an_end_that_was_due(seconds: float, faulty: bool, wrong: int) -> None:
    """Not one that came just before, nor one that a fault kept from it."""
    story = Story(random.Random(1)).tell()
    (at,) = story.places(Got, lambda got: (got.reader, got.kind) == ("live-first", "done"))
    end = story.read[at].at
    hide_the_end(story)
    story.read.append(Left(at=end + seconds, reader="live-first", why=OUT_OF_PATIENCE))
    story.written.append(
        Fault(at=end, ended=end + 2, name="pause", target="gateway-1" if faulty else "gateway-2"),
    )
    assert story.verdict().count == ({Rule.NO_END: 1} if wrong else {})


@pytest.mark.parametrize(("seconds", "wrong"), [(2.5, 0), (3.5, 1)])
def test_of_a_run_that_goes_on_nobody_is_owed_an_end(seconds: float, wrong: int) -> None:
    """Unless there was no sign of it for so long that it had to be ended."""
    story = Story(random.Random(1)).tell()
    story.written = [it for it in story.written if getattr(it, "token", "first") == "first"]
    story.without(Ending)
    story.without(Ended)
    story.written.append(GaveUp(at=103, token="first", why=OUT_OF_PATIENCE, place="clients"))
    ends = {"stop", "usage", "done"}
    story.read = [
        it
        for it in story.read
        if getattr(it, "reader", "") == "live-first" and not (isinstance(it, Got) and it.kind in ends)
    ]
    assert isinstance(story.read.pop(), Disconnected)
    story.read.append(Left(at=100.3 + seconds, reader="live-first", why=OUT_OF_PATIENCE))
    assert story.verdict().count == ({Rule.NO_END: 1} if wrong else {})


def test_a_run_that_its_writer_had_to_leave_is_lost_rightly() -> None:
    """That is what the writer did, and no fault's doing; but nothing else that it may fail with is."""
    for error, wrong in [("run_lost", 0), ("stream_task_cancelled", 0), ("store_full", 1)]:
        story = Story(random.Random(1), "error").tell()
        story.without(Fault, name="pause")
        story.without(GaveUp)
        for token in ("first", "second"):
            story.written.append(GaveUp(at=100.2, token=token, why=OUT_OF_PATIENCE, place="clients"))
        for at in story.places(Got, lambda got: got.kind == "error"):
            story.mend(at, text=error)
        assert story.verdict().count == ({Rule.UNEXPLAINED: 2} if wrong else {}), error


def test_readers_are_gone_with_their_process() -> None:
    """They are owed no end if it was killed, and if that is known."""
    for gone, unfinished in [("live", 0), ("source", 1), ("", 1)]:
        story = Story(random.Random(1)).tell()
        hide_the_end(story)
        story.written.append(Fault(at=100, ended=100, name="kill", target="writer", gone=gone))
        assert story.verdict().count == ({Rule.NO_END: 1} if unfinished else {})


@pytest.mark.parametrize(
    ("ends", "type_", "rule"), [("cancelled", Cancelling, "unexplained"), ("end_turn", Ending, "unexplained")]
)
def test_an_end_that_nobody_asked_for_is_unexplained(ends: str, type_: type[Record], rule: str) -> None:
    """A cancel has somebody who cancelled, and a run completes when its writer says so."""
    story = Story(random.Random(1), ends).tell()
    story.without(type_, token="first")
    assert list(story.verdict().count) == [rule]


def test_a_lost_run_is_explained_by_a_fault_alone() -> None:
    """Its writer was fenced, and it has failed: neither is without a reason."""
    story = Story(random.Random(1), "error").tell()
    story.without(Fault, name="pause")
    assert story.verdict().count == {Rule.UNEXPLAINED: 4}


def test_a_defect_that_ends_a_run_is_never_explained() -> None:
    """An `internal_error` is one."""
    story = Story(random.Random(1), "error").tell()
    for at in story.places(Got, lambda got: got.kind == "error"):
        story.mend(at, text="internal_error")
    assert story.verdict().count == {Rule.UNEXPLAINED: 2}


def test_a_captured_run_completes_with_all_that_its_agent_was_asked_for() -> None:
    """Its writer is told of no chunk that it was stored, and misses those that were not."""
    story = Story(random.Random(1)).tell()
    story.without(Stored)
    story.without(Ending)
    story.without(Ended)
    story.written = [replace(it, mode="capture") if isinstance(it, Opening) else it for it in story.written]
    assert story.verdict().violations == []
    story.written.append(Said(at=100, token="first", index=CHUNKS, digests=[1]))
    assert list(story.verdict().count) == [Rule.LOST]


def test_a_foreground_run_is_known_by_its_indexes() -> None:
    """Its one reader is shown no sequences, and a missing chunk is found all the same."""
    story = Story(random.Random(1)).tell()
    story.read = [it for it in story.read if getattr(it, "reader", "") == "live-first"]
    for at in story.places(Got, lambda _: True):
        story.mend(at, seq=None)
    story.written = [replace(it, background=False) if isinstance(it, Opening | Opened) else it for it in story.written]
    assert story.verdict().violations == []
    lose(story)
    assert list(story.verdict().count) == [Rule.LOST]


def test_chunks_that_are_sent_again_are_said_once() -> None:
    """A writer whose answer was lost says the same again, and may be told that it is stored twice."""
    story = Story(random.Random(1)).tell()
    again = [it for it in story.written if isinstance(it, Said | Stored) and it.index == 7]
    story.written += [replace(it, at=it.at + 0.001) for it in again]
    assert story.verdict().violations == []


def test_a_history_survives_its_process(tmp_path: Path) -> None:
    """What was written is read again, file by file; half a line of one that was killed is left out."""
    story = Story(random.Random(1)).tell()
    with Recorder(tmp_path, "reader", "1") as reader, Recorder(tmp_path, "writer", "1") as writer:
        reader.write(*story.read)
        writer.write(*(it for it in story.written if not isinstance(it, Fault)))
    with Recorder(tmp_path, "driver", "1") as driver:
        driver.write(*(it for it in story.written if isinstance(it, Fault)))
    with (tmp_path / "reader-1.ndjson").open("ab") as torn:
        torn.write(b'{"is":"got","reader":"live-fir')
    verdict = Checker(Bounds(end_told=2, lost=3, recovery=0.1)).check(tmp_path)
    assert verdict == story.verdict()
    assert verdict.total == 0
    assert (verdict.figures.effective_faults, verdict.figures.kills) == (12, 12)


def test_readers_hear_of_runs_as_they_are_opened(tmp_path: Path) -> None:
    """Each is told once, when its line is whole, and nothing else is."""
    watch = Watch(tmp_path, [Opened])
    opened = [Opened(at=1, token="a", run_id="run-a"), Opened(at=2, token="b", run_id="run-b")]
    with Recorder(tmp_path, "writer", "1") as writer:
        writer.write(Opening(at=1, token="a", mode="ingest"), opened[0])
        assert watch.news() == opened[:1]
        writer.write(Said(at=1, token="a", index=0, digests=[1]), opened[1])
    assert watch.news() == opened[1:]
    with (tmp_path / "writer-1.ndjson").open("ab") as torn:
        torn.write(b'{"is":"opened","token":"c",')
    assert watch.news() == []


def test_millions_of_deliveries_are_checked_in_a_minute(tmp_path: Path) -> None:
    """A delivery takes less than 10 µs of this process, its line's decoding included."""
    runs, count, readers = 10, 1000, 6
    with Recorder(tmp_path, "writer", "1") as writer, Recorder(tmp_path, "reader", "1") as reader:
        for run in map(str, range(runs)):
            writer.write(Opening(at=0, token=run, mode="ingest"), Opened(at=0, token=run, run_id=run))
            writer.write(Said(at=0, token=run, index=0, digests=list(range(count))))
            shown = [
                Got(at=1, reader="", seq=1 + index, token=run, index=index, digest=index) for index in range(count)
            ]
            for name in (f"{run}-{number}" for number in range(readers)):
                reader.write(Joined(at=0, reader=name, token=run, kind="letta"))
                reader.write(Connected(at=0, reader=name, gateway="gateway-1"))
                reader.write(*(replace(got, reader=name) for got in shown), Left(at=2, reader=name, why="leaves"))
    began = time.process_time()
    verdict = Checker().check(tmp_path)
    took = time.process_time() - began
    assert verdict.total == 0
    assert verdict.figures.deliveries == runs * count * readers
    assert took / verdict.figures.deliveries < 10e-6
