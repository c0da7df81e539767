"""`runstream publish`: makes a run of what comes on stdin, so that any program is a stream that can be resumed."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import suppress
from typing import Annotated, Any, Final

import typer

from runstream.gateway.commands.client import Client
from runstream.gateway.commands.exits import OF_CLIENTS, CommandError, Exit, Usage, run, tell
from runstream.gateway.commands.ids import check_id
from runstream.gateway.commands.lines import Input, chunk_of_line, parsed
from runstream.gateway.commands.options import PLAIN, AsJson, Key, Patience
from runstream.gateway.commands.settings import BROKER_URL
from runstream.gateway.commands.terminal import counted
from runstream.gateway.commands.writing import (
    MOST_BYTES,
    MOST_CHUNKS,
    SIGNS_PER_LEASE,
    BadChunk,
    TooLong,
    Writing,
)
from runstream.schemas import STOP_REASONS

__all__ = ["command"]

command = typer.Typer(**PLAIN)

ENDING_SECONDS: Final = 10.0
"""How long it may take, once interrupted, to store what was taken and to end the run."""


@command.command(epilog=OF_CLIENTS)
def publish(  # noqa: PLR0917  # typer reads options off the parameters
    ndjson: Annotated[  # noqa: FBT002  # typer's way
        bool, typer.Option("--ndjson", help="Each line is a chunk, a JSON object; else each is a line of text.")
    ] = False,
    agent: Annotated[str | None, typer.Option(metavar="ID", help="Whose run it is. [a new agent's]")] = None,
    conversation: Annotated[str | None, typer.Option(metavar="ID", help="The conversation that it is in.")] = None,
    otid: Annotated[
        str | None,
        typer.Option(
            help="Again with this, the same input and the same agent or conversation, it goes on with its run."
        ),
    ] = None,
    stop_reason: Annotated[str, typer.Option(help="What the run ends with, unless its input says.")] = "end_turn",
    as_json: AsJson = False,  # noqa: FBT002  # typer's way
    patience: Patience = 60.0,
    url: Annotated[
        str, typer.Option("--url", envvar="RUNSTREAM_INGEST_URL", metavar="URL", help="Where a broker is.")
    ] = BROKER_URL,
    key_file: Key = None,
) -> None:
    """Make a run of what comes on stdin: any program becomes a resumable stream.

    Each line is stored as it comes. The run's id is the first line of stdout. Ctrl-C cancels the run.
    """
    client = Client(url, key_file)
    work = _Publishing(Writing(client, patience_seconds=patience), ndjson=ndjson, stop_reason=stop_reason)
    raise SystemExit(run(_published(client, work, (agent, conversation, otid), as_json=as_json)))


async def _published(
    client: Client, work: _Publishing, whose: tuple[str | None, str | None, str | None], *, as_json: bool
) -> Exit:
    """Publish everything; returns what became of it."""
    if sys.stdin is None:
        raise Usage("stdin cannot be read: it is closed.")
    agent, conversation, otid = whose
    check_id("--agent", "agent-", agent)
    check_id("--conversation", "conv-", conversation)
    if otid is not None and agent is None and conversation is None:
        raise Usage("--otid needs --agent or --conversation: without either, each call is a new agent's.")
    work.check()
    async with client:
        await work.writing.open(*whose)
        try:
            _say({"run_id": work.writing.run_id}, work.writing.run_id, as_json=as_json)
        except OSError:
            # Nobody knows of this run: it is not to wait for its lease.
            with suppress(CommandError):
                await work.writing.end("cancelled", None)
            raise
        try:
            done = await work.until_done()
        except CommandError:
            work.complain()
            raise
        told = {**done, "chunks": work.writing.index}
        summary = f"{done['status']} ({done['stop_reason']}), {counted(work.writing.index, 'chunk')}"
        if as_json:
            _say(told, "", as_json=True)
        else:
            tell(f"{work.writing.run_id} is {summary}")
        # Its input may have ended in the moment of the Ctrl-C: then the run has completed.
        if work.interrupted.is_set() and done["status"] == "cancelled":
            return Exit.INTERRUPTED
        return Exit.FINE if done["status"] == "completed" else Exit.FAILED


def _say(told: dict[str, Any], text: str, *, as_json: bool) -> None:
    typer.echo(json.dumps(told) if as_json else text)
    sys.stdout.flush()


class _Publishing:
    """Takes lines, stores what they say, and ends the run: in good order, with its error, or cancelled."""

    def __init__(self, writing: Writing, *, ndjson: bool, stop_reason: str) -> None:
        self.writing = writing
        self.interrupted = asyncio.Event()
        self._ndjson = ndjson
        self._stop_reason = stop_reason
        self._usage: dict[str, Any] | None = None
        self._error: dict[str, Any] | None = None
        self._lines = 0
        self._taken: list[tuple[int, bytes]] = []
        """Chunks that were taken, each with its line, and of which nobody has said that they are stored."""

    def check(self) -> None:
        """Raise `Usage` for what would be refused only when hours of input are stored."""
        if self._stop_reason not in STOP_REASONS:
            raise Usage(f"--stop-reason is one of {', '.join(STOP_REASONS)}, and not {self._stop_reason!r}.")

    async def until_done(self) -> dict[str, Any]:
        """Store all lines; returns what the run came to. Raises `CommandError`."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        try:
            lines = Input(sys.stdin.fileno())
            pumping = asyncio.create_task(self._pump(lines), name="publish")
            stopping = asyncio.create_task(self.interrupted.wait(), name="interrupted")
            try:
                await asyncio.wait([pumping, stopping], return_when=asyncio.FIRST_COMPLETED)
                if not pumping.done():
                    return await self._cancelled(pumping)
                await pumping
            finally:
                stopping.cancel()
            return await self._end()
        except Usage as error:
            await self._fail(error)
            raise
        except TooLong:
            with suppress(CommandError):
                await self.writing.fail("run_too_long", None, None)
            raise
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    def complain(self) -> None:
        """Say how far it came."""
        stored, left = self.writing.index, len(self._taken)
        said = f" Not stored: the next {left}, and whatever followed." if left else ""
        tell(f"Stored of {self.writing.run_id}: {counted(stored, 'chunk')}.{said}")

    def _interrupt(self) -> None:
        # Once: whoever presses Ctrl-C a second time wants to be gone.
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
        self.interrupted.set()

    async def _pump(self, lines: Input) -> None:
        """Store lines as they come, all that there are at one time, until they end."""
        while not lines.is_over:
            self._take(lines)
            if self._taken:
                await self._store()
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(self.writing.lease_seconds / SIGNS_PER_LEASE):
                    await lines.news.wait()
                    continue
            await self.writing.keep_alive()

    def _take(self, lines: Input) -> None:
        # A program that says less is not kept waiting for more.
        size = 0
        while len(self._taken) < MOST_CHUNKS and size < MOST_BYTES and (line := lines.take()) is not None:
            self._lines += 1
            chunk = self._chunk(line)
            if chunk is not None:
                self._taken.append((self._lines, chunk))
                size += len(chunk)

    def _chunk(self, line: bytes) -> bytes | None:
        if not self._ndjson:
            return chunk_of_line(line, f"message-{self.writing.run_id.removeprefix('run-')}")
        found = parsed(line, self._lines)
        match found.ending:
            case ("stop_reason", chunk):
                self._stop_reason = str(chunk.get("stop_reason"))
            case ("usage_statistics", chunk):
                self._usage = {name: value for name, value in chunk.items() if name in USAGE}
            case ("error_message", chunk):
                self._error = chunk
        return found.chunk

    async def _store(self) -> None:
        while self._taken:
            try:
                stored = await self.writing.append([chunk for _, chunk in self._taken])
            except BadChunk as error:
                line, _ = self._taken[error.item]
                raise BadChunk(f"Line {line} of stdin cannot be stored: {error}", item=error.item) from error
            del self._taken[:stored]

    async def _end(self) -> dict[str, Any]:
        if self._error is not None:
            told = (self._error.get("message"), self._error.get("detail"))
            return await self.writing.fail(str(self._error.get("error_type")), *told)
        return await self.writing.end(self._stop_reason, self._usage)

    async def _fail(self, error: Usage) -> None:
        """Store what is before what cannot be published, and end the run: its readers are not to wait for its lease."""
        if isinstance(error, BadChunk):
            del self._taken[error.item :]
        with suppress(CommandError):
            await self._store()
            await self.writing.fail("internal_error", "What was to be published could not be.", str(error))

    async def _cancelled(self, pumping: asyncio.Task[None]) -> dict[str, Any]:
        """Store what was taken, and end the run as cancelled, in a few seconds or not at all."""
        pumping.cancel()
        await asyncio.wait([pumping])
        try:
            async with asyncio.timeout(ENDING_SECONDS):
                await self._store()
                return await self.writing.end("cancelled", None)
        except TimeoutError:
            raise KeyboardInterrupt from None


USAGE: Final = frozenset(
    {
        "completion_tokens",
        "prompt_tokens",
        "total_tokens",
        "step_count",
        "run_ids",
        "cached_input_tokens",
        "cache_write_tokens",
        "reasoning_tokens",
        "context_tokens",
    }
)
"""What a run's usage may have."""
