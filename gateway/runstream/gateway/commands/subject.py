"""A server that is checked from outside: its streams, its runs, and what it may not do with them."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self
from uuid import uuid4

from runstream.gateway.commands.client import AWAY, reason_of
from runstream.gateway.commands.events import DONE, Event, Events
from runstream.gateway.commands.terminal import counted

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

    from aiohttp import ClientResponse

    from runstream.gateway.commands.client import Client

__all__ = ["Broken", "Inputs", "Run", "Said", "Server", "Unsupported", "expect", "stored"]

OK: Final = 200


class Broken(Exception):
    """The server does not do what it should: what was expected, and what came."""


class Unsupported(Exception):
    """The server does not offer this, or it cannot be seen from here."""


@dataclass(frozen=True)
class Inputs:
    """What agents are asked, for an answer, for one that takes long, and for a failure."""

    agent_id: str
    short: str
    long: str
    failing: str


@dataclass(frozen=True)
class Said:
    """One event: its name, and its data as JSON; `chunk` is None for `[DONE]`."""

    name: str
    chunk: dict[str, Any] | None
    id: str | None = None

    @property
    def kind(self) -> str:
        """The message's type, or `[DONE]`."""
        return DONE if self.chunk is None else str(self.chunk.get("message_type"))

    @property
    def seq(self) -> int | None:
        """The cursor that it shows."""
        seq = None if self.chunk is None else self.chunk.get("seq_id")
        return seq if isinstance(seq, int) else None


@dataclass
class Run:
    """A run that was made, and what its stream has shown."""

    id: str
    events: list[Said]

    @property
    def cursors(self) -> list[int]:
        """The cursors it has shown, in their order. Raises `Broken` if it has shown none."""
        cursors = [event.seq for event in self.events if event.seq is not None and event.kind != "ping"]
        expect(cursors, "no message has a seq_id: the run was not made in the background")
        return cursors


def expect(condition: object, complaint: str) -> None:
    """Raise `Broken` unless the condition holds."""
    if not condition:
        raise Broken(complaint)


def stored(events: Sequence[Said]) -> list[Said]:
    """Leave out the pings: they may come at any time."""
    return [event for event in events if event.kind != "ping"]


