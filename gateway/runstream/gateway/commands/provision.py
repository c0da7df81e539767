"""`runstream provision`: plans, makes and changes what runstream needs in NATS."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
import uvloop
from rich.console import Console
from rich.text import Text

from runstream.broker.settings import BrokerSettings, resolved
from runstream.broker.topology import written
from runstream.gateway.commands.exits import Exit, Usage, epilog, tell
from runstream.gateway.commands.options import PLAIN, LogJson, LogLevel, NatsUrl
from runstream.gateway.commands.telling import told
from runstream.gateway.provisioning import planned, provision_once

if TYPE_CHECKING:
    from runstream.broker.topology import Difference, Plan

__all__ = ["command"]

command = typer.Typer(**PLAIN)


@command.command(epilog=epilog([each for each in Exit if each not in {Exit.MISSING, Exit.NOBODY_READS}]))
def provision(  # noqa: PLR0917  # typer reads options off the parameters
    nats_url: NatsUrl = None,
    plan: Annotated[  # noqa: FBT002  # typer's way
        bool, typer.Option("--plan", help="Change nothing: show what is absent and what differs. Exit code 1 if any.")
    ] = False,
    apply: Annotated[  # noqa: FBT002  # typer's way
        bool, typer.Option("--apply", help="Also change what differs. A shorter retention removes what is older.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --plan: write JSON, for programs.")] = False,  # noqa: FBT002  # typer's way
    rebuild_index: Annotated[  # noqa: FBT002  # typer's way
        bool, typer.Option("--rebuild-index", help="Then write what the index lacks of the runs that are stored.")
    ] = False,
    shards: Annotated[int | None, typer.Option(help="Streams that runs are spread over, at most 8. [1]")] = None,
    replicas: Annotated[int | None, typer.Option(help="Copies of every stream. [1]")] = None,
    retention: Annotated[str | None, typer.Option(help="How long a chunk is kept. [24h]")] = None,
    max_log_bytes: Annotated[int | None, typer.Option(help="Bytes one shard may hold. [no limit]")] = None,
    max_run_messages: Annotated[int | None, typer.Option(help="Messages one run may have. [200000]")] = None,
    lease_seconds: Annotated[
        str | None, typer.Option(help="How long a worker may be silent before its run goes to another. [10s]")
    ] = None,
    # What it makes it says on stdout: the log would say it again.
    log_level: LogLevel = "warning",
    log_json: LogJson = None,
) -> None:
    """Make the streams in NATS that are absent, say what differs, and end."""
    given = {
        "nats_url": nats_url,
        "shards": shards,
        "replicas": replicas,
        "retention": retention,
        "max_log_bytes": max_log_bytes,
        "max_run_messages": max_run_messages,
        "lease_seconds": lease_seconds,
    }
    _check(plan=plan, changes=apply or rebuild_index, as_json=as_json)
    with told(log_level, log_json):
        settings = resolved(BrokerSettings, given)
        # Not `until_stopped`: whoever breaks it off must not be told that all was done.
        if plan:
            raise SystemExit(_show(uvloop.run(planned(settings)), as_json=as_json))
        uvloop.run(provision_once(settings, apply=apply, rebuild_index=rebuild_index, tell=typer.echo))


def _check(*, plan: bool, changes: bool, as_json: bool) -> None:
    complaint = None
    if plan and changes:
        complaint = "--plan changes nothing: leave it out, or --apply and --rebuild-index."
    elif as_json and not plan:
        complaint = "--json is for --plan."
    if complaint is not None:
        tell(complaint)
        raise SystemExit(Usage.exit)


def _show(plan: Plan, *, as_json: bool) -> Exit:
    """Show the plan; returns whether there is nothing to do."""
    if as_json:
        typer.echo(json.dumps(msgspec.to_builtins(plan)))
    else:
        _draw(plan)
    return Exit.FAILED if plan.absent or plan.differing else Exit.FINE


def _draw(plan: Plan) -> None:
    console = Console()
    for name in plan.absent:
        console.print(Text(f"+ {name}", "green"), soft_wrap=True)
    by_place: dict[str, list[Difference]] = {}
    for difference in plan.differing:
        by_place.setdefault(difference.where, []).append(difference)
    for where, differences in by_place.items():
        console.print(Text(f"~ {where}", "yellow"), soft_wrap=True)
        for each in differences:
            found, wanted = (written(each.field, value, json.dumps) for value in (each.found, each.wanted))
            console.print(Text(f"  - {each.field}: {found}", "red"), soft_wrap=True)
            console.print(Text(f"  + {each.field}: {wanted}", "green"), soft_wrap=True)
    if not plan.absent and not plan.differing:
        console.print("nothing to do: everything is there, and as this configuration says", soft_wrap=True)
    elif plan.differing:
        said = "what is absent is made by `runstream provision`, what differs is changed with --apply"
        console.print(said, soft_wrap=True)
