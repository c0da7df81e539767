"""Proves of the history of a chaos run that nothing was lost, doubled, swapped, leaked or left waiting.

    python -m tests.chaos.checker DIRECTORY

It believes the writers what they said and what they were told, and the readers what they were shown; what the services
say of themselves it never asks. What has to hold is in `verdict.py`, and what excuses what in `excuses.py`.
"""

import sys
from collections import Counter
from pathlib import Path

import msgspec

from tests.chaos.accounts import ReaderAccount, RunAccount
from tests.chaos.calm import Faults
from tests.chaos.excuses import (
    CUT,
    ENDING,
    NOTHING,
    NOTICES,
    OUTLASTS,
    REFUSALS,
    RESPONSES,
    RUNS,
    TELLING,
    Concerned,
    Reasons,
    kind_of,
)
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
    Joined,
    Left,
    Opened,
    Opening,
    Record,
    Refused,
    Said,
    Stalled,
    Stored,
    process_of,
    records_of,
)
from tests.chaos.verdict import MAX_SENTENCES, Bounds, Figures, Rule, Verdict, Violation

COMPLETED = frozenset({"end_turn", "max_steps", "tool_rule", "requires_approval"})


class Checker:
    """Takes the records of writers and of the driver, then those of readers, as they were written; then judges."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self._bounds = bounds or Bounds()
        self._runs: dict[str, RunAccount] = {}
        self._readers: dict[str, ReaderAccount] = {}
        self._injected: list[Fault] = []
        self._errors: list[tuple[ReaderAccount, Disconnected, int]] = []
        """Each with the cursor that its reader had."""
        self._violations: list[Violation] = []
        self._count: Counter[Rule] = Counter()
        self._faults = Faults([])
        self._gone: set[str] = set()
        self.figures = Figures()

    def check(self, directory: Path) -> Verdict:
        """Read the whole history, and judge it."""
        for record in records_of(directory, ("driver", "writer")):
            self.learn(record)
        for record in records_of(directory, ("reader",)):
            self.follow(record)
        return self.judge()

    # What was written, and what was done.

    def learn(self, record: Record) -> None:
        """Take a record of a writer's or the driver's."""
        if isinstance(record, Fault):
            self._injected.append(record)
        elif isinstance(record, Opening):
            self._runs[record.token] = RunAccount(
                record.token, record.at, record.mode, record.background, sign=record.at
            )
        elif isinstance(record, Said | Stored | Opened | Refused | Cancelling | Ending | Ended | GaveUp):
            self._write(self._runs[record.token], record)
        else:
            raise TypeError(f"no record of a writer's: {record}")

    def _write(
        self, run: RunAccount, record: Said | Stored | Opened | Refused | Cancelling | Ending | Ended | GaveUp
    ) -> None:
        if not isinstance(record, Refused | GaveUp | Cancelling):
            run.sign = max(run.sign, record.at)
        if isinstance(record, Said):
            self._say(run, record)
        elif isinstance(record, Stored):
            self._store(run, record)
        elif isinstance(record, Opened):
            run.run_id, run.background = record.run_id, record.background
        elif isinstance(record, Refused):
            run.refusals.append(record)
        elif isinstance(record, Cancelling):
            run.cancelling = record.at if run.cancelling is None else run.cancelling
        elif isinstance(record, Ending):
            run.ending = record
        elif isinstance(record, Ended):
            run.ended = record
        else:
            run.gave_up = record

    def _say(self, run: RunAccount, said: Said) -> None:
        known = len(run.said) - said.index
        if known < 0:
            raise ValueError(f"the writer of {run.name} says chunk {said.index} after {len(run.said)} chunks")
        new = said.digests[known:]
        run.said.extend([said.at] * len(new))
        run.digests.extend(new)

    def _store(self, run: RunAccount, stored: Stored) -> None:
        run.acknowledged = max(run.acknowledged, stored.index + stored.count)
        run.last_sent = max(run.last_sent, stored.sent)
        if stored.last_seq is None or stored.count == 0:
            return
        index, known = stored.index + stored.count - 1, run.acknowledged_seqs
        known.extend([0] * (index + 1 - len(known)))
        if known[index] not in (0, stored.last_seq):
            text = f"chunk {index} was acknowledged as {known[index]}, and as {stored.last_seq}"
            self._accuse(Rule.DISAGREE, run, text)
        known[index] = stored.last_seq

    # What was read.

    def follow(self, record: Record) -> None:
        """Take a record of a reader's."""
        if type(record) is Got:
            reader = self._readers[record.reader]
            if record.kind == "chunk":
                self._read_chunk(reader, record)
            else:
                self._read_other(reader, record)
        elif isinstance(record, Joined):
            self._join(record)
        elif isinstance(record, Connected):
            self._connect(self._readers[record.reader], record)
        elif isinstance(record, Disconnected):
            reader = self._readers[record.reader]
            self._disconnect(reader, record)
        elif isinstance(record, Stalled):
            self._readers[record.reader].stalls.append((record.since, record.at))
        elif isinstance(record, Left):
            reader = self._readers[record.reader]
            reader.left, reader.left_at = record.why, record.at
        else:
            raise TypeError(f"no record of a reader's: {record}")

    def _join(self, joined: Joined) -> None:
        run = self._runs[joined.token]
        reader = ReaderAccount(joined.reader, run, joined.after, joined.at, joined.kind == "event_source")
        if joined.after:
            reader.index = reader.first = -1
            reader.seq = joined.after
        reader.connected = joined.at
        self._readers[joined.reader] = reader
        run.readers.append(reader)

    def _connect(self, reader: ReaderAccount, connected: Connected) -> None:
        reader.visit(connected.gateway, connected.at)
        reader.response_seq = None
        reader.connections += 1
        reader.connected = connected.at
        if connected.after != reader.seq and reader.run.background:
            raise ValueError(f"{reader.name} resumes after {connected.after}, and has seen {reader.seq}")
        # What has no cursor comes again, up to the last that has one.
        kept = max((at for at, got in enumerate(reader.ending, 1) if got.seq is not None), default=0)
        del reader.ending[kept:]

    def _read_chunk(self, reader: ReaderAccount, got: Got) -> None:
        run, index = reader.run, got.index
        self.figures.deliveries += 1
        run.sign = max(run.sign, got.at)
        if got.token != run.token:
            whose = f"run {self._runs[got.token].name}" if got.token in self._runs else "nobody"
            self._accuse(Rule.FOREIGN, run, f"{reader.name} was shown chunk {index} of {whose}")
            return
        if reader.ending:
            self._accuse(Rule.AFTER_END, run, f"{reader.name} was shown chunk {index} after {reader.ending[-1].kind}")
        self._compare(reader, got)
        if index == reader.index:
            reader.index = index + 1
        elif not self._goes_on(reader, index):
            return
        seq = got.seq
        if seq is not None:
            if seq <= reader.seq:
                self._accuse(Rule.SWAPPED, run, f"{reader.name} was shown chunk {index} as {seq}, after {reader.seq}")
            reader.seq = reader.response_seq = seq
        elif run.background:
            self._accuse(Rule.UNNUMBERED, run, f"{reader.name} was shown chunk {index} without a sequence")

    def _compare(self, reader: ReaderAccount, got: Got) -> None:
        """Hold a chunk against what its writer said, and against what others were shown."""
        run, index = reader.run, got.index
        if index >= len(run.said):
            self._accuse(
                Rule.UNSAID, run, f"{reader.name} was shown chunk {index}; its writer has said {len(run.said)}"
            )
            return
        if got.at < run.said[index]:
            early = run.said[index] - got.at
            self._accuse(Rule.EARLY, run, f"{reader.name} was shown chunk {index} {early:.6f} s before it was sent")
        if got.digest != run.digests[index]:
            self._accuse(Rule.ALTERED, run, f"chunk {index} does not read for {reader.name} as it was said")
        seq = -1 if got.seq is None else got.seq
        if index >= len(run.seqs):
            run.seqs.extend([0] * (index + 1 - len(run.seqs)))
            run.newest_shown = got.at
        elif index == len(run.seqs) - 1:
            run.newest_shown = min(run.newest_shown, got.at)
        if (known := run.seqs[index]) == 0:
            run.seqs[index] = seq
        elif known != seq and -1 not in (known, seq):
            self._accuse(
                Rule.DISAGREE, run, f"{reader.name} was shown chunk {index} as {seq}, another reader as {known}"
            )
        elif known == -1:
            run.seqs[index] = seq

    def _goes_on(self, reader: ReaderAccount, index: int) -> bool:
        """Say what is wrong with a chunk that is not the next one; tell whether it is the furthest so far."""
        if reader.index < 0:
            reader.first, reader.index = index, index + 1
            return True
        if index > reader.index:
            reader.missing.update(range(reader.index, index))
            reader.index = index + 1
            return True
        if index in reader.missing:
            reader.missing.discard(index)
            self._accuse(
                Rule.SWAPPED, reader.run, f"{reader.name} was shown chunk {index} after chunk {reader.index - 1}"
            )
        else:
            self._accuse(Rule.DUPLICATED, reader.run, f"{reader.name} was shown chunk {index} twice")
        return False

    def _read_other(self, reader: ReaderAccount, got: Got) -> None:
        run = reader.run
        if got.kind == "notice":
            return
        # The end may have to wait for NATS, and its readers are kept company meanwhile; but what has an error is all.
        last = reader.ending[-1].kind if reader.ending else None
        if last == "done" or (last == "error" and got.kind == "ping"):
            self._accuse(Rule.AFTER_END, run, f"{reader.name} was shown {got.kind} after {reader.ending[-1].kind}")
            return
        if got.kind == "ping":
            self._read_ping(reader, got)
            return
        if got.seq is not None:
            if got.seq <= reader.seq:
                self._accuse(Rule.SWAPPED, run, f"{reader.name} was shown {got.kind} as {got.seq}, after {reader.seq}")
            reader.seq = reader.response_seq = got.seq
        reader.ending.append(got)
        if got.kind == "done":
            if reader.done_at is None:
                reader.done_at = got.at
            run.done_at = got.at if run.done_at is None else min(got.at, run.done_at)

    def _read_ping(self, reader: ReaderAccount, got: Got) -> None:
        """A stored ping has a sequence of its own, that of silence the last that this response has shown."""
        run = reader.run
        if got.seq is None or got.seq == reader.response_seq:
            return
        if run.ping_seq is None:
            run.ping_seq = got.seq
        if got.seq != run.ping_seq or got.seq <= reader.seq:
            self._accuse(
                Rule.DISAGREE, run, f"{reader.name} was shown a ping as {got.seq}, which is no sequence of one"
            )
            return
        reader.seq = reader.response_seq = got.seq

    def _disconnect(self, reader: ReaderAccount, ended: Disconnected) -> None:
        reader.visit(ended.gateway, ended.since or ended.at)
        told = bool(reader.ending) and reader.ending[-1].kind == "done"
        if ended.how == "no_content":
            # An EventSource that has seen the end by its cursor is told that there is nothing more.
            if not told:
                self._accuse(Rule.BAD_END, reader.run, f"{reader.name} was answered 204 before it was told the end")
        elif ended.how == "done":
            if not told:
                self._accuse(Rule.BAD_END, reader.run, f"{reader.name}'s response was complete without [DONE]")
        elif told and ended.how == "clean":
            self._accuse(Rule.BAD_END, reader.run, f"{reader.name}'s response was {ended.how} after [DONE]")
        else:
            # After the end, too: a gateway may be killed between it and the last chunk of the response.
            self._errors.append((reader, ended, reader.seq))

    # The judgement.

    def judge(self) -> Verdict:
        """Say what is wrong with the whole."""
        self._faults = Faults(self._injected, recovery_seconds=self._bounds.recovery)
        self._gone = {fault.gone for fault in self._injected if fault.effective}
        for run in self._runs.values():
            self._judge_run(run)
        for reader, error, cursor in self._errors:
            self._judge_error(reader, error, cursor)
        self._count_up()
        return Verdict(self.figures, self._violations, self._count)

    def _judge_run(self, run: RunAccount) -> None:
        for reader in run.readers:
            self._judge_reader(reader)
        for index, (seq, shown) in enumerate(zip(run.acknowledged_seqs, run.seqs, strict=False)):
            if seq > 0 and shown not in (0, -1, seq):
                self._accuse(Rule.DISAGREE, run, f"chunk {index} was acknowledged as {seq}, and shown as {shown}")
        if run.done_at is not None and run.last_sent > run.done_at:
            late = run.last_sent - run.done_at
            self._accuse(Rule.AFTER_END, run, f"a chunk sent {late:.3f} s after the end was told was acknowledged")
        self._judge_end(run)
        self._judge_writer(run)

    def _judge_reader(self, reader: ReaderAccount) -> None:
        run = reader.run
        for index in sorted(reader.missing):
            self._accuse(Rule.LOST, run, f"{reader.name} was not shown chunk {index}, but what follows it")
        if reader.first > 0 or reader.index < 0:
            self._judge_start(reader)
        if reader.done_at is None:
            if reader.left == OUT_OF_PATIENCE:
                self._judge_patience(reader)
            elif reader.left is None and reader.name.partition("-")[0] not in self._gone:
                self._accuse(Rule.NO_END, run, f"{reader.name} stayed, and was never told the end")
            return
        total = max(len(run.seqs), run.acknowledged)
        if 0 <= reader.index < total:
            self._accuse(
                Rule.LOST, run, f"{reader.name} was told the end after {reader.index} chunks; there are {total}"
            )
        self._judge_told(reader)
        self._judge_delay(reader)

    def _judge_start(self, reader: ReaderAccount) -> None:
        """Who came with a cursor is to be shown what follows it at once."""
        first = reader.first if reader.index >= 0 else len(reader.run.seqs)
        if reader.index < 0 and reader.done_at is None:
            return
        skipped = [at for at, seq in enumerate(reader.run.seqs[:first]) if seq > reader.after]
        if skipped:
            self._accuse(
                Rule.LOST, reader.run, f"{reader.name} came after {reader.after}, and was not shown chunk {skipped[0]}"
            )

    def _judge_told(self, reader: ReaderAccount) -> None:
        """Hold a reader's end against what an end is, and against that of the others."""
        run = reader.run
        if run.told is None:
            run.told, run.told_to = reader.ending, reader.name
            stop = reader.ending[0].text
            middle = ["usage"] if stop in COMPLETED else [] if stop == "cancelled" else ["error"]
            if [got.kind for got in reader.ending] != ["stop", *middle, "done"]:
                self._accuse(Rule.BAD_END, run, f"{reader.name} was told the end as {_words(reader.ending)}")
        elif not _agree(reader.ending, run.told):
            self._accuse(
                Rule.DISAGREE,
                run,
                f"{reader.name} was told the end as {_words(reader.ending)}, {run.told_to} as {_words(run.told)}",
            )

    def _judge_patience(self, reader: ReaderAccount) -> None:
        """Who has left because it was to finish was owed an end that was due; of a run that goes on there is none."""
        run = reader.run
        if (known := run.ending_known) is None:
            wait, bound = self._silence(run, reader.left_at), self._bounds.lost
        else:
            wait, bound = self._waited(reader, known, reader.left_at), self._bounds.end_told
        if wait > bound:
            text = (
                f"{reader.name} was out of patience {wait:.1f} s after {'its end' if known else 'the last sign of it'}"
            )
            self._accuse(Rule.NO_END, run, f"{text}, faults left out")

    def _waited(self, reader: ReaderAccount, known: float, until: float) -> float:
        """How long a reader waited for an end that was there, but for what keeps it from being told."""
        since = max(known, reader.joined, *(stalled for _, stalled in reader.stalls if stalled < until), 0.0)
        if until - since <= min(self._bounds.end_told, self.figures.slowest_end):
            return 0.0
        concerned = Concerned(reader.visited(since, until), processes=(process_of(reader.name),))
        return self._faults.calm_between(since, until, TELLING, concerned)

    def _judge_delay(self, reader: ReaderAccount) -> None:
        run = reader.run
        assert reader.done_at is not None
        assert run.ending_known is not None
        delay = self._waited(reader, run.ending_known, reader.done_at)
        self.figures.slowest_end = max(self.figures.slowest_end, delay)
        if delay > self._bounds.end_told:
            self._accuse(
                Rule.LATE_END, run, f"{reader.name} was told the end {delay:.1f} s after it was there, faults left out"
            )

    def _judge_end(self, run: RunAccount) -> None:
        """Hold the end that was told against what the writer did."""
        known = run.ending_known
        if known is not None and (silence := self._silence(run, known)) > self._bounds.lost:
            self._accuse(Rule.LATE_END, run, f"it ended {silence:.1f} s after the last sign of it, faults left out")
        if run.told is None:
            return
        stop = run.told[0].text
        if run.ended is not None and run.ended.stop_reason != stop:
            self._accuse(
                Rule.BAD_END, run, f"its writer was told {run.ended.stop_reason}, {run.told_to} was told {stop}"
            )
        if stop in COMPLETED:
            if len(run.seqs) < len(run.said):
                self._accuse(
                    Rule.LOST, run, f"it has completed with {len(run.seqs)} chunks; its writer said {len(run.said)}"
                )
            if run.mode != "capture" and run.ending is None:
                self._accuse(Rule.UNEXPLAINED, run, f"it has ended as {stop}, which its writer did not ask for")
        elif stop == "cancelled":
            if run.cancelling is None or (run.done_at is not None and run.cancelling > run.done_at):
                self._accuse(Rule.UNEXPLAINED, run, "it was cancelled, and nobody asked for it")
        else:
            self._judge_failure(run, stop)

    def _silence(self, run: RunAccount, ended: float) -> float:
        """How long there was no sign of a run that had not ended, but for what keeps it from being ended or told."""
        since = max(run.sign, run.newest_shown)
        if ended - since <= self._bounds.lost:
            return 0.0
        concerned = Concerned(gateways=None, brokers=None, processes=(process_of(run.token),))
        return self._faults.calm_between(since, ended, ENDING[run.mode], concerned)

    def _judge_failure(self, run: RunAccount, stop: str) -> None:
        assert run.told is not None
        assert run.done_at is not None
        error = next((got.text for got in run.told if got.kind == "error"), stop)
        if run.gave_up is not None and run.gave_up.why == OUT_OF_PATIENCE and error in _ABANDONED:
            return
        reasons = RUNS[run.mode].get(error, NOTHING)
        concerned = Concerned(brokers=None, processes=(process_of(run.token),))
        if not self._faults.explain(run.opening, run.done_at, reasons, concerned):
            self._accuse(Rule.UNEXPLAINED, run, f"it has failed with {error}, and there was no {reasons}")

    def _judge_writer(self, run: RunAccount) -> None:
        """Each refusal, and a writer's giving up, has its reason."""
        for refused in (*run.refusals, *([run.gave_up] if run.gave_up else ())):
            self.figures.errors += 1
            is_own = run.cancelling is not None and run.cancelling <= refused.at and refused.why in _CANCELLED
            if is_own or refused.why == OUT_OF_PATIENCE:
                continue
            reasons = REFUSALS.get(refused.why, NOTHING)
            outlasts = refused.why in OUTLASTS
            since = run.opening if outlasts else refused.since or refused.at
            brokers = None if outlasts or kind_of(refused.place) != "broker" else (refused.place,)
            concerned = Concerned(brokers=brokers, processes=(process_of(run.token),))
            if not self._faults.explain(since, refused.at, reasons, concerned, opened=run.opening):
                self._accuse(
                    Rule.UNEXPLAINED, run, f"its writer was told {refused.why} by {refused.place}; no {reasons}"
                )

    def _judge_error(self, reader: ReaderAccount, error: Disconnected, cursor: int) -> None:
        self.figures.errors += 1
        what = f"{error.how} {error.detail}".strip()
        reasons = _reasons_of(error, reader.run)
        # Who takes nothing is cut, and told nothing. Anything else it meets as everybody does.
        stalls = reader.stalls if reasons is CUT else []
        if any(since <= error.at <= until + self._bounds.recovery for since, until in stalls):
            return
        since, concerned = error.since or error.at, Concerned((error.gateway,), processes=(process_of(reader.name),))
        if not self._faults.explain(since, error.at, reasons, concerned, opened=reader.run.opening, cursor=cursor):
            rule = Rule.BAD_END if error.how == "clean" else Rule.UNEXPLAINED
            self._accuse(
                rule,
                reader.run,
                f"{reader.name}'s response by {error.gateway} was {what}; there was no {reasons}",
            )

    def _count_up(self) -> None:
        figures, runs, readers = self.figures, self._runs.values(), self._readers.values()
        figures.runs = sum(bool(run.run_id) for run in runs)
        figures.acknowledged = sum(run.acknowledged for run in runs)
        figures.chunks = sum(len(run.seqs) for run in runs)
        figures.readers = len(readers)
        figures.readers_to_the_end = sum(reader.done_at is not None for reader in readers)
        figures.connections = sum(reader.connections for reader in readers)
        figures.reconnects = sum(max(reader.connections - 1, 0) for reader in readers)
        figures.faults = len(self._injected)
        effective = [fault for fault in self._injected if fault.effective]
        figures.effective_faults = len(effective)
        figures.kills = sum(fault.name.startswith("kill") for fault in effective)
        figures.endings = Counter(_how(run) for run in runs if run.run_id)

    def _accuse(self, rule: Rule, run: RunAccount, text: str) -> None:
        self._count[rule] += 1
        if len(self._violations) < MAX_SENTENCES:
            self._violations.append(Violation(rule, run.name, text))


