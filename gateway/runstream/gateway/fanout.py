"""Who follows which run: one tail per live run, shared; followers are cursors into it.

A follower that is at the tip is *live*: each new entry is written to its socket in the one pass that serves all of
them, and its coroutine sleeps. One that is behind, because it has just come or because its socket is full, goes on by
itself: from the window while that reaches back to its cursor, else from the log, which is read once for all who lack
the same. So nobody waits for a slow follower, and a slow follower loses nothing.

The invariant: *a follower's cursor is the sequence of the last entry written to it, and it turns live only when
nothing follows that cursor in the window*, checked and registered with no await in between.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress
from contextvars import Context
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import structlog

from runstream.broker.errors import BrokenLog, BrokerError, CursorExpired, CursorUnknown, RunStuck, Unavailable
from runstream.broker.tail import LiveTail, TailCounters
from runstream.broker.tasks import Slices, cancel_all
from runstream.broker.topology import LogAddress, shard_of_cursor
from runstream.gateway.follower import Follower, Watch
from runstream.gateway.replay_cache import ReplayCache, Wanted
from runstream.gateway.seats import Seats
from runstream.gateway.stuck import StuckRuns
from runstream.gateway.window import Frame, Window, piece_of
from runstream.schemas import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runstream.broker.jetstream import JetStream
    from runstream.broker.log import Entry
    from runstream.broker.reader import LogReader
    from runstream.broker.settings import BrokerSettings
    from runstream.gateway.framing import Framing, Piece
    from runstream.gateway.metrics import GatewayMetrics
    from runstream.gateway.replay_cache import Block
    from runstream.gateway.settings import GatewaySettings
    from runstream.schemas import RunRecord

__all__ = ["Hub", "Position", "RunTail", "Source"]

Source: TypeAlias = Literal["live", "memory", "log", "over"]

log = structlog.get_logger(__name__)

FILL_SEQUENCES = 10_000
"""How far before its tip a run's window begins at most, in sequences of the stream that it shares with others. The
server finds a run's messages by looking at all that lie between them: these take it two milliseconds, while it still
has them in memory, and ten times as many take fifty times as long."""
STRETCH_FRAMES = 512
"""Frames written to a follower that catches up before its socket is looked at again."""


class Position(NamedTuple):
    """Where a response begins."""

    cursor: int
    source: Source
    """Where what follows it comes from at first."""
    at_index: int | None
    """The index of the entry at the cursor, None where it is not known; -1: it is the log's beginning."""


