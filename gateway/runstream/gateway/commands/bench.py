"""`runstream bench`: measures a deployment from outside, with runs of its own, and checks what comes of them."""

from __future__ import annotations

import json
import resource
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from runstream.gateway.commands.client import Client
from runstream.gateway.commands.exits import OF_CLIENTS, Exit, Missing, Usage, run, tell
from runstream.gateway.commands.load import NEAR_THE_END, Load, Plan
from runstream.gateway.commands.options import PLAIN, AsJson, IngestUrl, Key, Patience, Url
from runstream.gateway.commands.output import Output
from runstream.gateway.commands.settings import BROKER_URL, GATEWAY_URL
from runstream.gateway.commands.terminal import counted, harmless
from runstream.gateway.descriptors import allow_descriptors

if TYPE_CHECKING:
    from runstream.gateway.commands.load import Figures
    from runstream.gateway.commands.spread import Spread

__all__ = ["command"]

command = typer.Typer(**PLAIN)

OWN_FILES: Final = 64
MOST_CHUNKS: Final = 1_000_000
"""Of a run; a deployment lets one have 200,000 unless it is set otherwise."""
BUSY_SHARE: Final = 0.8
"""Of a core: beyond, what is measured may be this process."""
LEAST_SIZE: Final = 80
"""Characters, of which each chunk says which one it is, and of which run."""
MOST_SIZE: Final = 100_000
QUANTILES: Final = {"p50": 0.5, "p99": 0.99}


@command.command(epilog=OF_CLIENTS)
def bench(  # noqa: PLR0917  # typer reads options off the parameters
    runs: Annotated[int, typer.Option(min=1, help="How many runs are written at once.")] = 10,
    followers: Annotated[int, typer.Option(min=1, help="How many follow each of them.")] = 10,
    rate: Annotated[int, typer.Option(min=1, help="Chunks a second in each run.")] = 20,
    burst: Annotated[  # noqa: FBT002  # typer's way
        bool, typer.Option("--burst", help="Chunks as fast as they are stored, in place of --rate.")
    ] = False,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="How long the runs are written.")] = 10.0,
    size: Annotated[int, typer.Option(min=LEAST_SIZE, max=MOST_SIZE, help="Characters in each chunk.")] = 250,
    as_json: AsJson = False,  # noqa: FBT002  # typer's way
    patience: Patience = 60.0,
    url: Url = GATEWAY_URL,
    ingest_url: IngestUrl = BROKER_URL,
    key_file: Key = None,
) -> None:
    """Measure a deployment from outside: what it takes to store, deliver, come back and read again.

    It makes runs of its own, and checks that every follower gets every chunk once, in order.
    """
    plan = Plan(runs=runs, followers=followers, seconds=seconds, size=size, rate=None if burst else rate)
    clients = Client(ingest_url, key_file, option="--ingest-url"), Client(url, key_file)
    raise SystemExit(run(_bench(*clients, plan, patience=patience, as_json=as_json)))


async def _bench(writer: Client, reader: Client, plan: Plan, *, patience: float, as_json: bool) -> Exit:
    """Put the load on, and tell what came of it; returns whether anything was lost, or out of place."""
    _check(plan)
    async with writer, reader:
        await _look(reader)
        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
            load = Load(writer, reader, plan, _Bar(bar), patience_seconds=patience)
            try:
                figures = await load.carry_out()
            finally:
                if load.left:
                    left = f"{counted(load.left, 'run')} of {load.agent_id}"
                    tell(f"{left} may go on, as nobody answered who could cancel: without a writer a run soon ends.")
    if as_json:
        typer.echo(json.dumps(_told(plan, load.agent_id, figures)))
    else:
        _show(plan, load.agent_id, figures)
    if figures.core_share > BUSY_SHARE:
        tell(f"This process took {figures.core_share:.0%} of a core, and may be what was slow: ask for less.")
    return Exit.FAILED if figures.lost or figures.out_of_place else Exit.FINE


def _check(plan: Plan) -> None:
    """Raise `Usage` for what would fail when half of it is done."""
    if plan.chunks is not None and plan.chunks > MOST_CHUNKS:
        raise Usage(f"--rate for --seconds comes to {plan.chunks:,} chunks in each run: {MOST_CHUNKS:,} are the most.")
    allow_descriptors()
    needed = plan.runs * (plan.followers + 1) + OWN_FILES
    granted, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != granted < needed:
        raise Usage(f"That takes {needed} files, and `ulimit -Hn` lets this process open {granted}: ask for less.")


