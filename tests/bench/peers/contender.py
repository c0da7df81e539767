"""What every one of those who are compared can do: carry a run of chunks to followers over HTTP."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tests.bench.load import Load


class Processes(NamedTuple):
    """Who serves, and who stores: the CPU of the second is told apart."""

    server: tuple[int, ...]
    store: tuple[int, ...] = ()


class Contender(Protocol):
    """A server that runs. A run's chunks are numbered from 0, over all calls of `write`."""

    base: str
    processes: Processes

    async def open(self) -> str:
        """Begin a run; returns its id. It can be followed from now on."""

    def request(self, run: str) -> str:
        """The request of one who follows the run from its beginning."""

    async def write(self, run: str, count: int, per_second: float) -> None:
        """Write chunks at that pace; returns when the last one is on its way."""

    async def close(self, run: str) -> None:
        """End the run."""


@dataclass(frozen=True)
class Entry:
    """One who can be measured: how the report calls it, how many followers it bears, and what has to be done first.

    `install` may take minutes, and raises `NotInstalled`; `serving` raises it too.
    """

    name: str
    title: str
    serving: Callable[[Load], AbstractAsyncContextManager[Contender]]
    install: Callable[[], object] = lambda: None
    followers: int = 1000


def get(path: str) -> str:
    """A follower's request."""
    return f"GET {path} HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n\r\n"
