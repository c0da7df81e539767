"""When the machine let somebody wait, and not the services: recorded as faults that nobody has injected.

Who has no processor for a second answers as late as who hangs, and on a machine that is shared that may happen at any
time. Whoever it was is known: for each thread the kernel counts how long it was ready to run, and waited (Linux). A
process that waits for a disk, or a host that stops the whole machine, shows in the driver's own clock alone, and all
lines are in the driver: then everything stood still.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from tests.chaos.excuses import MACHINE
from tests.chaos.history import Fault

LOOK_SECONDS = 0.5
STILL_SECONDS = 0.5
"""Who looks so much later than it wanted to stood still."""
PROC = Path("/proc")
STARVED_SECONDS = 0.3
"""A thread that has waited for so long since the last look had at most two fifths of the time."""


class Waits:
    """How long threads have waited for a processor, by the kernel's count."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}

    def longest(self, pid: int) -> float:
        """Seconds that the thread of a process has waited that waited longest, since it was asked last."""
        longest = 0
        with contextlib.suppress(OSError):  # the process has ended, or the kernel does not count
            for thread in (PROC / str(pid) / "task").iterdir():
                with contextlib.suppress(OSError, IndexError):  # the thread has
                    waited = int((thread / "schedstat").read_text().split()[1])
                    longest = max(longest, waited - self._known.get(int(thread.name), waited))
                    self._known[int(thread.name)] = waited
        return longest / 1e9


@contextlib.asynccontextmanager
async def waits_noted(
    pids: Callable[[], Mapping[str, int | None]], note: Callable[[Fault], None]
) -> AsyncIterator[None]:
    """Have it noted, while the block lasts, who of those that run has waited, and when all have."""
    looking = asyncio.create_task(_look(pids, note), name="looking who waits")
    try:
        yield
        assert not looking.done(), f"nobody looks any more: {looking}"
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


async def _look(pids: Callable[[], Mapping[str, int | None]], note: Callable[[Fault], None]) -> None:
    waits = Waits()
    while True:
        before = time.monotonic()
        await asyncio.sleep(LOOK_SECONDS)
        now = time.monotonic()
        if (late := now - before - LOOK_SECONDS) > STILL_SECONDS:
            note(Fault(at=before, ended=now, name="stand still", target=MACHINE, evidence=f"{late:.1f} s"))
        for name, pid in pids().items():
            if pid is not None and (waited := waits.longest(pid)) > STARVED_SECONDS:
                since = min(before, now - waited)
                note(Fault(at=since, ended=now, name="starve", target=name, evidence=f"{waited:.1f} s"))
