"""What followers who were behind have read of logs, framed, for those who come next: read once, for all.

A log only grows at its end, so that a block of it stays as it is: it may be given to anybody who may read the run.
Blocks are kept within a bound of bytes, those that were used last; and whoever lacks what somebody is just reading
waits for that.

The invariant: *a block holds every entry between `after` and its last one.* Inside by the reader's word; and at
`after`, where retention may have removed what came next, because the index of the entry there is known, or because it
is still there once what follows it has been read: retention removes the oldest first.
"""

from __future__ import annotations

import asyncio
from array import array
from bisect import bisect_right, insort
from collections import OrderedDict
from contextlib import suppress
from contextvars import Context
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from runstream.broker.errors import BrokerError, CursorExpired
from runstream.broker.tasks import cancel_all
from runstream.gateway.framing import FRAMINGS, Framing, Piece
from runstream.schemas import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from runstream.broker.reader import Batch, LogReader
    from runstream.broker.topology import LogAddress

__all__ = ["Block", "ReplayCache", "Wanted"]

BLOCK_BYTES = 2**10
"""What a block takes beside its events and their places."""
NEAR_SEQUENCES = 10_000
"""How far before a cursor a read may have begun that is waited for: it may well come to it. Of many who come back to a
run that ended meanwhile, each with a cursor of its own, a few read."""

_Key: TypeAlias = tuple[str, Framing]
"""A run, and how its readers have it."""


class Wanted(NamedTuple):
    """What a follower lacks: what comes after a cursor."""

    address: LogAddress
    framing: Framing
    cursor: int
    after_index: int | None
    """The index of the entry at the cursor, None where it is not known; -1: the cursor is the log's beginning."""
    until: int
    """A sequence behind the cursor that the log is known to hold."""

    @property
    def key(self) -> _Key:
        """What it has in common with what others want of the run."""
        return self.address.run_id, self.framing


