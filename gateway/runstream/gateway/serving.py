"""A service as a process: its ports, until SIGINT or SIGTERM; `runstream gateway` and `runstream broker`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING

import structlog

from runstream.broker.service import Broker
from runstream.broker.settings import without_password
from runstream.gateway.app import Gateway

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from runstream.broker.agents.loading import AgentSource
    from runstream.broker.settings import BrokerSettings
    from runstream.gateway.settings import BrokerServiceSettings, GatewayServiceSettings, GatewaySettings

__all__ = ["CannotStart", "bind", "serve_broker", "serve_gateway", "until_stopped", "url_of"]

log = structlog.get_logger(__name__)


class CannotStart(Exception):
    """runstream cannot start as it was asked to."""


def bind(host: str, port: int, what: str) -> socket.socket:
    """Take a port for `what`. Raises `CannotStart` when it is taken, or the address is not this machine's."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        # Listening is what makes a second process fail at once instead of sharing the port unheard.
        listener.listen()
    except OSError as error:
        flag = what.replace(" ", "-")
        raise CannotStart(
            f"The {what} {host}:{port} cannot be taken: {error.strerror}. Choose another with --{flag} (0: a free one)."
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Return where a socket listens."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def until_stopped(service: Coroutine[None, None, None]) -> None:
    """Run `service` until SIGINT or SIGTERM, then cancel it and wait until it has given everything back.

    A second signal ends the process at once. Raises what the service raises; one that returns ends this.
    """
    running = asyncio.create_task(service, name="service")
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        if stopped.is_set():
            os._exit(128 + number)
        stopped.set()
        log.info("stopping")
        running.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        await running
    except asyncio.CancelledError:
        if not stopped.is_set():
            raise


async def serve_gateway(
    service: GatewayServiceSettings,
    settings: GatewaySettings,
    broker_settings: BrokerSettings,
    *,
    ready: Callable[[str], None],
) -> None:
    """Serve a gateway until cancelled; without NATS it goes on trying. `ready` is called once NATS was reached.

    Raises `CannotStart`, `ServerTooOld`.
    """
    async with AsyncExitStack() as stack:
        listener, metrics_listener = _ports(stack, service)
        gateway = Gateway(settings, broker_settings, listener=listener, metrics_listener=metrics_listener, patient=True)
        await stack.enter_async_context(gateway)
        _announce("listening", listener, metrics_listener, broker_settings)
        await gateway.reached()
        _announce("ready", listener, metrics_listener, broker_settings)
        ready(url_of(listener))
        await asyncio.Event().wait()


async def serve_broker(
    service: BrokerServiceSettings,
    settings: BrokerSettings,
    *,
    agent: AgentSource | None,
    ready: Callable[[str], None],
) -> None:
    """Serve a broker until cancelled; without NATS it goes on trying. `ready` is called once it executes runs.

    Raises `CannotStart`, `TopologyError`.
    """
    async with AsyncExitStack() as stack:
        listener, metrics_listener = _ports(stack, service)
        opened = None if agent is None else await stack.enter_async_context(agent.open(settings.nats_url))
        broker = Broker(
            settings,
            agent=opened,
            forwards_credentials=agent is not None and agent.forwards_credentials,
            judges_approvals=agent is not None and agent.judges_approvals,
            listener=listener,
            metrics_listener=metrics_listener,
            patient=True,
        )
        _announce("listening", listener, metrics_listener, settings)
        await stack.enter_async_context(broker)
        _announce("ready", listener, metrics_listener, settings)
        ready(url_of(listener))
        await asyncio.Event().wait()


def _ports(
    stack: ExitStack | AsyncExitStack, service: GatewayServiceSettings | BrokerServiceSettings
) -> tuple[socket.socket, socket.socket | None]:
    listener = stack.enter_context(bind(service.host, service.port, "port"))
    if service.metrics_port is None:
        return listener, None
    return listener, stack.enter_context(bind(service.host, service.metrics_port, "metrics port"))


def _announce(
    event: str, listener: socket.socket, metrics_listener: socket.socket | None, settings: BrokerSettings
) -> None:
    metrics = {} if metrics_listener is None else {"metrics": url_of(metrics_listener)}
    log.info(event, url=url_of(listener), nats=without_password(settings.nats_url), pid=os.getpid(), **metrics)
