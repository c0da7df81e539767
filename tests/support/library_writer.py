"""A platform's process that writes one run: `<nats url> <agent> <conversation> <what it does>`.

It says `started`, `open <run_id>`, `stored <content> <seq_id>` for each chunk, and at last what its block came to:
`ended`, or the name of what was raised.
"""

import asyncio
import contextlib
import itertools
import sys
import time
from collections.abc import Awaitable, Callable

from runstream.broker.errors import BrokerError
from runstream.broker.runs import Run, Runs
from runstream.broker.settings import BrokerSettings
from runstream.schemas import AssistantMessage
from tests.support.core import SETTINGS


async def say(run: Run, content: object) -> None:
    """Publish one chunk, and say where it is."""
    print("stored", content, await run.publish(AssistantMessage(content=str(content))))


async def ten(run: Run) -> None:
    """Say ten things, and be done."""
    for number in range(10):
        await say(run, number)


async def steady(run: Run) -> None:
    """Say something every now and then, for ever."""
    for number in itertools.count():
        await say(run, number)
        await asyncio.sleep(0.02)


async def silent(run: Run) -> None:
    """Say three things, and then nothing."""
    for number in range(3):
        await say(run, number)
    await asyncio.Event().wait()


async def deaf(run: Run) -> None:
    """Swallow what it is told, the cancellation and the reason, and go on."""
    await say(run, 0)
    while True:
        with contextlib.suppress(asyncio.CancelledError, BrokerError):
            await asyncio.sleep(60)
            await run.publish(AssistantMessage(content="never heard"))


async def frozen(run: Run) -> None:
    """Hold the whole process up, as code that blocks the event loop does."""
    await say(run, 0)
    print("frozen")
    time.sleep(600)  # noqa: ASYNC251  # just that


DOING: dict[str, Callable[[Run], Awaitable[None]]] = {
    doing.__name__: doing for doing in (ten, steady, silent, deaf, frozen)
}


async def main(url: str, agent_id: str, conversation_id: str, doing: str) -> None:
    """Write the run."""
    print("started")
    settings = BrokerSettings(nats_url=url, **SETTINGS)
    async with Runs(url, settings=settings) as runs:
        try:
            async with runs.open(agent_id=agent_id, conversation_id=conversation_id) as run:
                print("open", run.run_id)
                await DOING[doing](run)
        except BrokerError as error:
            print(type(error).__name__, error)
        else:
            print("ended")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
