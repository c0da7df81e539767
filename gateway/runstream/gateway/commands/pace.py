"""When to show what: a run's events in the time that they took, at any speed. Without I/O and without a clock."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from runstream.gateway.commands.exits import Usage

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Pace", "speed_of"]

SPEED: Final = re.compile(r"(\d+(?:\.\d+)?)x?")


def speed_of(text: str) -> float | None:
    """Read `1x`, `10x`, `0.5x`, or `max`, which is None. Raises `Usage`."""
    if text == "max":
        return None
    found = SPEED.fullmatch(text)
    if found is None or float(found[1]) <= 0:
        raise Usage(f"Write a speed as 1x, 10x, 0.5x or max: {text!r} is none.")
    return float(found[1])


class Pace:
    """Times of a run's messages, and how long after the first one each is to be shown.

    Never before the one that was asked for before it: clocks of servers may differ, the order of the log does not.
    """

    def __init__(self, speed: float | None) -> None:
        self._speed = speed
        self._times: dict[int, float] = {}
        self._began: float | None = None
        self._last = 0.0

    def learn(self, seq_ids: Iterable[int], stored_at_ms: Iterable[int]) -> None:
        """Take messages' times, in milliseconds since 1970, as a run's outline tells them."""
        for seq_id, stored_at in zip(seq_ids, stored_at_ms, strict=True):
            self._times[seq_id] = stored_at / 1000
            if self._began is None:
                self._began = stored_at / 1000

    def knows(self, seq: int) -> bool:
        """Whether the time of this message is known, or not asked for."""
        return self._speed is None or seq in self._times

    def seconds(self, seq: int) -> float:
        """Return how long after the beginning to show a message, which is asked for once."""
        if self._speed is None or self._began is None:
            return 0.0
        self._last = max(self._last, (self._times.pop(seq) - self._began) / self._speed)
        return self._last
