"""What may not be, how long what may take, and what a checker says of a history."""

from collections import Counter
from enum import StrEnum
from typing import NamedTuple

import msgspec

from tests.chaos.calm import RECOVERY_SECONDS

MAX_SENTENCES = 200
"""Violations that are told in words; all are counted."""


class Rule(StrEnum):
    """What may not be."""

    LOST = "lost"
    """A chunk that was acknowledged, or that others were shown, was not shown to one who stayed."""
    DUPLICATED = "duplicated"
    SWAPPED = "swapped"
    """A chunk came after one that its writer said later, or under a sequence that does not grow."""
    UNNUMBERED = "unnumbered"
    """A chunk came without the sequence that its reader would come back with."""
    FOREIGN = "foreign"
    """A chunk of another run, or of none."""
    ALTERED = "altered"
    """A chunk does not read as it was said."""
    UNSAID = "unsaid"
    """A chunk that its writer has not said."""
    EARLY = "early"
    """A chunk was shown before it was sent."""
    AFTER_END = "after_end"
    """Something was shown, or stored, after the run's end had been told."""
    NO_END = "no_end"
    """A reader who stayed was never told the end, or was out of patience before, though it had been due for long."""
    LATE_END = "late_end"
    """A reader was told the end too late; or a run that nobody wrote ended too late."""
    BAD_END = "bad_end"
    """The end is none that a run has, or not the one that was acknowledged."""
    DISAGREE = "disagree"
    """Two were told different things of one run: two readers, or a reader and the writer."""
    UNEXPLAINED = "unexplained"
    """An error that neither what the writer did explains, nor a fault that has such errors and was done to what it came
    by."""


class Violation(NamedTuple):
    """One thing that may not be, in a sentence."""

    rule: Rule
    run: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.text} (run {self.run})"


class Bounds(msgspec.Struct, frozen=True):
    """How long what may take, in seconds in which no fault was on that can make it late, nor one within the last
    `recovery`."""

    end_told: float = 10.0
    """From the end of a run, as soon as anybody knew of it, until each of its readers is told."""
    lost: float = 20.0
    """From the last sign of life of a run until it has ended, for whatever reason."""
    recovery: float = RECOVERY_SECONDS


class Figures(msgspec.Struct):
    """How much was checked."""

    runs: int = 0
    acknowledged: int = 0
    chunks: int = 0
    """Chunks that were shown to anybody, each counted once."""
    deliveries: int = 0
    readers: int = 0
    readers_to_the_end: int = 0
    connections: int = 0
    reconnects: int = 0
    errors: int = 0
    faults: int = 0
    effective_faults: int = 0
    kills: int = 0
    """Effective faults whose name begins with `kill`."""
    slowest_end: float = 0.0
    """The longest that a reader waited for an end that was there, faults left out."""
    endings: Counter[str] = msgspec.field(default_factory=Counter)
    """How many runs ended how."""


class Verdict(msgspec.Struct):
    """What the checker found."""

    figures: Figures
    violations: list[Violation]
    """The first `MAX_SENTENCES`."""
    count: Counter[Rule]

    @property
    def total(self) -> int:
        return self.count.total()
