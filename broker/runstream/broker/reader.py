"""Catch-up: what a log holds after a cursor, in order and without a hole, in bounded batches.

A first batch comes by direct get, which costs the server no consumer: for a cursor near the end that is all. A longer
rest is pulled through ordered consumers, one for each batch, which start right after, bounded in number, deleted on
every path.

The invariant: *entries leave here with contiguous indexes.* Each message carries its place in the log, so a message
that retention removed in the middle, or that got lost on the way, shows as a jump: the first is `CursorExpired`, the
second is asked for again.
"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from runstream.broker.errors import BrokenLog, CursorExpired, Unavailable
from runstream.broker.jetstream import DIRECT_GET_BATCH, DIRECT_GET_BYTES
from runstream.broker.leaders import Leaders
from runstream.broker.log import Entry, entry_at, entry_of, first_of, is_stranger, last_of, place_in, place_of, whole
from runstream.broker.messages import STORED_AT
from runstream.schemas import Kind

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from runstream.broker.findings import Findings
    from runstream.broker.jetstream import JetStream
    from runstream.broker.messages import StoredMessage
    from runstream.broker.settings import BrokerSettings
    from runstream.broker.topology import LogAddress

__all__ = ["Batch", "LogReader", "Mark"]

OUTLINE_BYTES = 2**21
"""Bytes of bodies that are read with one outline, give or take a read: eight reads, as many as of small messages."""
GUESSES = 8
FIRST_DELAY_SECONDS = 0.05
LONGEST_DELAY_SECONDS = 1.0


class Mark(msgspec.Struct, frozen=True, gc=False):
    """One message of a log, seen from outside: which, what for, how large, and when NATS stored it."""

    seq: int
    kind: Kind
    bytes: int
    stored_at_ms: int
    """Milliseconds since 1970, by the clock of the server."""


class Batch(msgspec.Struct, frozen=True):
    """What one read of a log brought."""

    entries: list[Entry]
    following: int | None
    """How many messages followed them when they were read, as far as is known."""


class LogReader:
    """Reads any run's log. Give it a connection of its own: a batch occupies its connection on the server."""

    def __init__(self, jetstream: JetStream, settings: BrokerSettings, leaders: Leaders | None = None) -> None:
        self._jetstream = jetstream
        self.leaders = leaders or Leaders.of_all(settings, jetstream)
        """Of the streams, as its connection has them, at least."""
        self._settings = settings
        self._consumers = asyncio.Semaphore(settings.concurrent_catchups)

    @property
    def most_batch_bytes(self) -> int:
        """The bytes that one batch may bring: what is asked for, and a message that is larger than that."""
        return max(self._settings.catchup_bytes, DIRECT_GET_BYTES + self._jetstream.connection.max_payload)

    async def first(self, address: LogAddress) -> Entry | None:
        """Return the oldest entry retention has left, None for a log without messages."""
        oldest = await self._jetstream.first_message(address.stream, address.subject)
        if oldest is None or not is_stranger(oldest):
            return None if oldest is None else entry_of(oldest)
        message = await first_of(self._jetstream, address)
        if message is not None and place_of(message) > 0:
            raise BrokenLog("Its first message is not there, and somebody else's is.", run_id=address.run_id)
        return None if message is None else entry_of(message)

    async def last(self, address: LogAddress) -> StoredMessage | None:
        """Return the newest message of a run's log, as its leader has it; None for a log without messages."""
        return await last_of(self._jetstream, address)

    async def index_at(self, address: LogAddress, seq: int) -> int | None:
        """Return the index of the entry at sequence `seq`, None if it is no entry of this log's.

        Raises `CursorExpired` if there is nothing: retention removes the oldest messages first, so that of what follows
        one that is there, whosever it is, nothing has been removed.
        """
        message = await self._jetstream.message_at(address.stream, seq)
        if message is None:
            raise CursorExpired(seq=seq)
        return place_in(message.headers) if message.subject == address.subject else None

    async def newest_sequence(self, address: LogAddress) -> int:
        """Return the last sequence the run's stream has issued, asked from its leader."""
        info = await self._jetstream.api(f"STREAM.INFO.{address.stream}", None)
        return int(info["state"]["last_seq"])

    async def cursor_before(
        self, address: LogAddress, tip: Entry, first_seq: int, count: int, *, most_sequences: int
    ) -> int:
        """Return a cursor with about `count` entries between it and `tip`, at most twice as many.

        It is at most `most_sequences` of the stream before `tip`: the server looks at each message there, whosever it
        is. A run's sequences are spread unevenly over its stream's, so the first guess, from the average, is corrected
        by what the server counts behind it.
        """
        span = min(max((tip.seq - first_seq) * count // max(tip.index, 1), 1), most_sequences)
        for _ in range(GUESSES):
            after = max(tip.seq - span, first_seq)
            found = await self._jetstream.direct_batch(address.stream, address.subject, after=after, limit=1)
            remaining = 1 + found[0].pending if found else 0
            if remaining <= 2 * count:
                return after
            span = max(span * count // remaining, 1)
        return tip.seq - 1

    async def cursor_at(self, address: LogAddress, index: int, tip: Entry) -> int:
        """Return a cursor right before the entry with `index`, which is not after `tip`.

        Asked from the leader, in a few requests however long the log is: a run's sequences are spread over its
        stream's, mostly evenly. Raises `CursorExpired` when retention has removed the entry.
        """
        return await self.leaders.sure(partial(self._cursor_at, address, index, tip), CursorExpired)

    async def _cursor_at(self, address: LogAddress, index: int, tip: Entry) -> int:
        oldest = await self.first(address)
        if oldest is None or oldest.index > index:
            raise CursorExpired(index=index)
        # The entry is after `low`, and not after the first one at or after `high`, which has `high_index`.
        low, high, high_index = oldest, tip.seq, tip.index
        is_guess = True
        while low.index < index < high_index:
            # Every second time in the middle, should they be spread as unevenly as can be.
            span = high - low.seq
            share = span * (index - low.index) // (high_index - low.index) if is_guess else span // 2
            is_guess = not is_guess
            at = min(max(low.seq + share, low.seq + 1), high - 1)
            found = await self._jetstream.first_message(address.stream, address.subject, seq=at)
            if found is None:
                raise CursorExpired(index=index)
            entry = entry_of(found)
            if entry.index <= index:
                low = entry
            else:
                high, high_index = at, entry.index
        return (low.seq if low.index == index else high) - 1

    async def read(
        self, address: LogAddress, after: int, until: int, *, after_index: int | None = None
    ) -> AsyncGenerator[list[Entry]]:
        """Yield the entries after sequence `after` up to sequence `until` at least, in batches, oldest first.

        As `batch` otherwise. A batch is its taker's: nothing of it is kept here, so that one who clears it before
        waiting holds nothing. Close it (`aclosing`) when leaving early.
        """
        seq, index, following = after, after_index, None
        while seq < until:
            batch = await self.batch(address, seq, until, after_index=index, following=following)
            if not batch.entries:
                return
            seq, index, following = batch.entries[-1].seq, batch.entries[-1].index, batch.following
            yield batch.entries

    async def batch(
        self,
        address: LogAddress,
        after: int,
        until: int,
        *,
        after_index: int | None = None,
        following: int | None = None,
    ) -> Batch:
        """Return the entries that come next after sequence `after`: none if up to `until` there are strangers' only.

        `until` is a sequence the log is known to hold, `after_index` the index of the entry at `after` where it is
        known (-1: `after` is the log's beginning), `following` what the batch before this one said. Raises
        `CursorExpired` when retention overtakes the read, `Unavailable` when NATS stays away longer than the reader's
        patience, `BrokenLog` at a message that cannot be read, behind those before it.
        """
        position = _Position(after, after_index, address, self._jetstream.findings)
        deadline = time.monotonic() + self._settings.read_patience_seconds
        delay = FIRST_DELAY_SECONDS
        while position.seq < until:
            before = position.seq
            try:
                messages = await self._next(address, before, following)
                following = messages[-1].pending if messages else None
                if entries := position.advance(messages):
                    return Batch(entries, following)
                if position.broken is not None:
                    raise position.broken
                if not messages and await self._is_gone_after(address, before):
                    raise CursorExpired(seq=before)
            except Unavailable:
                following = None
                if time.monotonic() > deadline:
                    raise
            if position.seq > before:  # Over somebody else's.
                deadline, delay = time.monotonic() + self._settings.read_patience_seconds, FIRST_DELAY_SECONDS
                continue
            if time.monotonic() > deadline:
                raise Unavailable(f"The log of {address.run_id} does not show message {until}.")
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY_SECONDS)
        return Batch([], None)

    async def outline(self, address: LogAddress, after: int, *, limit: int) -> list[Mark]:
        """Return what follows sequence `after` (0: the beginning), at most `limit` messages, without their bodies.

        Their bodies are read all the same: of large messages there are fewer, and more to come. Nothing follows where
        there is none, as one replica has it, which may lag behind. Raises `CursorExpired` when retention has removed
        the beginning, `BrokenLog` at a message that cannot be read, if none that can is before it.
        """
        position = _Position(after, None if after else -1, address, self._jetstream.findings)
        marks: list[Mark] = []
        size = 0
        while len(marks) < limit and size < OUTLINE_BYTES and position.broken is None:
            found = await self._jetstream.direct_batch(
                address.stream, address.subject, after=position.seq, limit=limit - len(marks)
            )
            if not found:
                break
            times = {message.seq: message.headers.get(STORED_AT, "") for message in found}
            entries = position.advance(found)
            marks += [_mark(entry, times[entry.seq]) for entry in entries]
            size += sum(len(entry.body) for entry in entries)
        if position.broken is not None and not marks:
            raise position.broken
        return marks

    async def check_next(self, address: LogAddress, after: int) -> None:
        """Raise `BrokenLog` if what follows sequence `after` cannot be read, in a log of which that is known."""
        if self._jetstream.findings.knows(address.subject):
            position = _Position(after, None, address, self._jetstream.findings)
            found = await self._jetstream.direct_batch(address.stream, address.subject, after=after)
            if not position.advance(found) and position.broken is not None:
                raise position.broken

    async def _is_gone_after(self, address: LogAddress, seq: int) -> bool:
        """Tell whether the leader, too, has nothing of the run after `seq`: a replica that has nothing may only lag."""
        if not await self._is_empty_after(address, seq):
            return False
        await self.leaders.confirm()
        return await self._is_empty_after(address, seq)

    async def _is_empty_after(self, address: LogAddress, seq: int) -> bool:
        return await self._jetstream.first_message(address.stream, address.subject, seq=seq + 1) is None

    async def _next(self, address: LogAddress, after: int, following: int | None) -> list[StoredMessage]:
        """Read what comes next, `following` so many as far as is known: a consumer pays where they are many."""
        if following is not None and following > DIRECT_GET_BATCH:
            async with self._consumers:
                found = await self._jetstream.consume(
                    address.stream,
                    address.subject,
                    after=after,
                    limit=self._settings.catchup_chunks,
                    max_bytes=self._settings.catchup_bytes,
                )
            if found:
                return found
            # The next one alone is larger than what a consumer may bring.
        return await self._jetstream.direct_batch(address.stream, address.subject, after=after)


def _mark(entry: Entry, stored_at: str) -> Mark:
    return Mark(entry.seq, entry.kind, len(entry.body), int(datetime.fromisoformat(stored_at).timestamp() * 1000))


class _Position:
    """How far a read has come, and the check that nothing was left out."""

    def __init__(self, seq: int, index: int | None, address: LogAddress, findings: Findings) -> None:
        self.seq = seq
        self.index = index
        self.broken: BrokenLog | None = None
        """What is wrong with the message that comes next."""
        self._address = address
        self._findings = findings
        self._is_first = seq == 0
        self._has_strangers = False

    def advance(self, messages: list[StoredMessage]) -> list[Entry]:
        """Return the entries of these messages, up to the first that cannot be read: that is in `broken`."""
        entries: list[Entry] = []
        for message in messages:
            place = place_in(message.headers)
            if place is None:
                self._note(message, "Somebody else's message, which is passed over.")
                self.seq, self._has_strangers = message.seq, True
                continue
            try:
                entry = whole(entry_at(place, message.seq, message.headers, message.body))
                self._check_place(entry)
            except BrokenLog as error:
                self._note(message, str(error))
                self.broken = error
                break
            self.seq, self.index, self._has_strangers, self._is_first = entry.seq, entry.index, False, False
            entries.append(entry)
        return entries

    def _check_place(self, entry: Entry) -> None:
        expected = self.index + 1 if self.index is not None else (0 if self._has_strangers and self._is_first else None)
        if expected is None or entry.index == expected:
            return
        if self._has_strangers:
            raise BrokenLog("A message is not there, and somebody else's is.", index=expected, seq=entry.seq)
        raise CursorExpired(seq=self.seq)

    def _note(self, message: StoredMessage, reason: str) -> None:
        self._findings.note("message", self._address.subject, message.seq, reason)
