"""What was measured while the machine stood still was the machine: a test that found it too late then begins again."""

import contextlib
import functools
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import ParamSpec

STANDSTILL_SECONDS = 0.1
TICK_SECONDS = 0.01
TRIES = 3

P = ParamSpec("P")


@dataclass
class Standstill:
    """The longest time in which the thread that watches did not come to run, in seconds."""

    seen_at: float
    longest: float = 0.0

    def look(self) -> float:
        """The longest until now: who asks may have come to run before the thread that watches."""
        now = time.monotonic()
        self.longest = max(self.longest, now - self.seen_at - TICK_SECONDS)
        self.seen_at = now
        return self.longest


class Untimely(AssertionError):
    """What came did so too late, or too early, and nothing else was wrong with it."""


def check_timely(is_timely: object, told: object) -> None:
    """Raise `Untimely`, with what is told, unless something came when it should."""
    if not is_timely:
        raise Untimely(told)


def measured_again(test: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
    """Have a test begin again, up to three times, that is `Untimely` and stood still meanwhile for 0.1 s or more.

    For a test of when something happens. What the code does too late it does each time; a guest that is not given its
    processors, or a collection of other tests' garbage, comes once.
    """

    @functools.wraps(test)
    async def tried(*args: P.args, **kwargs: P.kwargs) -> None:
        for _ in range(TRIES - 1):
            with watched() as standstill:
                try:
                    return await test(*args, **kwargs)
                except Untimely:
                    longest = standstill.look()
                    if longest < STANDSTILL_SECONDS:
                        raise
                    print(f"measured again, as nothing ran for {longest:.2f} s:", traceback.format_exc())
        return await test(*args, **kwargs)

    return tried


@contextlib.contextmanager
def watched() -> Iterator[Standstill]:
    """Watch for standstills while the block lasts, from a thread: a turn of the event loop that is long is none."""
    standstill = Standstill(time.monotonic())
    over = threading.Event()

    def watch() -> None:
        while not over.wait(TICK_SECONDS):
            standstill.look()

    watching = threading.Thread(target=watch, name="standstill")
    watching.start()
    try:
        yield standstill
    finally:
        over.set()
        watching.join()
