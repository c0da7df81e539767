"""The command line: `runstream up`, `gateway`, `broker`, `provision`, `nats-keys`, and what they tell people."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import typer
import uvloop

from runstream.broker.agents.http_platform import Platform
from runstream.broker.agents.loading import agent_source
from runstream.broker.agents.settings import UpstreamSettings
from runstream.broker.auth.settings import AuthSettings
from runstream.broker.errors import BrokerError
from runstream.broker.limits.settings import LimitSettings
from runstream.broker.settings import BrokerSettings, resolved
from runstream.gateway.keys import keys
from runstream.gateway.logs import configure_logs
from runstream.gateway.natskeys import make_keys
from runstream.gateway.process import CannotStart, Termination, until_stopped
from runstream.gateway.provisioning import provision_once
from runstream.gateway.serving import serve_broker, serve_gateway
from runstream.gateway.settings import BrokerServiceSettings, GatewayServiceSettings, GatewaySettings, UpSettings
from runstream.gateway.up import up
from runstream.gateway.upstream import Upstream, platform_at
from runstream.gateway.welcome import welcome

__all__ = ["app", "main"]

# Without markup: a default in brackets would be taken for a style.
app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

app.add_typer(keys)

Host = Annotated[str | None, typer.Option(help="Address to listen on. [127.0.0.1]")]
MetricsPort = Annotated[
    int | None, typer.Option(help="A port for /metrics, which is then not on the other one; 0: a free one.")
]
NatsUrl = Annotated[
    str | None, typer.Option(help="Where NATS is; several servers with commas. [nats://127.0.0.1:4222]")
]
AGENT_HELP = "What answers messages: demo, module:callable, or a platform's URL."
DRAIN_HELP = "How long it may take, after SIGTERM, to"
UPSTREAM_HELP = "A Letta platform's root: it answers what runstream does not."
Background = Annotated[
    str | None, typer.Option(help="always: every run can be resumed, whether it was asked for or not. [as-asked]")
]
Auth = Annotated[
    str | None, typer.Option(help="How to find out who asks: none, static (keys in a file) or jwt (tokens). [none]")
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Without authentication, listen on any address all the same.")
]
LogLevel = Annotated[str, typer.Option(envvar="RUNSTREAM_LOG_LEVEL")]
LogJson = Annotated[bool | None, typer.Option("--log-json/--log-text", envvar="RUNSTREAM_LOG_JSON")]


def _print_version(wanted: bool) -> None:  # noqa: FBT001  # typer's way
    if wanted:
        typer.echo(f"runstream {version('runstream')}")
        raise typer.Exit


@app.callback()
def runstream(
    _: Annotated[  # noqa: FBT002  # typer's way
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Run the durable stream broker for agent runs."""


@app.command("up")
def up_command(  # noqa: PLR0917  # typer reads options off the parameters
    host: Host = None,
    port: Annotated[int | None, typer.Option(help="The gateway's port; 0: a free one. [8283]")] = None,
    broker_port: Annotated[int | None, typer.Option(help="The broker's port; 0: a free one. [8284]")] = None,
    nats_port: Annotated[int | None, typer.Option(help="The embedded nats-server's port; 0: a free one. [0]")] = None,
    nats_url: Annotated[str | None, typer.Option(help="Use this NATS; embed none.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where the embedded nats-server keeps its streams. [./.runstream]")
    ] = None,
    agent: Annotated[str | None, typer.Option(help=f"{AGENT_HELP} [demo]")] = None,
    upstream: Annotated[
        str | None, typer.Option(help=f"{UPSTREAM_HELP} none: nobody. [the agent's, if it is such a platform]")
    ] = None,
    background: Background = None,
    auth: Auth = None,
    insecure: Insecure = False,  # noqa: FBT002  # typer's way
    log_level: LogLevel = "info",
    log_json: LogJson = None,
) -> None:
    """Run everything in one process: an embedded nats-server, a broker with an agent, a gateway."""
    given = {
        "host": host,
        "port": port,
        "broker_port": broker_port,
        "nats_port": nats_port,
        "nats_url": nats_url,
        "data_dir": data_dir,
        "agent": agent,
    }
    with _told(log_level, log_json):
        settings = resolved(UpSettings, given)
        connection = {"nats_url": settings.nats_url}
        edge = resolved(GatewaySettings, {"upstream": upstream, "background": background})
        source = agent_source(settings.agent, resolved(UpstreamSettings))
        access = _auth(auth, insecure=insecure)
        is_demo, kept_in = settings.agent == "demo", settings.data_dir if settings.nats_url is None else None
        service = up(
            settings,
            resolved(BrokerSettings, connection),
            edge,
            access,
            resolved(LimitSettings),
            agent=source,
            ready=lambda url: _welcome(url, welcome(url, source, access, is_demo=is_demo, data_dir=kept_in)),
            upstream=_upstream(platform_at(edge.upstream, default=source.letta)),
        )
        uvloop.run(until_stopped(service))


