"""A block that others may stop: its task is cancelled wherever it waits, as `asyncio.timeout` does it.

Whose cancellation it was shows at the block's end: one that came from outside as well is not for the block to take.
"""

from __future__ import annotations

import asyncio

__all__ = ["Interruption"]


class Interruption:
    """The block that the current task enters now.

    Like every such block it belongs to one task: who suspends within it, as by a `yield`, may be interrupted elsewhere.
    """

    def __init__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("A block that can be interrupted is entered by a task.")
        self._task = task
        self._before = task.cancelling()
        self._is_asked = False
        self._is_left = False

    def ask(self) -> None:
        """Interrupt the block, once, unless it was left."""
        if not self._is_asked and not self._is_left:
            self._is_asked = True
            self._task.cancel()

    def abandon(self, leaving: asyncio.Task[None] | None) -> None:
        """Cancel the block's task for good, as from outside, unless the block was left, or the task is `leaving`."""
        if not self._is_left and self._task is not leaving:
            self._task.cancel()

    def leave(self, error: BaseException | None) -> bool:
        """Leave the block with what it raised; tells whether that is the interruption, and nothing else."""
        self._is_left = True
        if not self._is_asked:
            return False
        return self._task.uncancel() <= self._before and isinstance(error, asyncio.CancelledError)