class RunTail:
    """One run's window and its live followers, fed by a `LiveTail`. Made and closed by the hub only."""

    def __init__(self, hub: Hub, record: RunRecord) -> None:
        self.record = record
        self.address = LogAddress(record.id, record.shard)
        self.window = Window(hub.settings.tail_chunks, hub.settings.tail_bytes)
        self.users = 0
        self.followers: dict[Follower, None] = {}
        """Who is served, live or behind, in the order in which they came."""
        self.tip: Entry | None = None
        self.failure: BrokerError | None = None
        self._hub = hub
        self._live: dict[Follower, None] = {}
        self._ready = asyncio.Event()
        self._tail = LiveTail(
            hub.jetstream,
            hub.reader,
            hub.broker_settings,
            self.address,
            counters=hub.counters,
            on_entries=self._on_entries,
            on_failure=self.fail,
            on_sample=self._on_sample,
        )
        self._opening: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to fill the window."""
        # All who follow share it: what it logs is not the first one's.
        self._opening = asyncio.create_task(self._open(), name=f"open-{self.record.id}", context=Context())

    async def _open(self) -> None:
        try:
            await self._hub.stuck.listen()
            await self._tail.open(self._begin_at)
        except BrokerError as error:
            self.fail(error)
        finally:
            self._ready.set()

    async def _begin_at(self, tip: Entry | None) -> int:
        """Choose where the window begins: near the tip, so that a long run costs no more than a short one.

        Nor does one that is spread over much of its stream: what a follower lacks before it is read when it comes.
        """
        self.tip = tip
        fill = self._hub.settings.tail_fill_chunks
        if tip is None:
            return 0
        if tip.kind is Kind.END:
            begin = tip.seq - 1  # Nobody will be live: each has what he lacks, and no more of it, as a replay.
        elif tip.index < fill:
            first_seq = self.record.first_seq or tip.seq  # Unknown: it has begun a moment ago.
            begin = 0 if tip.seq - first_seq < FILL_SEQUENCES else tip.seq - FILL_SEQUENCES
        else:
            begin = await self._hub.reader.cursor_before(
                self.address,
                tip,
                self.record.first_seq or (await self._oldest()).seq,
                fill,
                most_sequences=FILL_SEQUENCES,
            )
        self.window.base = begin
        return begin

    async def opened(self) -> None:
        """Wait until the window holds the newest part of the log. Raises what kept it from doing so."""
        await self._ready.wait()
        if self.failure is not None and not self.is_readable:
            raise self.failure
        if self._opening is not None and self._opening.done():
            self._opening.result()  # A defect in opening is the waiters' to hear, not only the loop's.

    async def close(self) -> None:
        """Leave no task and no subscription behind: not even if the client of the last follower leaves meanwhile."""
        try:
            if self._opening is not None and not self._opening.done():
                self._opening.cancel()
                await asyncio.wait([self._opening])
        finally:
            await self._tail.close()
            self.window.clear()  # The tail and what feeds it refer to each other: they wait for the collector.

    async def first_seq(self) -> int:
        """Return the sequence of the run's first message. Raises `CursorExpired` when there is none."""
        if self.record.first_seq is not None:
            return self.record.first_seq
        if (oldest := await self._oldest()).index:
            raise CursorExpired(run_id=self.record.id)
        return oldest.seq

    async def begins_after(self, cursor: int) -> bool:
        """Tell whether a cursor is before the run's first message; not of one that retention has left nothing before.

        Who has had what was removed goes on behind it: that it is gone is no reason to refuse him. Raises
        `CursorExpired` when nothing is left.
        """
        if self.record.first_seq is not None:
            return cursor < self.record.first_seq
        oldest = self.window.oldest
        if oldest is None or oldest.index:
            oldest = await self._oldest()
        return not oldest.index and cursor < oldest.seq

    async def _oldest(self) -> Entry:
        """Return the first message that retention has left of the run. Raises `CursorExpired` if none is."""
        if (oldest := await self._hub.reader.first(self.address)) is None:
            raise CursorExpired(run_id=self.record.id)
        return oldest

    @property
    def is_readable(self) -> bool:
        """Whether what is stored so far is there for everybody, though nothing can be told of what follows it."""
        match self.failure:
            case None | RunStuck():
                return True
            case BrokenLog():
                return self.tip is not None
            case _:
                return False

    def is_over_at(self, cursor: int) -> bool:
        """Tell whether the run has ended and nothing of it follows `cursor`."""
        return self.tip is not None and self.tip.kind is Kind.END and cursor >= self.tip.seq

    @property
    def live_followers(self) -> int:
        """How many followers have all there is."""
        return len(self._live)

    def join(self, follower: Follower) -> None:
        """Have new entries written to a follower that has all older ones."""
        follower.woken.clear()
        self._live[follower] = None

    def leave(self, follower: Follower) -> None:
        """Stop writing to a follower."""
        self._live.pop(follower, None)

    def _on_entries(self, entries: Sequence[Entry]) -> None:
        self.tip = entries[-1]
        frames = self.window.append(entries)
        if not self._live:
            return
        left = self._write_live(frames)
        self._hub.metrics.delivered((len(self._live) - len(left)) * len(frames))
        for follower in left:
            self._hub.metrics.fell_behind()
            self.leave(follower)
            follower.woken.set()

    def _on_sample(self, stored_at: str) -> None:
        """Note how long a chunk was on its way to the followers that it was just written to."""
        if self._live:
            with suppress(ValueError):
                stored = datetime.fromisoformat(stored_at).timestamp()
                self._hub.metrics.reached_sockets(max(0.0, time.time() - stored))

    def _write_live(self, frames: Sequence[Frame]) -> list[Follower]:
        """Write frames to every live follower in one pass; returns those whose sockets are full."""
        before, now, mark = frames[0].entry.seq, time.monotonic(), self._hub.settings.follower_buffer_bytes
        pieces: dict[Framing, Piece] = {}
        left: list[Follower] = []
        for follower in self._live:
            if follower.response.buffered > mark:
                left.append(follower)
            elif follower.cursor >= before:
                follower.write_beyond(frames)
            else:
                framing = follower.framing
                piece = pieces.get(framing)
                if piece is None:
                    piece = pieces[framing] = piece_of(frames, framing)
                follower.write(piece, now)
        return left

    def fail(self, error: BrokerError) -> None:
        """Follow the run no further, and say why to whoever does."""
        self.failure = error
        self._hub.drop(self)
        for follower in self._live:
            follower.woken.set()


