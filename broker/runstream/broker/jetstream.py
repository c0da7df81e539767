"""The JetStream calls runstream makes, on raw requests, with their errors translated.

nats-py's own JetStream context is not used on these paths: its `publish_async` never resolves a rejected publish,
its publish does not retry, its ordered consumer can hide a hole, and it knows neither atomic batches nor batched
direct get. What is left is small: a request, a JSON answer, an error table.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from base64 import b64decode
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from runstream.broker.answers import Inbox, answered, into
from runstream.broker.consumer import Consumer
from runstream.broker.errors import (
    Contended,
    NotSent,
    NotStored,
    Refused,
    StoreFull,
    StoreRefused,
    Unavailable,
    WrongLastSequence,
)
from runstream.broker.findings import Findings
from runstream.broker.headers import NO_HEADERS, Headers
from runstream.broker.messages import StoredMessage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from runstream.broker.answers import Answers
    from runstream.broker.connection import Connection
    from runstream.broker.receiving import Heard

__all__ = [
    "EXPECTED_LAST_SEQUENCE",
    "BatchWrite",
    "JetStream",
]

EXPECTED_LAST_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
"""Compare-and-set: the write is refused unless the subject's last message has this sequence (0: none)."""

DIRECT_GET_BATCH = 256
DIRECT_GET_BYTES = 256 * 1024
"""The server holds a lock of the stream during a batch: larger ones make writers wait tens of milliseconds."""

BATCHES_AT_A_TIME = 8
"""Atomic batches over one connection that are on their way. A server stages each in files of its own, one after the
other, in 2 to 3.5 ms, or in thirty when it wants for a core. Of more than it gets done in the time of a request all are
asked for again, and none comes through ever again. It takes 50 unfinished ones on a stream, of several processes."""

CONSUMER_IDLE_SECONDS = 10.0
"""A consumer whose deletion was lost is removed by the server after this long without a pull."""

LAST_MESSAGES_PAGE = 1000
"""Headers that wait in memory for their reader, a few hundred bytes each."""

FULL = frozenset({10002, 10023, 10028, 10047, 10077})
"""The account's limit, insufficient resources, memory or storage exceeded, maximum messages or bytes of the stream or
the subject."""
WRONG_LAST = frozenset({10071})
ABSENT = frozenset({10014, 10037, 10059})
"""Consumer, message, stream not found."""
CONTENDED = frozenset({10164})
"""Of a cluster, which checks what a write expects before its majority has stored the one before it."""
TEMPORARY = frozenset({10008, 10009, 10176})
"""No leader yet; a batch arrived incomplete, which is also what the server says, and stores nothing, when too many
batches (50 on a stream) are in flight."""
TEMPORARY_STATUS = frozenset({408, 429, 503})


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct):
    """What a stream answers to a publish."""

    seq: int = 0
    error: _Error | None = None


class _Got(msgspec.Struct):
    subject: str
    seq: int
    time: datetime
    hdrs: str = ""
    data: str = ""


class _GotAnswer(msgspec.Struct):
    message: _Got | None = None
    error: _Error | None = None


class BatchWrite(msgspec.Struct, frozen=True):
    """One message of an atomic batch."""

    subject: str
    body: bytes
    headers: dict[str, str]


