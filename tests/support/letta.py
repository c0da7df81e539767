"""What a program does with Letta's clients: it calls them, keeps its cursor, and comes back with it."""

import asyncio
import inspect
from collections.abc import AsyncGenerator, Generator, Sequence
from operator import attrgetter
from typing import Any, TypeAlias

import httpx
from letta_client import APIConnectionError, AsyncLetta, AsyncStream, InternalServerError, Letta, Stream

from runstream.schemas import new_agent_id

Chunk: TypeAlias = dict[str, Any]

# What httpx raises, past the client's own error classes, when a response is cut.
DISCONNECTED = (httpx.RemoteProtocolError, httpx.ReadError, APIConnectionError)
# What a gateway that cannot serve at the moment answers: 503, after the client's own two repetitions.
TOLD_TO_COME_BACK = InternalServerError


def as_json(chunk: Any) -> Chunk:
    """A chunk as it was on the wire: the model keeps what was set."""
    plain: Chunk = chunk.model_dump(mode="json", exclude_unset=True)
    return plain


async def chunks_of(stream: AsyncStream[Any]) -> AsyncGenerator[Chunk, None]:
    """All chunks to the end; the stream is closed, too, when the reader leaves early."""
    async with stream:
        async for chunk in stream:
            yield as_json(chunk)


def blocking_chunks_of(stream: Stream[Any]) -> Generator[Chunk, None, None]:
    """The same for threads."""
    with stream:
        for chunk in stream:
            yield as_json(chunk)


async def read_into(seen: list[Chunk], stream: AsyncStream[Any]) -> None:
    """Read to the end, or to the error that is raised: what came before it is not lost with it."""
    async for chunk in chunks_of(stream):
        seen.append(chunk)  # noqa: PERF401  # see above


async def conversation(letta: AsyncLetta) -> str:
    """Make a conversation; returns its id."""
    return (await letta.conversations.create(agent_id=new_agent_id())).id


async def whole(letta: AsyncLetta, run_id: str) -> list[Chunk]:
    """A run as a reader sees it who stays from its beginning to its end."""
    return [chunk async for chunk in chunks_of(await letta.runs.messages.stream(run_id, starting_after=0))]


def types_of(chunks: Sequence[Chunk]) -> list[str]:
    """What kind of message each chunk is."""
    return [chunk["message_type"] for chunk in chunks]


def user(text: str, otid: str) -> Any:
    """A message of the user's with an otid, as the client takes it."""
    return {"role": "user", "content": text, "otid": otid}


def cursor_in(chunks: Sequence[Chunk]) -> int:
    """The last `seq_id` there, 0 if there is none."""
    return next((chunk["seq_id"] for chunk in reversed(chunks) if chunk.get("seq_id") is not None), 0)


def kept(chunks: Sequence[Chunk]) -> list[Chunk]:
    """What lies at or before the cursor: a stop reason after it has none of its own, and comes again."""
    last = max((at for at, chunk in enumerate(chunks) if chunk.get("seq_id") is not None), default=-1)
    return list(chunks[: last + 1])


def without_repeated_pings(chunks: Sequence[Chunk]) -> list[Chunk]:
    """Leave the keep-alives out: they repeat a cursor, and are nobody's content."""
    seen = 0
    result = []
    for chunk in chunks:
        seq_id = chunk.get("seq_id")
        if chunk["message_type"] == "ping" and seq_id is not None and seq_id <= seen:
            continue
        seen = max(seen, seq_id or 0)
        result.append(chunk)
    return result


class Caller:
    """Calls one of the two clients, for asyncio or for threads, by a method's name: `runs.messages.stream`."""

    def __init__(self, letta: AsyncLetta | Letta) -> None:
        self._letta = letta

    async def __call__(self, method: str, *args: Any, **options: Any) -> Any:
        """What the method returns; of a list, its first page."""
        bound = attrgetter(method)(self._letta)
        if isinstance(self._letta, Letta):
            return await asyncio.to_thread(bound, *args, **options)
        answer = bound(*args, **options)
        return await answer if inspect.isawaitable(answer) else answer

    async def all_of(self, method: str, *args: Any, **options: Any) -> list[Any]:
        """Everything that the loop over what it returns gives: a stream's messages, the items of all pages."""
        answer = await self(method, *args, **options)
        if isinstance(self._letta, Letta):
            return await asyncio.to_thread(list, answer)
        return [item async for item in answer]


class Reader:
    """Follows one run through any number of connections; `history` is what it has, each chunk once if all is well."""

    def __init__(self, letta: AsyncLetta, run_id: str) -> None:
        self._letta = letta
        self._run_id = run_id
        self.history: list[Chunk] = []
        self.is_done = False
        self.connections = 0
        self.refusals = 0
        self.cuts = 0

    async def read(self, at_most: int | None = None) -> None:
        """Come back with the cursor and read to the end, or up to `at_most` chunks. A lost connection is no error."""
        self.history = kept(self.history)
        cursor = cursor_in(self.history)
        try:
            stream = await self._letta.runs.messages.stream(self._run_id, starting_after=cursor)
        except TOLD_TO_COME_BACK:
            self.refusals += 1
            return
        self.connections += 1
        chunks = chunks_of(stream)
        try:
            count = 0
            async for chunk in chunks:
                self.history.append(chunk)
                count += 1
                if count == at_most:
                    return
            self.is_done = True
        except DISCONNECTED:
            self.cuts += 1
        finally:
            await chunks.aclose()

    async def read_to_the_end(self) -> list[Chunk]:
        """Read on, however often the connection is lost."""
        while not self.is_done:
            await self.read()
        return without_repeated_pings(self.history)
