"""So much a minute, for each of any number of names, in memory that a flood of names does not fill.

Of each name one number is kept: when it will have all of its minute again. Until then it is what was taken beyond what
has come back since; from then on the name is as one that was never seen, and is forgotten.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["MOST_NAMES", "Rate"]

MINUTE: Final = 60.0
MOST_NAMES: Final = 100_000
"""Names of which is known what they took, some 150 bytes each. Who sends from more addresses than these in a minute has
the eldest forgotten: they have all of their minute again, and nobody has less."""
EXACT_SECONDS: Final = 1e-6
"""What is left of a wait that is none any more: numbers of seconds are not exact."""


class Rate:
    """At most `per_minute`, which may be taken at once, and comes back evenly. 0: any number."""

    def __init__(
        self, per_minute: int, *, clock: Callable[[], float] = time.monotonic, most_names: int = MOST_NAMES
    ) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._most_names = most_names
        self._whole_at: dict[Hashable, float] = {}
        """In the order in which they took last."""

    @property
    def is_bounded(self) -> bool:
        """Whether there is anything to be held against it."""
        return bool(self._per_minute)

    def __len__(self) -> int:
        """Return of how many names something is known."""
        return len(self._whole_at)

    def seconds_until(self, name: Hashable) -> float:
        """Return how long it takes until there is one to be taken; 0 if there is."""
        whole_at = self._whole_at.get(name)
        if whole_at is None:
            return 0.0
        lacks = (whole_at - self._clock()) * self._per_minute / MINUTE
        seconds = (lacks - (self._per_minute - 1)) * MINUTE / self._per_minute
        return seconds if seconds > EXACT_SECONDS else 0.0

    def take(self, name: Hashable, amount: int = 1) -> None:
        """Take so much, be it there or not: what is not is waited for by whoever comes next."""
        if not self._per_minute:
            return
        now = self._clock()
        whole_at = max(now, self._whole_at.pop(name, now)) + amount * MINUTE / self._per_minute
        if whole_at > now:
            self._whole_at[name] = whole_at
        self._forget(now)

    def put_back(self, name: Hashable) -> None:
        """Undo the taking of one."""
        self.take(name, -1)

    def _forget(self, now: float) -> None:
        """Forget the eldest that are whole again, two for each that was taken: so they go faster than they come."""
        for _ in range(2):
            eldest = next(iter(self._whole_at), None)
            if eldest is None or (self._whole_at[eldest] > now and len(self._whole_at) <= self._most_names):
                return
            del self._whole_at[eldest]
