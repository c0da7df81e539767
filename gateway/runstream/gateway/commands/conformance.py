"""`runstream conformance`: checks from outside whether a server keeps to the API, whoever wrote it."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from runstream.gateway.commands.checks import CHECKS, GROUPS
from runstream.gateway.commands.client import Client, NotAGateway
from runstream.gateway.commands.exits import Exit, Failed, Missing, Usage, epilog, run
from runstream.gateway.commands.ids import check_id
from runstream.gateway.commands.options import PLAIN, AsJson, Key, Url
from runstream.gateway.commands.output import Output
from runstream.gateway.commands.settings import GATEWAY_URL
from runstream.gateway.commands.subject import Broken, Inputs, Server, Unsupported
from runstream.gateway.commands.terminal import harmless

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runstream.gateway.commands.checks import Check

__all__ = ["command"]

command = typer.Typer(**PLAIN)

AGENT: Final = "agent-123e4567-e89b-42d3-8456-426614174000"
SHORT: Final = '{"chunks": 12, "interval_ms": 5}'
LONG: Final = '{"chunks": 100000, "interval_ms": 20}'
FAILING: Final = '{"chunks": 4, "error_after": 2}'
"""What the demo agent is asked; any other answers these as it answers anything."""
MARKS: Final = {"pass": "green", "fail": "bold red", "not supported": "yellow"}


@dataclass(frozen=True)
class Result:
    """What one check came to, and, unless the server passed, why."""

    group: str
    check: str
    result: str
    detail: str = ""


@command.command(epilog=epilog([each for each in Exit if each is not Exit.MISSING]))
def conformance(  # noqa: PLR0917  # typer reads options off the parameters
    agent: Annotated[str, typer.Option(metavar="ID", help="Whom to send messages to.")] = AGENT,
    short: Annotated[str, typer.Option("--input", metavar="TEXT", help="What is answered within seconds.")] = SHORT,
    long: Annotated[str, typer.Option("--long-input", metavar="TEXT", help="What takes a minute to answer.")] = LONG,
    failing: Annotated[str, typer.Option("--failing-input", metavar="TEXT", help="What lets a run fail.")] = FAILING,
    only: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(GROUPS)}; may be repeated.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long nothing may come before that is a failure.")] = 20.0,
    as_json: AsJson = False,  # noqa: FBT002  # typer's way
    url: Url = GATEWAY_URL,
    key_file: Key = None,
) -> None:
    """Check whether a server keeps to the API. From outside: cursors, resume, otids, endings, cancel."""
    inputs = Inputs(agent, short, long, failing)
    raise SystemExit(run(_conformance(Client(url, key_file), inputs, seconds, only or GROUPS, as_json=as_json)))


async def _conformance(client: Client, inputs: Inputs, seconds: float, groups: Sequence[str], *, as_json: bool) -> Exit:
    """Run the checks, and report what they came to; returns whether any has failed."""
    results = await _results(client, inputs, seconds, groups, _reporter(as_json=as_json))
    failed = sum(each.result == "fail" for each in results)
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in results]))
    else:
        passed = sum(each.result == "pass" for each in results)
        typer.echo(f"{passed} passed, {failed} failed, {len(results) - passed - failed} not supported")
    return Exit.FAILED if failed else Exit.FINE


async def _results(
    client: Client, inputs: Inputs, seconds: float, groups: Sequence[str], report: Callable[[Result], None]
) -> list[Result]:
    """Run the checks of these groups, one after the other."""
    if unknown := [group for group in groups if group not in GROUPS]:
        raise Usage(f"There is no group {unknown[0]!r}: they are {', '.join(GROUPS)}.")
    check_id("--agent", "agent-", inputs.agent_id)
    checks = [each for each in CHECKS if each.group in groups]
    results: list[Result] = []
    async with client:
        await _look(client)
        server = Server(client, inputs, seconds)
        with _progress() as progress:
            task = progress.add_task("checks", total=len(checks)) if progress is not None else None
            for each in checks:
                results.append(await _result(server, each))
                report(results[-1])
                if progress is not None and task is not None:
                    progress.advance(task)
    return results


async def _look(client: Client) -> None:
    """Raise for who is not there, lets nobody in, or serves something else: none of them has failed a check."""
    try:
        await client.ask("GET", "/v1/runs/", query={"limit": "1"})
    except NotAGateway:
        raise
    except (Missing, Usage, Failed):
        return  # A check says what of it is wrong.


async def _result(server: Server, check: Check) -> Result:
    try:
        await check.look(server)
    except Broken as error:
        return Result(check.group, check.says, "fail", str(error))
    except Unsupported as error:
        return Result(check.group, check.says, "not supported", str(error))
    finally:
        await server.settle()
    return Result(check.group, check.says, "pass")


def _progress() -> Any:
    """Make a bar, if there is a terminal to show it on that the report does not go to in pieces."""
    console = Console(stderr=True)
    is_shown = console.is_terminal and not sys.stdout.isatty()
    return Progress(console=console, transient=True) if is_shown else nullcontext()


def _reporter(*, as_json: bool) -> Callable[[Result], None]:
    console = Output()

    def report(result: Result) -> None:
        if as_json:
            return
        console.print(
            Text(f"{result.result:<14}", MARKS[result.result]),
            Text(f"{result.group:<8} {result.check}"),
            soft_wrap=True,
        )
        if result.detail:
            console.print(Text(f"{'':<23} {harmless(result.detail)}", "dim"), soft_wrap=True)

    return report
