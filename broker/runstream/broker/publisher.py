"""One run's writer: chunks go into the log in order, without holes, exactly once, or the writer hears why not.

The invariant: *a message is sent only when the one before it is known to be stored, and only onto it.* One publish is
in flight, and each says which sequence it expects to be the log's last. So whatever is stored is a prefix of what was
handed in, a repeated publish cannot be stored twice, and of two writers one is refused. Pipelining breaks all three:
after a reconnect message i can be lost while i + 1 is stored.

A publish whose outcome is unknown is repeated with the same expectation. If the log has moved on, its last message,
read from the leader, tells: this writer's own (it was stored after all), or another's (fenced; stop).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

import msgspec

from runstream.broker.errors import (
    BrokerError,
    ChunkTooLarge,
    Fenced,
    RunCancelled,
    RunTooLong,
    StoreRefused,
    StoreUnavailable,
    Unavailable,
    WrongLastSequence,
)
from runstream.broker.jetstream import EXPECTED_LAST_SEQUENCE, BatchWrite
from runstream.broker.leaders import surely_last
from runstream.broker.log import ENDING, KIND, WRITER, before_strangers, is_stranger, place_of, writer_header
from runstream.broker.tasks import end_task
from runstream.schemas import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from runstream.broker.jetstream import JetStream
    from runstream.broker.messages import StoredMessage
    from runstream.broker.settings import BrokerSettings
    from runstream.broker.topology import LogAddress

__all__ = ["Publisher", "Write", "chunk_limit"]

HEADER_ROOM_BYTES = 1024
"""What a message's headers may take of the server's `max_payload`. nats-py counts the body only, and the server ends
the connection, with everything on it, when both together are too long."""
ENDING_ROOM_MESSAGES = 8
"""Messages kept free for an ending: attempts, stop_reason, usage or error, and the end."""
FIRST_DELAY_SECONDS = 0.05
LONGEST_DELAY_SECONDS = 1.0


class Write(msgspec.Struct, frozen=True):
    """One message to store."""

    kind: Kind
    body: bytes
    headers: Mapping[str, str] = {}


class _Queued(msgspec.Struct):
    writes: Sequence[Write]
    stored: asyncio.Future[int]
    size: int


def chunk_limit(max_payload: int) -> int:
    """Give the largest chunk, in bytes, that a server with this `max_payload` takes."""
    return max_payload - HEADER_ROOM_BYTES


class Publisher:
    """The writer of one run's log. Use as an async context manager; leaving it drops what is still queued.

    `last_seq` and `next_index` say where the log stands: 0 and 0 for an empty one. `observe` is told the seconds
    each publish took to be stored; `patience_seconds` stands in for the setting.

    After a chunk that could not be stored, and after `cancel`, every further one is refused; an ending is still taken,
    unless the writer is fenced or the store is away.
    """

    def __init__(
        self,
        jetstream: JetStream,
        address: LogAddress,
        settings: BrokerSettings,
        *,
        last_seq: int = 0,
        next_index: int = 0,
        patience_seconds: float | None = None,
        observe: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.address = address
        self.last_seq = last_seq
        self.next_index = next_index
        self.writer = secrets.token_urlsafe(9)
        self.first_chunk_at: datetime | None = None
        """When the first chunk of all that it writes was stored."""
        self._jetstream = jetstream
        self._settings = settings
        self._patience_seconds = patience_seconds or settings.write_patience_seconds
        self._observe = observe
        self._limit = chunk_limit(jetstream.connection.max_payload)
        self._queue: deque[_Queued] = deque()
        self._queued_chunks = 0
        self._queued_bytes = 0
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._passed_over = 0
        """The sequence of what somebody else has stored behind the last message of all, and is no part of the log."""
        self._failure: BrokerError | None = None
        self.failed: asyncio.Future[BrokerError]
        """Resolved when a message cannot be stored: who has queued it, and says nothing more, hears of it in no other
        way."""
        self._sender: asyncio.Task[None] | None = None

    @classmethod
    def after(
        cls,
        last: StoredMessage | None,
        jetstream: JetStream,
        address: LogAddress,
        settings: BrokerSettings,
        *,
        patience_seconds: float | None = None,
        observe: Callable[[float], None] = lambda _: None,
    ) -> Self:
        """Make the writer that goes on after `last`, the log's last message; None: the log is empty."""
        last_seq, next_index = (0, 0) if last is None else (last.seq, place_of(last) + 1)
        return cls(
            jetstream,
            address,
            settings,
            last_seq=last_seq,
            next_index=next_index,
            patience_seconds=patience_seconds,
            observe=observe,
        )

    async def __aenter__(self) -> Self:
        self.failed = asyncio.get_running_loop().create_future()
        self._sender = asyncio.create_task(self._send(), name=f"publisher-{self.address.run_id}")
        self._sender.add_done_callback(self._stopped)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._sender is not None:
                await end_task(self._sender)
        finally:
            self._failure = Fenced("Its writer was closed.", run_id=self.address.run_id)
            self._fail_queued(self._failure)

    @property
    def _is_closed(self) -> bool:
        """Whether not even an ending is taken any more: a refusal of the store's and a cancel leave that."""
        return self._failure is not None and not isinstance(self._failure, (StoreRefused, RunCancelled))

    @property
    def failure(self) -> BrokerError | None:
        """Why this publisher refuses further chunks, None while it does not."""
        return self._failure

    @property
    def room(self) -> int:
        """How many further chunks the log takes, with room for the ending behind them."""
        return self._settings.max_run_messages - ENDING_ROOM_MESSAGES - self.next_index - self._queued_chunks

    async def publish(self, body: bytes, kind: Kind = Kind.DATA) -> int:
        """Store one chunk; returns its sequence when it is stored.

        Raises `ChunkTooLarge` (nothing was sent, the run goes on), `RunTooLong`, `StoreFull`, `Fenced`,
        `StoreUnavailable`. A cancelled call leaves its chunk queued: it may still be stored.
        """
        return await (await self.enqueue(body, kind))

    async def enqueue(self, body: bytes, kind: Kind = Kind.DATA) -> asyncio.Future[int]:
        """Queue one chunk; returns a future of its sequence. Waits while the queue is full. Raises as `publish`."""
        self.check_size(body)
        await self._room()
        if self._failure is not None:
            raise self._failure
        if self.room <= 0:
            raise RunTooLong(run_id=self.address.run_id, limit=self._settings.max_run_messages)
        return self._put([Write(kind, body)])

    async def flush(self) -> None:
        """Return when everything queued is stored; raises what kept it from being so."""
        while self._queue:
            self._taken.clear()
            await self._taken.wait()
        if self._failure is not None:
            raise self._failure

    async def publish_together(self, writes: Sequence[Write], *, stop_reason: str) -> int:
        """Store the parts of an ending, all or none; returns the last one's sequence. Raises as `publish`."""
        marked = [Write(write.kind, write.body, {**write.headers, ENDING: stop_reason}) for write in writes]
        await self._room()
        return await self._put(marked)

    async def publish_marked(self, write: Write) -> int:
        """Store one message with headers of its own: the first of a log, an attempt, the end. Raises as `publish`."""
        await self._room()
        return await self._put([write])

    def cancel(self, reason: RunCancelled) -> None:
        """Take no further chunk, only an ending; what is queued and not yet on its way is dropped."""
        if self._failure is None:
            self._failure = reason
            self._fail_queued(reason, spare=1)

    def may_follow(self, last: StoredMessage) -> bool:
        """Tell whether this writer may write on after `last`: it wrote it, or took the log over with it last."""
        is_own = last.seq == self.last_seq or last.headers.get(WRITER, "").startswith(f"{self.writer}:")
        return is_own and last.headers.get(KIND) != Kind.END

    def check_size(self, body: bytes) -> None:
        """Raise `ChunkTooLarge` when `body` does not fit into one message."""
        if len(body) > self._limit:
            raise ChunkTooLarge(size=len(body), limit=self._limit)

    async def _room(self) -> None:
        """Return when there is room in the queue and it is the caller's turn: first come, first served.

        The caller queues without waiting again, and checks before what it has to: while it waited, a chunk may have
        been refused.
        """
        if self._waiting or self._is_full:
            self._waiting += 1
            try:
                async with self._turn:
                    while not self._is_closed and self._is_full:
                        self._taken.clear()
                        await self._taken.wait()
            finally:
                self._waiting -= 1
        if self._failure is not None and self._is_closed:
            raise self._failure

    @property
    def _is_full(self) -> bool:
        return (
            self._queued_chunks >= self._settings.writer_queue_chunks
            or self._queued_bytes >= self._settings.writer_queue_bytes
        )

    def _put(self, writes: Sequence[Write]) -> asyncio.Future[int]:
        size = sum([len(write.body) for write in writes])
        queued = _Queued(writes, asyncio.get_running_loop().create_future(), size)
        # Nobody may be waiting (`enqueue`): the failure is then raised by the next call, not reported as unheard.
        queued.stored.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._queue.append(queued)
        self._queued_chunks += len(writes)
        self._queued_bytes += queued.size
        self._arrived.set()
        return queued.stored

    async def _send(self) -> None:
        while True:
            while not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
            queued = self._queue[0]
            try:
                seq = await self._store(queued.writes)
            except BrokerError as error:
                # What is queued behind a chunk that was refused would leave a hole where that chunk belongs.
                self._fail(error)
                continue
            self._queue.popleft()
            self._account(queued)
            if not queued.stored.done():
                queued.stored.set_result(seq)

    def _stopped(self, sender: asyncio.Task[None]) -> None:
        """Make a defect in sending the callers' failure: nobody would ever store what they wait for."""
        if not sender.cancelled() and (defect := sender.exception()) is not None:
            self._fail(BrokerError(f"Its writer failed: {defect!r}", run_id=self.address.run_id))

    def _fail(self, error: BrokerError) -> None:
        self._failure = error
        self._fail_queued(error)
        if not self.failed.done():
            self.failed.set_result(error)

    def _account(self, queued: _Queued) -> None:
        self._queued_chunks -= len(queued.writes)
        self._queued_bytes -= queued.size
        self._taken.set()

    def _fail_queued(self, error: BrokerError, *, spare: int = 0) -> None:
        """Refuse what is queued, but for the `spare` first, one of which may be on its way."""
        while len(self._queue) > spare:
            queued = self._queue.pop()
            self._account(queued)
            if not queued.stored.done():
                queued.stored.set_exception(error)
        self._taken.set()

    async def _store(self, writes: Sequence[Write]) -> int:
        """Store `writes` after the log's last message, however often that must be tried."""
        last_index = self.next_index + len(writes) - 1
        started = time.monotonic()
        deadline = started + self._patience_seconds
        delay = FIRST_DELAY_SECONDS
        while True:
            try:
                seq = await self._try(writes)
                break
            except WrongLastSequence as refused:
                settled = await self._settle(last_index, refused)
                if settled is not None:
                    seq = settled
                    break
                cause: BrokerError = refused
            except Unavailable as unanswered:
                cause = unanswered
            if time.monotonic() + delay > deadline:
                raise StoreUnavailable(run_id=self.address.run_id) from cause
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY_SECONDS)
        self.last_seq, self.next_index = seq, last_index + 1
        if self.first_chunk_at is None and writes[0].kind is Kind.DATA:
            self.first_chunk_at = datetime.now(UTC)
        self._observe(time.monotonic() - started)
        return seq

    async def _try(self, writes: Sequence[Write]) -> int:
        messages = [
            BatchWrite(
                self.address.subject,
                write.body,
                {KIND: write.kind, WRITER: writer_header(self.writer, self.next_index + at), **write.headers},
            )
            for at, write in enumerate(writes)
        ]
        messages[0].headers[EXPECTED_LAST_SEQUENCE] = str(max(self.last_seq, self._passed_over))
        if len(messages) == 1:
            return await self._jetstream.publish(messages[0].subject, messages[0].body, messages[0].headers)
        return await self._jetstream.publish_batch(messages, secrets.token_hex(16))

    async def _settle(self, index: int, refused: WrongLastSequence) -> int | None:
        """Say what became of a refused publish: its sequence, or None to try again. Raises `Fenced`."""
        try:
            newest = await self._jetstream.last_message(self.address.stream, self.address.subject)
            last = await before_strangers(self._jetstream, self.address, newest)
            if last is None and self.last_seq and await surely_last(self._jetstream, self.address) is not None:
                return None  # As below, of a leader that has nothing of it.
        except Unavailable:
            return None
        if last is not None and last.headers.get(WRITER) == writer_header(self.writer, index):
            return last.seq
        if (last.seq if last is not None else 0) == self.last_seq:
            # A stranger's message, which is passed over; or a new leader that had not yet applied our last message when
            # it refused.
            self._passed_over = newest.seq if newest is not None and is_stranger(newest) else 0
            return None
        if last is not None and last.seq < self.last_seq:
            return None  # What was acknowledged stays: who does not have it is a new leader, or a replica, that lags.
        if last is None:
            raise Fenced("Its log is gone.", run_id=self.address.run_id) from refused
        found = last.headers.get(WRITER, "?")
        raise Fenced(run_id=self.address.run_id, expected=self.last_seq, found=found) from refused
