"""What the reading load process does: follow runs, fetch them, and tell when what arrived."""

import asyncio
from typing import Any, Self
from urllib.parse import urlsplit

from tests.bench.exchange import DEADLINE_SECONDS, Event, Exchange, Refused, post, quiet


class Reader:
    """Requests to one gateway. Each call makes new connections and waits for what it asked for, within a deadline."""

    def __init__(self) -> None:
        self._followers: list[Exchange] = []
        self._host, self._port = "", 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._hang_up()

    async def connect(self, base: str) -> None:
        """Send all requests to `http://host:port`."""
        parts = urlsplit(base)
        self._host, self._port = parts.hostname or "", parts.port or 80

    async def fetch(self, path: str, body: Any, *, until_end: bool, chunks: int | None = None) -> dict[str, int]:
        """Send one request and read to the end, or to the first event and hang up.

        Gives nanoseconds from the request to each step, and bytes. `chunks` that do not all come are a failure.
        """
        exchange = Exchange(post(path, body))
        with quiet():
            async with asyncio.timeout(DEADLINE_SECONDS):
                await exchange.send(self._host, self._port)
                await (exchange.ended if until_end else exchange.begun).wait()
            exchange.hang_up()
        events = exchange.complete() if until_end else list(exchange.events())
        if chunks is not None and (found := len(_numbers(events))) != chunks:
            raise Refused(f"{found} chunks instead of {chunks}")
        spoken = next((event for event in events if _is_chunk(event)), events[0])
        steps = {
            "headers": exchange.headers_ns,
            "event": events[0].began_ns,
            "chunk": spoken.began_ns,
            "end": events[-1].ended_ns,
        }
        return {name: at - exchange.sent_ns for name, at in steps.items()} | {"bytes": exchange.size}

    async def follow(self, path: str, body: Any, count: int) -> None:
        """Open `count` responses to the same request; returns when each has its first event."""
        self._followers = [Exchange(post(path, body)) for _ in range(count)]
        async with asyncio.timeout(DEADLINE_SECONDS):
            for follower in self._followers:
                await follower.send(self._host, self._port)
                await follower.begun.wait()

    async def followed(self, chunks: int) -> list[int]:
        """Read on to the end of what is followed; gives the nanoseconds from each chunk's stamp to its arrival."""
        with quiet():
            async with asyncio.timeout(DEADLINE_SECONDS):
                for follower in self._followers:
                    await follower.ended.wait()
        delays: list[int] = []
        for follower in self._followers:
            stamped = [event for event in follower.complete() if _is_chunk(event)]
            if (found := len(_numbers(stamped))) != chunks:
                raise Refused(f"{found} chunks instead of {chunks}")
            delays += [event.ended_ns - int(event.json["content"].split()[1]) for event in stamped]
        self._hang_up()
        return delays

    async def leave(self) -> None:
        """Hang up on what is followed."""
        self._hang_up()

    def _hang_up(self) -> None:
        for follower in self._followers:
            follower.hang_up()
        self._followers = []


def _is_chunk(event: Event) -> bool:
    return b'"message_type":"assistant_message"' in event.data


def _numbers(events: list[Event]) -> list[int]:
    """The numbers of the run's chunks. Raises `Refused` when one is missing, comes twice or in another order."""
    bodies = [event.json for event in events if _is_chunk(event)]
    numbers = [int(body["content"].split()[0]) for body in bodies]
    cursors = [body["seq_id"] for body in bodies]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))) or cursors != sorted(set(cursors)):
        raise Refused("chunks are missing, or come twice, or out of order")
    return numbers
