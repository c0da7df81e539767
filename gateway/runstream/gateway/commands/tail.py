"""`runstream tail`: follows a run, or what goes on in a conversation, through cuts and restarts."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from runstream.gateway.commands.client import Client
from runstream.gateway.commands.events import DONE
from runstream.gateway.commands.exits import (
    OF_CLIENTS,
    CommandError,
    Exit,
    Missing,
    Refused,
    Unreachable,
    Usage,
    run,
    tell,
)
from runstream.gateway.commands.following import Follower
from runstream.gateway.commands.ids import check_cursor, check_target
from runstream.gateway.commands.options import PLAIN, AsJson, Key, Patience, Url, given_again
from runstream.gateway.commands.output import Output
from runstream.gateway.commands.said import Transcript
from runstream.gateway.commands.settings import GATEWAY_URL
from runstream.gateway.commands.terminal import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runstream.gateway.commands.events import Event

__all__ = ["AGAIN", "Shown", "command", "newest_run"]

command = typer.Typer(**PLAIN)

NEXT_SECONDS: Final = 1.0
"""How often a conversation is asked for its next run."""
AGAIN: Final = ("as_json", "patience", "url", "key_file")
"""What whoever comes back would give again."""
FILTERS: Final = {"conv-": "conversation_id", "agent-": "agent_id"}


@command.command(epilog=OF_CLIENTS)
def tail(  # noqa: PLR0917  # typer reads options off the parameters
    context: typer.Context,
    target: Annotated[str, typer.Argument(help="A run; or a conversation or an agent: its newest run.")],
    after: Annotated[int, typer.Option(min=0, metavar="SEQ", help="Begin after this seq_id of the run.")] = 0,
    forever: Annotated[  # noqa: FBT002  # typer's way
        bool, typer.Option("--follow", "-f", help="Of a conversation or an agent: go on with its next runs.")
    ] = False,
    as_json: AsJson = False,  # noqa: FBT002  # typer's way
    patience: Patience = 60.0,
    url: Url = GATEWAY_URL,
    key_file: Key = None,
) -> None:
    """Follow a run to its end, through cuts and restarts. Shows its text, or its chunks as lines of JSON."""
    shown = Shown(as_json=as_json, again=given_again(context, *AGAIN))
    raise SystemExit(run(_tail(Client(url, key_file), target, after, shown, patience=patience, forever=forever)))


async def _tail(client: Client, target: str, after: int, shown: Shown, *, patience: float, forever: bool) -> Exit:
    """Show what there is, and what comes; returns what became of the last run."""
    check_cursor("--after", after)
    if forever and not target.startswith(tuple(FILTERS)):
        raise Usage("--follow goes on with the next run: name a conversation or an agent, and not a run.")
    async with client:
        run_id = await newest_run(client, target, patience)
        while True:
            follower = Follower(client, run_id, after=after, patience_seconds=patience, away=shown.away)
            with shown.resumable(run_id, after):
                async with aclosing(follower.events()) as events:
                    async for event in events:
                        shown.show(event)
            if not forever:
                return await _outcome(client, run_id, after, shown, patience)
            run_id, after = await _next_run(client, target, run_id, patience), 0
            shown.begin(run_id)


async def _outcome(client: Client, run_id: str, after: int, shown: Shown, patience_seconds: float) -> Exit:
    """Return what the run came to. It is asked for where nothing but the end came, which does not say it."""
    if shown.says_how_it_ended:
        return shown.outcome
    found = await client.ask("GET", f"/v1/runs/{run_id}", patience_seconds=patience_seconds)
    if not shown.has_shown:
        tell(f"Nothing follows {after}: {run_id} is {found['status']}{await _last_seq_id(client, run_id)}.")
    return Exit.FINE if found["status"] == "completed" else Exit.FAILED


async def _last_seq_id(client: Client, run_id: str) -> str:
    try:
        figures = await client.ask("GET", "/v1/runstream/figures", query={"run_ids": run_id})
        return f", and its last seq_id is {figures[0]['last_seq_id']}"
    except (CommandError, LookupError, TypeError):
        return ""  # Another server of this API need not know.


async def newest_run(client: Client, target: str, patience_seconds: float = 0) -> str:
    """Return the run that is named, or the newest of the conversation or agent that is. Raises `Missing`, `Usage`."""
    check_target(target)
    if not target.startswith(tuple(FILTERS)):
        return target
    found = await _runs(client, target, patience_seconds, order="desc")
    if not found:
        raise Missing(f"{target} has no run yet, or none that is listed.")
    return str(found[0]["id"])


async def _next_run(client: Client, target: str, after: str, patience_seconds: float) -> str:
    while True:
        found = await _runs(client, target, patience_seconds, order="asc", after=after)
        if found:
            return str(found[0]["id"])
        await asyncio.sleep(NEXT_SECONDS)


async def _runs(client: Client, target: str, patience_seconds: float, **query: str) -> list[dict[str, Any]]:
    field = next(name for prefix, name in FILTERS.items() if target.startswith(prefix))
    asked = {field: target, "limit": "1", **query}
    found: list[dict[str, Any]] = await client.ask("GET", "/v1/runs/", query=asked, patience_seconds=patience_seconds)
    return found


class Shown:
    """What came of a run, shown: as text, or as lines of JSON; and what became of it."""

    def __init__(self, *, as_json: bool, again: Sequence[str]) -> None:
        self.stop_reason: str | None = None
        self.has_shown = False
        """Whether anything of a run came, its end aside."""
        self._failed = False
        self._cursor = 0
        """The sequence of the last event that was shown, or what the run is shown from."""
        self._as_json = as_json
        self._again = again
        """The options to come back with."""
        self._transcript = Transcript(Output())
        self._usage = ""
        self._is_away = False

    @property
    def says_how_it_ended(self) -> bool:
        """Whether a stop reason or an error was among what came."""
        return self._failed or self.stop_reason is not None

    @property
    def outcome(self) -> Exit:
        """What the last run came to."""
        return Exit.FAILED if self._failed or self.stop_reason == "cancelled" else Exit.FINE

    def begin(self, run_id: str) -> None:
        """Another run begins."""
        self.stop_reason, self._failed, self._usage = None, False, ""
        if not self._as_json:
            self._transcript.close(run_id)

    def show(self, event: Event) -> None:
        """Show an event."""
        self._is_away = False
        self._cursor = event.sequence or self._cursor
        chunk = None if event.data == DONE else json.loads(event.data)
        if event.name != "message":
            self._failed = True
        self.has_shown |= chunk is not None and chunk.get("message_type") != "ping"
        if chunk is not None and chunk.get("message_type") == "stop_reason":
            self.stop_reason = str(chunk.get("stop_reason"))
        if self._as_json:
            if chunk is not None:
                sys.stdout.write(f"{event.data}\n")
                sys.stdout.flush()
        elif chunk is None:
            self._transcript.close(f"[{self.stop_reason or 'ended'}{self._usage}]")
        elif chunk.get("message_type") == "usage_statistics":
            self._usage = f", {counted(chunk.get('total_tokens') or 0, 'token')}"
        else:
            self._transcript.show(chunk)

    def away(self, reason: str) -> None:
        """Say once, and to people only, that the connection is lost."""
        if not self._is_away and sys.stderr.isatty():
            tell(f"{reason} Coming back…")
        self._is_away = True

    @contextmanager
    def resumable(self, run_id: str, after: int = 0) -> Iterator[None]:
        """Show a run from a cursor on; when it is broken off, by Ctrl-C or by the server, it is said how to go on."""
        self._cursor = after
        try:
            yield
        except (Refused, Unreachable) as error:
            self._end_line()
            if self._cursor != after:
                error.args = (f"{error} To come back: {self._command(run_id)}",)
            raise
        except asyncio.CancelledError:
            self._end_line()
            tell(f"The run is left alone. To come back: {self._command(run_id)}")
            raise

    def _end_line(self) -> None:
        if not self._as_json:
            self._transcript.end_line()

    def _command(self, run_id: str) -> str:
        return shlex.join(["runstream", "tail", run_id, "--after", str(self._cursor), *self._again])
