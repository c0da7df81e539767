"""A feed of a bucket: what is written to some of its keys, in the order in which it is written, and nothing left out.

The invariant: *whatever was stored under these keys at or before `position`, and was not written again or removed
since, has been applied, and so has every delete.* It rests on one consumer over all the keys, whose own sequence has no
gap as long as nothing is lost. What the server republishes would not do, as it tells of each key's own sequence alone.
Whatever is odd about the consumer (a gap, a reconnect, heartbeats that do not come, that it is gone or has another
leader) ends it, and another one begins after `position`.

Of a key that is purged no consumer hears. Who removes one of these leaves the mark of a deleted key, which is removed
only a retention later; a feed that was out for longer, and one whose bucket is another or has lost what it had, begins
anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Self

import msgspec

from runstream.broker.consumer import Heartbeat
from runstream.broker.errors import BrokerError, Unavailable
from runstream.broker.keys import BUCKET, KV_OPERATION, key_of, subject_of
from runstream.broker.logs import get_logger, without_names
from runstream.broker.tasks import end_task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from runstream.broker.jetstream import JetStream
    from runstream.broker.messages import StoredMessage

__all__ = ["Feed", "KeyWrite"]

log = get_logger(__name__)

FIRST_DELAY_SECONDS = 0.1
LONGEST_DELAY_SECONDS = 2.0
TRUSTED_SECONDS = 3600.0
"""How long a feed may have been out, at most, and still go on from where it was: far less than retention mostly is."""
LOOKS = 3
"""How often a run's record is written: when the run is made, begins and ends."""


class KeyWrite(msgspec.Struct, frozen=True, gc=False):
    """A key that was written; `value` is None where it was deleted."""

    key: str
    value: bytes | None
    revision: int


