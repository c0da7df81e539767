"""Waits for the end of a run without following it: its record says so, a moment before its log has its end.

The server republishes the record when it changes, twice in a run's life; to follow the run costs something for each of
its chunks. A republished record comes once at most, so the index is asked, too: at first, after each reconnect, and in
a silence as often as a tail asks its leader. When the record is terminal, everything that the run has said is stored,
and its conversation is free.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from runstream.broker.errors import CursorExpired, Unavailable
from runstream.broker.keys import live_subject, run_key
from runstream.broker.tail import LONGEST_SILENCE_FACTOR
from runstream.broker.topology import LogAddress
from runstream.schemas import InvalidRecord, decode_run

if TYPE_CHECKING:
    from runstream.broker.connection import Connection, Message, Subscription
    from runstream.broker.errors import BrokerError
    from runstream.broker.index import Index
    from runstream.broker.reader import LogReader
    from runstream.broker.settings import BrokerSettings
    from runstream.gateway.stuck import StuckRuns
    from runstream.schemas import RunRecord

__all__ = ["EndWaiter", "is_over"]

RETRY_SECONDS = 0.5
"""How long to wait before NATS is asked again while it is away."""


def is_over(record: bytes) -> bool:
    """Whether a run's record says that it has ended; for one that cannot be read, whoever waits looks for himself."""
    try:
        return decode_run(record).is_terminal
    except InvalidRecord:
        return True


class EndWaiter:
    """Waits for the ends of any number of runs."""

    def __init__(
        self, connection: Connection, index: Index, reader: LogReader, settings: BrokerSettings, stuck: StuckRuns
    ) -> None:
        self.connection = connection
        self.stuck = stuck
        stuck.tell(self.give_up)
        self.index = index
        self.reader = reader
        self.settings = settings
        self.is_leaving = False
        self._waits: set[_Wait] = set()

    def leave(self) -> None:
        """Wait no longer: whoever does is told so."""
        self.is_leaving = True
        for wait in self._waits:
            wait.wake()

    def give_up(self, run_id: str, error: BrokerError) -> None:
        """Have whoever waits for the end of a run that does not go on wait no longer."""
        for wait in self._waits:
            if wait.run_id == run_id:
                wait.fail(error)

    async def end_of(self, record: RunRecord) -> RunRecord | None:
        """Return the record of a run once it has ended; None if this gateway stops before that.

        Raises `Unavailable` when NATS stays away for longer than a reader waits, `CursorExpired` when nothing is left
        of the run, neither its record nor its log, and what `give_up` was told.
        """
        if record.is_terminal:
            return record
        wait = _Wait(self, record)
        self._waits.add(wait)
        try:
            return await wait.through()
        finally:
            self._waits.discard(wait)
            await wait.close()


class _Wait:
    """One request that waits for one run."""

    def __init__(self, waiter: EndWaiter, record: RunRecord) -> None:
        self._waiter = waiter
        self._record = record
        self._woken = asyncio.Event()
        self._failure: BrokerError | None = None
        self._subscription: Subscription | None = None
        self._unlisten = waiter.connection.on_reconnect(self.wake)

    @property
    def run_id(self) -> str:
        """Which run is waited for."""
        return self._record.id

    def wake(self) -> None:
        """Have it look again."""
        self._woken.set()

    def fail(self, error: BrokerError) -> None:
        """Have it look for the last time."""
        self._failure = error
        self._woken.set()

    async def close(self) -> None:
        """Leave no subscription and no listener behind."""
        self._unlisten()
        if self._subscription is not None:
            await self._subscription.close()

    async def through(self) -> RunRecord | None:
        """Wait. Returns and raises as `EndWaiter.end_of`."""
        settings = self._waiter.settings
        silences, away_since = 0, None
        while not self._waiter.is_leaving:
            try:
                if (ended := await self._look()) is not None:
                    return ended
                away_since = None
                pause = settings.silence_seconds * min(2**silences, LONGEST_SILENCE_FACTOR)
                silences += 1
            except Unavailable:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > settings.read_patience_seconds:
                    raise
                pause = RETRY_SECONDS
            if self._failure is not None:
                raise self._failure  # Were it raised above, it could pass for what `_look` has met.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._woken.wait()
            self._woken.clear()
        return None

    async def _look(self) -> RunRecord | None:
        """Return the record if the run has ended, None if it goes on."""
        run = self._record
        if self._subscription is None:
            await self._waiter.stuck.listen()
            # Before the index is asked: a record that changes in between is heard of twice, and never not at all.
            subject = live_subject(run_key(run.tenant, run.id))
            self._subscription = await self._waiter.connection.subscribe(subject, self._hear)
        return await self._waiter.reader.leaders.sure(self._read, CursorExpired)

    async def _read(self) -> RunRecord | None:
        run = self._record
        stored = await self._waiter.index.run(run.tenant, run.id)
        if stored is not None:
            return stored.value if stored.value.is_terminal else None
        if await self._waiter.reader.last(LogAddress(run.id, run.shard)) is None:
            raise CursorExpired(run_id=run.id)
        return None  # Its writer writes the record anew when it ends the run.

    async def _hear(self, message: Message) -> None:
        if message.data and is_over(message.data):
            self.wake()
