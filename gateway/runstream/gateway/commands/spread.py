"""How durations spread: their quantiles, in memory that does not grow with their number."""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

__all__ = ["Spread"]

KEPT_BITS: Final = 11
"""Of a duration in microseconds: it is kept to a thousandth of itself."""


class Spread:
    """Durations in seconds. The longest is kept as it is, all others to a thousandth of themselves, rounded up."""

    def __init__(self) -> None:
        self.count = 0
        self.longest = 0.0
        self._counts: Counter[int] = Counter()
        """By microseconds, of `KEPT_BITS` bits."""

    def note(self, seconds: float) -> None:
        """Add one. By clocks of one process, so that none is negative."""
        microseconds = math.ceil(seconds * 1e6)
        beyond = max(microseconds.bit_length() - KEPT_BITS, 0)
        self._counts[-(-microseconds >> beyond) << beyond] += 1
        self.count += 1
        self.longest = max(self.longest, seconds)

    def quantile(self, share: float) -> float:
        """Return what this share of the durations does not exceed, in seconds; 0 of none."""
        left = share * self.count
        for microseconds, count in sorted(self._counts.items()):
            left -= count
            if left <= 0:
                return min(microseconds / 1e6, self.longest)
        return self.longest