class Feed:
    """Applies what is written under `patterns`. Use as an async context manager; NATS being away only delays it.

    `reset` is called before the first write of all, and whenever everything is going to be applied again.
    `marks_seconds` is how long the mark of a deleted key is there for certain. `bucket` is the index, if none is named.
    """

    def __init__(
        self,
        jetstream: JetStream,
        patterns: Sequence[str],
        *,
        apply: Callable[[KeyWrite], None],
        reset: Callable[[], None],
        marks_seconds: float,
        bucket: str = BUCKET,
    ) -> None:
        self.position = 0
        self.is_loaded = False
        """Whether all that was there when it began, for the first time or anew, has been applied."""
        self.watches = 0
        """Consumers made so far: each but the first mends a loss."""
        self.resets = 0
        self._jetstream = jetstream
        self._bucket = bucket
        self._stream = f"KV_{bucket}"
        self._subjects = [subject_of(pattern, bucket) for pattern in patterns]
        self._apply = apply
        self._reset = reset
        self._trusted_seconds = min(TRUSTED_SECONDS, marks_seconds / 2)
        self._created: str | None = None
        self._heard_at = time.time()
        self._moved = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._keep_watching(), name="index-feed")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watching is not None:
            await end_task(self._watching)

    @property
    def silent_seconds(self) -> float:
        """How long ago the server was heard of last: it says something every second."""
        # Not the monotonic clock: a machine that slept has missed what others did meanwhile.
        return max(0.0, time.time() - self._heard_at)

    async def caught_up(self, pattern: str) -> None:
        """Wait until all has been applied that was stored under `pattern` when this was called, however long that is.

        A key that is written again before its write is applied has moved behind all that a look waits for, so one look
        may miss it, and the next one only if it is written yet again. A run's record is written `LOOKS` times in its
        life, the first of them before this was called. What is written more often, as a conversation's is, could only
        be missed by being written in every one of the looks. Raises `Unavailable`, `NotStored`.
        """
        for _ in range(LOOKS):
            if await self._look(pattern):
                return

    async def _look(self, pattern: str) -> bool:
        """Wait for what is stored under `pattern` now; returns whether that is all that was there for certain.

        The leader is asked how much there is: a consumer may be at a replica that lags behind.
        """
        known, resets = self.position, self.resets
        info = await self._jetstream.api(f"STREAM.INFO.{self._stream}", None)
        newest = int(info["state"]["last_seq"])
        if not self._goes_on(info):
            self.is_loaded = False  # The consumer of what was there is gone, or will say that it is somewhere else.
        if not self.is_loaded:
            known = 0
        while not self.is_loaded:
            await self._moved.wait()
        while self.resets == resets and self.position < newest:
            # To ask for the newest message of a pattern is one question less, and keeps the server busy for 45 ms if
            # there are 100,000 keys: it looks at each of them. The next one it finds at once.
            following = await self._jetstream.first_message(
                self._stream, subject_of(pattern, self._bucket), seq=self.position + 1
            )
            if self.resets != resets:
                break
            if following is None:
                return True
            if following.seq > newest:
                return False
            while self.resets == resets and self.position < following.seq:
                await self._moved.wait()
        if self.resets != resets:
            # Begun anew: what was looked for is of before, and what a replica that lags has loaded is not all yet.
            return await self._look(pattern)
        return known >= newest

    def _goes_on(self, info: Mapping[str, Any]) -> bool:
        """Whether the bucket is the one that was applied so far, and has lost nothing of that."""
        return info["created"] == self._created and int(info["state"]["last_seq"]) >= self.position

    async def _keep_watching(self) -> None:
        delay, told = FIRST_DELAY_SECONDS, ""
        while True:
            before = self.watches
            try:
                await self._jetstream.connection.connected()  # Before that there is nothing to lose.
                await self._watch()
            except BrokerError as error:
                # What lasts says the same at every attempt.
                previous, told = told, without_names(str(error))
                if told != previous or self.watches > before:
                    log.warning("index_feed_lost", stream=self._stream, position=self.position, error=str(error))
            except Exception:
                # A defect: what was applied by halves is not to be trusted.
                log.exception("index_feed_crashed", stream=self._stream, position=self.position)
                self._created = None
            delay = FIRST_DELAY_SECONDS if self.watches > before else min(2 * delay, LONGEST_DELAY_SECONDS)
            await asyncio.sleep(delay)

    async def _watch(self) -> None:
        """Apply what follows `position`, until something may have been lost: then it raises `Unavailable`."""
        info = await self._jetstream.api(f"STREAM.INFO.{self._stream}", None)
        if not self._goes_on(info) or self.silent_seconds > self._trusted_seconds:
            self._begin_anew(info["created"])
        start = {"deliver_policy": "by_start_sequence", "opt_start_seq": self.position + 1}
        async with contextlib.AsyncExitStack() as stack:
            consumer = await stack.enter_async_context(self._jetstream.consumer(self._stream, self._subjects, start))
            stack.callback(self._jetstream.connection.on_reconnect(consumer.lose))
            self.watches += 1
            if not consumer.pending:
                self._have_all(self.position)
            async for heard in await stack.enter_async_context(contextlib.aclosing(consumer.follow())):
                self._hear(heard)

    def _begin_anew(self, created: str) -> None:
        if self.resets:
            log.warning(
                "index_feed_begins_anew",
                stream=self._stream,
                position=self.position,
                silent_seconds=round(self.silent_seconds, 1),
            )
        self.resets += 1
        self.is_loaded = False
        self.position = 0
        self._created = created
        self._reset()

    def _hear(self, heard: StoredMessage | Heartbeat) -> None:
        self._heard_at = time.time()
        if isinstance(heard, Heartbeat):
            if heard.seq < self.position:
                raise Unavailable("The bucket is not what it was.", seq=heard.seq, position=self.position)
            # What is not ours has moved on: who asks whether this is all need not have it looked through again.
            self._have_all(heard.seq)
            return
        value = None if KV_OPERATION in heard.headers else heard.body
        self._apply(KeyWrite(key_of(heard.subject, self._bucket), value, heard.seq))
        if heard.pending == 0:
            self._have_all(heard.seq)
        else:
            self._move(heard.seq)

    def _have_all(self, position: int) -> None:
        self.is_loaded = True
        self._move(position)

    def _move(self, position: int) -> None:
        """Note how far it has come, and wake those who wait for that: each looks whether it is far enough."""
        self.position = position
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
