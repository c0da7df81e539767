"""A broker in a process of its own that kills itself at one step of an ending: `<nats url> <step>:<before|after>`.

With an empty point it lives until it is killed. What its agent says is what the run asks for: `chunks` of them, then
the ending that is named, or nothing more (`wait`).
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import msgspec

from runstream.broker import ending
from runstream.broker.errors import AgentFailed
from runstream.broker.service import Broker
from runstream.broker.settings import BrokerSettings
from runstream.schemas import Chunk, RunRequest, StopReason, UsageStatistics
from tests.support.core import SETTINGS, said


class Wish(msgspec.Struct):
    """What a test asks of the agent, as the run's input."""

    chunks: int = 3
    ending: str = "good"


async def agent(request: RunRequest) -> AsyncGenerator[Chunk, None]:
    """Say what was asked for."""
    wish = msgspec.json.decode(request.body["input"], type=Wish)
    for number in range(wish.chunks):
        yield said(number)
    if wish.ending == "wait":
        await asyncio.Event().wait()
    elif wish.ending == "bad":
        raise AgentFailed("llm_timeout", detail="asked for")
    yield StopReason(stop_reason="end_turn")
    yield UsageStatistics(total_tokens=7)


Step = Callable[[ending.Ending], Coroutine[Any, Any, None]]


def deadly(step: Step, *, before: bool) -> Step:
    """The step, with a SIGKILL of this process right before or right after it."""

    async def die(run: ending.Ending) -> None:
        await run.publisher.flush()  # what a failing agent had said may still wait in the queue
        if not before:
            await step(run)
        os.kill(os.getpid(), signal.SIGKILL)

    return die


async def main(url: str, point: str) -> None:
    """Serve until killed."""
    name, _, moment = point.partition(":")
    steps: dict[str, Step] = {step.__name__: step for step in ending.STEPS}
    if point:
        steps[name] = deadly(steps[name], before=moment == "before")
    ending.STEPS = tuple(steps.values())  # type: ignore[assignment]
    async with Broker(BrokerSettings(nats_url=url, **SETTINGS), agent=agent):
        print("ready")
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