async def _look(reader: Client) -> None:
    """Raise for who is no gateway, or lets nobody in, before runs are made."""
    try:
        await reader.ask("GET", "/v1/runs/", query={"limit": "1"})
    except Missing as error:
        raise Usage(f"{reader.url} has no runs: {reader.option} is a gateway's.") from error


class _Bar:
    """Shows what goes on on a terminal: one bar at a time."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("open", total=None)

    def begin(self, what: str, total: int | None) -> None:
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task(what, total=total)

    def advance(self, steps: int) -> None:
        self._progress.advance(self._task, steps)


def _show(plan: Plan, agent_id: str, figures: Figures) -> None:
    """Show it to people."""
    rate = "as many chunks as are stored" if plan.rate is None else f"{counted(plan.rate, 'chunk')} a second"
    in_each = f"{counted(plan.followers, 'follower')} and {rate} of {plan.size} characters"
    typer.echo(f"{counted(plan.runs, 'run')}, in each {in_each}, for {plan.seconds:g} s\n")
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True, min_width=10)
    for heading in (*QUANTILES, "longest"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=9)
    table.add_column("", no_wrap=True)  # It gives way where the window is narrow.
    near = min(NEAR_THE_END, plan.chunks or NEAR_THE_END)
    written = _in_a_second(figures.stored.count, figures.seconds_stored)
    delivered = _in_a_second(figures.delivered.count, figures.seconds_delivered)
    again = _in_a_second(figures.chunks_read_again, figures.seconds_read_again)
    for name, spread, what in (
        ("stored", figures.stored, f"{figures.stored.count:,} chunks, {written}/s"),
        ("delivered", figures.delivered, f"{figures.delivered.count:,} times, {delivered}/s"),
        ("come back", figures.came_back, f"all at once, for the last {counted(near, 'chunk')}"),
        ("read again", figures.read_again, f"all at once, {again} chunks/s"),
    ):
        times = (*(spread.quantile(share) for share in QUANTILES.values()), spread.longest)
        table.add_row(name, *(_duration(seconds) for seconds in times), what)
    Output.of_tables().print(table, crop=False)
    wrong = f"{counted(figures.lost, 'chunk')} lost, {counted(figures.out_of_place, 'chunk')} out of place"
    typer.echo(f"\n{wrong}, {counted(figures.outages, 'stream')} cut or turned away and taken up again.")
    if figures.outages:
        typer.echo(f"The last time: {harmless(figures.last_outage)}")
    typer.echo(f"The runs are those of {agent_id}.")


def _in_a_second(count: int, seconds: float) -> str:
    return f"{_rate(count, seconds):,.0f}"


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds else 0.0


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds * 1000:.1f} ms"  # noqa: PLR2004  # what reads better


def _told(plan: Plan, agent_id: str, figures: Figures) -> dict[str, Any]:
    """Tell it to programs."""
    return {
        "agent_id": agent_id,
        "runs": plan.runs,
        "followers": plan.followers,
        "rate": plan.rate,
        "seconds": plan.seconds,
        "size": plan.size,
        "chunks": figures.stored.count,
        "stored_per_second": round(_rate(figures.stored.count, figures.seconds_stored), 1),
        "stored_ms": _spread(figures.stored),
        "deliveries": figures.delivered.count,
        "delivered_per_second": round(_rate(figures.delivered.count, figures.seconds_delivered), 1),
        "delivered_ms": _spread(figures.delivered),
        "come_back_ms": _spread(figures.came_back),
        "read_again_per_second": round(_rate(figures.chunks_read_again, figures.seconds_read_again), 1),
        "read_again_ms": _spread(figures.read_again),
        "lost": figures.lost,
        "out_of_place": figures.out_of_place,
        "outages": figures.outages,
        "last_outage": figures.last_outage,
        "core_share": round(figures.core_share, 3),
    }


def _spread(spread: Spread) -> dict[str, float]:
    quantiles = {name: spread.quantile(share) for name, share in QUANTILES.items()}
    return {name: round(seconds * 1000, 3) for name, seconds in {**quantiles, "longest": spread.longest}.items()}