@app.command("gateway")
def gateway_command(  # noqa: PLR0917  # typer reads options off the parameters
    host: Host = None,
    port: Annotated[int | None, typer.Option(help="The port; 0: a free one. [8283]")] = None,
    metrics_port: MetricsPort = None,
    nats_url: NatsUrl = None,
    upstream: Annotated[str | None, typer.Option(help=UPSTREAM_HELP)] = None,
    background: Background = None,
    drain_seconds: Annotated[str | None, typer.Option(help=f"{DRAIN_HELP} send its readers away. [15s]")] = None,
    auth: Auth = None,
    insecure: Insecure = False,  # noqa: FBT002  # typer's way
    log_level: LogLevel = "info",
    log_json: LogJson = None,
) -> None:
    """Run a gateway: HTTP in, streams out. Any number of them serve the same runs."""
    given = {"host": host, "port": port, "metrics_port": metrics_port}
    with _told(log_level, log_json):
        settings = resolved(GatewaySettings, {"upstream": upstream, "background": background})
        termination = Termination()
        service = serve_gateway(
            resolved(GatewayServiceSettings, given),
            settings,
            resolved(BrokerSettings, {"nats_url": nats_url, "drain_seconds": drain_seconds}),
            _auth(auth, insecure=insecure),
            resolved(LimitSettings),
            termination=termination,
            ready=_ready,
            upstream=_upstream(platform_at(settings.upstream)),
        )
        uvloop.run(until_stopped(service, termination))


@app.command("broker")
def broker_command(  # noqa: PLR0917  # typer reads options off the parameters
    host: Host = None,
    port: Annotated[int | None, typer.Option(help="The port; 0: a free one. [8284]")] = None,
    metrics_port: MetricsPort = None,
    nats_url: NatsUrl = None,
    agent: Annotated[str | None, typer.Option(help=f"{AGENT_HELP} Without one, no run is executed here.")] = None,
    drain_seconds: Annotated[str | None, typer.Option(help=f"{DRAIN_HELP} let its runs end. [15s]")] = None,
    auth: Auth = None,
    insecure: Insecure = False,  # noqa: FBT002  # typer's way
    log_level: LogLevel = "info",
    log_json: LogJson = None,
) -> None:
    """Run a broker: it makes the streams in NATS and executes runs. Any number of them share the work."""
    given = {"host": host, "broker_port": port, "metrics_port": metrics_port, "agent": agent}
    with _told(log_level, log_json):
        settings = resolved(BrokerServiceSettings, given)
        termination = Termination()
        service = serve_broker(
            settings,
            resolved(BrokerSettings, {"nats_url": nats_url, "drain_seconds": drain_seconds}),
            _auth(auth, insecure=insecure),
            resolved(LimitSettings),
            agent=None if settings.agent is None else agent_source(settings.agent, resolved(UpstreamSettings)),
            termination=termination,
            ready=_ready,
        )
        uvloop.run(until_stopped(service, termination))


@app.command("provision")
def provision_command(  # noqa: PLR0917  # typer reads options off the parameters
    nats_url: NatsUrl = None,
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
    log_level: LogLevel = "info",
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
    with _told(log_level, log_json):
        settings = resolved(BrokerSettings, given)
        # Not `until_stopped`: whoever breaks it off must not be told that all was done.
        uvloop.run(provision_once(settings, rebuild_index=rebuild_index, tell=typer.echo))


@app.command("nats-keys")
def nats_keys_command(
    directory: Annotated[Path, typer.Argument(help="Where to; it is made if it is not there.")],
) -> None:
    """Make a key for each role's user of NATS, for deploy/nats/nats-server.conf."""
    with _told("info", None):
        make_keys(directory, tell=typer.echo)


def _auth(auth: str | None, *, insecure: bool) -> AuthSettings:
    # What is not said by the flag may be said by the environment.
    return resolved(AuthSettings, {"auth": auth, "insecure": insecure or None})


def _upstream(platform: Platform | None) -> Upstream | None:
    return None if platform is None else Upstream(platform, resolved(UpstreamSettings))


@contextmanager
def _told(log_level: str, log_json: bool | None) -> Iterator[None]:  # noqa: FBT001  # as typer read it
    """Configure logs; what keeps a service from starting is told in one line, with exit code 1."""
    try:
        configure_logs(level=log_level, as_json=log_json)
        yield
    except (CannotStart, BrokerError) as error:
        _fail(str(error))


def _welcome(url: str, told: str) -> None:
    """Tell people what to try, if there is somebody."""
    with suppress(OSError):
        typer.echo(told, err=True)
    _ready(url)


def _ready(url: str) -> None:
    """Tell whoever started this process, in one line of stdout, that it serves."""
    typer.echo(f"ready {url}")
    sys.stdout.flush()


def _fail(message: str) -> NoReturn:
    typer.echo(f"runstream: {message}", err=True)
    raise SystemExit(1)


def main() -> None:
    """Run the command line."""
    app()
