"""Whether a run that is started now would be executed: what the brokers say, remembered over a restart of theirs."""

from __future__ import annotations

import asyncio
import math
import time
from contextvars import Context
from typing import TYPE_CHECKING

from runstream.broker.errors import Unavailable
from runstream.broker.presence import Presence, anybody_there

if TYPE_CHECKING:
    from runstream.broker.connection import Connection

__all__ = ["AgentPresence"]

FRESH_SECONDS = 1.0
"""How long an answer is good for: a burst of requests asks once."""
NOBODY_SECONDS = 0.2
"""How long it is good for that nobody answered: less, as whoever started a broker wants to use it."""
ANSWER_SECONDS = 1.0
"""How long a broker may take to answer; it takes a fraction of a millisecond."""
KNOWN_SECONDS = 0.25
"""How long it may take if there was one a moment ago: who is taken to be there in any case is not waited for."""


class AgentPresence:
    """Knows whether there is a broker with an agent. One that was there a moment ago counts: it is being restarted.

    Of one that it has never heard of, a gateway that has just started included, it cannot say that it will be back.
    """

    def __init__(self, connection: Connection, *, grace_seconds: float) -> None:
        self._connection = connection
        self._grace_seconds = grace_seconds
        self._last: Presence | None = None
        self._heard_at = -math.inf
        self._good_until = -math.inf
        self._asking: asyncio.Task[None] | None = None

    async def find(self) -> Presence | None:
        """Return what a broker says of its agent; None when for the whole grace there was none.

        Raises `Unavailable` when NATS is away, or brokers are there and do not answer.
        """
        if time.monotonic() >= self._good_until:
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask(), name="agent-presence", context=Context())
            await asyncio.shield(self._asking)  # All who wait share one question: none of them may end it.
        return self._last

    async def _ask(self) -> None:
        found = None
        try:
            seconds = KNOWN_SECONDS if self._was_there_within_grace() else ANSWER_SECONDS
            found = await anybody_there(self._connection, seconds=seconds)
        except Unavailable:
            if not self._was_there_within_grace():
                raise
        now = time.monotonic()
        if found is not None:
            self._last, self._heard_at = found, now
        elif not self._was_there_within_grace():
            self._last = None
        self._good_until = now + (NOBODY_SECONDS if found is None else FRESH_SECONDS)

    def _was_there_within_grace(self) -> bool:
        return time.monotonic() - self._heard_at <= self._grace_seconds
