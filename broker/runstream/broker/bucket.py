"""The bucket: keys with values, read from the leader, and written together on the condition that they are as read.

What the keys mean is `index.py`'s affair.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from runstream.broker.errors import BrokenRecord, Contended, RecordTooLarge, Unavailable, WrongLastSequence
from runstream.broker.jetstream import BATCHES_AT_A_TIME, EXPECTED_LAST_SEQUENCE, BatchWrite
from runstream.broker.keys import KV_OPERATION, key_of, subject_of
from runstream.broker.tasks import spread
from runstream.broker.topology import INDEX_STREAM
from runstream.schemas import NewerRecord

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from runstream.broker.jetstream import JetStream
    from runstream.broker.messages import StoredMessage

__all__ = ["Bucket", "Put", "Stored", "persist"]

T = TypeVar("T")

FIRST_DELAY_SECONDS = 0.02
LONGEST_DELAY_SECONDS = 1.0
CONTEST_SECONDS = 5.0
"""How long a change is tried that others overtake, whatever patience there is with a NATS that is away."""
CONTENDED_SECONDS = 1.0
"""How long another write to the same key is waited for: a cluster takes milliseconds to store it."""

HEADER_FRAME_BYTES = 4
"""What each header has beside its name and value: `: ` and the line's end."""
BATCH_HEADER_BYTES = 160
"""The first line of a message's headers, the empty one behind them, and the batch's three: 132 bytes in all."""

LIST_PAGE_KEYS = 5_000
LIST_PAGE_BYTES = 2**20


class Stored(msgspec.Struct, Generic[T], frozen=True):
    """A value of the index with its revision, to write it back on the condition that it has not changed."""

    value: T
    revision: int


class Put(msgspec.Struct, frozen=True):
    """A key's new value, None to delete it. `revision`: the one that it must still have, 0 if it must not be there."""

    key: str
    value: bytes | None
    revision: int | None = None
    headers: Mapping[str, str] = {}


class Bucket:
    """Reads and writes keys. Every call raises `Unavailable`."""

    def __init__(self, jetstream: JetStream) -> None:
        self._jetstream = jetstream
        self._batches = asyncio.Semaphore(BATCHES_AT_A_TIME)

    async def get(self, key: str, decode: Callable[[bytes], T]) -> Stored[T] | None:
        """Return a key's value as `decode` reads it, with its revision; None if it is absent or deleted.

        Raises `BrokenRecord`.
        """
        raw = await self.get_any(key)
        return None if raw.value is None else Stored(self.read(key, raw.value, raw.revision, decode), raw.revision)

    def read(self, key: str, value: bytes, revision: int, decode: Callable[[bytes], T]) -> T:
        """Read a value. Raises `BrokenRecord`."""
        try:
            return decode(value)
        except ValueError as error:
            self._jetstream.findings.note(key.partition(".")[0], subject_of(key), revision, str(error))
            raise BrokenRecord(str(error), is_newer=isinstance(error, NewerRecord), key=key) from error

    async def get_any(self, key: str) -> Stored[bytes | None]:
        """Return a key's value (None: absent or deleted) with the revision that a write must expect."""
        message = await self._jetstream.last_message(INDEX_STREAM, subject_of(key))
        if message is None:
            return Stored(None, 0)
        deleted = KV_OPERATION in message.headers
        return Stored(None if deleted else message.body, message.seq)

    async def listed(self, pattern: str) -> dict[str, StoredMessage]:
        """List what a pattern's wildcard stands for, where there is a value, with the key's message."""
        found: dict[str, StoredMessage] = {}
        after = 0
        while page := await self._jetstream.consume(
            INDEX_STREAM, subject_of(pattern), after=after, limit=LIST_PAGE_KEYS, max_bytes=LIST_PAGE_BYTES
        ):
            for message in page:
                if KV_OPERATION not in message.headers:
                    found[key_of(message.subject).rpartition(".")[2]] = message
            after = page[-1].seq
        return found

    async def write(self, puts: Sequence[Put]) -> int:
        """Write all of `puts` or none; returns the last one's revision.

        Raises `RecordTooLarge`, before anything is sent, if one does not fit into a message.
        """
        messages = []
        for put in puts:
            headers = {**put.headers} if put.value is not None else {KV_OPERATION: "DEL"}
            if put.revision is not None:
                headers[EXPECTED_LAST_SEQUENCE] = str(put.revision)
            messages.append(BatchWrite(subject_of(put.key), put.value or b"", headers))
        self._check(messages)
        if len(messages) == 1:
            return await self._write_one(messages[0])
        # Whoever comes with many waits here, and not for a turn of the batch's own, which has its bound: a burst of
        # claims would be refused that a busy server stores in two seconds.
        async with self._batches:
            return await self._jetstream.publish_batch(messages, secrets.token_hex(16))

    async def _write_one(self, message: BatchWrite) -> int:
        """Write one key. Another write to it that is under way is waited for: it may still come to nothing.

        A single server tells at once who was first; a cluster tells all but the first that it does not know yet.
        """
        deadline = time.monotonic() + CONTENDED_SECONDS
        while True:
            try:
                return await self._jetstream.publish(message.subject, message.body, message.headers)
            except Contended:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(spread(FIRST_DELAY_SECONDS))

    def _check(self, messages: Sequence[BatchWrite]) -> None:
        # The server would not refuse it: it ends the connection, with everything on it.
        limit = self._jetstream.connection.max_payload
        for message in messages:
            headers = sum(len(name) + len(value) + HEADER_FRAME_BYTES for name, value in message.headers.items())
            size = len(message.body) + headers + BATCH_HEADER_BYTES
            if size > limit:
                raise RecordTooLarge(size=size, limit=limit)


async def persist(attempt: Callable[[], Awaitable[T]], seconds: float) -> T:
    """Repeat an attempt that reads and then writes, until it is through: it was overtaken, or NATS was away.

    An attempt whose answer was lost is repeated too: it reads what it wrote. Raises `Unavailable` when NATS has been
    away for `seconds` before another attempt, or when the attempt was overtaken for as long, `CONTEST_SECONDS` at
    least: who is overtaken is answered, and one of those who compete gets through each time. That is counted from when
    it was overtaken first: one attempt may take as long where a machine stalls, and who has won is found by the next.
    """
    answered_at = time.monotonic()
    contested_at: float | None = None
    delay = FIRST_DELAY_SECONDS
    while True:
        try:
            return await attempt()
        except (WrongLastSequence, Contended) as overtaken:
            answered_at = time.monotonic()
            contested_at = contested_at or answered_at
            give_up_at = contested_at + max(seconds, CONTEST_SECONDS)
            failure: Unavailable = Unavailable(f"Overtaken for {answered_at - contested_at:.1f} s: {overtaken}")
            pause = spread(FIRST_DELAY_SECONDS)
        except Unavailable as unavailable:
            give_up_at = answered_at + seconds
            failure = unavailable
            pause = delay
            delay = min(2 * delay, LONGEST_DELAY_SECONDS)
        if time.monotonic() + pause > give_up_at:
            raise failure
        await asyncio.sleep(pause)
