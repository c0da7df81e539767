"""Whether a run that is started now would be executed: what the brokers say, remembered over a restart of theirs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from runstream.broker.errors import Unavailable
from runstream.broker.presence import Presence, anybody_there

if TYPE_CHECKING:
    from runstream.broker.connection import Connection

__all__ = ["AgentPresence"]

FRESH_SECONDS = 1.0
"""How long an answer is good for: a burst of requests asks once."""
ANSWER_SECONDS = 1.0
"""How long a broker may take to answer; it takes a fraction of a millisecond."""


class AgentPresence:
    """Knows whether there is a broker with an agent. One that was there a moment ago counts: it is being restarted."""

    def __init__(self, connection: Connection, *, grace_seconds: float) -> None:
        self._connection = connection
        self._grace_seconds = grace_seconds
        self._last: Presence | None = None
        self._heard_at = 0.0

    async def find(self) -> Presence | None:
        """Return what a broker says of its agent; None when for the whole grace there was none.

        Raises `Unavailable` when NATS is away, or brokers are there and do not answer.
        """
        silent = time.monotonic() - self._heard_at
        if self._last is not None and silent < FRESH_SECONDS:
            return self._last
        try:
            found = await anybody_there(self._connection, seconds=ANSWER_SECONDS)
        except Unavailable:
            if self._last is None or silent > self._grace_seconds:
                raise
            return self._last
        if found is not None:
            self._last, self._heard_at = found, time.monotonic()
        elif silent > self._grace_seconds:
            self._last = None
        return self._last
