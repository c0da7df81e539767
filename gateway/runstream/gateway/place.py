"""One of the workers on a port, as its parent has started it: what it was given, and that it ends with its parent.

It is the gateway that there is without workers. Its sockets are its parent's, handed down by their descriptors. Its
stdin is a pipe that the parent holds: nothing ever comes through it, and it ends with the parent, however that ends.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runstream.gateway.process import Termination

__all__ = ["Place", "place_said", "taken"]

log = structlog.get_logger(__name__)

PARENT: Final = 0
"""The descriptor that ends with the parent: stdin."""


class Place(NamedTuple):
    """Which of the workers it is, and the descriptors of its sockets: for clients, and for its parent's questions."""

    number: int
    listener: int
    operators: int

    def __str__(self) -> str:
        return ":".join(map(str, self))


def place_said(said: str) -> Place:
    """Read a place as a parent writes it. Raises `ValueError` for anything else."""
    number, listener, operators = map(int, said.split(":"))
    return Place(number, listener, operators)


@contextmanager
def taken(place: Place, termination: Termination) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Have a worker's sockets while the block lasts; SIGTERM is sent to this process when its parent has ended.

    The same signal again does nothing. A manager of services may send each process of a group what the parent sends it,
    too; and a worker that does not end is killed by its parent. SIGINT after SIGTERM has it end without draining.
    """
    loop = asyncio.get_running_loop()
    service = asyncio.current_task()
    assert service is not None  # noqa: S101  # a coroutine is run by one

    def again(number: signal.Signals) -> None:
        if number == signal.SIGINT and termination.has_come and not service.cancelling():
            service.cancel()

    termination.again = again

    with socket.socket(fileno=place.listener) as listener, socket.socket(fileno=place.operators) as operators:
        left = Path(operators.getsockname())

        def ended() -> None:
            loop.remove_reader(PARENT)
            log.warning("parent_ended", meaning="this worker drains, and ends as well")
            left.unlink(missing_ok=True)
            with suppress(OSError):  # Another worker's is in it still, who will do the same.
                left.parent.rmdir()
            signal.raise_signal(signal.SIGTERM)

        loop.add_reader(PARENT, ended)
        try:
            yield listener, operators
        finally:
            loop.remove_reader(PARENT)
