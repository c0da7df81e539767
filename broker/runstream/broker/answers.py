"""Several answers to one request: where they arrive, and in which order."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, TypeAlias

from runstream.broker.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from runstream.broker.connection import Connection
    from runstream.broker.receiving import Heard

__all__ = ["Answers", "Inbox", "answered", "into"]

Answers: TypeAlias = "asyncio.Queue[Heard | None]"
"""None: what comes may not be all any more."""


class Inbox:
    """Replies of many messages each, told apart by the last token of one wildcard subscription."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._prefix = ""
        self._opening = asyncio.Lock()
        self._close: Callable[[], Awaitable[None]] | None = None
        self._unlisten: Callable[[], None] | None = None
        self._queues: dict[str, Answers] = {}
        self._count = 0

    @contextlib.asynccontextmanager
    async def answers(self) -> AsyncIterator[tuple[str, Answers]]:
        """Give a reply subject and the queue its messages arrive in, None if they are lost; late ones are dropped."""
        async with self._opening:
            if self._close is None:
                self._prefix = self._connection.new_inbox()
                subscription = await self._connection.listen(f"{self._prefix}.*", self._on_messages)
                self._close = subscription.close
                self._unlisten = self._connection.on_loss(self._on_loss)
        self._count += 1
        token = str(self._count)
        # Unbounded, but never longer than the batch that its owner asked for.
        queue: Answers = asyncio.Queue()
        self._queues[token] = queue
        try:
            yield f"{self._prefix}.{token}", queue
        finally:
            del self._queues[token]

    def _on_messages(self, messages: Sequence[Heard]) -> None:
        for message in messages:
            queue = self._queues.get(message.subject.rpartition(".")[2])
            if queue is not None:
                queue.put_nowait(message)

    def _on_loss(self) -> None:
        for queue in self._queues.values():
            queue.put_nowait(None)

    async def close(self) -> None:
        """Give the subscription up."""
        if self._unlisten is not None:
            self._unlisten()
            self._unlisten = None
        if self._close is not None:
            await self._close()
            self._close = None


def answered(message: Heard | None, what: str) -> Heard:
    """Give an answer that was in a queue. Raises `Unavailable` where there is none."""
    if message is None:
        raise Unavailable(f"{what}: messages may have been lost")
    return message


def into(queue: Answers) -> Callable[[Sequence[Heard]], None]:
    """Make what puts messages into a queue as they come."""

    def put(messages: Sequence[Heard]) -> None:
        for message in messages:
            queue.put_nowait(message)

    return put
