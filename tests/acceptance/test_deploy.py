"""What is under deploy/ does what it says."""

import contextlib
from pathlib import Path

from runstream.broker.connection import Connection
from runstream.broker.embedded import find_binary
from runstream.broker.jetstream import JetStream
from runstream.broker.settings import BrokerSettings
from runstream.broker.topology import provision
from tests.support.nats import answers, free_ports
from tests.support.processes import running
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
