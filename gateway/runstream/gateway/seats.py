"""Who may have a response that stays open, how long it may, and how all of them leave a gateway that drains.

A response is sent away by being cut, each at a moment of its own: those that one gateway loses together would come to
the others together.
"""

from __future__ import annotations

import asyncio
import random
import time
from functools import partial
from typing import TYPE_CHECKING

from runstream.broker.readiness import Draining
from runstream.gateway.errors import TryLater
from runstream.gateway.sse import Style, retry_line
from runstream.gateway.wheel import Wheel

if TYPE_CHECKING:
    from collections.abc import Callable

    from runstream.gateway.follower import Follower
    from runstream.gateway.metrics import CutCause, GatewayMetrics
    from runstream.gateway.settings import GatewaySettings

__all__ = ["Places", "Seats"]

AGE_TICK_SECONDS = 1.0
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

    def take(self) -> _Place:
        """Have a place while the block lasts. Raises `TryLater` while all are taken.

        Taken before anything is awaited: counted at its first event, a burst of followers would pass the bound.
        """
        return _Place(self)

    def begin(self) -> None:
        """Take a place. Raises `TryLater`."""
        if self.is_full:
            raise self._full()
        self.taken += 1

    def end(self) -> None:
        """Give a place back."""
        self.taken -= 1
        if not self.taken:
            self._emptied.set()

    async def emptied(self) -> None:
        """Wait until nobody is here."""
        while self.taken:
            self._emptied.clear()
            await self._emptied.wait()


class _Place:
    """One that is taken. Not made of a generator: thousands of them are held at one time."""

    __slots__ = ("_places",)

    def __init__(self, places: Places) -> None:
        self._places = places

    def __enter__(self) -> None:
        self._places.begin()

    def __exit__(self, *_: object) -> None:
        self._places.end()


class _Stay:
    """A follower that is to be sent away in time. Not made of a generator, as above."""

    __slots__ = ("_follower", "_seats")

    def __init__(self, seats: Seats, follower: Follower) -> None:
        self._seats = seats
        self._follower = follower

    def __enter__(self) -> None:
        self._seats.arrive(self._follower)

    def __exit__(self, *_: object) -> None:
        self._seats.depart(self._follower)


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
        """All who are here; while the gateway drains, with when they leave."""
        tick = min(AGE_TICK_SECONDS, settings.max_stream_seconds / 100)
        self._ages: Wheel[Follower] = Wheel(tick, partial(self._send_away, cause="age"))
        self._empty_at = 0.0

    @property
    def is_draining(self) -> bool:
        """Whether nobody more is taken, and everybody leaves."""
        return self.draining.has_begun

    def begin(self) -> None:
        """Take a seat. Raises `TryLater` while all are taken, and once the gateway drains."""
        if self.is_draining:
            raise TryLater("This gateway stops. Try again, at another one.")
        super().begin()

    def staying(self, follower: Follower) -> _Stay:
        """Send a follower away that is still there when it has stayed long enough, or the gateway drains."""
        return _Stay(self, follower)

    def arrive(self, follower: Follower) -> None:
        """Have a follower that is to be sent away when it is time."""
        self._departures[follower] = self._departure(follower)

    def depart(self, follower: Follower) -> None:
        """Have it no more."""
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
        self._ages.remove(follower)
        departure = self._departures[follower]
        if departure is not None:
            departure.cancel()

    def _departure(self, follower: Follower) -> asyncio.TimerHandle | None:
        """Draw when a follower is to leave, and see to it. One who could not come back has all the time there is."""
        is_resumable = follower.style is not Style.FOREGROUND
        if self.is_draining:
            most = max(0.0, self._empty_at - time.monotonic())
            least = 0.0 if is_resumable else most
            seconds = random.uniform(least, most)  # noqa: S311  # nothing hangs on who guesses it
            return asyncio.get_running_loop().call_later(seconds, self._send_away, follower, "drain")
        if is_resumable:
            most = self._settings.max_stream_seconds
            self._ages.put(follower, random.uniform(LEAST_AGE * most, most))  # noqa: S311  # as above
        return None

    def _send_away(self, follower: Follower, cause: CutCause) -> None:
        if follower.is_done or follower.response.is_closed:
            return
        self._metrics.stream_cut(cause)
        if follower.style is Style.EVENT_SOURCE:
            follower.response.write_event(retry_line(self._settings.event_source_retry_seconds))
        follower.response.cut()
        follower.woken.set()
