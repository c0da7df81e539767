"""The command line: `runstream up` and what it tells people."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
import uvloop

from runstream.broker.errors import BrokerError
from runstream.broker.settings import BrokerSettings, resolved
from runstream.gateway.logs import configure_logs
from runstream.gateway.settings import GatewaySettings, UpSettings
from runstream.gateway.up import CannotStart, up

__all__ = ["app", "main"]

# Without markup: a default in brackets would be taken for a style.
app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

TRY_NEXT = """
runstream is up. What to try next, in another terminal:

  # A run of 50 chunks, one every 200 ms; break it off with Ctrl-C whenever you like.
  curl -N {url}/v1/agents/agent-123e4567-e89b-42d3-8456-426614174000/messages/stream \\
    -H 'Content-Type: application/json' \\
    -d '{{"background": true, "input": "{{\\"chunks\\": 50, \\"interval_ms\\": 200}}"}}'

  # Go on where you were: the run_id and the last seq_id stand in each line you saw.
  curl -N {url}/v1/runs/RUN_ID/stream -H 'Content-Type: application/json' -d '{{"starting_after": SEQ_ID}}'

Ctrl-C stops it. Runs are kept in {data_dir} and survive a restart.
"""


@app.callback()
def runstream() -> None:
    """Run the durable stream broker for agent runs."""


@app.command("up")
def up_command(  # noqa: PLR0917  # typer reads options off the parameters
    host: Annotated[str | None, typer.Option(help="Address to listen on. [127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="The gateway's port; 0: a free one. [8283]")] = None,
    broker_port: Annotated[int | None, typer.Option(help="The broker's port; 0: a free one. [8284]")] = None,
    nats_port: Annotated[int | None, typer.Option(help="The embedded nats-server's port; 0: a free one. [0]")] = None,
    nats_url: Annotated[str | None, typer.Option(help="Use this NATS; embed none.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where the embedded nats-server keeps its streams. [./.runstream]")
    ] = None,
    agent: Annotated[str | None, typer.Option(help="What answers messages. [demo]")] = None,
    log_level: Annotated[str, typer.Option(envvar="RUNSTREAM_LOG_LEVEL")] = "info",
    log_json: Annotated[bool | None, typer.Option("--log-json/--log-text", envvar="RUNSTREAM_LOG_JSON")] = None,
) -> None:
    """Run everything in one process: an embedded nats-server, a broker with a demo agent, a gateway."""
    given = {
        "host": host,
        "port": port,
        "broker_port": broker_port,
        "nats_port": nats_port,
        "nats_url": nats_url,
        "data_dir": data_dir,
        "agent": agent,
    }
    try:
        configure_logs(level=log_level, as_json=log_json)
        settings = resolved(UpSettings, given)
        broker, gateway = resolved(BrokerSettings), resolved(GatewaySettings)
        uvloop.run(up(settings, broker, gateway, ready=lambda url: _announce(url, settings)))
    except (CannotStart, BrokerError) as error:
        _fail(str(error))


def _announce(url: str, settings: UpSettings) -> None:
    """Tell people what to try, and whoever started this process, in one line of stdout, that it serves."""
    typer.echo(TRY_NEXT.format(url=url, data_dir=settings.data_dir), err=True)
    typer.echo(f"ready {url}")
    sys.stdout.flush()


def _fail(message: str) -> NoReturn:
    typer.echo(f"runstream: {message}", err=True)
    raise SystemExit(1)


def main() -> None:
    """Run the command line."""
    app()
