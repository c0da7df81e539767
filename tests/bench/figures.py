"""A figure: what was measured, in rounds, and what becomes of the samples."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

NS_PER_MS = 1_000_000


def percentile(samples: Sequence[float], percent: float) -> float:
    """The sample that is at least as large as `percent` of all (nearest rank)."""
    ordered = sorted(samples)
    return ordered[max(ceil(len(ordered) * percent / 100), 1) - 1]


@dataclass
class Figure:
    """One row of the report. A round is a list of milliseconds; what counts is the median of the rounds' medians.

    So one round that something else on the machine spoilt does not decide.
    """

    key: str
    name: str
    target_ms: float | None = None
    note: str = ""
    rounds: list[list[float]] = field(default_factory=list)

    def add(self, nanoseconds: Iterable[int]) -> None:
        """Add a round."""
        self.rounds.append([each / NS_PER_MS for each in nanoseconds])

    def median_of(self, percent: float) -> float:
        """The median, over the rounds, of a percentile."""
        return statistics.median(percentile(each, percent) for each in self.rounds)

    @property
    def p50(self) -> float:
        return self.median_of(50)

    @property
    def p99(self) -> float:
        return self.median_of(99)

    @property
    def samples(self) -> int:
        return sum(map(len, self.rounds))

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met, None where there is none."""
        return None if self.target_ms is None else self.p50 <= self.target_ms

    def to_json(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "name": self.name,
            "target_ms": self.target_ms,
            "p50_ms": round(self.p50, 4),
            "p99_ms": round(self.p99, 4),
            "met": self.is_met,
            "note": self.note,
            "rounds": [_summary(each) for each in self.rounds],
        }


def _summary(samples: Sequence[float]) -> dict[str, float]:
    return {
        "samples": len(samples),
        "min_ms": round(min(samples), 4),
        "p50_ms": round(percentile(samples, 50), 4),
        "p90_ms": round(percentile(samples, 90), 4),
        "p99_ms": round(percentile(samples, 99), 4),
        "max_ms": round(max(samples), 4),
    }
