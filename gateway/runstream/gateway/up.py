"""Everything in one process: an embedded nats-server (or one that is there), a broker, a gateway."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import structlog

from runstream.broker.agents.demo import demo
from runstream.broker.connection import without_password
from runstream.broker.datadir import DataDirectory
from runstream.broker.embedded import EmbeddedServer
from runstream.broker.service import Broker
from runstream.gateway.app import Gateway

if TYPE_CHECKING:
    from collections.abc import Callable

    from runstream.broker.agents import Agent
    from runstream.broker.settings import BrokerSettings
    from runstream.gateway.settings import GatewaySettings, UpSettings

__all__ = ["CannotStart", "bind", "up"]

log = structlog.get_logger(__name__)

AGENTS: dict[str, Agent] = {"demo": demo}


STORE_SECONDS = 60.0
"""How long the embedded nats-server may take to be ready: it reads its streams, and after a crash repairs them."""


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


async def up(
    settings: UpSettings,
    broker_settings: BrokerSettings,
    gateway_settings: GatewaySettings,
    *,
    ready: Callable[[str], None],
) -> None:
    """Serve until SIGINT or SIGTERM; `ready` is called with the gateway's URL once it serves.

    Raises `CannotStart`, `EmbeddedServerError`, `Unavailable`, `TopologyError` when it cannot start. Nothing is left
    behind: no child process, no lock, no endpoints file.
    """
    agent = AGENTS.get(settings.agent)
    if agent is None:
        raise CannotStart(f"There is no agent {settings.agent!r}; there is: {', '.join(AGENTS)}.")
    stopped = _stop_signals()
    async with AsyncExitStack() as stack:
        gateway_socket = stack.enter_context(bind(settings.host, settings.port, "port"))
        broker_socket = stack.enter_context(bind(settings.host, settings.broker_port, "broker port"))
        directory = stack.enter_context(DataDirectory(settings.data_dir))
        nats_url = settings.nats_url
        if nats_url is None:
            nats_url = (
                await stack.enter_async_context(
                    EmbeddedServer(directory, port=settings.nats_port, start_timeout=STORE_SECONDS)
                )
            ).url
        connected = broker_settings.model_copy(update={"nats_url": nats_url})
        broker = Broker(connected, agent=agent, listener=broker_socket, owns_nats=settings.nats_url is None)
        await stack.enter_async_context(broker)
        await stack.enter_async_context(Gateway(gateway_settings, connected, listener=gateway_socket))
        endpoints = {"gateway": _url(gateway_socket), "broker": _url(broker_socket), "nats": without_password(nats_url)}
        directory.write_endpoints(endpoints)
        log.info("ready", **endpoints, pid=os.getpid())
        ready(endpoints["gateway"])
        await stopped.wait()
        log.info("stopping")


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _stop_signals() -> asyncio.Event:
    """Return the event that SIGINT or SIGTERM sets; a second one ends the process at once."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        if stopped.is_set():
            os._exit(128 + number)
        stopped.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    return stopped
