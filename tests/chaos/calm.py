"""When the services were well: what the checker asks of the faults that were injected."""

import re
from bisect import bisect_right
from collections.abc import Collection, Iterable
from itertools import accumulate

from tests.chaos.history import Fault, FaultKind

RECOVERY_SECONDS = 5.0
"""How long a fault explains things after it has ended: clients wait, leases lapse, leaders are elected."""


class Faults:
    """Faults in the order in which they began. Those that took no effect explain nothing."""

    def __init__(self, faults: Iterable[Fault], *, recovery_seconds: float = RECOVERY_SECONDS) -> None:
        self._faults = sorted((fault for fault in faults if fault.effective), key=lambda fault: fault.at)
        self._recovery = recovery_seconds
        self.gateways: Collection[str] = ()
        """A fault whose target names any of these is that of nobody but who was served by it."""
        self._begins, self._ends = _merged((fault.at, self._over(fault)) for fault in self._faults)
        lengths = (end - begin for begin, end in zip(self._begins, self._ends, strict=True))
        self._covered = [0.0, *accumulate(lengths)]

    def explain(
        self, since: float, until: float, kinds: Collection[FaultKind], *, place: str = "", cursor: int = 0
    ) -> bool:
        """Tell whether any of those kinds was on, or just over, at any time in between, and touches `place`.

        Retention does if it has passed `cursor`.
        """
        return any(
            fault.kind in kinds
            and fault.at <= until
            and self._over(fault) >= since
            and self._touches(fault, place)
            and (not fault.first_seq or cursor < fault.first_seq)
            for fault in self._faults
        )

    def calm_between(self, since: float, until: float) -> float:
        """Return how many of these seconds there was no fault, nor one that was just over."""
        return max(until - since, 0.0) - max(self._covered_until(until) - self._covered_until(since), 0.0)

    def _over(self, fault: Fault) -> float:
        return float("inf") if fault.ended is None else fault.ended + max(self._recovery, fault.recovery)

    def _touches(self, fault: Fault, place: str) -> bool:
        named = set(re.split(r"->|[\s,]+", fault.target)) & set(self.gateways)
        return not named or place in named

    def _covered_until(self, at: float) -> float:
        place = bisect_right(self._begins, at)
        if place == 0:
            return 0.0
        return self._covered[place - 1] + min(at, self._ends[place - 1]) - self._begins[place - 1]


def _merged(spans: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
    begins: list[float] = []
    ends: list[float] = []
    for begin, end in sorted(spans):
        if ends and begin <= ends[-1]:
            ends[-1] = max(ends[-1], end)
        else:
            begins.append(begin)
            ends.append(end)
    return begins, ends
