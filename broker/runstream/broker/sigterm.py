"""SIGTERM in a process that nobody has told what to do with it: what is under way is finished, then the process ends.

Without this SIGTERM kills a plain `asyncio.run` at once, and its runs are `run_lost` a lease later. A process with a
handler of its own, as every server has one, decides for itself: its handler is never replaced, before or after, and
what it does on its way out is what matters. So this is a handler of `signal.signal`, which shows whose it is.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from typing import TYPE_CHECKING, Self

from runstream.broker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import FrameType, TracebackType

__all__ = ["BeforeSigterm"]

log = get_logger(__name__)


class BeforeSigterm:
    """Does `finish` when SIGTERM comes, and then lets the signal end the process. Use as an async context manager.

    A second SIGTERM ends it at once. Nothing is done in a thread other than the main one, nor where SIGTERM has a
    handler or is ignored. Left while `finish` goes on, it waits for it, and so for the process's end.
    """

    def __init__(self, finish: Callable[[], Awaitable[None]]) -> None:
        self._finish = finish
        self._loop = asyncio.get_running_loop()
        self._finishing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._heard)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._finishing is not None:
            await self._finishing
        # Bound methods are equal, never the same.
        if signal.getsignal(signal.SIGTERM) == self._heard:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _heard(self, _: int, __: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._finishing = asyncio.create_task(self._end(), name="sigterm")

    async def _end(self) -> None:
        log.info("stopping")
        try:
            await self._finish()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            # The first process of a container is not ended by a signal that it does not handle.
            os._exit(128 + signal.SIGTERM)
