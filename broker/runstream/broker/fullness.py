"""What a writer does while the store is full: it says so, waits for room, and tries again.

Nothing can be stored then, perhaps not even in the index, so it is said in core NATS. Gateways cut whoever follows the
run: he would wait for an end that cannot come. It is said with every try, for those who have come since.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

from runstream.broker.errors import RunStuck, StoreFull, StoreUnavailable, Unavailable
from runstream.broker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from runstream.broker.connection import Connection, Message
    from runstream.broker.errors import BrokerError

__all__ = ["STUCK_RUNS", "Room", "announce_stuck", "heard_stuck"]

log = get_logger(__name__)

T = TypeVar("T")

STUCK = "stuck"
STUCK_RUNS = f"{STUCK}.*"
"""The subjects on which it is said that a run cannot go on: of one that has no room the body is empty, and else it is
`AWAY`."""
AWAY = b"away"
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 5.0
"""How long room may be there before it is used, and somebody may follow the run before he is told that there is none.
Each try is one write that is refused."""


async def announce_stuck(connection: Connection, run_id: str, error: BrokerError) -> None:
    """Say that a run cannot begin, or come to its end: the store is full, or takes nothing though NATS is there."""
    with contextlib.suppress(Unavailable):
        await connection.publish(f"{STUCK}.{run_id}", b"" if isinstance(error, StoreFull) else AWAY)


def heard_stuck(message: Message) -> tuple[str, BrokerError]:
    """Read from such a message which run it is about, and what whoever follows it is to be told."""
    run_id = message.subject.removeprefix(f"{STUCK}.")
    return run_id, StoreUnavailable(run_id=run_id) if message.data == AWAY else RunStuck(run_id=run_id)


class Room:
    """Waits until there is room for what one run has to store, but not beyond the time when `leaving` is done."""

    def __init__(self, connection: Connection, run_id: str, leaving: asyncio.Future[Any] | None = None) -> None:
        self.refused: StoreFull | None = None
        """What was said the last time that there was no room, None if there is."""
        self._connection = connection
        self._run_id = run_id
        self._leaving = leaving or asyncio.get_running_loop().create_future()

    async def found(self, action: Callable[[], Awaitable[T]]) -> T:
        """Do what stores something, again and again until it is not refused for want of room.

        Raises `StoreFull` when this process is to stop, and what else `action` raises.
        """
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                done = await action()
            except StoreFull as full:
                # It is the same for every run and every try: said once of each is enough.
                say = log.warning if self.refused is None else log.debug
                say("run_waits_for_room", run_id=self._run_id, error=str(full))
                self.refused = full
                await announce_stuck(self._connection, self._run_id, full)
                await asyncio.wait([self._leaving], timeout=pause)
                if self._leaving.done():
                    raise
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                self.refused = None
                return done
