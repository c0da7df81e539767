"""How long one turn on the event loop was: whoever has it keeps all others waiting."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

TICK_SECONDS = 0.002


@dataclass
class Turn:
    """The longest turn so far, in seconds of this process's CPU: a busy machine is nobody's fault."""

    longest: float = 0.0


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
