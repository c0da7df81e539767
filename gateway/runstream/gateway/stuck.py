"""Hears which runs cannot go on, as nothing can be stored, and tells those who follow them here."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from runstream.broker.fullness import STUCK_RUNS, heard_stuck

if TYPE_CHECKING:
    from collections.abc import Callable

    from runstream.broker.connection import Connection, Message, Subscription
    from runstream.broker.errors import BrokerError

__all__ = ["StuckRuns"]


class StuckRuns:
    """One subscription for all runs, made when there is somebody to be told: NATS may be away before."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._told: list[Callable[[str, BrokerError], None]] = []
        self._turn = asyncio.Lock()
        self._subscription: Subscription | None = None

    def tell(self, told: Callable[[str, BrokerError], None]) -> None:
        """Have `told` called with each run's id, as often as it is said that it cannot go on, and why."""
        self._told.append(told)

    async def listen(self) -> None:
        """Listen from here on, if not already. Raises `Unavailable`."""
        async with self._turn:
            if self._subscription is None:
                self._subscription = await self._connection.subscribe(STUCK_RUNS, self._heard)

    async def _heard(self, message: Message) -> None:
        run_id, error = heard_stuck(message)
        for told in self._told:
            told(run_id, error)
