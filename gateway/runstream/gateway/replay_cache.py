"""What followers who were behind have read of logs, framed, for those who come next: read once, for all.

A log only grows at its end, so that a block of it stays as it is: it may be given to anybody who may read the run.
Blocks are kept within a bound of bytes, those that were used last; and whoever lacks what somebody is just reading
waits for that.

The invariant: *a block holds every entry between its first one and its last.* What was between its beginning and its
first entry, retention may have removed: who knows the index at his cursor sees that in the index of what comes.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from contextlib import suppress
from contextvars import Context
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from runstream.broker.errors import BrokerError, CursorExpired, Unavailable
from runstream.broker.tasks import cancel_all
from runstream.gateway.framing import FRAMINGS, Framing, Piece
from runstream.schemas import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from runstream.broker.reader import Batch, LogReader
    from runstream.broker.topology import LogAddress

__all__ = ["Block", "ReplayCache", "Wanted"]

BLOCK_BYTES = 2**10
"""What a block takes beside its events and their places."""
NEAR_SEQUENCES = 10_000
"""How far before a cursor a read may have begun that is waited for: it may well come to it. Of many who come back to a
run that ended meanwhile, each with a cursor of its own, a few read."""

AHEAD_BYTES = 2**24
AHEAD_BATCHES = 8
"""With room for less, in bytes and in what one read may bring, nothing is read ahead: it may be gone again before it is
asked for."""
MOST_AHEAD = 16
"""Reads ahead at one time: what they bring is on top of what is held for each follower."""

NEAR_LOADS = 8
"""How many of them one after the other, before one reads for himself: what they bring may end before his cursor."""

_Key: TypeAlias = tuple[str, Framing]
"""A run, and how its readers have it."""


class Wanted(NamedTuple):
    """What a follower lacks: what comes after a cursor."""

    address: LogAddress
    framing: Framing
    cursor: int
    after_index: int | None
    """The index of the entry at the cursor, None where it is not known; -1: the cursor is the log's beginning."""
    following: int | None
    """How many messages follow, as far as is known."""
    until: int
    """A sequence behind the cursor that the log is known to hold."""

    @property
    def key(self) -> _Key:
        """What it has in common with what others want of the run."""
        return self.address.run_id, self.framing


class Block:
    """Entries of a log after a sequence, framed. What follows any cursor among them can be cut out."""

    __slots__ = ("_ends", "_piece", "_seqs", "after", "size")

    def __init__(self, after: int, batch: Batch, framing: Framing) -> None:
        frames = [framing.frame(entry) for entry in batch.entries]
        self.after = after
        self._piece = Piece.of(b"".join(frames), batch.entries, framing)._replace(following=batch.following)
        self._seqs = array("Q", [entry.seq for entry in batch.entries])
        self._ends = array("Q", accumulate(map(len, frames)))
        self.size = BLOCK_BYTES + len(self._piece.data) + 2 * self._ends.itemsize * len(frames)

    @property
    def last_seq(self) -> int:
        """The sequence of its last entry."""
        return self._piece.seq

    @property
    def last_index(self) -> int:
        """The index of the same."""
        return self._piece.at_index

    @property
    def following(self) -> int | None:
        """How many messages of the log followed it when it was read, where that is known."""
        return self._piece.following

    def reaches(self, cursor: int) -> bool:
        """Tell whether what follows a cursor can be cut out."""
        return self.after <= cursor < self.last_seq

    def piece(self, cursor: int, after_index: int | None) -> Piece:
        """Return what follows a cursor that it reaches, and at which the entry with `after_index` is, if it is known.

        Raises `CursorExpired` if what came next was removed before the block was read.
        """
        whole, skipped = self._piece, bisect_right(self._seqs, cursor)
        if after_index is not None and whole.after_index + skipped != after_index:
            raise CursorExpired(seq=cursor)
        if not skipped:
            return whole
        is_seen = whole.seq_id is not None and whole.seq_id > cursor
        return whole._replace(
            data=whole.data[self._ends[skipped - 1] :],
            seq_id=whole.seq_id if is_seen else None,
            entries=whole.entries - skipped,
        )


