"""The separate services: `runstream gateway` and `runstream broker`."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING

import structlog

from runstream.broker.auth.authenticator import authenticating
from runstream.broker.service import Broker
from runstream.broker.settings import without_password
from runstream.gateway.app import Gateway
from runstream.gateway.memory import keep_what_is_there
from runstream.gateway.place import taken
from runstream.gateway.process import Termination, bind, check_exposure, url_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from runstream.broker.agents.loading import AgentSource
    from runstream.broker.auth.settings import AuthSettings
    from runstream.broker.limits.settings import LimitSettings
    from runstream.broker.settings import BrokerSettings
    from runstream.gateway.place import Place
    from runstream.gateway.settings import BrokerServiceSettings, GatewayServiceSettings, GatewaySettings
    from runstream.gateway.upstream import Upstream

__all__ = ["serve_broker", "serve_gateway"]

log = structlog.get_logger(__name__)


async def serve_gateway(
    service: GatewayServiceSettings,
    settings: GatewaySettings,
    broker_settings: BrokerSettings,
    auth: AuthSettings,
    limits: LimitSettings,
    *,
    termination: Termination,
    ready: Callable[[str], None],
    upstream: Upstream | None = None,
    place: Place | None = None,
) -> None:
    """Serve a gateway until cancelled, or told to terminate, and drained; without NATS it goes on trying.

    `ready` is called once NATS was reached. One with a `place` is a worker: its parent has taken the ports.

    Raises `CannotStart`, `InvalidSettings`, `ServerTooOld`.
    """
    async with AsyncExitStack() as stack:
        if place is None:
            listener, metrics_listener = _ports(stack, service, service.port)
            check_exposure(listener, auth)
        else:
            listener, metrics_listener = stack.enter_context(taken(place, termination))
        authenticator = await stack.enter_async_context(authenticating(auth))
        gateway = Gateway(
            settings,
            broker_settings,
            listener=listener,
            metrics_listener=metrics_listener,
            patient=True,
            upstream=upstream,
            authenticator=authenticator,
            limits=limits,
            configuration=(service, auth),
        )
        await stack.enter_async_context(gateway)
        _announce("listening", listener, metrics_listener, broker_settings)
        await gateway.reached()
        _announce("ready", listener, metrics_listener, broker_settings)
        keep_what_is_there()
        ready(url_of(listener))
        await termination.comes()
        await gateway.drain()


async def serve_broker(
    service: BrokerServiceSettings,
    settings: BrokerSettings,
    auth: AuthSettings,
    limits: LimitSettings,
    *,
    agent: AgentSource | None,
    termination: Termination,
    ready: Callable[[str], None],
) -> None:
    """Serve a broker until cancelled, or told to terminate, and drained; without NATS it goes on trying.

    `ready` is called once it executes runs.

    Raises `CannotStart`, `InvalidSettings`, `TopologyError`.
    """
    async with AsyncExitStack() as stack:
        listener, metrics_listener = _ports(stack, service, service.broker_port)
        check_exposure(listener, auth)
        authenticator = await stack.enter_async_context(authenticating(auth))
        opened = None if agent is None else await stack.enter_async_context(agent.open(settings))
        broker = Broker(
            settings,
            agent=opened,
            forwards_credentials=agent is not None and agent.forwards_credentials,
            judges_approvals=agent is not None and agent.judges_approvals,
            listener=listener,
            authenticator=authenticator,
            limits=limits,
            metrics_listener=metrics_listener,
            patient=True,
        )
        _announce("listening", listener, metrics_listener, settings)
        await stack.enter_async_context(broker)
        _announce("ready", listener, metrics_listener, settings)
        keep_what_is_there()
        ready(url_of(listener))
        await termination.comes()
        await broker.drain()


def _ports(
    stack: ExitStack | AsyncExitStack, service: GatewayServiceSettings | BrokerServiceSettings, port: int
) -> tuple[socket.socket, socket.socket | None]:
    listener = stack.enter_context(bind(service.host, port, "port"))
    if service.metrics_port is None:
        return listener, None
    return listener, stack.enter_context(bind(service.host, service.metrics_port, "metrics port"))


def _announce(
    event: str, listener: socket.socket, metrics_listener: socket.socket | None, settings: BrokerSettings
) -> None:
    metrics = {} if metrics_listener is None else {"metrics": url_of(metrics_listener)}
    log.info(event, url=url_of(listener), nats=without_password(settings.nats_url), pid=os.getpid(), **metrics)
