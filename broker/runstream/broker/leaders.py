"""Whether those who answer for the streams still lead them: what is refused for good must not rest on what is over.

A leader that is cut off from the others goes on answering reads for ten seconds and more, as if nothing had been stored
since (measured with nats-server 2.15.1). Writes are safe, as they need a majority, and what is there is there. But what
it says is *not* there may be, and whoever is told 404 or 409 does not come back.

The invariant: *what is read right after a confirmation is read from the leader.* A leader that has heard from a
majority within `FRESH_SECONDS` was not replaced by then: its followers elect another only after four seconds without
it. Left out is a follower that votes for a third which does not hear it: the leader is told so in the next heartbeat, a
second later at most. What was read *before* a confirmation need not be so: it may have been read on the other side of a
gap that has closed meanwhile. So what is not found is looked for again (`sure`).

Two connections may have two servers, on either side of a gap: what was read over one is confirmed over the same.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from runstream.broker.errors import BrokerError, Unavailable
from runstream.broker.topology import INDEX_STREAM, streams_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from runstream.broker.jetstream import JetStream
    from runstream.broker.settings import BrokerSettings

__all__ = ["Leaders", "has_majority"]

T = TypeVar("T")

FRESH_SECONDS: Final = 2.0
"""Two heartbeats. With the two below, less than the four seconds after which followers elect another."""
ASKING_SECONDS: Final = 1.0
"""How long an answer may take: a client waits."""
GOOD_FOR_SECONDS: Final = 0.5
"""How long a confirmation is good for: questions after what there is not must not become a load."""


class Leaders:
    """Confirms that the index and the logs are read from their leaders, as one connection has them."""

    def __init__(self, jetstream: JetStream, settings: BrokerSettings) -> None:
        self._jetstream = jetstream
        self._streams = [name for name in streams_of(settings) if name == INDEX_STREAM or name.startswith("RUNS_")]
        self._asking = asyncio.Lock()
        self._asked_at = -GOOD_FOR_SECONDS
        self._doubt: str | None = None

    async def sure(self, look: Callable[[], Awaitable[T]], *absent: type[Exception]) -> T:
        """Look for something, and again before one of the errors is believed that say that it is not there.

        Raises as `look`, and `Unavailable`.
        """
        try:
            return await look()
        except absent:
            await self.confirm()
        return await look()

    async def confirm(self) -> None:
        """Return if what is read now is read from leaders. Raises `Unavailable`."""
        async with self._asking:
            if time.monotonic() - self._asked_at > GOOD_FOR_SECONDS:
                asked_at = time.monotonic()
                self._doubt = await self._ask()
                # A doubt counts from its end: whoever has waited for it need not wait for another.
                self._asked_at = asked_at if self._doubt is None else time.monotonic()
        if self._doubt is not None:
            raise Unavailable(self._doubt)

    async def _ask(self) -> str | None:
        """Say why what is read may not be the leaders'; None: it is."""
        try:
            async with asyncio.timeout(ASKING_SECONDS):
                for stream in self._streams:
                    if not has_majority(await self._jetstream.api(f"STREAM.INFO.{stream}", None)):
                        return f"What leads {stream} has lost the others."
        except (TimeoutError, BrokerError) as error:
            return f"The leaders do not say whether they still are. {error}"
        return None


def has_majority(info: Mapping[str, Any]) -> bool:
    """Tell whether a stream's leader has just heard from most of those who have it; one that is alone has itself."""
    others = (info.get("cluster") or {}).get("replicas") or []
    # 0 is what it says of one that it has never heard from.
    heard = [each for each in others if not each.get("offline") and 0 < each["active"] <= FRESH_SECONDS * 1e9]
    return 2 * (1 + len(heard)) > 1 + len(others)
