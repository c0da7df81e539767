"""`runstream up`, `gateway` and `broker`: the commands that serve, and what they tell people."""

from __future__ import annotations

import shlex
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
import uvloop

from runstream.broker.agents.http_platform import Platform
from runstream.broker.agents.loading import agent_source
from runstream.broker.agents.settings import UpstreamSettings
from runstream.broker.auth.settings import AuthSettings
from runstream.broker.limits.settings import LimitSettings
from runstream.broker.settings import BrokerSettings, resolved
from runstream.gateway.commands.exits import Exit, epilog
from runstream.gateway.commands.options import PLAIN, LogJson, LogLevel, NatsUrl
from runstream.gateway.commands.telling import told
from runstream.gateway.place import Place, place_said
from runstream.gateway.process import Termination, until_stopped
from runstream.gateway.serving import serve_broker, serve_gateway
from runstream.gateway.settings import BrokerServiceSettings, GatewayServiceSettings, GatewaySettings, UpSettings
from runstream.gateway.settings_unknown import warn_of_unknown_settings
from runstream.gateway.up import up as serve_all
from runstream.gateway.upstream import Upstream, platform_at
from runstream.gateway.welcome import welcome
from runstream.gateway.workers import serve_workers

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["broker", "gateway", "up"]

up, gateway, broker = typer.Typer(**PLAIN), typer.Typer(**PLAIN), typer.Typer(**PLAIN)

Host = Annotated[str | None, typer.Option(help="Address to listen on. [127.0.0.1]")]
MetricsPort = Annotated[
    int | None, typer.Option(help="A port for /metrics, which is then not on the other one; 0: a free one.")
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

WORKER: Final = (sys.executable, "-P", "-m", "runstream.gateway")
"""What starts a worker, before what this command was given. Not from where it was started: `-P`, as of a script."""

SERVING: Final = "Ctrl-C is 0 once it serves."
EPILOG: Final = f"{epilog([Exit.FINE, Exit.FAILED, Exit.USAGE, Exit.INTERRUPTED])} {SERVING}"
EPILOG_OF_UP: Final = f"{epilog([each for each in Exit if each not in {Exit.MISSING, Exit.NOBODY_READS}])} {SERVING}"


@up.command(epilog=EPILOG_OF_UP)
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
    with told(log_level, log_json):
        settings = resolved(UpSettings, given)
        connection = {"nats_url": nats_url}
        edge = resolved(GatewaySettings, {"upstream": upstream, "background": background})
        source = agent_source(settings.agent, resolved(UpstreamSettings))
        access = _auth(auth, insecure=insecure)
        is_demo, kept_in = settings.agent == "demo", settings.data_dir if settings.nats_url is None else None
        service = serve_all(
            settings,
            resolved(BrokerSettings, connection),
            edge,
            access,
            resolved(LimitSettings),
            agent=source,
            ready=lambda url: _welcome(
                url,
                welcome(
                    url,
                    source,
                    access,
                    program=_program(),
                    is_demo=is_demo,
                    has_console=edge.console,
                    data_dir=kept_in,
                ),
            ),
            upstream=_upstream(platform_at(edge.upstream, default=source.letta)),
        )
        _run(service)


def _program() -> str:
    """Say how this command line is called again: by its path, or as a module, where no search path has it."""
    if shutil.which("runstream"):
        return "runstream"
    if Path(sys.argv[0]).name == "__main__.py":
        return shlex.join([sys.executable, "-m", "runstream.gateway"])
    return shlex.quote(sys.argv[0])


@gateway.command(epilog=EPILOG)
def gateway_command(  # noqa: PLR0917  # typer reads options off the parameters
    host: Host = None,
    port: Annotated[int | None, typer.Option(help="The port; 0: a free one. [8283]")] = None,
    metrics_port: MetricsPort = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that serve the port, each with limits of its own; several need --metrics-port. [1]"
        ),
    ] = None,
    worker: Annotated[Place | None, typer.Option(hidden=True, parser=place_said)] = None,
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
    given = {"host": host, "port": port, "metrics_port": metrics_port, "workers": workers}
    with told(log_level, log_json, worker):
        settings = resolved(GatewayServiceSettings, given)
        edge = resolved(GatewaySettings, {"upstream": upstream, "background": background})
        connected = resolved(BrokerSettings, {"nats_url": nats_url, "drain_seconds": drain_seconds})
        access, limits = _auth(auth, insecure=insecure), resolved(LimitSettings)
        platform = _upstream(platform_at(edge.upstream))
        termination = Termination()
        if settings.workers > 1 and worker is None:
            # What they are given was read above all the same: what is wrong with it is told before any is started.
            service = serve_workers(
                settings,
                access,
                limits,
                command=[*WORKER, *sys.argv[1:]],
                drain_seconds=connected.drain_seconds,
                termination=termination,
                ready=_ready,
            )
        else:
            service = serve_gateway(
                settings,
                edge,
                connected,
                access,
                limits,
                termination=termination,
                ready=_ready,
                upstream=platform,
                place=worker,
            )
        _run(service, termination, is_alone=worker is None)


@broker.command(epilog=EPILOG)
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
    with told(log_level, log_json):
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
        _run(service, termination)


def _run(
    service: Coroutine[None, None, None], termination: Termination | None = None, *, is_alone: bool = True
) -> None:
    if is_alone:  # A worker's environment is its parent's, which has warned.
        warn_of_unknown_settings()
    uvloop.run(until_stopped(service, termination))


def _auth(auth: str | None, *, insecure: bool) -> AuthSettings:
    # What is not said by the flag may be said by the environment.
    return resolved(AuthSettings, {"auth": auth, "insecure": insecure or None})


def _upstream(platform: Platform | None) -> Upstream | None:
    return None if platform is None else Upstream(platform, resolved(UpstreamSettings))


def _welcome(url: str, said: str) -> None:
    """Tell people what to try, if there is somebody."""
    with suppress(OSError):
        typer.echo(said, err=True)
    _ready(url)


def _ready(url: str) -> None:
    """Tell whoever started this process, in one line of stdout, that it serves."""
    typer.echo(f"ready {url}")
    sys.stdout.flush()