class Block:
    """Entries of a log after a sequence, framed. What follows any cursor among them can be cut out."""

    __slots__ = ("_ends", "_piece", "_seqs", "after", "following", "size")

    def __init__(self, after: int, batch: Batch, framing: Framing) -> None:
        frames = [framing.frame(entry) for entry in batch.entries]
        self.after = after
        self.following = batch.following
        """How many messages of the log followed when it was read, as far as is known."""
        self._piece = Piece.of(b"".join(frames), batch.entries, framing)
        self._seqs = array("Q", [entry.seq for entry in batch.entries])
        self._ends = array("Q", accumulate(map(len, frames)))
        self.size = BLOCK_BYTES + len(self._piece.data) + 2 * self._ends.itemsize * len(frames)

    @property
    def last_seq(self) -> int:
        """The sequence of its last entry."""
        return self._piece.seq

    def piece(self, cursor: int) -> Piece:
        """Return what follows a cursor, which is not before `after` and is before the last entry."""
        whole, skipped = self._piece, bisect_right(self._seqs, cursor)
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

    def has(self, wanted: Wanted) -> bool:
        """Whether what comes next is kept here."""
        return self._kept_after(wanted) is not None

    async def block(self, wanted: Wanted) -> Block:
        """Return a block with what comes next, one entry at least. Raises as `LogReader.batch`."""
        block = self._kept_after(wanted)
        if block is None and (near := self._load_near(wanted)) is not None:
            with suppress(BrokerError):  # Somebody else's.
                await self._block_of(wanted.key, near)
            block = self._kept_after(wanted)
        if block is None:
            block = await self._block_of(wanted.key, self._load(wanted))
        return block

    def forget(self, run_id: str) -> None:
        """Let go of all of a run that was removed. Who just reads it has it for himself."""
        for framing in FRAMINGS.values():
            shelf = self._shelves.pop((run_id, framing), _Shelf())
            for block in shelf.blocks.values():
                del self._by_use[block]
                self.bytes -= block.size

    def clear(self) -> None:
        """Let go of everything: a server that comes back may have lost the newest of what was read before."""
        self._shelves = {}
        self._by_use.clear()
        self.bytes = 0

    def _kept_after(self, wanted: Wanted) -> Block | None:
        shelf = self._shelves.get(wanted.key)
        block = None if shelf is None else shelf.block_at(wanted.cursor)
        if block is None or wanted.cursor >= block.last_seq:
            return None
        self._by_use.move_to_end(block)
        return block

    def _load_near(self, wanted: Wanted) -> _Load | None:
        """Return the read that began a little before a cursor, if there is one."""
        shelf = self._shelves.get(wanted.key)
        loads = [] if shelf is None else shelf.loads.values()
        begun = [load for load in loads if 0 < wanted.cursor - load.cursor <= NEAR_SEQUENCES]
        return max(begun, key=lambda load: load.cursor, default=None)

    def _load(self, wanted: Wanted) -> _Load:
        """Return the read of what follows a cursor, which begins now if it has not."""
        key, cursor = wanted.key, wanted.cursor
        shelf = self._shelves.setdefault(key, _Shelf())
        load = shelf.loads.get(cursor)
        if load is None:
            before = shelf.block_at(cursor)
            following = before.following if before is not None and before.last_seq == cursor else None
            # What it logs is not the first one's who waits.
            task = asyncio.create_task(self._read(wanted, following), name=f"replay-{key[0]}", context=Context())
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
        if self._take(key, load) and not task.cancelled() and task.exception() is None:
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
        self._shelves.setdefault(key, _Shelf()).put(block)
        self._by_use[block] = key
        self.bytes += block.size
        while self.bytes > self._max_bytes:
            oldest, its_key = self._by_use.popitem(last=False)
            self.bytes -= oldest.size
            shelf = self._shelves[its_key]
            shelf.take(oldest)
            self._drop_if_empty(its_key, shelf)

    def _drop_if_empty(self, key: _Key, shelf: _Shelf) -> None:
        if not shelf.blocks and not shelf.loads:
            del self._shelves[key]

    async def _read(self, wanted: Wanted, following: int | None) -> Block:
        address, framing, cursor, after_index, until = wanted
        if after_index is None:
            batch = await self._surely_after(address, cursor, until)
        else:
            batch = await self._reader.batch(address, cursor, until, after_index=after_index, following=following)
        entries = batch.entries
        if not entries:
            raise CursorExpired(seq=cursor)
        self._on_read(len(entries))
        if len(entries) > 1 and entries[-1].kind is Kind.ERROR:
            entries.pop()  # It goes out with the end: letta-client stops at it, and the run must be over by then.
        return Block(cursor, batch, framing)

    async def _surely_after(self, address: LogAddress, cursor: int, until: int) -> Batch:
        """Read what follows a cursor from the cursor on: where its own entry is there, nothing behind it is missing."""
        batch = await self._reader.batch(address, cursor - 1, until)
        if batch.entries and batch.entries[0].seq == cursor:
            index = batch.entries.pop(0).index
            return batch if batch.entries else await self._reader.batch(address, cursor, until, after_index=index)
        if not await self._reader.is_kept(address, cursor):
            raise CursorExpired(seq=cursor)
        return batch


class _Shelf:
    """What there is of one run in one framing, and what is being read of it, by where each begins."""

    def __init__(self) -> None:
        self.blocks: dict[int, Block] = {}
        self.loads: dict[int, _Load] = {}
        self._starts: list[int] = []

    def put(self, block: Block) -> None:
        """Add a block. None is there that begins where it does: what follows that would not have been read."""
        self.blocks[block.after] = block
        insort(self._starts, block.after)

    def take(self, block: Block) -> None:
        """Let go of a block."""
        del self.blocks[block.after]
        del self._starts[bisect_right(self._starts, block.after) - 1]

    def block_at(self, cursor: int) -> Block | None:
        """Return the last block that begins at or before a cursor."""
        at = bisect_right(self._starts, cursor)
        return self.blocks[self._starts[at - 1]] if at else None


class _Load:
    """One read of what follows a cursor."""

    def __init__(self, cursor: int, task: asyncio.Task[Block]) -> None:
        self.cursor = cursor
        self.task = task
        self.waiting = 0
