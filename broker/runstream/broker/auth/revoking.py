"""Credentials that were revoked: an entry of the index for each, which every gateway and broker watches."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Self

import msgspec

from runstream.broker.bucket import Bucket, Put
from runstream.broker.errors import Unavailable
from runstream.broker.feed import Feed
from runstream.broker.keys import digest, revoked_key

if TYPE_CHECKING:
    from runstream.broker.feed import KeyWrite
    from runstream.broker.jetstream import JetStream

__all__ = ["Revocations", "revoke"]

MARKS_SECONDS = 3600.0
"""An entry is never deleted, so that no mark of one is ever missed."""

PATIENCE_SECONDS = 1.0
"""How long somebody waits who asks a process that has just started: mostly it takes milliseconds."""
LOOK_SECONDS = 0.02


class Revocations:
    """What was revoked, in memory. Use as an async context manager; NATS being away only delays what is new.

    What was heard once counts for as long as this process lives, whatever becomes of the index.
    """

    def __init__(self, jetstream: JetStream) -> None:
        self.changes = 0
        self._revoked: set[str] = set()
        self._was_loaded = False
        self._feed = Feed(
            jetstream, [revoked_key("*")], apply=self._apply, reset=lambda: None, marks_seconds=MARKS_SECONDS
        )

    async def __aenter__(self) -> Self:
        await self._feed.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
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
        return revoked_key(digest(key_id)) in self._revoked

    def _apply(self, write: KeyWrite) -> None:
        if write.value is not None:
            self._revoked.add(write.key)
            self.changes += 1


async def revoke(jetstream: JetStream, key_id: str) -> None:
    """Have a key or a token admitted no more, by its id. Raises `Unavailable`, `NotStored`."""
    value = msgspec.json.encode({"v": 1, "key_id": key_id})
    await Bucket(jetstream).write([Put(revoked_key(digest(key_id)), value)])
