"""Credentials that were revoked: an entry for each, in a bucket of its own that every gateway and broker watches.

Nothing there is undone: what stands under a key revokes it, whatever it is, and the server deletes and purges nothing.
No log tells of it, so it is not in the index, which may be lost and made again. If the bucket itself is, whoever has
heard of an entry goes on refusing it, and a broker writes it again.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Self

import msgspec

from runstream.broker.errors import BrokerError, Unavailable, WrongLastSequence
from runstream.broker.feed import Feed
from runstream.broker.jetstream import EXPECTED_LAST_SEQUENCE
from runstream.broker.keys import REVOKED, digest, subject_of
from runstream.broker.logs import get_logger
from runstream.broker.tasks import end_task

if TYPE_CHECKING:
    from runstream.broker.feed import KeyWrite
    from runstream.broker.jetstream import JetStream

__all__ = ["Revocations", "revoke"]

log = get_logger(__name__)

MARKS_SECONDS = 3600.0
"""An entry is never deleted, so that no mark of one is ever missed."""

PATIENCE_SECONDS = 1.0
"""How long somebody waits who asks a process that has just started: mostly it takes milliseconds."""
LOOK_SECONDS = 0.02
KEEPING_SECONDS = 0.25
"""How often it is looked whether the bucket still has what was heard of."""
AGAIN_SECONDS = 2.0
"""How long it takes until what could not be written again is tried again."""


class Revocations:
    """What was revoked, in memory. Use as an async context manager; NATS being away only delays what is new.

    What was heard once counts for as long as this process lives, whatever becomes of the bucket; with `restores` it
    writes it again.
    """

    def __init__(self, jetstream: JetStream, *, restores: bool) -> None:
        self.changes = 0
        self._jetstream = jetstream
        self._restores = restores
        self._revoked: dict[str, bytes] = {}
        self._stored: set[str] = set()
        """Of these, what the bucket has that is there now."""
        self._was_loaded = False
        self._feed = Feed(
            jetstream, ["*"], apply=self._apply, reset=self._stored.clear, marks_seconds=MARKS_SECONDS, bucket=REVOKED
        )
        self._keeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._feed.__aenter__()
        self._keeping = asyncio.create_task(self._keep(), name="revocations")
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._keeping is not None:
            await end_task(self._keeping)
        await self._feed.__aexit__(*error)

    async def known(self) -> None:
        """Wait until what was revoked before this process began is read. Raises `Unavailable` if it takes too long."""
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while not self._was_loaded:
            self._was_loaded = self._feed.is_loaded
            if self._was_loaded:
                return
            if time.monotonic() > give_up_at:
                raise Unavailable("What was revoked is not read yet.")
            await asyncio.sleep(LOOK_SECONDS)

    def has(self, key_id: str) -> bool:
        """Whether a key or a token was revoked."""
        return digest(key_id) in self._revoked

    def _apply(self, write: KeyWrite) -> None:
        # The mark of a deleted key, too: whoever may write could put one there, and would let somebody in again.
        self._revoked[write.key] = write.value or self._revoked.get(write.key, b"")
        self._stored.add(write.key)
        self.changes += 1

    async def _keep(self) -> None:
        told_of = 0
        while True:
            await asyncio.sleep(KEEPING_SECONDS)
            if not self._feed.is_loaded or len(self._stored) == len(self._revoked):
                continue
            lost = [key for key in self._revoked if key not in self._stored]
            if told_of != self._feed.resets:
                told_of = self._feed.resets
                log.error("revocations_lost", count=len(lost), are_restored=self._restores)
            if self._restores:
                await self._restore(lost)

    async def _restore(self, lost: list[str]) -> None:
        try:
            for key in lost:
                await _put(self._jetstream, key, self._revoked[key])
                self._stored.add(key)
        except BrokerError as error:
            log.error("revocations_not_restored", error=str(error))  # noqa: TRY400  # No defect.
            await asyncio.sleep(AGAIN_SECONDS)
        except Exception:
            # A defect: it is tried again all the same, as nobody else would write them.
            log.exception("revocations_crashed")
            await asyncio.sleep(AGAIN_SECONDS)
        else:
            log.warning("revocations_restored", count=len(lost))


async def revoke(jetstream: JetStream, key_id: str) -> None:
    """Have a key or a token admitted no more, by its id. Raises `Unavailable`, `NotStored`."""
    await _put(jetstream, digest(key_id), msgspec.json.encode({"v": 1, "key_id": key_id}))


async def _put(jetstream: JetStream, key: str, value: bytes) -> None:
    try:
        await jetstream.publish(subject_of(key, REVOKED), value, {EXPECTED_LAST_SEQUENCE: "0"})
    except WrongLastSequence:
        return  # It is there.