class Server:
    """The server that is checked. What does not come within `seconds` is `Broken`."""

    def __init__(self, client: Client, inputs: Inputs, seconds: float) -> None:
        self.inputs = inputs
        self._client = client
        self._seconds = seconds
        self._finished: Run | None = None
        self._live: list[str] = []

    @asynccontextmanager
    async def stream(
        self, path: str, body: object = None, *, method: str = "POST", headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[Stream]:
        """Open a stream. Raises `Broken` for any other answer."""
        accepts = {"Accept": "text/event-stream", **(headers or {})}
        async with self._answer(method, path, body, accepts) as answer:
            if answer.status != OK:
                raise Broken(f"{method} {path} answers {answer.status}: {(await answer.text())[:200]}")
            media = answer.content_type
            expect(media == "text/event-stream", f"{method} {path} answers with {media}, and not text/event-stream")
            async with Stream(answer, self._seconds) as opened:
                yield opened

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, body: object, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[ClientResponse]:
        asking = self._client.answer(method, path, body=body, headers=headers, silence=self._seconds)
        try:
            async with asking as answer:
                yield answer
        except AWAY as error:
            what = f"nothing came for {self._seconds:g} s" if isinstance(error, TimeoutError) else reason_of(error)
            raise Broken(f"{method} {path}: {what}") from error

    async def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Send a request; returns its answer's status, and its JSON (None: it is none)."""
        async with self._answer(method, path, body) as answer:
            try:
                # A stream that has no end but its pings never falls silent.
                async with asyncio.timeout(self._seconds):
                    text = await answer.text(errors="replace")
            except TimeoutError:
                raise Broken(f"{method} {path}: the answer has no end within {self._seconds:g} s") from None
            try:
                return answer.status, json.loads(text)
            except ValueError:
                return answer.status, None

    async def resumed(self, run_id: str, after: object = 0, **body: object) -> list[Said]:
        """Resume a run by its id; returns all that comes, to the end."""
        async with self.stream(f"/v1/runs/{run_id}/stream", {"starting_after": after, **body}) as stream:
            return await stream.rest()

    def message(self, text: str, otid: str | None = None, **body: object) -> dict[str, object]:
        """Give the body of a message to an agent, in the background unless told otherwise."""
        said = {"role": "user", "content": text, **({} if otid is None else {"otid": otid})}
        return {"messages": [said], "background": True, "stream_tokens": True, **body}

    @asynccontextmanager
    async def running(self, text: str, path: str | None = None, **body: Any) -> AsyncIterator[tuple[str, Stream]]:
        """Make a run, of the agent's or at `path`; gives its id and its stream. It is cancelled in the end."""
        where = path or f"/v1/agents/{self.inputs.agent_id}/messages/stream"
        async with self.stream(where, self.message(text, **body)) as stream:
            run_id = await stream.run_id()
            self._live.append(run_id)
            yield run_id, stream

    async def settle(self) -> None:
        """Cancel what a check has left behind."""
        left, self._live = self._live, []
        for run_id in left:
            try:
                await self.ask("POST", f"/v1/agents/{self.inputs.agent_id}/messages/cancel", {"run_ids": [run_id]})
            except Broken:
                continue  # The others are to be cancelled all the same.

    async def finished(self) -> Run:
        """Give a run that has completed, made once."""
        if self._finished is None:
            async with self.running(self.inputs.short) as (run_id, stream):
                await stream.rest()
            self._finished = Run(run_id, stream.seen)
        return self._finished

    async def conversation(self) -> str:
        """Make a conversation. Raises `Unsupported` where it cannot be."""
        status, made = await self.ask("POST", f"/v1/conversations/?agent_id={self.inputs.agent_id}", {})
        if status not in {200, 201} or not isinstance(made, dict) or "id" not in made:
            raise Unsupported(f"POST /v1/conversations/ answers {status}: no conversation can be made")
        return str(made["id"])

    async def status(self, run_id: str) -> str:
        """Read a run's status."""
        status, run = await self.ask("GET", f"/v1/runs/{run_id}")
        expect(status == OK and isinstance(run, dict), f"GET /v1/runs/{run_id} answers {status}")
        return str(run.get("status"))

    async def unknown_run(self) -> str:
        """Give an id that no run has."""
        return f"run-{uuid4()}"


class Stream:
    """The events of one answer. `seen` is all that was read."""

    def __init__(self, answer: ClientResponse, seconds: float) -> None:
        self.seen: list[Said] = []
        self._answer = answer
        self._seconds = seconds
        self._events = self._read()
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._is_ending = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._events.aclose()

    async def take(self, count: int) -> list[Said]:
        """Read the next events. Raises `Unsupported` when the run is over before."""
        taken: list[Said] = []
        while len(taken) < count:
            event = await self._next()
            if event is None or event.kind == DONE:
                raise Unsupported("the run was over too soon: name an input that takes longer (--long-input)")
            if event.kind != "ping":
                taken.append(event)
        return taken

    async def run_id(self) -> str:
        """Read on until an event names the run."""
        while (event := await self._next()) is not None:
            if event.chunk is not None and isinstance(event.chunk.get("run_id"), str):
                return str(event.chunk["run_id"])
        raise Broken("a stream ended, and no event has named its run")

    async def rest(self, *, at_once: bool = False) -> list[Said]:
        """Read all that comes, to the end; which is to come `at_once`, however much is said meanwhile."""
        rest: list[Said] = []
        self._is_ending = at_once
        while (event := await self._next()) is not None:
            rest.append(event)
        return rest

    async def _next(self) -> Said | None:
        try:
            async with asyncio.timeout_at(self._deadline):
                event = await anext(self._events, None)
        except TimeoutError:
            what = "no end" if self._is_ending else "nothing but pings"
            raise Broken(f"{what} within {self._seconds:g} s, after {counted(len(self.seen), 'event')}") from None
        except AWAY as error:
            raise Broken(
                f"the stream broke off after {counted(len(self.seen), 'event')}: {reason_of(error)}"
            ) from error
        if event is not None:
            self.seen.append(event)
            if event.kind != "ping" and not self._is_ending:
                self._deadline = asyncio.get_running_loop().time() + self._seconds
        return event

    async def _read(self) -> AsyncGenerator[Said]:
        events = Events()
        async with aclosing(_pieces(self._answer)) as pieces:
            async for piece in pieces:
                for event in _events(events, piece):
                    yield Said(event.name, None if event.data == DONE else _object(event.data), event.id)


def _events(events: Events, piece: bytes) -> list[Event]:
    try:
        return events.feed(piece)
    except ValueError as error:
        raise Broken(str(error)) from error


async def _pieces(answer: ClientResponse) -> AsyncGenerator[bytes]:
    async for piece in answer.content.iter_any():
        yield piece


def _object(data: str) -> dict[str, Any]:
    try:
        chunk = json.loads(data)
    except ValueError:
        chunk = None
    if not isinstance(chunk, dict):
        raise Broken(f"the data of an event is no JSON object: {data[:100]!r}")
    return chunk