_CANCELLED = frozenset({"run_cancelled", "RunCancelled", "fenced", "Fenced"})
"""What a writer is told of whose run is cancelled: by itself, or by a broker that was faster."""
_ABANDONED = frozenset({"run_lost", "stream_task_cancelled"})
"""What becomes of a run that its writer leaves."""


def _reasons_of(error: Disconnected, run: RunAccount) -> Reasons:
    """What may be the reason that a response ended so."""
    how, detail = RESPONSES.get(error.how, NOTHING), error.detail
    if error.how == "refused":
        return RESPONSES.get(detail, NOTHING)
    # An exception's name is what its library calls it that it was told nothing.
    if error.how not in {"cut", "unreachable"} or not detail or detail[0].isupper():
        return how
    # What it was told in the foreground may be the run's own: then the end that belongs to it was on its way.
    is_own = not run.background and detail not in NOTICES and detail in RUNS[run.mode]
    return how if is_own else NOTICES.get(detail, NOTHING)


def _agree(one: list[Got], other: list[Got]) -> bool:
    """Tell whether two were told the same end. What a client's library shows has no digest."""
    return len(one) == len(other) and all(
        (a.kind, a.text) == (b.kind, b.text) and (a.digest == b.digest or 0 in (a.digest, b.digest))
        for a, b in zip(one, other, strict=True)
    )


def _words(ending: list[Got]) -> str:
    return ", ".join(f"{got.kind} {got.text}".strip() for got in ending) or "nothing"


def _how(run: RunAccount) -> str:
    if run.told is None:
        return "unread"
    return next((got.text for got in run.told if got.kind == "error"), run.told[0].text)


def main(directory: str) -> int:
    """Print what was found; the exit code is 1 if anything is wrong."""
    verdict = Checker().check(Path(directory))
    for violation in verdict.violations:
        print(violation)
    print(msgspec.json.format(msgspec.json.encode(verdict.figures)).decode())
    print(f"{verdict.total} violations: {dict(verdict.count)}")
    return 1 if verdict.total else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
