"""A run, followed to its end: whoever takes its events does not notice that connections break and gateways restart.

The invariant: *each stored event is yielded once, in order.* A gateway is asked as a browser's EventSource asks it,
where everything that is stored has an id; the last one that was yielded is the cursor to come back with.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from runstream.gateway.commands.client import AWAY, SILENCE_SECONDS, refusal
from runstream.gateway.commands.events import DONE, Event, Events
from runstream.gateway.commands.exits import CommandError, Failed, Missing, Refused, Unreachable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    import aiohttp

    from runstream.gateway.commands.client import Client

__all__ = ["Follower"]

FIRST_DELAY_SECONDS: Final = 0.2
LONGEST_DELAY_SECONDS: Final = 5.0
NOTHING_FOLLOWS: Final = 204


class CutOff(Unreachable):
    """A stream has ended before its run, without a word."""


class Follower:
    """Follows one run from a cursor on. `cursor` is the sequence of the last event that was yielded.

    Where it begins is the gateway's to say: after a cursor that cannot be of this run it sends everything.
    """

    def __init__(
        self,
        client: Client,
        run_id: str,
        *,
        after: int = 0,
        patience_seconds: float,
        away: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.run_id = run_id
        self.cursor = after
        self._yielded = 0
        self._client = client
        self._patience_seconds = patience_seconds
        self._away = away
        self._delay = FIRST_DELAY_SECONDS
        self._lost_at: float | None = None

    async def events(self) -> AsyncGenerator[Event]:
        """Yield what follows the cursor, `[DONE]` last; pings, too, without an id. Close it (`aclosing`) when leaving.

        Raises `Missing`, `Refused`, `Usage`, `Failed` when the run cannot be followed, `Unreachable` when nobody
        answered for the whole patience.
        """
        while True:
            try:
                async with aclosing(self._connection()) as connection:
                    async for event in connection:
                        yield event
                        if event.data == DONE:
                            return
                lost: CommandError = CutOff(f"{self._client.url} cut the connection, and has nothing more to say.")
            except Unreachable as error:
                lost = error
            except AWAY as error:
                lost = self._client.away(error)
            # Also for a gateway that is full, or without NATS, which answers, and says nothing. Counted from the first
            # failure and not from the last event: whoever takes events may have taken hours over one.
            self._lost_at = self._lost_at or time.monotonic()
            left = self._lost_at + self._patience_seconds - time.monotonic()
            if left <= 0:
                raise await self._last_words(lost)
            self._away(str(lost))
            await asyncio.sleep(min(left, self._delay * random.uniform(0.5, 1.5)))  # noqa: S311  # no secret
            self._delay = min(2 * self._delay, LONGEST_DELAY_SECONDS)

    async def _last_words(self, lost: CommandError) -> CommandError:
        """Ask for the run: a stream that cannot begin says when to come back, and not what is in the way."""
        if not isinstance(lost, CutOff):
            return lost
        try:
            await self._client.ask("GET", f"/v1/runs/{self.run_id}")
        except (Missing, Refused, Unreachable) as error:
            return error
        except CommandError:
            pass  # Whoever answers so knows nothing of runs.
        return lost

    async def _connection(self) -> AsyncGenerator[Event]:
        path = f"/v1/runs/{self.run_id}/stream"
        query = {"starting_after": str(self.cursor)}
        headers = {"Accept": "text/event-stream"}
        async with self._client.answer("GET", path, query=query, headers=headers, silence=SILENCE_SECONDS) as answer:
            if answer.status == NOTHING_FOLLOWS:
                yield Event("message", DONE)
                return
            if answer.status != 200:  # noqa: PLR2004  # OK
                text = await answer.text(errors="replace")
                raise refusal(answer.status, text, self._client.url, answer.headers)
            if answer.content_type != "text/event-stream":
                raise Failed(f"{self._client.url} answers with {answer.content_type}: is it a runstream gateway?")
            async with aclosing(self._read(answer)) as events:
                async for event in events:
                    yield event

    async def _read(self, answer: aiohttp.ClientResponse) -> AsyncGenerator[Event]:
        events = Events()
        try:
            async for piece in answer.content.iter_any():
                for event in _whole(events, piece):
                    if self._is_new(event):
                        self._lost_at, self._delay = None, FIRST_DELAY_SECONDS
                        yield event
        finally:
            # A gateway that is full, or stops, says when to come back, and nothing else.
            events.rest()
            self._delay = max(self._delay, events.retry_seconds or 0)

    def _is_new(self, event: Event) -> bool:
        """Move the cursor on, if this event was not there before."""
        seq = event.sequence
        if seq is None:
            return True
        is_new = seq > self._yielded
        if is_new:
            self._yielded = self.cursor = seq
        return is_new


def _whole(events: Events, piece: bytes) -> list[Event]:
    try:
        whole = events.feed(piece)
        for event in whole:
            _check(event)
    except ValueError as error:
        raise Failed(f"What came is no stream of chunks: {error}") from error
    return whole


def _check(event: Event) -> None:
    """Raise `ValueError` for an event whose data is neither a JSON object nor `[DONE]`."""
    if event.data != DONE and not isinstance(json.loads(event.data), dict):
        raise ValueError("a chunk is a JSON object.")
