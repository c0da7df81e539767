"""What the processes of the load have in common: a command line, SIGTERM, and a bound for what they do after it."""

import argparse
import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

from tests.chaos.follower import Gateway
from tests.chaos.history import OUT_OF_PATIENCE

Main = Callable[[argparse.Namespace, asyncio.Event], Coroutine[Any, Any, None]]


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser of what all of them are told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--directory", type=Path, required=True, help="where the history is")
    parser.add_argument("--name", required=True, help="of this process, in lower-case letters and digits")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--gateway", type=gateway, action="append", default=[], help="name=http://host:port, each")
    parser.add_argument("--silence", type=float, default=45.0, help="seconds after which a silent response is given up")
    parser.add_argument("--patience", type=float, default=100.0, help="seconds to finish in after SIGTERM")
    return parser


def gateway(text: str) -> Gateway:
    """Read `name=url`."""
    name, _, url = text.partition("=")
    return Gateway(name, url)


def own_name(name: str) -> str:
    """Return what no other process of the history is called, if this one is started again under its name."""
    return f"{name}p{os.getpid()}"


def run(main: Main, options: argparse.Namespace) -> None:
    """Run it; `stopping` is set by SIGTERM or SIGINT."""

    async def signalled() -> None:
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        await main(options, stopping)

    uvloop.run(signalled())


class Tasks:
    """Tasks that are held. One that fails ends the process: a load that lacks a part proves less than it seems to."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, what: Coroutine[Any, Any, None], name: str) -> None:
        """Begin with something."""
        task = self._group.create_task(what, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def __len__(self) -> int:
        return len(self._tasks)

    @contextlib.asynccontextmanager
    async def finished(self, patience: float, stopping: asyncio.Event) -> AsyncIterator[None]:
        """Leave the block when all is done, or so many seconds after `stopping`: the rest is cancelled.

        Raises `SystemExit` then: what was not read or written to its end proves nothing, and the driver is to know.
        """
        async with self._group:
            yield
            await stopping.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    while self._tasks:
                        await asyncio.wait(self._tasks)
            left = [task.get_name() for task in self._tasks]
            for task in self._tasks:
                task.cancel()
        if left:
            raise SystemExit(f"{OUT_OF_PATIENCE}: {len(left)} had not finished after {patience:.0f} s: {left}")
