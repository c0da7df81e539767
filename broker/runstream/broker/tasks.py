"""How a task that somebody owns is ended: cancelled, waited for, and heard if it had failed."""

from __future__ import annotations

import asyncio

from runstream.broker.logs import get_logger

__all__ = ["end_task"]

log = get_logger(__name__)


async def end_task(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it is over; what it failed with is logged, and raised to nobody."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and (defect := task.exception()) is not None:
        log.error("task_crashed", task=task.get_name(), exc_info=defect)