class JetStream:
    """JetStream over one connection. Every call raises `Unavailable` when NATS does not answer in time.

    `Unavailable` from a write leaves its outcome unknown; the caller settles it.
    """

    def __init__(self, connection: Connection, *, timeout_seconds: float, findings: Findings | None = None) -> None:
        self.connection = connection
        self.findings = findings or Findings()
        """Where whoever reads tells of what is not as runstream writes it."""
        self._seconds = timeout_seconds
        self._inbox = Inbox(connection)
        self._batch_turns = asyncio.Semaphore(BATCHES_AT_A_TIME)
        self.times_full = 0
        """Writes that were refused because a limit was reached."""

    # -- writing ------------------------------------------------------------------------------------------------

    async def publish(self, subject: str, body: bytes, headers: Mapping[str, str]) -> int:
        """Store one message; returns its sequence.

        Raises `WrongLastSequence`, `StoreFull`, or `StoreRefused` for any other refusal.
        """
        answer = await self.connection.request(subject, body, headers=headers, seconds=self._seconds)
        return self._acknowledged(answer.data)

    async def publish_batch(self, writes: Sequence[BatchWrite], batch_id: str) -> int:
        """Store all of `writes` or none, in order, next to each other; returns the last one's sequence.

        All but the last go out unacknowledged: whether they arrived is what the commit's answer says. Raises as
        `publish`, and `NotSent` when too many others are on their way.
        """
        headers = [
            {**write.headers, "Nats-Batch-Id": batch_id, "Nats-Batch-Sequence": str(number)}
            for number, write in enumerate(writes, start=1)
        ]
        headers[-1]["Nats-Batch-Commit"] = "1"
        until = time.monotonic() + self._seconds
        async with self._batch_turn():
            for write, marked in zip(writes[:-1], headers, strict=False):
                await self.connection.publish(write.subject, write.body, headers=marked)
            commit, left = writes[-1], until - time.monotonic()
            answer = await self.connection.request(commit.subject, commit.body, headers=headers[-1], seconds=left)
        return self._acknowledged(answer.data)

    @contextlib.asynccontextmanager
    async def _batch_turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and no longer than leaves the batch half the time of a request to be answered in."""
        try:
            async with asyncio.timeout(self._seconds / 2):
                await self._batch_turns.acquire()
        except TimeoutError as error:
            raise NotSent("As many writes of several messages as may be wait for their answers.") from error
        try:
            yield
        finally:
            self._batch_turns.release()

    def _acknowledged(self, data: bytes) -> int:
        try:
            return _acknowledged(data)
        except StoreFull:
            self.times_full += 1
            raise

    # -- reading from the leader --------------------------------------------------------------------------------

    async def last_message(self, stream: str, subject: str) -> StoredMessage | None:
        """Return the newest message of `subject` as the stream's leader has it, None if there is none."""
        return await self._message(stream, {"last_by_subj": subject})

    async def message_at(self, stream: str, seq: int) -> StoredMessage | None:
        """Return the message with sequence `seq` as the leader has it, None if it is not there."""
        return await self._message(stream, {"seq": seq})

    async def first_message(self, stream: str, subject: str, *, seq: int = 0) -> StoredMessage | None:
        """Return the oldest message of `subject` at or after `seq` as the leader has it."""
        return await self._message(stream, {"seq": max(seq, 1), "next_by_subj": subject})

    async def _message(self, stream: str, query: dict[str, object]) -> StoredMessage | None:
        subject = f"$JS.API.STREAM.MSG.GET.{stream}"
        answer = await self.connection.request(subject, msgspec.json.encode(query), seconds=self._seconds)
        got = msgspec.json.decode(answer.data, type=_GotAnswer)
        if got.error is not None:
            error = _translated(got.error, stream=stream)
            if isinstance(error, NotStored) and error.code == 10037:  # noqa: PLR2004  # no message found
                return None
            raise error
        if got.message is None:
            return None
        found = got.message
        return StoredMessage(
            found.subject,
            found.seq,
            b64decode(found.data),
            Headers(b64decode(found.hdrs)),
            stored_at_ns=int(found.time.timestamp() * 1e6) * 1000,
        )

    # -- reading from any replica -------------------------------------------------------------------------------

    async def direct_batch(
        self, stream: str, subject: str, *, after: int, limit: int = DIRECT_GET_BATCH
    ) -> list[StoredMessage]:
        """Return the next messages of `subject` after sequence `after`, oldest first, at most `limit` of them.

        A replica answers, and may lag behind the leader: the list is a gap-free prefix of what follows, never more.
        Empty when that replica has nothing newer.
        """
        query = {
            "seq": after + 1,
            "batch": min(limit, DIRECT_GET_BATCH),
            "max_bytes": DIRECT_GET_BYTES,
            "next_by_subj": subject,
        }
        return await self._direct(stream, query)

    async def message_before(self, stream: str, subject: str, seq: int) -> StoredMessage | None:
        """Return the newest message of `subject` before sequence `seq`, None if that replica has none."""
        found = await self._direct(stream, {"multi_last": [subject], "up_to_seq": seq - 1})
        return found[0] if found else None

    async def _direct(self, stream: str, query: Mapping[str, object]) -> list[StoredMessage]:
        async with self._inbox.answers() as (reply, queue):
            request = f"$JS.API.DIRECT.GET.{stream}"
            await self.connection.publish(request, msgspec.json.encode(query), reply=reply)
            return await self._collect_direct(request, queue)

    async def _collect_direct(self, request: str, queue: Answers) -> list[StoredMessage]:
        found: list[StoredMessage] = []
        previous = 0
        while True:
            message = await self.next_answer(queue, request)
            headers = message.headers or NO_HEADERS
            subject = headers.get("Nats-Subject")
            if subject is None:  # The server's own word: to a message it adds where that is stored.
                if headers.status not in {"204", "404"}:
                    raise Unavailable(f"{request}: status {headers.status} {headers.description}")
                # It names the last one it sent: an answer lost on the way is an outage, not an end.
                if int(headers.get("Nats-Last-Sequence", previous)) != previous:
                    raise Unavailable(f"{request}: an answer was lost")
                return found
            # The first answer's previous sequence is that of nothing (0); from then on each names the one before.
            if int(headers["Nats-Last-Sequence"]) != previous:
                raise Unavailable(f"{request}: an answer was lost")
            previous = int(headers["Nats-Sequence"])
            pending = int(headers.get("Nats-Num-Pending", 0))
            found.append(StoredMessage(subject, previous, message.data, headers, pending))

    async def next_answer(self, queue: Answers, what: str, *, seconds: float | None = None) -> Heard:
        """Take the next of several answers to one request; `what` names the request in the error."""
        if not queue.empty():
            # Most of a batch is there at once; waiting for what is costs as much as it.
            return answered(queue.get_nowait(), what)
        try:
            # Not `wait_for`: in Python 3.11 it forgets a cancellation that comes together with what it waits for.
            async with asyncio.timeout(seconds or self._seconds):
                return answered(await queue.get(), what)
        except TimeoutError as error:
            if self.connection.refuses(what):
                raise Refused(f"{what}.") from error
            raise Unavailable(f"{what}: no answer within {seconds or self._seconds} s") from error

    # -- consumers ----------------------------------------------------------------------------------------------

    async def consume(
        self, stream: str, subject: str, *, after: int, limit: int, max_bytes: int
    ) -> list[StoredMessage]:
        """Return what follows sequence `after`, oldest first, at most `limit` messages and about `max_bytes`.

        Through an ephemeral ordered consumer that lives for this call only: one that outlived it would be held by
        a slow reader. Its own sequence must be contiguous, else `Unavailable`. May be empty when the next message
        alone is larger than `max_bytes`.
        """
        start = {"deliver_policy": "by_start_sequence", "opt_start_seq": after + 1}
        async with self.consumer(stream, [subject], start) as consumer:
            return await consumer.pull(limit, max_bytes=max_bytes)

    async def last_messages(self, stream: str, pattern: str) -> list[StoredMessage]:
        """Return the newest message of every subject that `pattern` matches, without bodies, in order of sequence.

        As one replica has them, which may lag behind the leader.
        """
        start = {"deliver_policy": "last_per_subject", "headers_only": True}
        found: list[StoredMessage] = []
        async with self.consumer(stream, [pattern], start) as consumer:
            while page := await consumer.pull(LAST_MESSAGES_PAGE):
                found += page
        return found

    @contextlib.asynccontextmanager
    async def consumer(
        self, stream: str, subjects: Sequence[str], start: Mapping[str, object]
    ) -> AsyncIterator[Consumer]:
        """Make an ephemeral consumer of all that is stored under `subjects`; it is deleted when the block ends."""
        # Named here: a consumer that the server names could not be deleted by whoever is cancelled before it hears.
        name = secrets.token_hex(8)
        one = len(subjects) == 1
        config = {
            **start,
            "name": name,
            "ack_policy": "none",
            **({"filter_subject": subjects[0]} if one else {"filter_subjects": list(subjects)}),
            "inactive_threshold": int(CONSUMER_IDLE_SECONDS * 1e9),
            "mem_storage": True,
            "num_replicas": 1,
        }
        # A pulled message keeps its own subject, so a shared wildcard inbox could not tell whose it is.
        inbox = self.connection.new_inbox()
        queue: Answers = asyncio.Queue()
        subscription = await self.connection.listen(inbox, into(queue))
        unlisten = self.connection.on_loss(partial(queue.put_nowait, None))
        try:
            create = f"CONSUMER.CREATE.{stream}.{name}" + (f".{subjects[0]}" if one else "")
            created = await self.api(create, {"stream_name": stream, "config": config})
            request = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}"
            yield Consumer(self, request, inbox, queue, int(created["num_pending"]))
        finally:
            unlisten()
            await subscription.close()
            with contextlib.suppress(Unavailable):
                # Nobody waits for the answer: lost, the consumer's idle threshold removes it.
                await self.connection.publish(f"$JS.API.CONSUMER.DELETE.{stream}.{name}", b"")

    # -- removing -----------------------------------------------------------------------------------------------

    async def purge(self, stream: str, subject: str, *, through: int) -> int:
        """Remove the messages of `subject` up to sequence `through`; what was stored later stays. Returns how many."""
        answer = await self.api(f"STREAM.PURGE.{stream}", {"filter": subject, "seq": through + 1})
        return int(answer["purged"])

    # -- administration -----------------------------------------------------------------------------------------

    async def api(
        self, call: str, body: Mapping[str, object] | None, *, seconds: float | None = None
    ) -> dict[str, Any]:
        """Call `$JS.API.<call>`; returns the answer as it is, or raises what its error means.

        `seconds` stands in for the time-out where the server is known to take longer.
        """
        data = b"" if body is None else msgspec.json.encode(body)
        answer = await self.connection.request(f"$JS.API.{call}", data, seconds=seconds or self._seconds)
        decoded: dict[str, Any] = msgspec.json.decode(answer.data)
        if "error" in decoded:
            raise _translated(msgspec.convert(decoded["error"], _Error), call=call)
        return decoded

    async def close(self) -> None:
        """Give the reply inbox up."""
        await self._inbox.close()


def _acknowledged(data: bytes) -> int:
    ack = msgspec.json.decode(data, type=_Ack)
    if ack.error is not None:
        raise _translated(ack.error)
    return ack.seq


def _translated(error: _Error, **facts: object) -> Exception:
    code = error.err_code
    if code in WRONG_LAST:
        return WrongLastSequence(error.description, code=code, **facts)
    if code in FULL:
        return StoreFull(error.description, code=code, **facts)
    if code in ABSENT:
        return NotStored(error.description, code=code, **facts)
    if code in CONTENDED:
        return Contended(error.description, err_code=code, **facts)
    if code in TEMPORARY or error.code in TEMPORARY_STATUS:
        return Unavailable(error.description, err_code=code, **facts)
    return StoreRefused(error.description, code=code, **facts)
