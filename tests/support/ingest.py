"""A writer at the ingest API, over a bare socket: it opens runs, appends, holds uploads open, and hangs up."""

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from runstream.schemas import new_agent_id
from tests.support.http import NO_BODY, Connection, Reply, fetch
from tests.support.stack import Stack

NDJSON = {"Content-Type": "application/x-ndjson"}
LAST_CHUNK = b"0\r\n\r\n"


def said(number: int, *, size: int = 0) -> dict[str, Any]:
    """The chunk with that number, its text filled up to `size` characters."""
    return {"message_type": "assistant_message", "id": "message-1", "content": f"{number} ".ljust(size, ".")}


def lines(*chunks: Mapping[str, Any]) -> bytes:
    """Chunks as NDJSON."""
    return b"".join(json.dumps(chunk).encode() + b"\n" for chunk in chunks)


def headers_of(expected_index: int | None) -> dict[str, str]:
    """The header that says how many chunks are stored."""
    return {} if expected_index is None else {"Expected-Index": str(expected_index)}


class Upload:
    """A long chunked upload of lines. Leaving the block hangs up."""

    def __init__(self, base: str, run_id: str, expected_index: int | None = None) -> None:
        self._base = base
        self._path = f"/ingest/v1/runs/{run_id}/chunks"
        self._expected_index = expected_index
        self._stack = contextlib.AsyncExitStack()
        self.connection: Connection

    async def __aenter__(self) -> Self:
        self.connection = await self._stack.enter_async_context(Connection.open(self._base))
        headers = {**NDJSON, "Transfer-Encoding": "chunked", **headers_of(self._expected_index)}
        await self.connection.send("POST", self._path, headers=headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def send(self, data: bytes) -> None:
        """Send bytes as one chunk of the encoding, wherever the lines in them end."""
        await self.connection.send_raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def say(self, *numbers: int) -> None:
        """Send those chunks, a line each."""
        await self.send(lines(*map(said, numbers)))

    async def finish(self) -> Reply:
        """End the upload; returns what it is answered."""
        await self.connection.send_raw(LAST_CHUNK)
        return await self.connection.reply()

    async def reply(self) -> Reply:
        """What it is answered before it has ended."""
        return await self.connection.reply()


@dataclass(frozen=True)
class Writer:
    """A run that was opened, and where its broker is; `at` is the same run at another broker."""

    base: str
    run_id: str
    first_seq: int

    def at(self, base: str) -> "Writer":
        return Writer(base, self.run_id, self.first_seq)

    async def post(
        self,
        what: str,
        json: Any = NO_BODY,
        *,
        body: bytes | None = None,
        expected_index: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One request about the run."""
        path = f"/ingest/v1/runs/{self.run_id}/{what}"
        given = {**headers_of(expected_index), **(headers or {})}
        return await fetch(self.base, "POST", path, json=json, body=body, headers=given)

    async def append(self, *numbers: int, expected_index: int | None = None) -> Reply:
        """Append those chunks: one as an object, several as an array."""
        chunks = [said(number) for number in numbers]
        return await self.post("chunks", chunks[0] if len(chunks) == 1 else chunks, expected_index=expected_index)

    async def append_lines(self, body: bytes, *, expected_index: int | None = None) -> Reply:
        """Append NDJSON in one request of known length."""
        return await self.post("chunks", body=body, expected_index=expected_index, headers=NDJSON)

    async def end(self, stop_reason: str = "end_turn", **body: Any) -> Reply:
        """End the run."""
        return await self.post("end", {"stop_reason": stop_reason, **body})

    def upload(self, expected_index: int | None = None) -> Upload:
        """Open a long upload."""
        return Upload(self.base, self.run_id, expected_index)


async def open_run(base: str, **body: Any) -> Reply:
    """Ask for a run, of some agent's unless told."""
    return await fetch(base, "POST", "/ingest/v1/runs", json={"agent_id": new_agent_id(), **body})


async def writer_of(base: str, **body: Any) -> Writer:
    """Open a run."""
    reply = await open_run(base, **body)
    assert reply.status == 201, reply
    return Writer(base, reply.json["run_id"], reply.json["last_seq_id"])


@contextlib.asynccontextmanager
async def writing(base: str, **body: Any) -> AsyncIterator[Writer]:
    """A run that is open for the block, and ended with it if it is not by then."""
    writer = await writer_of(base, **body)
    try:
        yield writer
    finally:
        with contextlib.suppress(OSError, EOFError):
            await writer.end()


async def content_of(stack: Stack, run_id: str) -> list[dict[str, Any]]:
    """What a run's writer has said, as a gateway serves it to a client that comes once it has ended."""
    async with stack.resume(run_id) as stream:
        events = await stream.rest()
    return [event.json for event in events if event.seq_id is not None and event.json.get("message_type") != "ping"]


async def numbers_of(stack: Stack, run_id: str) -> list[int]:
    """The numbers of the chunks of a run that has ended, its error left out."""
    chunks = await content_of(stack, run_id)
    return [int(chunk["content"].split()[0]) for chunk in chunks if "content" in chunk]


def told(reply: Reply) -> tuple[int, str]:
    """The status and the error type of a refusal, after a check that it has a detail in words."""
    assert reply.json["detail"].endswith((".", "}", "]", "…")) or ": " in reply.json["detail"], reply
    return reply.status, reply.json["error_type"]
