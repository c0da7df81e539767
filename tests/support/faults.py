"""Faults that a real server cannot be made to have at a chosen moment: lost requests, lost answers, defects."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runstream.broker.errors import Unavailable
from runstream.broker.jetstream import BatchWrite, JetStream


class FaultyJetStream(JetStream):
    """JetStream on a real connection; `before` and `after` are called around each write, and may raise.

    `writes` counts the attempts. What `after` raises hides the answer of a write that was carried out.
    """

    def __init__(
        self,
        jetstream: JetStream,
        *,
        timeout_seconds: float = 2.0,
        before: Callable[[], None] = lambda: None,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(jetstream.connection, timeout_seconds=timeout_seconds)
        self.writes = 0
        self._before = before
        self._after = after

    async def publish(self, subject: str, body: bytes, headers: Mapping[str, str]) -> int:
        self._attempt()
        seq = await super().publish(subject, body, headers)
        self._after()
        return seq

    async def publish_batch(self, writes: Sequence[BatchWrite], batch_id: str) -> int:
        self._attempt()
        seq = await super().publish_batch(writes, batch_id)
        self._after()
        return seq

    def _attempt(self) -> None:
        self.writes += 1
        self._before()


def lost(*, every: int = 2) -> Callable[[], None]:
    """A `before` or `after` that loses the first of each `every` messages."""
    calls = 0

    def lose() -> None:
        nonlocal calls
        calls += 1
        if calls % every == 1:
            raise Unavailable("lost on the way, by a test")

    return lose


async def turns(count: int = 5) -> None:
    """Let every other task of the loop run, some times over: what needs no network has then happened."""
    for _ in range(count):
        await asyncio.sleep(0)


def replaced(instance: Any, name: str, value: object) -> None:
    """Put a method in the place of another, of one instance only."""
    setattr(instance, name, value)
