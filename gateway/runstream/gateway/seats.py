"""Who may have a response that stays open, how long it may, and how all of them leave a gateway that drains.

A response is sent away by being cut, each at a moment of its own: those that one gateway loses together would come to
the others together.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from runstream.broker.common_metrics import Draining
from runstream.gateway.errors import TryLater
from runstream.gateway.sse import Style, retry_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runstream.gateway.follower import Follower
    from runstream.gateway.metrics import GatewayMetrics
    from runstream.gateway.settings import GatewaySettings

__all__ = ["Places", "Seats"]

LEAST_AGE = 0.75
"""The part of the maximum age that each stream reaches: between that and all of it, some moment is drawn for it."""


class Places:
    """So many requests may be here at one time; `full` makes the refusal of any further one."""

    def __init__(self, most: int, full: Callable[[], TryLater]) -> None:
        self.taken = 0
        self._most = most
        self._full = full
        self._emptied = asyncio.Event()

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another."""
        return self.taken >= self._most

    @contextmanager
    def take(self) -> Iterator[None]:
        """Have a place while the block lasts. Raises `TryLater` while all are taken.

        Taken before anything is awaited: counted at its first event, a burst of followers would pass the bound.
        """
        if self.is_full:
            raise self._full()
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1
            if not self.taken:
                self._emptied.set()

    async def emptied(self) -> None:
        """Wait until nobody is here."""
        while self.taken:
            self._emptied.clear()
            await self._emptied.wait()


class Seats(Places):
    """The places of responses that stay open. Sends followers away."""

    def __init__(self, settings: GatewaySettings, metrics: GatewayMetrics, *, drain_seconds: float) -> None:
        super().__init__(
            settings.max_followers, lambda: TryLater("This gateway serves as many streams as it may. Try again.")
        )
        self.draining = Draining(drain_seconds)
        self._settings = settings
        self._metrics = metrics
        self._departures: dict[Follower, asyncio.TimerHandle | None] = {}
        self._empty_at = 0.0

    @property
    def is_draining(self) -> bool:
        """Whether nobody more is taken, and everybody leaves."""
        return self.draining.has_begun

    @contextmanager
    def take(self) -> Iterator[None]:
        """Have a seat while the block lasts. Raises `TryLater` while all are taken, and once the gateway drains."""
        if self.is_draining:
            raise TryLater("This gateway stops. Try again, at another one.")
        with super().take():
            yield

    @contextmanager
    def staying(self, follower: Follower) -> Iterator[None]:
        """Send a follower away that is still there when it has stayed long enough, or the gateway drains."""
        self._departures[follower] = self._departure(follower)
        try:
            yield
        finally:
            self._call_off(follower)
            del self._departures[follower]

    def drain(self, seconds: float) -> None:
        """Take nobody more, and send every follower away within `seconds`; until then it is written to."""
        self.draining.begin()
        self._empty_at = time.monotonic() + seconds
        for follower in self._departures:
            self._call_off(follower)
            self._departures[follower] = self._departure(follower)

    def close(self) -> None:
        """Send everybody away who is still there, at once: left to the server, some would be taken to have it all."""
        for follower in self._departures:
            self._send_away(follower, "stop")

    def _call_off(self, follower: Follower) -> None:
        departure = self._departures[follower]
        if departure is not None:
            departure.cancel()

    def _departure(self, follower: Follower) -> asyncio.TimerHandle | None:
        """Draw when a follower is to leave. One who could not come back has all the time there is."""
        is_resumable = follower.style is not Style.FOREGROUND
        if self.is_draining:
            cause, most = "drain", max(0.0, self._empty_at - time.monotonic())
            least = 0.0 if is_resumable else most
        elif is_resumable:
            cause, most = "age", self._settings.max_stream_seconds
            least = LEAST_AGE * most
        else:
            return None
        seconds = random.uniform(least, most)  # noqa: S311  # nothing hangs on who guesses it
        return asyncio.get_running_loop().call_later(seconds, self._send_away, follower, cause)

    def _send_away(self, follower: Follower, cause: str) -> None:
        if follower.is_done or follower.response.is_closed:
            return
        self._metrics.stream_cut(cause)
        if follower.style is Style.EVENT_SOURCE:
            follower.response.write_event(retry_line(self._settings.event_source_retry_seconds))
        follower.response.cut()
        follower.woken.set()
