"""The checker passes good histories, and names what is wrong with each that was spoilt in one way."""

import random
import time
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.chaos.checker import Checker
from tests.chaos.history import (
    OUT_OF_PATIENCE,
    Cancelling,
    Connected,
    Disconnected,
    Ended,
    Ending,
    Fault,
    GaveUp,
    Got,
    How,
    Joined,
    Left,
    Opened,
    Opening,
    Record,
    Recorder,
    Refused,
    Said,
    Stored,
    Watch,
)
from tests.chaos.story import CHUNKS, STEP, Story, delay_the_end, end_late
from tests.chaos.verdict import Bounds, Rule

Spoil = Callable[[Story], None]


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


@pytest.mark.parametrize(("told", "late"), [("run_ended", 0), ("fenced", 1)])
def test_an_end_that_its_writer_was_told_of_need_not_wait_for_a_reader(told: str, late: int) -> None:
    """It is there from then on: a run that is read by nobody for minutes has not ended so late."""
    checker = Checker(Bounds(end_told=2, lost=3, recovery=0.1))
    written: list[Record] = [
        Opening(at=100, token="first", mode="ingest"),
        Opened(at=101, token="first", run_id="first"),
        Fault(at=100, ended=101.1, name="kill", target="nats-0"),
        GaveUp(at=101.1, token="first", why=told, place="broker-1"),
    ]
    read: list[Record] = [
        Joined(at=150, reader="late", token="first", kind="letta"),
        Connected(at=150, reader="late", gateway="gateway-1"),
        Got(at=150, reader="late", seq=None, kind="stop", text="error"),
        Got(at=150, reader="late", seq=None, kind="error", text="run_lost"),
        Got(at=150, reader="late", seq=None, kind="done"),
        Disconnected(at=150, reader="late", gateway="gateway-1", how="done"),
    ]
    for record in written:
        checker.learn(record)
    for record in read:
        checker.follow(record)
    assert checker.judge().count == ({Rule.LATE_END: 1} if late else {})


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
