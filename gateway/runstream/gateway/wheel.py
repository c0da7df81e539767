"""Very many moments to come, and one timer for them: of a timer each, an idle stream would be a tenth."""

from __future__ import annotations

import asyncio
import heapq
import time
from contextvars import Context
from math import ceil
from typing import TYPE_CHECKING, Generic, TypeVar

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Wheel"]

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Wheel(Generic[T]):
    """Calls `due` with each item when its moment has come: never before, and at most `tick` seconds after.

    Those of one tick are called one after the other, in no order that matters, and each may be put on again.
    """

    def __init__(self, tick: float, due: Callable[[T], None]) -> None:
        self._tick = tick
        self._due = due
        self._turns: dict[int, dict[T, None]] = {}
        self._order: list[int] = []
        """The turns that have items, or had some; a heap."""
        self._turn_of: dict[T, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._armed = 0
        self._is_turning = False

    def put(self, item: T, seconds: float) -> None:
        """Have an item's moment come in so many seconds, and at no other."""
        self.remove(item)
        turn = ceil((time.monotonic() + seconds) / self._tick)
        if turn not in self._turns:
            self._turns[turn] = {}
            heapq.heappush(self._order, turn)
        self._turns[turn][item] = None
        self._turn_of[item] = turn
        if not self._is_turning and (self._timer is None or turn < self._armed):
            self._arm()

    def remove(self, item: T) -> None:
        """Let an item's moment not come, if it was put on."""
        turn = self._turn_of.pop(item, None)
        if turn is None:
            return
        if turn in self._turns:
            del self._turns[turn][item]
        if not self._turn_of and self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._turns.clear()
            self._order.clear()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._order:
            self._armed = self._order[0]
            wait = max(self._armed * self._tick - time.monotonic(), 0.0)
            # It is nobody's in particular: what it logs is not the request's that was here first.
            self._timer = asyncio.get_running_loop().call_later(wait, self._turn, context=Context())

    def _turn(self) -> None:
        self._timer = None
        self._is_turning = True
        while self._order and self._order[0] * self._tick <= time.monotonic():
            turn = heapq.heappop(self._order)
            for item in self._turns.pop(turn):
                if self._turn_of.get(item) != turn:
                    continue  # One before it has taken it off, or put it elsewhere.
                del self._turn_of[item]
                try:
                    self._due(item)
                except Exception:  # The others' moments have come as well.
                    log.exception("moment_lost")
        self._is_turning = False
        self._arm()
