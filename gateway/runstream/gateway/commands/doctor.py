"""`runstream doctor`: looks for what is wrong, and says what to do about it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer
from rich.text import Text

from runstream.broker.errors import BrokerError, InvalidSettings
from runstream.broker.settings import BrokerSettings, resolved
from runstream.gateway.commands.exits import Exit, epilog, run
from runstream.gateway.commands.options import PLAIN, AsJson, NatsUrl
from runstream.gateway.commands.output import Output
from runstream.gateway.commands.terminal import harmless
from runstream.gateway.diagnosis import Finding, Role, diagnose
from runstream.gateway.logs import configure_logs

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["command"]

command = typer.Typer(**PLAIN)

MARKS: Final = {"fine": ("ok", "green"), "problem": ("problem", "bold red"), "unknown": ("unknown", "yellow")}


@command.command(epilog=epilog([Exit.FINE, Exit.FAILED, Exit.USAGE, Exit.INTERRUPTED, Exit.NOBODY_READS]))
def doctor(
    role: Annotated[Role, typer.Option(help="As whom to look: whose user of NATS the settings name.")] = "gateway",
    nats_url: NatsUrl = None,
    as_json: AsJson = False,  # noqa: FBT002  # typer's way
) -> None:
    """Look for what is wrong with NATS, and say what to do about it. Exit code 1 if there is a problem."""
    # What is wrong is in the findings; the logs would say it a second time.
    configure_logs(level="critical", as_json=None)
    raise SystemExit(run(_doctor(role, nats_url, as_json=as_json)))


async def _doctor(role: Role, nats_url: str | None, *, as_json: bool) -> Exit:
    """Look, and show what is found; returns whether there is a problem."""
    found: list[Finding] = []
    collect = _collect(found, as_json=as_json)
    try:
        settings = resolved(BrokerSettings, {"nats_url": nats_url})
    except InvalidSettings as error:
        collect(Finding("settings", "problem", str(error), "Mend this variable or option."))
    else:
        await _look(settings, role, collect)
    if as_json:
        typer.echo(json.dumps([msgspec.to_builtins(finding) for finding in found]))
    return Exit.FAILED if any(finding.state == "problem" for finding in found) else Exit.FINE


def _collect(found: list[Finding], *, as_json: bool) -> Callable[[Finding], None]:
    def collect(finding: Finding) -> None:
        found.append(finding)
        if not as_json:
            _show(finding)

    return collect


async def _look(settings: BrokerSettings, role: Role, collect: Callable[[Finding], None]) -> None:
    try:
        async for finding in diagnose(settings, role):
            collect(finding)
    except BrokerError as error:
        collect(Finding("nats", "problem", str(error), "Repeat it; what NATS logs says more."))


def _show(finding: Finding) -> None:
    word, style = MARKS[finding.state]
    console = Output()
    console.print(Text(f"{word:<8}", style), Text(harmless(f"{finding.check}: {finding.says}")), soft_wrap=True)
    if finding.do:
        console.print(Text(f"{'':<8} {finding.do}", "dim"), soft_wrap=True)
