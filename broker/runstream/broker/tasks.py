"""Tasks that somebody owns: how they are cancelled, end, outlive who asked for them, take turns, keep out of step."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, TypeVar

from runstream.broker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

__all__ = [
    "Shielded",
    "Slices",
    "Turns",
    "cancel_all",
    "end_stubborn_task",
    "end_task",
    "heeding_cancellation",
    "spread",
]

log = get_logger(__name__)

T = TypeVar("T")

TURN_SECONDS: Final = 0.005
"""How long one task may work before others on the event loop get their turn: nobody notices it."""
STEPS: Final = 1000
CANCEL_AGAIN_SECONDS: Final = 0.2


def spread(seconds: float) -> float:
    """Give a random time of up to so many seconds, for what many would else do in the same moment."""
    return seconds * secrets.randbelow(STEPS) / STEPS


class Turns:
    """Gives others on the event loop their turn, in work that may have nothing else to wait for."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    async def give(self) -> None:
        """Let others have their turn if this one has lasted long enough. Costs next to nothing otherwise."""
        if time.monotonic() - self._since > TURN_SECONDS:
            await asyncio.sleep(0)
            self._since = time.monotonic()


class Slices:
    """Does what many ask for at one time, one after the other, no longer at a time than others on the loop may wait.

    Each who waits for a turn of his own would be a task that is woken: all of those that can go on do so in one round.
    """

    def __init__(self) -> None:
        self._due: deque[tuple[Callable[[], None], asyncio.Future[None]]] = deque()

    async def do(self, work: Callable[[], None]) -> None:
        """Return when it is done, in the order in which it was asked for. Raises what it raises."""
        done = asyncio.get_running_loop().create_future()
        self._due.append((work, done))
        if len(self._due) == 1:
            self._begin()
        await done

    def _begin(self) -> None:
        # What it does is not only the first one's who asked.
        asyncio.get_running_loop().call_soon(self._go_on, context=Context())

    def _go_on(self) -> None:
        until = time.monotonic() + TURN_SECONDS
        try:
            while self._due:
                self._do_next()
                if time.monotonic() >= until:
                    break
        finally:
            if self._due:
                self._begin()

    def _do_next(self) -> None:
        work, done = self._due.popleft()
        if done.done():
            return  # Whoever asked for it has left.
        try:
            work()
        except Exception as error:  # noqa: BLE001  # it is whose work it was who hears of it
            done.set_exception(error)
        else:
            done.set_result(None)


class Shielded:
    """Work that goes on to its end though whoever asked for it leaves, and its owner."""

    def __init__(self) -> None:
        self._going_on: set[asyncio.Task[Any]] = set()

    async def do(self, work: Coroutine[Any, Any, T], *, name: str) -> T:
        """Do it, and return or raise what came of it. Who is cancelled meanwhile hears no more of it."""
        task = asyncio.create_task(work, name=name)
        self._going_on.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    async def close(self, patience_seconds: float) -> None:
        """Wait so long for what is going on, and for what that begins meanwhile; cancel the rest."""
        deadline = time.monotonic() + patience_seconds
        while self._going_on and (left := deadline - time.monotonic()) > 0:
            await asyncio.wait(self._going_on, timeout=left)
        await cancel_all(*self._going_on)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._going_on.discard(task)
        if not task.cancelled():
            task.exception()  # Who asked for it hears of it, if there still is anybody.


async def cancel_all(*tasks: asyncio.Task[Any]) -> None:
    """Cancel what is still going on, and wait until it is over; what came of it was heard, or is of no interest."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def end_task(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it is over; what it failed with is logged, and raised to nobody."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and (defect := task.exception()) is not None:
        log.error("task_crashed", task=task.get_name(), exc_info=defect)


async def end_stubborn_task(task: asyncio.Task[None]) -> None:
    """Cancel a task until it is over: those of nats-py's that go on trying may forget a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=CANCEL_AGAIN_SECONDS)


async def heeding_cancellation(answer: Awaitable[T]) -> T:
    """Await an answer from nats-py, and stay cancelled if this task was cancelled when it came, or failed to.

    In Python 3.11 `asyncio.wait_for`, which nats-py uses, gives an answer or an error that came in the same moment and
    forgets the cancellation, and nats-py itself forgets one that comes while it waits to write: whoever cancelled the
    task and waits for it would wait for ever.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        return await answer
    finally:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError
