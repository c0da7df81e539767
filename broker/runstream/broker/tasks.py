"""How a task that somebody owns is ended, and how one with much to do lets others have their turn."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from runstream.broker.logs import get_logger

__all__ = ["Turns", "end_task"]

log = get_logger(__name__)

TURN_SECONDS: Final = 0.005
"""How long one task may work before others on the event loop get their turn: nobody notices it."""


class Turns:
    """Gives others on the event loop their turn, in work that may have nothing else to wait for."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    async def give(self) -> None:
        """Let others have their turn if this one has lasted long enough. Costs next to nothing otherwise."""
        if time.monotonic() - self._since > TURN_SECONDS:
            await asyncio.sleep(0)
            self._since = time.monotonic()


async def end_task(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it is over; what it failed with is logged, and raised to nobody."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and (defect := task.exception()) is not None:
        log.error("task_crashed", task=task.get_name(), exc_info=defect)
