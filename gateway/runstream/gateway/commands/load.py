"""Runs that are written and followed at once, from outside, and what that took: the load of `runstream bench`.

What is measured begins when a chunk is due, not when there was time to send it: a server that stands still for a second
delays all that was due in that second, and a clock that starts with the request would see one of them.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from array import array
from collections import deque
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol
from uuid import uuid4

from runstream.gateway.commands.exits import CommandError, Failed
from runstream.gateway.commands.following import Follower
from runstream.gateway.commands.lines import chunk_of_line
from runstream.gateway.commands.spread import Spread
from runstream.gateway.commands.writing import TooLong, Writing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from runstream.gateway.commands.client import Client

__all__ = ["Figures", "Load", "Plan", "Progress"]

MARK: Final = re.compile(r"bench (\d+) of (run-[0-9a-f-]+) ")
SIGNS_PER_LEASE: Final = 4
MOST_CHUNKS: Final = 500
"""What goes into one request at most, as `runstream publish` has it."""
NEAR_THE_END: Final = 10
"""How many chunks follow the cursor that a follower comes back with."""
ENDING_SECONDS: Final = 10.0
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
        return None if self.rate is None else math.ceil(self.rate * self.seconds)


@dataclass
class Figures:
    """What a load came to."""

    seconds: float = 0.0
    """From when the first chunk was due until the last follower was told the end."""
    stored: Spread = field(default_factory=Spread)
    """From when a chunk was due until its writer was told that it is stored."""
    delivered: Spread = field(default_factory=Spread)
    """From when a chunk was due until one follower had it."""
    came_back: Spread = field(default_factory=Spread)
    """All at once, with a cursor `NEAR_THE_END`: until the first chunk."""
    read_again: Spread = field(default_factory=Spread)
    """All at once, from the beginning: until the end."""
    chunks_read_again: int = 0
    seconds_read_again: float = 0.0
    lost: int = 0
    out_of_place: int = 0
    """Chunks that came a second time, after a later one, or of another run."""
    cuts: int = 0
    """Connections that broke, and were made again."""
    core_share: float = 0.0
    """How much of a core this process took while it wrote and followed."""


class Progress(Protocol):
    """Shows how far it is."""

    def begin(self, what: str, total: int | None) -> None:
        """Something begins that is over after so many steps; None: nobody knows."""

    def advance(self, steps: int) -> None:
        """So many steps are done."""


class _Reading:
    """What one follower reads: each chunk is to come once, after the one before it."""

    def __init__(self, run: _Run, figures: Figures) -> None:
        self.number = 0
        """How many chunks have come, those included that were lost."""
        self._run = run
        self._figures = figures

    def take(self, data: str) -> int | None:
        """Take an event; returns which chunk it is. None: it is none, or is out of place."""
        found = MARK.search(data)
        if found is None:
            return None
        number = int(found[1])
        if not self.number <= number < self._run.chunks or found[2] != self._run.id:
            self._figures.out_of_place += 1
            return None
        self._figures.lost += number - self.number
        self.number = number + 1
        return number

    def end(self) -> None:
        """No more will come."""
        self._figures.lost += self._run.chunks - self.number


class _Run:
    """One run of the load: written by one writer, followed by some."""

    def __init__(self, load: Load) -> None:
        self.cursor = 0
        """A `seq_id` that `NEAR_THE_END` chunks follow, or as many as there are."""
        self._has_ended = False
        self._load = load
        self._plan = load.plan
        self._writing = Writing(load.writer, patience_seconds=load.patience_seconds)
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

    @property
    def is_open(self) -> bool:
        return bool(self.id) and not self._has_ended

    async def open(self) -> None:
        await self._writing.open(self._load.agent_id, None, None)

    async def cancel(self) -> None:
        """End it as cancelled, behind what was being stored."""
        with suppress(CommandError):
            await self._store()
            await self._writing.end("cancelled", None)

    async def write(self) -> None:
        """Write a first chunk, all the others once every follower has it, each when it is due, and the end."""
        await self._write([time.monotonic()])
        await self._alive_until(self._load.all_follow)
        if self._plan.rate is None:
            await self._write_at_once(self._load.began + self._plan.seconds)
        else:
            await self._write_when_due(self._plan.rate, self._plan.chunks or 0)
        outcome = await self._writing.end("end_turn", None)
        self._has_ended = True
        if outcome["status"] != "completed":
            raise Failed(f"{self.id} has not completed: {outcome['status']}, {outcome['stop_reason']}.")

    async def follow(self) -> None:
        """Follow the run to its end."""
        figures, joined = self._load.figures, False
        reading = _Reading(self, figures)
        last: deque[int] = deque(maxlen=NEAR_THE_END + 1)
        async with aclosing(self._follower().events()) as events:
            async for event in events:
                number = reading.take(event.data)
                if number is None:
                    continue
                last.append(event.sequence or 0)
                if not joined:
                    joined = True
                    self._load.joined()
                if number:
                    figures.delivered.note(time.monotonic() - self._due[number])
        reading.end()
        self.cursor = last[0] if last else 0

    async def come_back(self) -> None:
        """Ask for what follows a cursor near the end, as who lost its connection there does."""
        began, figures = time.monotonic(), self._load.figures
        async with aclosing(self._follower(after=self.cursor).events()) as events:
            async for event in events:
                if MARK.search(event.data):
                    figures.came_back.note(time.monotonic() - began)
                    return
        figures.lost += 1

    async def read_again(self) -> None:
        """Read all of it from the beginning."""
        began, figures = time.monotonic(), self._load.figures
        reading = _Reading(self, figures)
        async with aclosing(self._follower().events()) as events:
            async for event in events:
                if reading.take(event.data) is not None:
                    figures.chunks_read_again += 1
        reading.end()
        figures.read_again.note(time.monotonic() - began)

    def _follower(self, after: int = 0) -> Follower:
        def count(_: str) -> None:
            self._load.figures.cuts += 1

        return Follower(
            self._load.reader,
            self.id,
            after=after,
            patience_seconds=self._load.patience_seconds,
            away=count,
        )

    async def _write_when_due(self, rate: int, chunks: int) -> None:
        # Not all runs in step: their chunks would come in bursts that no agents make.
        first = self._load.began + random.random() / rate  # noqa: S311  # no secret
        due = [first + number / rate for number in range(chunks)]
        written = 0
        while written < chunks:
            await self._pause(due[written])
            ready = min(int((time.monotonic() - first) * rate) + 1, chunks, written + MOST_CHUNKS)
            await self._write_measured(due[written:ready])
            written = ready

    async def _write_at_once(self, until: float) -> None:
        while (now := time.monotonic()) < until:
            await self._write_measured([now] * MOST_CHUNKS)

    async def _write_measured(self, due: list[float]) -> None:
        await self._write(due)
        now, figures = time.monotonic(), self._load.figures
        for each in due:
            figures.stored.note(now - each)
        self._load.progress.advance(len(due))

    async def _write(self, due: list[float]) -> None:
        """Write as many chunks as there are times at which they are due."""
        self._taken += [self._chunk(number) for number in range(self.chunks, self.chunks + len(due))]
        self._due.extend(due)
        try:
            await self._store()
        except TooLong as error:
            self._taken.clear()
            raise Failed(
                f"A run may have {self._writing.index} chunks there: ask for fewer --seconds, or a lower --rate."
            ) from error

    async def _store(self) -> None:
        while self._taken:
            stored = await self._writing.append(self._taken)
            del self._taken[:stored]

    def _chunk(self, number: int) -> bytes:
        text = f"bench {number} of {self.id} "
        return chunk_of_line(text.ljust(self._plan.size, "x").encode(), f"message-{self.id.removeprefix('run-')}")

    async def _pause(self, until: float) -> None:
        """Wait for a time, and keep the run alive while that takes."""
        while (left := until - time.monotonic()) > 0:
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
        self.progress = progress
        self.patience_seconds = patience_seconds
        self.agent_id = f"agent-{uuid4()}"
        """Whose runs they are."""
        self.figures = Figures()
        self.all_follow = asyncio.Event()
        self.began = 0.0
        self._missing = plan.runs * plan.followers
        self._runs = [_Run(self) for _ in range(plan.runs)]
        self._took = 0.0

    async def carry_out(self) -> Figures:
        """Write and follow, come back, and read again; returns what it came to. Raises `CommandError`.

        Runs that are left when that fails, or is interrupted, are cancelled.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for run in self._runs:
                    group.create_task(run.open())
            await self._live()
            followers = self.plan.runs * self.plan.followers
            self.progress.begin("come back", followers)
            await self._by_all(lambda run: run.come_back())
            self.progress.begin("read again", followers)
            began = time.monotonic()
            await self._by_all(lambda run: run.read_again())
            self.figures.seconds_read_again = time.monotonic() - began
        except ExceptionGroup as group_of_errors:
            raise _first(group_of_errors) from None
        finally:
            left = [run.cancel() for run in self._runs if run.is_open]
            with suppress(TimeoutError):
                async with asyncio.timeout(ENDING_SECONDS):
                    await asyncio.gather(*left)
        return self.figures

    def joined(self) -> None:
        """One more follower has its first chunk. With the last of them it begins."""
        self._missing -= 1
        if self._missing == 0:
            total = self.plan.chunks
            self.progress.begin("write and follow", None if total is None else total * self.plan.runs)
            self.began, self._took = time.monotonic(), time.process_time()
            self.all_follow.set()

    async def _live(self) -> None:
        async with asyncio.TaskGroup() as group:
            followers = [group.create_task(run.follow()) for run in self._runs for _ in range(self.plan.followers)]
            writers = [group.create_task(run.write()) for run in self._runs]
            await self._in_time(
                self.all_follow.wait(), lambda: f"{self._missing} followers were not served the first chunk"
            )
            await asyncio.wait(writers)
            await self._in_time(
                asyncio.wait(followers),
                lambda: f"{sum(not each.done() for each in followers)} followers were not told the end",
            )
        self.figures.seconds = time.monotonic() - self.began
        self.figures.core_share = (time.process_time() - self._took) / self.figures.seconds

    async def _in_time(self, what: Awaitable[Any], complaint: Callable[[], str]) -> None:
        try:
            async with asyncio.timeout(self.patience_seconds):
                await what
        except TimeoutError:
            raise Failed(f"{complaint()} within {self.patience_seconds:g} s (--patience).") from None

    async def _by_all(self, what: Callable[[_Run], Awaitable[None]]) -> None:
        """Have all followers do something at once."""

        async def one(run: _Run) -> None:
            await what(run)
            self.progress.advance(1)

        async with asyncio.TaskGroup() as group:
            for run in self._runs:
                for _ in range(self.plan.followers):
                    group.create_task(one(run))


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    """Return what ended a group of tasks: of many that fail for one reason, the first."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