class ReplayCache:
    """Blocks of logs. `on_read` is told how many entries were read of a log, once for all who share them."""

    def __init__(self, reader: LogReader, max_bytes: int, *, on_read: Callable[[int], None]) -> None:
        self.bytes = 0
        """What the blocks that are kept take."""
        self._reader = reader
        self._max_bytes = max_bytes
        self._on_read = on_read
        self._shelves: dict[_Key, _Shelf] = {}
        self._by_use: OrderedDict[Block, _Key] = OrderedDict()
        self._ahead = 0

    def has(self, wanted: Wanted) -> bool:
        """Whether what comes next is kept here."""
        return self._kept_after(wanted) is not None

    def ahead(self, wanted: Wanted, before: asyncio.Task[None] | None) -> asyncio.Task[None] | None:
        """Have what comes next be read, for who asks for it in a moment: as long as the task lasts that is returned.

        `before` is what he has been given the last time, and is still his if nothing has to be read now: because that
        goes on, because it is here, or because what is read may be gone before he comes for it.
        """
        if (before is not None and not before.done()) or not self._may_read_ahead or self.has(wanted):
            return before
        self._ahead += 1
        task = asyncio.create_task(self._read_ahead(wanted), name=f"ahead-{wanted.address.run_id}")
        task.add_done_callback(self._read_one_less)
        return task

    @property
    def _may_read_ahead(self) -> bool:
        kept = max(AHEAD_BYTES, AHEAD_BATCHES * self._reader.most_batch_bytes)
        return self._ahead < MOST_AHEAD and self._max_bytes >= kept

    async def _read_ahead(self, wanted: Wanted) -> None:
        with suppress(BrokerError):  # He is told when he asks.
            await self.block(wanted)

    def _read_one_less(self, _: asyncio.Task[None]) -> None:
        self._ahead -= 1

    async def block(self, wanted: Wanted) -> Block:
        """Return a block with what comes next, one entry at least. Raises as `LogReader.batch`."""
        for _ in range(NEAR_LOADS):
            block = self._kept_after(wanted)
            if block is not None:
                return block
            load = self._load_near(wanted)
            if load is None:
                break
            try:
                block = await self._block_of(wanted.key, load)
            except BrokerError:
                break  # Somebody else's. In an outage it took his patience: not another's after that.
            if block.reaches(wanted.cursor):
                return block
        return self._kept_after(wanted) or await self._read_at(wanted)

    async def _read_at(self, wanted: Wanted) -> Block:
        """Read what follows a cursor, or wait for who does so already."""
        load, joined_at = self._load(wanted), time.monotonic()
        try:
            return await self._block_of(wanted.key, load)
        except Unavailable:
            failed_at = time.monotonic()
            if failed_at - joined_at >= (failed_at - load.began_at) / 2:
                raise
        # He who began it has lost his patience, and this one's has just begun.
        return await self._block_of(wanted.key, self._load(wanted))

    def forget(self, run_id: str) -> None:
        """Let go of all of a run that was removed. Who just reads it has it for himself."""
        for framing in FRAMINGS.values():
            shelf = self._shelves.pop((run_id, framing), None)
            for block in () if shelf is None else shelf.blocks.values():
                self._drop(block)

    def clear(self) -> None:
        """Let go of everything."""
        self._shelves = {}
        self._by_use.clear()
        self.bytes = 0

    def _kept_after(self, wanted: Wanted) -> Block | None:
        shelf = self._shelves.get(wanted.key)
        block = None if shelf is None else shelf.block_at(wanted.cursor)
        if block is None or not block.reaches(wanted.cursor):
            return None
        self._by_use.move_to_end(block)
        return block

    def _loads(self, wanted: Wanted) -> Mapping[int, _Load]:
        shelf = self._shelves.get(wanted.key)
        return {} if shelf is None else shelf.loads

    def _load_near(self, wanted: Wanted) -> _Load | None:
        """Return the nearest of the reads that began a little before a cursor, if there is one."""
        begun = [each for at, each in self._loads(wanted).items() if 0 < wanted.cursor - at <= NEAR_SEQUENCES]
        return max(begun, key=lambda load: load.cursor, default=None)

    def _load(self, wanted: Wanted) -> _Load:
        """Return the read of what follows a cursor, which begins now if it has not."""
        key, cursor = wanted.key, wanted.cursor
        shelf = self._shelves.setdefault(key, _Shelf())
        load = shelf.loads.get(cursor)
        if load is None:
            # What it logs is not the first one's who waits.
            task = asyncio.create_task(self._read(wanted), name=f"replay-{key[0]}", context=Context())
            load = shelf.loads[cursor] = _Load(cursor, task)
            task.add_done_callback(partial(self._finished, key, load))
        return load

    async def _block_of(self, key: _Key, load: _Load) -> Block:
        """Wait for a read with whoever else does; it is broken off when the last of them leaves."""
        load.waiting += 1
        try:
            return await asyncio.shield(load.task)
        finally:
            load.waiting -= 1
            if not load.waiting and not load.task.done():
                self._take(key, load)
                await cancel_all(load.task)

    def _finished(self, key: _Key, load: _Load, task: asyncio.Task[Block]) -> None:
        has_failed = task.cancelled() or task.exception() is not None
        if self._take(key, load) and not has_failed:
            self._keep(key, task.result())

    def _take(self, key: _Key, load: _Load) -> bool:
        """Have nobody else wait for a read; False if all of its run was let go of since it began."""
        shelf = self._shelves.get(key)
        if shelf is None or shelf.loads.get(load.cursor) is not load:
            return False
        del shelf.loads[load.cursor]
        self._drop_if_empty(key, shelf)
        return True

    def _keep(self, key: _Key, block: Block) -> None:
        shelf = self._shelves.setdefault(key, _Shelf())
        if shelf.holds(block):
            return
        for covered in shelf.put(block):
            self._drop(covered)
        self._by_use[block] = key
        self.bytes += block.size
        while self.bytes > self._max_bytes:
            oldest, its_key = next(iter(self._by_use.items()))
            self._drop(oldest)
            shelf = self._shelves[its_key]
            shelf.take(oldest)
            self._drop_if_empty(its_key, shelf)

    def _drop(self, block: Block) -> None:
        del self._by_use[block]
        self.bytes -= block.size

    def _drop_if_empty(self, key: _Key, shelf: _Shelf) -> None:
        if not shelf.blocks and not shelf.loads:
            del self._shelves[key]

    async def _read(self, wanted: Wanted) -> Block:
        batch = await self._reader.batch(
            wanted.address, wanted.cursor, wanted.until, after_index=wanted.after_index, following=wanted.following
        )
        entries = batch.entries
        if not entries:
            raise CursorExpired(seq=wanted.cursor)
        self._on_read(len(entries))
        if len(entries) > 1 and entries[-1].kind is Kind.ERROR:
            entries.pop()  # It goes out with the end: letta-client stops at it, and the run must be over by then.
        return Block(wanted.cursor, batch, wanted.framing)


