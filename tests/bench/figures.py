"""A figure: one number that every run of a scenario measures once, and whether its median meets the target."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Self

NS_PER_MS = 1_000_000
NS_PER_US = 1_000
US_PER_SECOND = 1_000_000
RATIO = "x"
"""The unit of what has none: so many times as much."""


class NothingMeasured(Exception):
    """A figure without a run has no median."""


def percentile(samples: Sequence[float], percent: float) -> float:
    """The sample that is at least as large as `percent` of all (nearest rank)."""
    ordered = sorted(samples)
    return ordered[max(ceil(len(ordered) * percent / 100), 1) - 1]


def times(value: float, other: float) -> float:
    """How many times the other. Raises `NothingMeasured` where that is nothing: there is no such number."""
    if not other:
        raise NothingMeasured("what is compared with took less time than can be told")
    return value / other


def with_unit(number: str, unit: str) -> str:
    """A number that is written out already, with its unit."""
    return number + ("" if not unit else unit if unit.startswith(("/", "%")) else f" {unit}")


@dataclass
class Figure:
    """One row of the report. What counts is the median of its runs: one that something else spoilt does not decide.

    `who` is who was measured, `case` under what, `what` the quantity. A target is a bound, above or below.
    """

    who: str
    case: str
    what: str
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    runs: list[float] = field(default_factory=list)

    @property
    def key(self) -> str:
        """What names the figure in the raw numbers, in every report."""
        return f"{self.who} / {self.case} / {self.what}"

    @property
    def median(self) -> float:
        if not self.runs:
            raise NothingMeasured(self.key)
        return statistics.median(self.runs)

    @property
    def target(self) -> str:
        """The bound as people read it, empty without one."""
        if self.at_most is not None:
            return f"≤ {with_unit(f'{self.at_most:,.6g}', self.unit)}"
        return "" if self.at_least is None else f"≥ {with_unit(f'{self.at_least:,.6g}', self.unit)}"

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met, None where there is none."""
        if self.at_most is not None:
            return self.median <= self.at_most
        return None if self.at_least is None else self.median >= self.at_least

    def to_json(self) -> dict[str, Any]:
        """What the raw numbers hold of it."""
        return {
            "who": self.who,
            "case": self.case,
            "what": self.what,
            "unit": self.unit,
            "at_most": self.at_most,
            "at_least": self.at_least,
            "median": self.median,
            "runs": self.runs,
            "met": self.is_met,
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """Read one back."""
        given = {name: found[name] for name in ("who", "case", "what", "unit", "at_most", "at_least", "runs")}
        return cls(**given)
