"""An ephemeral consumer: what is stored, page by page or for as long as it comes, with nothing left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from runstream.broker.errors import Unavailable
from runstream.broker.headers import NO_HEADERS
from runstream.broker.messages import StoredMessage, delivery_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from runstream.broker.answers import Answers
    from runstream.broker.headers import Headers
    from runstream.broker.jetstream import JetStream
    from runstream.broker.receiving import Heard

__all__ = ["Consumer", "Heartbeat"]

FOLLOWED_MESSAGES = 100
"""Messages that are asked for at a time by who follows a consumer for ever: handled in a millisecond or two, and before
the next ones come others have their turn in the event loop."""
FOLLOW_SECONDS = 30.0
HEARTBEAT_SECONDS = 1.0
HEARTBEATS_MISSED = 3
"""After so many a consumer that says nothing is taken for gone."""

PULL_COMPLETED = "Batch Completed"
"""What follows the last message of a pull that has a limit in bytes."""
BYTES_COMPLETED = frozenset({PULL_COMPLETED, "Message Size Exceeds MaxBytes"})
"""What a pull ends with that has as many bytes as were asked for. The same status has a server that stops, and a
consumer that is gone or led by another: what they did not deliver is there all the same."""


class Heartbeat(msgspec.Struct, frozen=True):
    """A sign of life of a consumer that has nothing to deliver, up to this sequence of its stream."""

    seq: int


class Consumer:
    """An ephemeral consumer on the server, pulled page by page; none of its messages may be missing."""

    def __init__(self, jetstream: JetStream, request: str, inbox: str, queue: Answers, pending: int) -> None:
        self.pending = pending
        """Messages that were there when it was made, and have not been delivered."""
        self._jetstream = jetstream
        self._request = request
        self._inbox = inbox
        self._queue = queue
        self._pulled = 0

    async def pull(self, limit: int, *, max_bytes: int | None = None) -> list[StoredMessage]:
        """Return the next messages of those that were there when the consumer was made; none when it had all."""
        expected = min(limit, self.pending)
        if expected:
            await self._ask({"batch": expected, "no_wait": True}, max_bytes)
        found: list[StoredMessage] = []
        while len(found) < expected:
            message = await self._jetstream.next_answer(self._queue, self._request)
            if self._is_delivered(message):
                found.append(self._delivered(message))
                continue
            headers = message.headers or NO_HEADERS
            if headers.status == "404":  # Nothing more: some of them have been removed.
                self.pending = len(found)
            elif headers.description not in BYTES_COMPLETED:
                raise self._odd(headers)
            break
        self.pending -= len(found)
        return found

    async def follow(self) -> AsyncGenerator[StoredMessage | Heartbeat]:
        """Yield what is there and what will be, with a heartbeat in each second of silence. Close it (`aclosing`).

        Raises `Unavailable` when a message may have been lost, or the consumer is gone. Who knows before calls `lose`.
        """
        seconds = HEARTBEAT_SECONDS * HEARTBEATS_MISSED
        while True:
            left = FOLLOWED_MESSAGES
            query = {
                "batch": left,
                "expires": int(FOLLOW_SECONDS * 1e9),
                "idle_heartbeat": int(HEARTBEAT_SECONDS * 1e9),
            }
            # One message must fit: a pull that it does not fit into ends with nothing.
            await self._ask(query, 2 * self._jetstream.connection.max_payload)
            while left:
                message = await self._jetstream.next_answer(self._queue, self._request, seconds=seconds)
                headers = message.headers or NO_HEADERS
                if self._is_delivered(message):
                    left -= 1
                    yield self._delivered(message)
                elif headers.status == "100" and int(headers.get("Nats-Last-Consumer", -1)) == self._pulled:
                    yield Heartbeat(int(headers["Nats-Last-Stream"]))
                elif headers.description == PULL_COMPLETED:
                    pass  # The one before, all of which has come.
                elif int(headers.get("Nats-Pending-Messages", -1)) == left:
                    break  # The pull is over, by its time or its bytes, and says how many of its messages were to come.
                else:
                    raise self._odd(headers)

    def lose(self) -> None:
        """Have whoever follows fail, as messages may have been lost."""
        self._queue.put_nowait(None)

    async def _ask(self, query: Mapping[str, object], max_bytes: int | None) -> None:
        body = {**query} if max_bytes is None else {**query, "max_bytes": max_bytes}
        await self._jetstream.connection.publish(self._request, msgspec.json.encode(body), reply=self._inbox)

    def _is_delivered(self, message: Heard) -> bool:
        """Whether it is a message of the stream, which keeps its subject: what the server says comes to the inbox."""
        return message.subject != self._inbox

    def _delivered(self, message: Heard) -> StoredMessage:
        delivery = delivery_of(message.reply)
        self._pulled += 1
        if delivery.consumer_seq != self._pulled:
            raise Unavailable(f"{self._request}: a message was lost on the way")
        return StoredMessage(
            message.subject,
            delivery.stream_seq,
            message.data,
            message.headers or NO_HEADERS,
            delivery.pending,
            delivery.stored_at_ns,
        )

    def _odd(self, headers: Headers) -> Unavailable:
        return Unavailable(f"{self._request}: status {headers.status} {headers.description}")
