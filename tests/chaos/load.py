"""The mixed load of a chaos run: writers in all modes, readers of both kinds, each process many of them.

They are started here, and told to finish. What they do is theirs (`writer.py`, `reader.py`), and what they record is
the history that is checked.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import msgspec

from tests.chaos.history import Got, files_of
from tests.chaos.services import Service, ready
from tests.chaos.world import World
from tests.support.processes import python
from tests.support.waiting import wait_until

AGENT = "tests.chaos.agent:speak"
FLOW_SECONDS = 60.0
"""How long it may take until readers are shown something."""
FINISH_SECONDS = 120.0
"""How long writers may take to end their runs, and readers to read to the end of them: longer than they have patience,
so that they say themselves what they have not done."""
RECENT_BYTES = 64 * 2**10

_got = msgspec.json.Decoder(Got).decode


class Load:
    """The processes that write to a world and read from it."""

    def __init__(self, world: World, history: Path, seed: int) -> None:
        self._world, self._history, self._seed = world, history, seed
        gateways = named("gateway", world.gateways, world.gateway_urls)
        brokers = named("broker", world.brokers, world.broker_urls)
        self.writers = [
            self._process("writer", "library", "--modes=library", f"--nats-url={world.library_nats_url}", *gateways),
            self._process("writer", "clients", "--modes=ingest,capture", "--runs=10", *brokers, *gateways),
        ]
        self.readers = [self._process("reader", f"readers{number}", *gateways) for number in range(2)]
        world.writers += self.writers
        world.cursors = self.cursors

    def _process(self, module: str, name: str, *options: str) -> Service:
        common = [f"--directory={self._history}", f"--name={name}", f"--seed={self._seed}"]
        argv = python("-m", f"tests.chaos.{module}", *common, *options)
        return Service(name, argv, self._world.plan.directory, env=self._world.plan.settings)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        """Write and read while the block lasts; whoever has not finished then is ended."""
        processes = [*self.writers, *self.readers]
        try:
            for process in processes:
                await process.start()
            for process in processes:
                await ready(process)
            await wait_until(self.cursors, FLOW_SECONDS, f"nobody has read anything: see {self._world.plan.directory}")
            yield self
        finally:
            await asyncio.gather(*(process.close() for process in processes))

    def dead(self) -> list[str]:
        """Which readers have ended without being asked to, and how; the world looks after the writers."""
        return [process.obituary() for process in self.readers if process.pid is None]

    async def finish(self) -> None:
        """Let writers end what they have, then readers read it to the end. Raises `AssertionError` for who does not."""
        for processes in (self.writers, self.readers):
            await _finished(processes)

    def cursors(self) -> list[int]:
        """Where readers stand, as far as they have recorded it lately."""
        lately = {got.reader: got.seq for path in files_of(self._history, "reader") for got in _recent(path)}
        return [seq for seq in lately.values() if seq is not None]


def named(option: str, services: Sequence[Service], urls: Sequence[str]) -> list[str]:
    """Where services are found, by the names that faults call them."""
    return [f"--{option}={service.name}={url}" for service, url in zip(services, urls, strict=True)]


async def _finished(processes: Sequence[Service]) -> None:
    deadline = time.monotonic() + FINISH_SECONDS
    for process in processes:
        assert process.pid is not None, process.obituary()
        os.kill(process.pid, signal.SIGTERM)
    for process in processes:
        left = max(deadline - time.monotonic(), 0.1)
        assert await process.ended(left), f"{process.name} does not finish: see {process.log_file}"
        assert process.exit_code == 0, process.obituary()


def _recent(path: Path) -> Iterator[Got]:
    """What a reading process has recorded last of what its readers were shown."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - RECENT_BYTES))
        lines = file.read().split(b"\n")
    for line in lines[1:-1]:
        if line.startswith(b'{"is":"got"'):
            yield _got(line)
