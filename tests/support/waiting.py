"""Waiting for a condition: the one place in the tests that sleeps."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

Found = TypeVar("Found")

# Short enough to add nothing to a test that a person would notice, long enough to leave the loop to others.
POLL_SECONDS = 0.02


@overload
async def wait_until(predicate: Callable[[], Awaitable[Found]], timeout: float = ..., message: str = ...) -> Found: ...
@overload
async def wait_until(predicate: Callable[[], Found], timeout: float = ..., message: str = ...) -> Found: ...
async def wait_until(
    predicate: Callable[[], Any],
    timeout: float = 10.0,
    message: str = "the condition did not come true",
) -> Any:
    """The first true result of `predicate` (plain or async); AssertionError with `message` after `timeout` s.

    An attempt that hangs is cut off by the same deadline. What the predicate raises is a failure of the
    test, not a "not yet": a predicate that may fail meanwhile says so itself.
    """
    last: object = "nothing yet"
    try:
        async with asyncio.timeout(timeout):
            while True:
                outcome = predicate()
                last = await outcome if inspect.isawaitable(outcome) else outcome
                if last:
                    return last
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        complaint = f"{message} (within {timeout:g} s; last seen: {last!r})"
        raise AssertionError(complaint) from None
