"""A worker's parent: what becomes of one that is told to drain in an awkward moment."""

import asyncio
import socket
from pathlib import Path

from runstream.gateway import worker as module
from runstream.gateway.worker import Worker


class Ending(Worker):
    """Its process ends at once, and it is told to drain in the very moment in which the next one is to be started."""

    runs = 0

    async def _run(self) -> module._Outcome:
        self.runs += 1
        loop = asyncio.get_running_loop()
        # In the loop's next turn the pause of no length is over, in the one after that the worker goes on: before it.
        loop.call_soon(lambda: loop.call_soon(self.told))
        return module._Outcome(0, was_ready=True, said="")

    def told(self) -> None:
        """As the parent does it."""
        self.close()
        self.drain()


async def test_one_that_is_told_as_its_pause_ends_starts_no_more(tmp_path: Path) -> None:
    """Its socket is closed by then: no process can be started with it."""
    with socket.socket() as listener:
        worker = Ending(0, ["false"], listener, tmp_path, 0.0)
        async with asyncio.timeout(5):
            await worker.live()
    assert worker.runs == 1