class _Shelf:
    """What there is of one run in one framing, and what is being read of it, by where each begins.

    No block is within another: of those that begin at or before a cursor the last one reaches furthest.
    """

    def __init__(self) -> None:
        self.blocks: dict[int, Block] = {}
        self.loads: dict[int, _Load] = {}
        self._starts: list[int] = []

    def holds(self, block: Block) -> bool:
        """Tell whether all of a block is in one that is here."""
        other = self.block_at(block.after)
        return other is not None and other.last_seq >= block.last_seq

    def put(self, block: Block) -> list[Block]:
        """Add a block that is in no other. Returns those that were in it: they are here no more."""
        at = end = bisect_left(self._starts, block.after)
        while end < len(self._starts) and self.blocks[self._starts[end]].last_seq <= block.last_seq:
            end += 1
        covered = [self.blocks.pop(start) for start in self._starts[at:end]]
        self._starts[at:end] = [block.after]
        self.blocks[block.after] = block
        return covered

    def take(self, block: Block) -> None:
        """Let go of a block."""
        del self.blocks[block.after]
        del self._starts[bisect_left(self._starts, block.after)]

    def block_at(self, cursor: int) -> Block | None:
        """Return the last block that begins at or before a cursor."""
        at = bisect_right(self._starts, cursor)
        return self.blocks[self._starts[at - 1]] if at else None


class _Load:
    """One read of what follows a cursor."""

    def __init__(self, cursor: int, task: asyncio.Task[Block]) -> None:
        self.cursor = cursor
        self.task = task
        self.began_at = time.monotonic()
        self.waiting = 0
