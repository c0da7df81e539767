"""When the services were well: what the checker asks of the faults that were injected."""

from collections.abc import Iterable

from tests.chaos.excuses import Concerned, Reasons, touches
from tests.chaos.history import Fault

RECOVERY_SECONDS = 5.0
"""How long a fault explains things after it has ended: clients wait, leases lapse, leaders are elected."""


class Faults:
    """Faults in the order in which they began. Those that took no effect explain nothing."""

    def __init__(self, faults: Iterable[Fault], *, recovery_seconds: float = RECOVERY_SECONDS) -> None:
        self._faults = sorted((fault for fault in faults if fault.effective), key=lambda fault: fault.at)
        self._recovery = recovery_seconds

    def explain(
        self,
        since: float,
        until: float,
        reasons: Reasons,
        concerned: Concerned,
        *,
        opened: float | None = None,
        cursor: int = 0,
    ) -> bool:
        """Tell whether any of those reasons was on, or just over, at any time in between.

        Retention does not come to an end: what it has removed since the run was `opened` is gone. It is a reason if it
        has passed `cursor`.
        """
        return any(
            fault.at <= until
            and self._over(fault) >= (since if opened is None or fault.kind != "retention" else opened)
            and touches(fault.target, reasons.where(fault.kind), concerned)
            and (not fault.first_seq or cursor < fault.first_seq)
            for fault in self._faults
        )

    def calm_between(
        self, since: float, until: float, reasons: Reasons | None = None, concerned: Concerned | None = None
    ) -> float:
        """Return how many of these seconds there was none of those reasons, nor one that was just over.

        Without `reasons` any fault is one.
        """
        calm, begin = 0.0, since
        for fault in self._faults:
            if fault.at >= until:
                break
            if reasons is not None and not touches(fault.target, reasons.where(fault.kind), concerned or Concerned()):
                continue
            calm += max(fault.at - begin, 0.0)
            begin = max(begin, self._over(fault))
        return calm + max(until - begin, 0.0)

    def _over(self, fault: Fault) -> float:
        return float("inf") if fault.ended is None else fault.ended + max(self._recovery, fault.recovery)
