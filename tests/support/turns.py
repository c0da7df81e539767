"""How long one turn on the event loop was: whoever has it keeps all others waiting."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from tests.support.http import Reply

TICK_SECONDS = 0.002
TRIES = 3


@dataclass
class Turn:
    """The longest turn so far, in seconds of this process's CPU: a busy machine is nobody's fault."""

    longest: float = 0.0


async def in_short_turns(seconds: float, ask: Callable[[], Awaitable[Reply]]) -> Reply:
    """What `ask` answers, asked again if a turn took that much CPU or more.

    What the code costs it costs each time; a machine that stands still (which a guest's clock counts as CPU) or a
    collection of other tests' garbage comes once.

    Raises:
        AssertionError: Each of three tries had a turn as long as that.
    """
    turns = []
    for _ in range(TRIES):
        async with longest_turn() as turn:
            answer = await ask()
        if turn.longest < seconds:
            return answer
        turns.append(turn.longest)
    message = f"each time there was a turn of {seconds} s or more: {turns}"
    raise AssertionError(message)


@contextlib.asynccontextmanager
async def longest_turn() -> AsyncIterator[Turn]:
    """Watch the event loop for as long as the block lasts."""
    turn = Turn()

    async def watch() -> None:
        while True:
            since = time.process_time()
            await asyncio.sleep(TICK_SECONDS)
            turn.longest = max(turn.longest, time.process_time() - since)

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)
    try:
        yield turn
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
