"""Runs that are written and followed at once, from outside, and what that took: the load of `runstream bench`.

What is measured begins when a chunk is due, not when there was time to send it: a server that stands still for a second
delays all that was due in that second, and a clock that starts with the request would see one of them.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from array import array
from collections import deque
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol
from uuid import uuid4

from runstream.gateway.commands.exits import CommandError, Failed, Unreachable
from runstream.gateway.commands.following import Follower
from runstream.gateway.commands.lines import chunk_of_line
from runstream.gateway.commands.spread import Spread
from runstream.gateway.commands.writing import MOST_BYTES, MOST_CHUNKS, SIGNS_PER_LEASE, TooLong, Writing

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable

    from runstream.gateway.commands.client import Client
    from runstream.gateway.commands.events import Event

__all__ = ["NEAR_THE_END", "Figures", "Load", "Plan", "Progress"]

MARK: Final = re.compile(r"bench (\d+) of (run-[0-9a-f-]+) ")
BESIDES_TEXT: Final = 200
"""Bytes of a chunk, more or less."""
OPENED_AT_ONCE: Final = 32
NEAR_THE_END: Final = 10
"""How many chunks follow the cursor that a follower comes back with, if the run has as many."""
QUIET_SECONDS: Final = 30.0
"""How long nothing at all may come that is waited for, besides the time that is given to who does not answer."""
ENDING_SECONDS: Final = 5.0
"""How long it may take, once something has failed, to cancel what was begun."""


@dataclass(frozen=True)
class Plan:
    """What is asked of a deployment: so many runs at once, each with so many followers, written for so many seconds."""

    runs: int
    followers: int
    seconds: float
    size: int
    """Characters in each chunk."""
    rate: int | None
    """Chunks a second in each run; None: as fast as they are stored."""

    @property
    def chunks(self) -> int | None:
        """How many chunks each run will have; None: as many as there is time for."""
        return None if self.rate is None else max(1, round(self.rate * self.seconds))

    @property
    def most_in_a_request(self) -> int:
        """How many chunks are sent at once."""
        return max(1, min(MOST_CHUNKS, MOST_BYTES // (self.size + BESIDES_TEXT)))


@dataclass
class Figures:
    """What a load came to."""

    stored: Spread = field(default_factory=Spread)
    """From when a chunk was due until its writer was told that it is stored."""
    seconds_stored: float = 0.0
    """From the beginning until the last of them was."""
    delivered: Spread = field(default_factory=Spread)
    """From when a chunk was due until one follower had it."""
    seconds_delivered: float = 0.0
    """From the beginning until the last follower was told the end."""
    came_back: Spread = field(default_factory=Spread)
    """All at once, with a cursor `NEAR_THE_END`: until the next chunk."""
    read_again: Spread = field(default_factory=Spread)
    """All at once, from the beginning: until the end."""
    chunks_read_again: int = 0
    seconds_read_again: float = 0.0
    lost: int = 0
    out_of_place: int = 0
    """Chunks that came a second time, after a later one, or of another run."""
    outages: int = 0
    """How often a follower was cut off or turned away, and tried again until it was served."""
    last_outage: str = ""
    """Why, the last time."""
    core_share: float = 0.0
    """How much of a core this process took, while it followed or while it read again: the greater."""


class Progress(Protocol):
    """Shows how far it is."""

    def begin(self, what: str, total: int | None) -> None:
        """Something begins that is over after so many steps; None: nobody knows."""

    def advance(self, steps: int) -> None:
        """So many steps are done."""


class _Reading:
    """What one follower reads from a place on: each chunk is to come once, after the one before it."""

    def __init__(self, run: _Run, load: Load, number: int = 0) -> None:
        self.number = number
        """Which chunk is to be the next."""
        self._run = run
        self._load = load
        self._missing: set[int] = set()
        self._is_served = True

    async def chunks(self, follower: Follower) -> AsyncGenerator[tuple[int, int]]:
        """Yield each chunk that is in its place: which it is, and its `seq_id`. Close it when leaving."""
        async with aclosing(follower.events()) as events:
            async for event in events:
                self._is_served = True
                number = self._take(event)
                if number is not None:
                    self._load.moved()
                    yield number, event.sequence or 0

    def away(self, reason: str) -> None:
        """Take note of an outage, however many tries it takes."""
        figures = self._load.figures
        figures.outages += self._is_served
        figures.last_outage = reason
        self._is_served = False

    def end(self) -> None:
        """No more will come."""
        self._load.figures.lost += self._run.chunks - self.number

    def _take(self, event: Event) -> int | None:
        found = MARK.search(event.data)
        if found is None:
            return None
        number, figures = int(found[1]), self._load.figures
        if number >= self._run.chunks or found[2] != self._run.id:
            figures.out_of_place += 1
            return None
        if number < self.number:
            figures.out_of_place += 1
            # It comes late, or a second time.
            figures.lost -= number in self._missing
            self._missing.discard(number)
            return None
        self._missing.update(range(self.number, number))
        figures.lost += number - self.number
        self.number = number + 1
        return number


class _Run:
    """One run of the load: written by one writer, followed by some."""

    def __init__(self, load: Load) -> None:
        self.is_begun = False
        """Whether it may be going on."""
        self._opened = asyncio.Event()
        self._near_the_end = 0, 0
        """Which chunk it is that few chunks follow, and its `seq_id`."""
        self._load = load
        self._plan = load.plan
        self._writing = Writing(load.writer, patience_seconds=load.patience_seconds)
        self._otid = f"bench-{uuid4()}"
        self._taken: list[bytes] = []
        """Chunks that are being stored: whether they are, only a broker that is asked again can tell."""
        self._due = array("d")
        """When each chunk was due, by this process's clock."""

    @property
    def id(self) -> str:
        return self._writing.run_id

    @property
    def chunks(self) -> int:
        return len(self._due)

    async def write(self) -> None:
        """Write a first chunk, all the others once every follower has it, each when it is due, and the end."""
        async with self._load.opening:
            await self._open()
        self._load.moved()
        self._opened.set()
        await self._write([time.monotonic()])
        await self._alive_until(self._load.all_follow)
        if self._plan.chunks is None:
            await self._write_at_once(self._load.began + self._plan.seconds)
        else:
            await self._write_when_due(self._plan.chunks, self._plan.chunks / self._plan.seconds)
        outcome = await self._writing.end("end_turn", None)
        self.is_begun = False
        if outcome["status"] != "completed":
            raise Failed(f"{self.id} has not completed: {outcome['status']}, {outcome['stop_reason']}.")

    async def cancel(self) -> None:
        """End it as cancelled, behind what was being stored. Raises `CommandError`."""
        self._writing.patience_seconds = ENDING_SECONDS
        if not self.id:
            await self._open()  # It may be there: asked for again, it is the same one.
        await self._store()
        await self._writing.end("cancelled", None)
        self.is_begun = False

    async def follow(self) -> None:
        """Follow the run to its end."""
        await self._opened.wait()
        reading, delivered = _Reading(self, self._load), self._load.figures.delivered
        last: deque[tuple[int, int]] = deque(maxlen=NEAR_THE_END + 1)
        async with self._read(reading) as chunks:
            async for number, seq_id in chunks:
                if not last:
                    self._load.joined()
                if number:
                    delivered.note(time.monotonic() - self._due[number])
                last.append((number, seq_id))
        reading.end()
        if last:
            self._near_the_end = last[0]

    async def come_back(self) -> None:
        """Ask for what follows a cursor near the end, as who lost its connection there does."""
        number, seq_id = self._near_the_end
        began, reading = time.monotonic(), _Reading(self, self._load, number + 1 if seq_id else 0)
        async with self._read(reading, after=seq_id) as chunks:
            async for _ in chunks:
                self._load.figures.came_back.note(time.monotonic() - began)
                return
        reading.end()

    async def read_again(self) -> None:
        """Read all of it from the beginning."""
        began, figures, reading = time.monotonic(), self._load.figures, _Reading(self, self._load)
        async with self._read(reading) as chunks:
            async for _ in chunks:
                figures.chunks_read_again += 1
        reading.end()
        figures.read_again.note(time.monotonic() - began)

    @asynccontextmanager
    async def _read(self, reading: _Reading, after: int = 0) -> AsyncIterator[AsyncGenerator[tuple[int, int]]]:
        patience = self._load.patience_seconds
        follower = Follower(self._load.reader, self.id, after=after, patience_seconds=patience, away=reading.away)
        async with aclosing(reading.chunks(follower)) as chunks:
            yield chunks

    async def _open(self) -> None:
        """Open it, or find the one that was. Who refuses has opened none."""
        self.is_begun = True
        try:
            await self._writing.open(self._load.agent_id, None, self._otid)
        except CommandError as error:
            self.is_begun = bool(self.id) or isinstance(error, Unreachable)
            raise

    async def _write_when_due(self, chunks: int, rate: float) -> None:
        # Not all runs in step: their chunks would come in bursts that no agents make.
        first = self._load.began + random.random() / rate  # noqa: S311  # no secret
        written = 0
        while written < chunks:
            await self._alive_for(first + written / rate - time.monotonic())
            ready = min(int((time.monotonic() - first) * rate) + 1, chunks, written + self._plan.most_in_a_request)
            await self._write_measured([first + number / rate for number in range(written, ready)])
            written = ready

    async def _write_at_once(self, until: float) -> None:
        while (now := time.monotonic()) < until:
            await self._write_measured([now] * self._plan.most_in_a_request)

    async def _write_measured(self, due: list[float]) -> None:
        await self._write(due)
        self._load.stored(due)

    async def _write(self, due: list[float]) -> None:
        """Write as many chunks as there are times at which they are due."""
        self._taken += [self._chunk(number) for number in range(self.chunks, self.chunks + len(due))]
        self._due.extend(due)
        try:
            await self._store()
        except TooLong as error:
            self._taken.clear()
            lower = "" if self._plan.rate is None else ", or a lower --rate"
            raise Failed(
                f"A run may have {self._writing.index} chunks there: ask for fewer --seconds{lower}."
            ) from error

    async def _store(self) -> None:
        while self._taken:
            stored = await self._writing.append(self._taken)
            del self._taken[:stored]

    def _chunk(self, number: int) -> bytes:
        text = f"bench {number} of {self.id} "
        return chunk_of_line(text.ljust(self._plan.size, "x").encode(), f"message-{self.id.removeprefix('run-')}")

    async def _alive_for(self, seconds: float) -> None:
        """Wait so long, and keep the run alive while that takes."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            longest = self._writing.lease_seconds / SIGNS_PER_LEASE
            await asyncio.sleep(min(left, longest))
            if left > longest:
                await self._writing.keep_alive()

    async def _alive_until(self, event: asyncio.Event) -> None:
        """Wait for an event, and keep the run alive while that takes."""
        while not event.is_set():
            try:
                async with asyncio.timeout(self._writing.lease_seconds / SIGNS_PER_LEASE):
                    await event.wait()
            except TimeoutError:
                await self._writing.keep_alive()


class Load:
    """Puts a load on a deployment, through what it serves to everybody: `writer` asks a broker, `reader` a gateway."""

    def __init__(
        self, writer: Client, reader: Client, plan: Plan, progress: Progress, *, patience_seconds: float
    ) -> None:
        self.writer = writer
        self.reader = reader
        self.plan = plan
        self.patience_seconds = patience_seconds
        self.agent_id = f"agent-{uuid4()}"
        """Whose runs they are."""
        self.figures = Figures()
        self.opening = asyncio.Semaphore(OPENED_AT_ONCE)
        self.all_follow = asyncio.Event()
        self.began = 0.0
        self.left = 0
        """How many runs may go on, as they could not be cancelled."""
        self._progress = progress
        self._missing = plan.runs * plan.followers
        self._runs = [_Run(self) for _ in range(plan.runs)]
        self._moved_at = time.monotonic()
        self._took = 0.0

    async def carry_out(self) -> Figures:
        """Write and follow, come back, and read again; returns what it came to. Raises `CommandError`.

        Runs that go on when that fails, or is interrupted, are cancelled.
        """
        try:
            await self._all_of([*(run.write() for run in self._runs), *self._each(_Run.follow)])
            self.figures.seconds_delivered = self._over(self.began)
            await self._by_all("come back", _Run.come_back)
            self._took, began = time.process_time(), time.monotonic()
            await self._by_all("read again", _Run.read_again)
            self.figures.seconds_read_again = self._over(began)
        finally:
            await self._cancel_all()
        return self.figures

    def moved(self) -> None:
        """Something has come of what is waited for."""
        self._moved_at = time.monotonic()

    def stored(self, due: list[float]) -> None:
        """So many chunks are stored, which were due then."""
        self.moved()
        for each in due:
            self.figures.stored.note(self._moved_at - each)
        self.figures.seconds_stored = self._moved_at - self.began
        self._progress.advance(len(due))

    def joined(self) -> None:
        """One more follower has its first chunk. With the last of them it begins."""
        self._missing -= 1
        if self._missing == 0:
            total = self.plan.chunks
            self._progress.begin("write and follow", None if total is None else total * self.plan.runs)
            self.began, self._took = time.monotonic(), time.process_time()
            self.all_follow.set()

    def _over(self, began: float) -> float:
        seconds = time.monotonic() - began
        self.figures.core_share = max(self.figures.core_share, (time.process_time() - self._took) / seconds)
        return seconds

    def _each(self, what: Any) -> Iterable[Coroutine[Any, Any, None]]:
        """Have each follower do something."""
        return (what(run) for run in self._runs for _ in range(self.plan.followers))

    async def _by_all(self, name: str, what: Any) -> None:
        """Have all followers do something at once."""

        async def one(doing: Coroutine[Any, Any, None]) -> None:
            await doing
            self._progress.advance(1)

        self._progress.begin(name, self.plan.runs * self.plan.followers)
        await self._all_of([one(doing) for doing in self._each(what)])

    async def _all_of(self, doing: list[Coroutine[Any, Any, None]]) -> None:
        """Do all of it at once, for as long as any of it moves. The first that fails ends it."""
        self.moved()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(each) for each in doing]
                watching = group.create_task(self._watch())
                await asyncio.wait(tasks)
                watching.cancel()
        except ExceptionGroup as errors:
            raise _first(errors) from None

    async def _watch(self) -> None:
        """Raise `Failed` when nothing has come for so long that nothing will."""
        longest = QUIET_SECONDS + self.patience_seconds
        while (left := self._moved_at + longest - time.monotonic()) > 0:  # noqa: ASYNC110  # a time is waited for
            await asyncio.sleep(left)
        waiting = f": {self._missing} followers have no chunk yet" if self._missing else ""
        raise Failed(f"Nothing has come of {self.reader.url} for {longest:g} s{waiting}.")

    async def _cancel_all(self) -> None:
        begun = [run for run in self._runs if run.is_begun]
        with suppress(TimeoutError):
            async with asyncio.timeout(ENDING_SECONDS):
                await asyncio.gather(*(run.cancel() for run in begun), return_exceptions=True)
        self.left = sum(run.is_begun for run in begun)


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    """Return what ended a group of tasks: of many that fail for one reason, the first."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
