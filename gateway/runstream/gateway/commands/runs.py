"""`runstream runs`: lists runs, as a table or as JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from runstream.gateway.commands.client import Client
from runstream.gateway.commands.exits import OF_CLIENTS, Usage, run
from runstream.gateway.commands.ids import check_id
from runstream.gateway.commands.options import PLAIN, AsJson, Key, Url
from runstream.gateway.commands.output import Output
from runstream.gateway.commands.settings import GATEWAY_URL
from runstream.gateway.commands.terminal import harmless

__all__ = ["command", "table_of"]

command = typer.Typer(**PLAIN)

PAGE: Final = 1000
STATUSES: Final = ("created", "running", "completed", "failed", "cancelled")
HEADINGS: Final = ("run", "status", "age", "took", "stop reason", "agent", "conversation")
"""The more useful before the less: where the window ends, so does the table."""
ALWAYS: Final = 3
GAP: Final = 2
"""Spaces between columns."""
MAY_BE_CUT: Final = "stop reason"
STYLES: Final = {"running": "cyan", "created": "cyan", "completed": "green", "failed": "red", "cancelled": "yellow"}


def _statuses_that_begin(incomplete: str) -> list[str]:
    return [each for each in STATUSES if each.startswith(incomplete)]


@command.command(epilog=OF_CLIENTS)
def runs(  # noqa: PLR0917  # typer reads options off the parameters
    status: Annotated[
        list[str] | None,
        typer.Option(
            metavar=f"[{'|'.join(STATUSES)}]", help="Only these; may be repeated.", autocompletion=_statuses_that_begin
        ),
    ] = None,
    agent: Annotated[str | None, typer.Option(metavar="ID", help="Only this agent's.")] = None,
    conversation: Annotated[str | None, typer.Option(metavar="ID", help="Only those in this conversation.")] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="As many at most, the newest.")] = 20,
    as_json: AsJson = False,  # noqa: FBT002  # typer's way
    url: Url = GATEWAY_URL,
    key_file: Key = None,
) -> None:
    """List runs, the newest first. As JSON it is one array, each run as the API has it."""
    run(_list(Client(url, key_file), status or [], agent, conversation, limit, as_json=as_json))


async def _list(
    client: Client, status: list[str], agent: str | None, conversation: str | None, limit: int, *, as_json: bool
) -> None:
    """Find them, and show them."""
    check_id("--agent", "agent-", agent)
    check_id("--conversation", "conv-", conversation)
    if unknown := [each for each in status if each not in STATUSES]:
        raise Usage(f"--status is one of {', '.join(STATUSES)}, and not {unknown[0]!r}.")
    asked = [("statuses", each) for each in status]
    asked += [("agent_id", agent)] if agent else []
    asked += [("conversation_id", conversation)] if conversation else []
    found = await _found(client, asked, limit)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        _show(found)


async def _found(client: Client, asked: list[tuple[str, str]], limit: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    async with client:
        while len(found) < limit:
            size = min(PAGE, limit - len(found))
            cursor = [("after", found[-1]["id"])] if found else []
            page = await client.ask("GET", "/v1/runs/", query=[*asked, ("limit", str(size)), *cursor])
            found += page
            if len(page) < size:
                break
    return found


def _show(found: list[dict[str, Any]]) -> None:
    if not found:
        typer.echo("No runs.", err=True)
        return
    console = Output.of_tables()
    console.print(table_of(found, console.width), crop=False)


def table_of(found: list[dict[str, Any]], width: int) -> Table:
    """Make the table that people are shown in a window of this width, in columns: a line for each run.

    An id that is cut off can be given to no other command: what there is no room for is left out. Where there is none
    for status and age, they are on a line of their own.
    """
    rows = [_cells(each) for each in found]
    widths = [
        len(heading) if heading == MAY_BE_CUT else max(cell.cell_len for cell in (Text(heading), *cells))
        for heading, *cells in zip(HEADINGS, *rows, strict=True)
    ]
    fitting = [sum(widths[:count]) + GAP * (count - 1) <= width for count in range(1, len(widths) + 1)].count(True)
    table = Table(box=None, pad_edge=False)
    if fitting < ALWAYS:
        table.add_column(Text(", ".join(HEADINGS[:ALWAYS])), no_wrap=True, min_width=widths[0])
        for run, status, age, *_ in rows:
            table.add_row(Text.assemble(run, "\n  ", status, "  ", age))
        return table
    for heading, least in zip(HEADINGS[:fitting], widths, strict=False):
        # What may wrap gives way, and is cut off.
        table.add_column(
            Text(heading, no_wrap=True), no_wrap=heading != MAY_BE_CUT, min_width=least, overflow="ellipsis"
        )
    for cells in rows:
        table.add_row(*cells[:fitting])
    return table


def _cells(each: dict[str, Any]) -> list[Text]:
    status = str(each["status"])
    said = (_age(each["created_at"]), _took(each), each["stop_reason"], each["agent_id"], each["conversation_id"])
    return [
        Text(harmless(each["id"])),
        Text(harmless(status), STYLES.get(status, "")),
        # As text: what an agent gives for a stop reason may look like rich's markup.
        *(Text(harmless(str(cell or "")), no_wrap=True) for cell in said),
    ]


def _age(made: str) -> str:
    at = datetime.fromisoformat(made)
    # The reference's times name no zone where they mean UTC.
    seconds = (datetime.now(UTC) - (at if at.tzinfo else at.replace(tzinfo=UTC))).total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def _took(each: dict[str, Any]) -> str:
    nanoseconds = each.get("total_duration_ns")
    return "" if nanoseconds is None else f"{nanoseconds / 1e9:.1f}s"
