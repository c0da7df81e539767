"""What is stored and is not as runstream writes it: counted by kind, and logged once for each place.

Somebody else wrote it, a newer runstream, or a disk that fails. It is met again and again, by every request and every
look of a watchdog's, and there is nothing new to say of it then.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

from runstream.broker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Findings"]

log = get_logger(__name__)

MOST_PLACES = 10_000
"""Places remembered: a megabyte. Whoever has more of them broken hears of the first again."""


class Findings:
    """What one process has found. `count` is told the kind of each finding: a kind of key, `message` or `work`."""

    def __init__(self, count: Callable[[str], None] = lambda _: None) -> None:
        self._count = count
        self._places: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._subjects: Counter[str] = Counter()

    def note(self, kind: str, subject: str, seq: int, reason: str) -> None:
        """Count and log a message that is not as it should be, unless that was done before."""
        place = (subject, seq)
        if place in self._places:
            return
        self._places[place] = None
        self._subjects[subject] += 1
        if len(self._places) > MOST_PLACES:
            (oldest, _), _ = self._places.popitem(last=False)
            self._subjects[oldest] -= 1
            if not self._subjects[oldest]:
                del self._subjects[oldest]
        self._count(kind)
        # Not what stands there: it may be what people said to each other.
        log.error("stored_broken", kind=kind, subject=subject, seq=seq, reason=reason)

    def knows(self, subject: str) -> bool:
        """Tell whether anything under this subject was found broken."""
        return subject in self._subjects
