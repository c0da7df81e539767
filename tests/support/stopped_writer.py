"""A platform's process that is sent SIGTERM: `<nats url> <seconds to drain> <what it does> <who handles SIGTERM>`.

It says `open <run_id>`, and `stored <seq_id>` for each chunk. Who handles SIGTERM: `nobody`, or the process itself,
`before` or `after` it entered `Runs`; then it says `handled`, and ends with 7. It says `refused` when it is given no
further run.
"""

import asyncio
import contextlib
import signal
import sys

from runstream.broker.errors import Draining
from runstream.broker.runs import Run, Runs
from runstream.broker.settings import BrokerSettings
from runstream.schemas import AssistantMessage, new_agent_id
from tests.support.core import SETTINGS


async def say(run: Run) -> None:
    """Publish a chunk, and say where it is."""
    print("stored", await run.publish(AssistantMessage(content="word ")))


async def answer(runs: Runs, doing: str) -> None:
    """Write one run: `finish` it when another is refused, or `last` for ever."""
    async with runs.open(agent_id=new_agent_id()) as run:
        print("open", run.run_id)
        await say(run)
        with contextlib.suppress(Draining):
            while True:
                runs.open(agent_id=new_agent_id())
                await asyncio.sleep(0.01)
        print("refused")
        if doing == "last":
            await asyncio.Event().wait()
        await say(run)


async def main(url: str, drain_seconds: str, doing: str, handler: str) -> None:
    """Write the run."""
    handled = asyncio.Event()

    def handle(*_: object) -> None:
        print("handled")
        asyncio.get_event_loop().call_soon_threadsafe(handled.set)

    if handler == "before":
        signal.signal(signal.SIGTERM, handle)
    runs = Runs(url, settings=BrokerSettings(nats_url=url, **SETTINGS), drain_seconds=float(drain_seconds))
    async with runs:
        if handler == "after":
            signal.signal(signal.SIGTERM, handle)
        answering = asyncio.create_task(answer(runs, doing))
        await asyncio.wait([answering, asyncio.create_task(handled.wait())], return_when=asyncio.FIRST_COMPLETED)
    sys.exit(7)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