class Hub:
    """All tails of one gateway."""

    def __init__(
        self,
        jetstream: JetStream,
        reader: LogReader,
        settings: GatewaySettings,
        broker_settings: BrokerSettings,
        metrics: GatewayMetrics,
    ) -> None:
        self.name = secrets.token_hex(4)
        """What this gateway is called where others are, too; made up anew whenever it starts."""
        self.jetstream = jetstream
        self.reader = reader
        self.settings = settings
        self.broker_settings = broker_settings
        self.metrics = metrics
        self.counters = TailCounters()
        self.seats = Seats(settings, metrics, drain_seconds=broker_settings.drain_seconds)
        self.stuck = StuckRuns(jetstream.connection)
        self.stuck.tell(self.give_up)
        self._watch = Watch(
            keepalive=settings.keepalive_seconds,
            deadline=settings.write_deadline_seconds,
            on_blocked=self._give_up,
        )
        self.replays = ReplayCache(reader, settings.replay_cache_bytes, on_read=metrics.caught_up)
        self._writing = Slices()
        self._served = 0
        self._tails: dict[str, RunTail] = {}

    @property
    def live_tails(self) -> int:
        """How many runs are held in memory."""
        return len(self._tails)

    def followed(self, run_id: str) -> RunTail | None:
        """Return the tail of a run that somebody follows here."""
        return self._tails.get(run_id)

    @property
    def followers_behind(self) -> int:
        """How many followers do not have all there is, and go on at their own pace."""
        return self._served - sum(tail.live_followers for tail in self._tails.values())

    def drop(self, tail: RunTail) -> None:
        """Let nobody else join a tail that has failed or lost its last follower."""
        if self._tails.get(tail.record.id) is tail:
            del self._tails[tail.record.id]

    def give_up(self, run_id: str, error: BrokerError) -> None:
        """Cut whoever follows a run that does not go on, once he has what is stored of it."""
        if (tail := self._tails.get(run_id)) is not None:
            tail.fail(error)

    def tail(self, record: RunRecord) -> _Share:
        """Give the run's tail, opened, while the block lasts. Raises `CursorExpired`, `Unavailable`."""
        return _Share(self, record)

    def one_of(self, record: RunRecord) -> RunRecord:
        """Give the record that the run's tail has, if there is one: of thousands who follow it none needs a copy."""
        tail = self._tails.get(record.id)
        return record if tail is None else tail.record

    async def share(self, record: RunRecord) -> RunTail:
        """Have one more user of the run's tail, until `leave`. Raises as `tail`."""
        tail = self._tails.get(record.id)
        if tail is None:
            tail = self._tails[record.id] = RunTail(self, record)
            tail.start()
        tail.users += 1
        try:
            await self._opened(tail)
        except BaseException:
            await self.leave(tail)
            raise
        return tail

    async def leave(self, tail: RunTail) -> None:
        """Have one user of a tail less; of the last one nothing is left behind."""
        tail.users -= 1
        if not tail.users:
            self.drop(tail)
            await tail.close()

    async def _opened(self, tail: RunTail) -> None:
        try:
            async with asyncio.timeout(self.settings.open_seconds):
                await tail.opened()
        except TimeoutError as error:
            raise Unavailable(f"The log of {tail.record.id} could not be read.") from error

    async def position(self, tail: RunTail, starting_after: int, framing: Framing) -> Position:
        """Turn a client's cursor into where its response begins (PROTOCOL.md: "Cursors").

        Missing, before the run's first message, or of another shard: the beginning. Raises `CursorExpired` when
        retention has removed what should come, `CursorUnknown` when the cursor lies beyond everything that the stream
        has issued, `Unavailable`.
        """
        tip, record = tail.tip, tail.record
        if tip is None:
            if record.status == "created":
                return Position(0, "live", -1)  # Claimed a moment ago; its first message is on its way.
            if await self.reader.last(tail.address) is not None:
                raise Unavailable("Its log was not there, and is.", run_id=record.id)
            raise CursorExpired(run_id=record.id)
        if starting_after <= 0 or shard_of_cursor(starting_after) != record.shard:
            starting_after = 0
        index = None
        if starting_after > tip.seq:
            if tip.kind is not Kind.END and starting_after > await self.reader.newest_sequence(tail.address):
                raise CursorUnknown(run_id=record.id, starting_after=starting_after)
        else:
            if starting_after and await tail.begins_after(starting_after):
                starting_after = 0
            if starting_after < tip.seq and not tail.window.reaches(starting_after):
                index = await self.reader.index_at(tail.address, starting_after or await tail.first_seq())
        if not starting_after:
            index = -1
        return Position(starting_after, self._source(tail, starting_after, index, framing), index)

    def _source(self, tail: RunTail, cursor: int, index: int | None, framing: Framing) -> Source:
        """Say where what follows a cursor comes from at first."""
        if tail.is_over_at(cursor):
            return "over"
        if cursor < tail.window.base:
            return "memory" if self.replays.has(self._wanted(tail, framing, cursor, index)) else "log"
        return "memory" if tail.window.after(cursor, 1) else "live"

    async def serve(self, tail: RunTail, follower: Follower) -> None:
        """Write the run to a follower from its cursor to its end, however slow it is.

        Returns when the follower has the end or is gone. Raises `Unavailable` or `CursorExpired` when the log cannot
        be followed any further, `RunStuck` when nothing more can be stored in it, TimeoutError when the follower's
        socket stayed blocked past the write deadline.
        """
        self._watch.begin(follower)
        self._served += 1
        tail.followers[follower] = None
        try:
            if tail.tip is not None and tail.is_over_at(follower.cursor):
                follower.write_beyond([Frame(tail.tip)])
            while not follower.is_done and not follower.response.is_closed:
                await self._advance(tail, follower)
        finally:
            self._served -= 1
            self._watch.end(follower)
            tail.leave(follower)
            del tail.followers[follower]
            if follower.read_ahead is not None:
                await cancel_all(follower.read_ahead)

    def _give_up(self, follower: Follower) -> None:
        """End the response of a follower that has taken nothing for as long as a write may wait."""
        self.metrics.stream_cut("blocked")
        follower.response.abort()
        follower.woken.set()

    async def _advance(self, tail: RunTail, follower: Follower) -> None:
        """Take one step: from the log, from the window, or, when nothing is left, live until something happens."""
        if tail.failure is not None and not tail.is_readable:
            raise tail.failure
        if follower.cursor < tail.window.base:
            await self._catch_up(tail, follower)
        elif self._write_stretch(tail.window, follower):
            await follower.response.drained(self.settings.write_deadline_seconds)
        elif tail.failure is not None:
            raise tail.failure
        else:
            tail.join(follower)
            await follower.woken.wait()

    def _write_stretch(self, window: Window, follower: Follower) -> bool:
        """Write as many of the next frames as may wait in a socket at one time, one at least; tell whether any.

        Nobody refers to them when the caller waits: a slow follower would keep what the window has dropped.
        """
        size = count = 0
        frames = window.after(follower.cursor, STRETCH_FRAMES)
        while count < len(frames) and size < self.settings.follower_buffer_bytes:
            size += frames[count].size
            count += 1
        if count:
            self._write(follower, piece_of(frames[:count], follower.framing))
        return count > 0

    async def _catch_up(self, tail: RunTail, follower: Follower) -> None:
        """Write what comes next from the log, which is read once for all who lack it."""
        wanted = self._wanted(tail, follower.framing, follower.cursor, follower.index, follower.following)
        block = await self.replays.block(wanted)
        response = follower.response
        if not response.buffered and not response.is_closed and block.last_seq < tail.window.base:
            following = self._wanted(tail, follower.framing, block.last_seq, block.last_index, block.following)
            follower.read_ahead = self.replays.ahead(following, follower.read_ahead)
        # What is in memory is there at once: thousands who come for it would keep all others waiting.
        await self._writing.do(partial(self._write_block, follower, block))
        del block  # What waits for a slow follower waits in its socket, and nowhere else.
        await response.drained(self.settings.write_deadline_seconds)

    def _wanted(
        self, tail: RunTail, framing: Framing, cursor: int, index: int | None, following: int | None = None
    ) -> Wanted:
        assert tail.tip is not None  # noqa: S101  # nothing is before the window of a log without messages
        return Wanted(tail.address, framing, cursor, index, following, tail.tip.seq)

    def _write_block(self, follower: Follower, block: Block) -> None:
        self._write(follower, block.piece(follower.cursor, follower.index))

    def _write(self, follower: Follower, piece: Piece) -> None:
        follower.write(piece, time.monotonic())
        self.metrics.delivered(piece.entries)


class _Share:
    """One response's part of a tail. Not made of a generator: thousands of them wait at one time."""

    __slots__ = ("_hub", "_record", "_tail")

    def __init__(self, hub: Hub, record: RunRecord) -> None:
        self._hub = hub
        self._record = record
        self._tail: RunTail | None = None

    async def __aenter__(self) -> RunTail:
        self._tail = await self._hub.share(self._record)
        return self._tail

    async def __aexit__(self, *_: object) -> None:
        if self._tail is not None:
            await self._hub.leave(self._tail)
