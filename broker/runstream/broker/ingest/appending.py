"""The chunks of one request on their way into a log, each at its place.

The invariant: *a request's chunk is stored at place i only onto the i chunks before it, which this request has stored
itself, has compared with its own, or was told of by its Expected-Index.* It begins after the log's last message, as
the leader had it; what is in the log from the request's first place on is compared, byte by byte, and not stored again;
and the publisher stores what follows only as long as nobody else writes to the log.

So of two requests that begin at the same place, be they two writers or two tries of one, one is refused at its first
chunk that the other has stored already: the log has moved on since it looked. Sent again, it finds that chunk in the
log: the same as its own, and it is counted and not stored twice; or another, and it is told that the place is taken.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from runstream.broker.ingest.errors import IngestError
from runstream.broker.leaders import surely_last
from runstream.broker.log import ENDING, WRITER, entry_of, first_of, place_of, writer_header

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from runstream.broker.ingest.runs import Standing
    from runstream.broker.jetstream import JetStream
    from runstream.broker.log import Entry
    from runstream.broker.publisher import Publisher
    from runstream.broker.reader import LogReader

__all__ = ["Appending"]


class Appending:
    """One request's chunks. `expected_index`: how many chunks its writer says are stored before them; None: all.

    Raises `IngestError` if fewer are.
    """

    def __init__(
        self,
        jetstream: JetStream,
        reader: LogReader,
        publisher: Publisher,
        standing: Standing,
        expected_index: int | None,
    ) -> None:
        self._jetstream = jetstream
        self._reader = reader
        self._publisher = publisher
        self._standing = standing
        self._first_place = standing.index if expected_index is None else expected_index
        if self._first_place > standing.index:
            raise self._wrong(f"{self._first_place} chunks are expected to be stored, and {standing.index} are.")
        self._begun_at = publisher.next_index
        self._to_compare = standing.index - self._first_place
        self._compared = 0
        self._last_compared = standing.last.seq
        self._held: AsyncGenerator[Entry] | None = None
        self._late_seq: int | None = None
        """Of a chunk that was stored without this writer being told."""

    @property
    def room(self) -> int:
        """How many chunks this request may still bring before the run is too long."""
        return self._publisher.room + self._to_compare - self._compared

    async def take(self, body: bytes) -> None:
        """Queue a chunk to be stored, or compare it with the one that stands in its place.

        Raises `IngestError` when it is another, and as `Publisher.enqueue`.
        """
        if self._compared == self._to_compare:
            await self._publisher.enqueue(body)
            return
        if self._held is None:
            self._held = self._entries()
        entry = await anext(self._held)
        if entry.body != body:
            place = self._first_place + self._compared
            raise self._wrong(f"Chunk {place} is stored already, and it is not the one that was sent for its place.")
        self._compared += 1
        self._last_compared = entry.seq

    async def flush(self) -> None:
        """Return when all that was taken is stored; raises what kept it from being so."""
        await self._publisher.flush()

    async def close(self) -> None:
        """Give back what it reads with."""
        if self._held is not None:
            await self._held.aclose()

    async def _entries(self) -> AsyncGenerator[Entry]:
        """Yield what the log holds from this request's first place on, up to where it stood."""
        last = entry_of(self._standing.last)
        index = self._first_place + 1  # The ping is before the first chunk.
        if index == last.index:
            yield last
            return
        address = self._publisher.address
        after = await self._reader.cursor_at(address, index, last)
        batches = self._reader.read(address, after, last.seq, after_index=index - 1)
        async with aclosing(batches):
            async for batch in batches:
                for entry in batch:
                    yield entry

    def _wrong(self, detail: str) -> IngestError:
        index = self._standing.index
        return IngestError(
            "wrong_index",
            f"{detail} The next chunk's place is {index}.",
            stored=0,
            last_seq_id=self._standing.last.seq,
            index=index,
        )

    def facts(self) -> dict[str, int]:
        """Say how far it has come: this request's chunks in the log, the last one's sequence, the next one's place."""
        new = self._publisher.next_index - self._begun_at + (self._late_seq is not None)
        is_beyond = self._compared == self._to_compare
        last_seq = self._late_seq or self._publisher.last_seq
        return {
            "stored": self._compared + new,
            "last_seq_id": last_seq if is_beyond else self._last_compared,
            "index": self._first_place + self._compared + new,
        }

    async def fenced(self) -> tuple[dict[str, int], str | None]:
        """Say how far it and the log have come when another has written there; and the stop reason, if that ended it.

        One chunk may be stored of which this writer was not told before the other was faster.
        """
        address, publisher = self._publisher.address, self._publisher
        following = await first_of(self._jetstream, address, seq=publisher.last_seq + 1)
        mine = writer_header(publisher.writer, publisher.next_index)
        if following is not None and following.headers.get(WRITER) == mine:
            self._late_seq = following.seq
        last = await surely_last(self._jetstream, address)
        if last is None or ENDING in last.headers:
            return self.facts(), "error" if last is None else last.headers[ENDING]
        return {**self.facts(), "last_seq_id": last.seq, "index": place_of(last)}, None
