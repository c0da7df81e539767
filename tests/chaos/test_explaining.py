"""What explains what: an error is excused by a fault done to what it came by, and a delay by one in its way."""

import random

import pytest
from msgspec.structs import replace

from tests.chaos.history import (
    Connected,
    Disconnected,
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
    Refused,
    Stalled,
)
from tests.chaos.story import Story, delay_the_end, end_late
from tests.chaos.verdict import Rule

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
