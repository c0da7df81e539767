"""Everything in one process: an embedded nats-server (or one that is there), a broker, a gateway."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import structlog

from runstream.broker.auth.authenticator import authenticating
from runstream.broker.connection import Connection
from runstream.broker.datadir import DataDirectory
from runstream.broker.embedded import EmbeddedServer
from runstream.broker.jetstream import JetStream
from runstream.broker.service import Broker
from runstream.broker.settings import without_password
from runstream.broker.topology import check_loaded
from runstream.gateway.app import Gateway
from runstream.gateway.memory import keep_what_is_there
from runstream.gateway.process import bind, check_elsewhere, check_exposure, url_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from runstream.broker.agents.loading import AgentSource
    from runstream.broker.auth.settings import AuthSettings
    from runstream.broker.limits.settings import LimitSettings
    from runstream.broker.settings import BrokerSettings
    from runstream.gateway.settings import GatewaySettings, UpSettings
    from runstream.gateway.upstream import Upstream

__all__ = ["up"]

log = structlog.get_logger(__name__)

NOBODY = dict.fromkeys(
    (
        "nats_credentials",
        "nats_nkey",
        "nats_ca",
        "nats_certificate",
        "nats_certificate_key",
        "nats_server_name",
    )
)
"""What another NATS may want to know, and the embedded one does not."""

STORE_SECONDS = 60.0
"""How long the embedded nats-server may take to be ready: it reads its streams, and after a crash repairs them."""


async def up(
    settings: UpSettings,
    broker_settings: BrokerSettings,
    gateway_settings: GatewaySettings,
    auth: AuthSettings,
    limits: LimitSettings,
    *,
    agent: AgentSource,
    ready: Callable[[str], None],
    upstream: Upstream | None = None,
) -> None:
    """Serve until cancelled; `ready` is called with the gateway's URL once it serves.

    Raises `CannotStart`, `InvalidSettings`, `EmbeddedServerError`, `Unavailable`, `TopologyError` when it cannot start.
    Nothing is left behind: no child process, no lock, no endpoints file.
    """
    async with AsyncExitStack() as stack:
        gateway_socket, broker_socket = await _bound(stack, settings, auth, agent)
        authenticator = await stack.enter_async_context(authenticating(auth))
        directory = stack.enter_context(DataDirectory(settings.data_dir))
        nats_url = settings.nats_url
        if nats_url is None:
            nats_url = await _embedded(stack, directory, settings.nats_port, broker_settings)
        # The embedded server lets in whoever is on this machine, and is told nothing of what another NATS wants.
        connected = broker_settings.model_copy(
            update={"nats_url": nats_url} if settings.nats_url is not None else {**NOBODY, "nats_url": nats_url}
        )
        broker = Broker(
            connected,
            agent=await stack.enter_async_context(agent.open(connected)),
            forwards_credentials=agent.forwards_credentials,
            judges_approvals=agent.judges_approvals,
            listener=broker_socket,
            authenticator=authenticator,
            limits=limits,
            owns_nats=settings.nats_url is None,
        )
        await stack.enter_async_context(broker)
        await stack.enter_async_context(
            Gateway(
                gateway_settings,
                connected,
                listener=gateway_socket,
                upstream=upstream,
                authenticator=authenticator,
                limits=limits,
                configuration=(settings, auth),
            )
        )
        endpoints = {
            "gateway": url_of(gateway_socket),
            "broker": url_of(broker_socket),
            "nats": without_password(nats_url),
        }
        directory.write_endpoints(endpoints)
        log.info("ready", **endpoints, pid=os.getpid())
        keep_what_is_there()
        ready(endpoints["gateway"])
        await asyncio.Event().wait()


async def _bound(
    stack: AsyncExitStack, settings: UpSettings, auth: AuthSettings, agent: AgentSource
) -> tuple[socket.socket, socket.socket]:
    """Take the gateway's port and the broker's until the stack is left, if they may be taken and are no agent's."""
    sockets = (
        stack.enter_context(bind(settings.host, settings.port, "port")),
        stack.enter_context(bind(settings.host, settings.broker_port, "broker port")),
    )
    for listener in sockets:
        check_exposure(listener, auth)
        if agent.platform is not None:
            await check_elsewhere(agent.platform.address, listener)
    return sockets


async def _embedded(stack: AsyncExitStack, directory: DataDirectory, port: int, settings: BrokerSettings) -> str:
    """Have a nats-server until the stack is left, which has loaded what it had stored; returns its URL."""
    server = await stack.enter_async_context(EmbeddedServer(directory, port=port, start_timeout=STORE_SECONDS))
    async with Connection(server.url, name="up") as connection:
        jetstream = JetStream(connection, timeout_seconds=settings.request_timeout_seconds)
        await check_loaded(jetstream, settings, server.stored)
    return server.url
