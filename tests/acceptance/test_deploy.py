"""What is under deploy/ does what it says."""

import contextlib
from pathlib import Path

from runstream.broker.connection import Connection
from runstream.broker.embedded import find_binary
from runstream.broker.jetstream import JetStream
from runstream.broker.settings import BrokerSettings
from runstream.broker.topology import provision
from tests.support.http import Connection as ClientConnection
from tests.support.nats import answers, free_ports
from tests.support.processes import python, running
from tests.support.services import service
from tests.support.waiting import wait_until

DEPLOY = Path(__file__).parents[2] / "deploy"


async def test_the_nats_configuration_serves_runstream(tmp_path: Path) -> None:
    """nats-server takes deploy/nats-server.conf as it is, and runstream finds there all it needs."""
    (port,) = free_ports(1)
    environment = {"NATS_PORT": str(port), "NATS_STORE_DIR": str(tmp_path)}
    url = f"nats://127.0.0.1:{port}"
    async with running(str(find_binary()), "-c", str(DEPLOY / "nats-server.conf"), env=environment):
        await wait_until(lambda: answers(url), 20)
        async with Connection(url, name="test") as connection, contextlib.AsyncExitStack() as stack:
            jetstream = JetStream(connection, timeout_seconds=2)
            stack.push_async_callback(jetstream.close)
            assert (await provision(jetstream, BrokerSettings())).differing == []
            info = await jetstream.api("STREAM.INFO.RUNS_0", None)
            assert info["config"]["max_consumers"] == -1
            assert connection.max_payload == 2**20


async def is_healthy(**ports: int) -> bool:
    """What the image's HEALTHCHECK says in a container with these ports."""
    settings = {f"RUNSTREAM_{name.upper()}": str(port) for name, port in ports.items()}
    async with running(*python(DEPLOY / "healthcheck.py"), env=settings) as check:
        return await check.wait() == 0


async def test_a_containers_health_is_asked_for_where_clients_are_not(nats_url: str) -> None:
    """One whose port is full is healthy, if it has another one for its metrics; one that is gone is not."""
    own, metrics, nobodys = free_ports(3)
    full = {"RUNSTREAM_MAX_CONNECTIONS": "1", "RUNSTREAM_HEAD_SECONDS": "60"}
    ports = {"port": nobodys, "broker_port": own}
    async with service("broker", nats_url, "--metrics-port", str(metrics), env=full, port=own) as started:
        await started.is_ready()
        async with ClientConnection.open(started.base):
            assert not await is_healthy(**ports)
            assert await is_healthy(**ports, metrics_port=metrics)
        await wait_until(lambda: is_healthy(**ports), message="nobody is there any more, and it is not healthy")
    assert not await is_healthy(**ports, metrics_port=metrics)
