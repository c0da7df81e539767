"""What a service is made of by the time it is ready, the garbage collector does not look through again."""

import asyncio
import gc
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TypeAlias

import pytest

from runstream.broker.agents.loading import agent_source
from runstream.broker.agents.settings import UpstreamSettings
from runstream.broker.auth.settings import AuthSettings
from runstream.broker.limits.settings import LimitSettings
from runstream.broker.settings import BrokerSettings
from runstream.broker.tasks import cancel_all
from runstream.gateway.process import Termination
from runstream.gateway.serving import serve_broker, serve_gateway
from runstream.gateway.settings import BrokerServiceSettings, GatewayServiceSettings, GatewaySettings, UpSettings
from runstream.gateway.up import up
from tests.support.nats import NatsServer

READY_SECONDS = 30.0
MOST_OBJECTS = 1000
"""What is made after the freezing, while `ready` is told."""

Ready: TypeAlias = Callable[[str], None]
Serve: TypeAlias = Callable[[str, Path, Ready], Coroutine[None, None, None]]


def gateway(nats_url: str, _: Path, ready: Ready) -> Coroutine[None, None, None]:
    return serve_gateway(
        GatewayServiceSettings(port=0, metrics_port=None),
        GatewaySettings(),
        BrokerSettings(nats_url=nats_url),
        AuthSettings(),
        LimitSettings(),
        termination=Termination(),
        ready=ready,
    )


def broker(nats_url: str, _: Path, ready: Ready) -> Coroutine[None, None, None]:
    return serve_broker(
        BrokerServiceSettings(broker_port=0, metrics_port=None),
        BrokerSettings(nats_url=nats_url),
        AuthSettings(),
        LimitSettings(),
        agent=None,
        termination=Termination(),
        ready=ready,
    )


def everything(nats_url: str, directory: Path, ready: Ready) -> Coroutine[None, None, None]:
    return up(
        UpSettings(port=0, broker_port=0, nats_url=nats_url, data_dir=directory),
        BrokerSettings(),
        GatewaySettings(),
        AuthSettings(),
        LimitSettings(),
        agent=agent_source("demo", UpstreamSettings()),
        ready=ready,
    )


@pytest.mark.parametrize("serve", [gateway, broker, everything])
async def test_what_a_ready_service_is_made_of_is_passed_over(
    nats_server: NatsServer, tmp_path: Path, serve: Serve
) -> None:
    """A full collection, in which nobody is served, has next to nothing to look at."""
    looked_at: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    service = asyncio.create_task(
        serve(nats_server.url, tmp_path, lambda _: looked_at.set_result(len(gc.get_objects())))
    )
    try:
        async with asyncio.timeout(READY_SECONDS):
            assert await looked_at < MOST_OBJECTS
    finally:
        await cancel_all(service)
        gc.unfreeze()
