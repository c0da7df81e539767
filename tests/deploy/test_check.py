"""What `helm test` runs notices whether a deployment works."""

import pytest

from tests.deploy.chart import CHART
from tests.support.nats import free_ports
from tests.support.processes import python, running
from tests.support.services import service

CHECK = CHART / "files" / "check.py"


async def test_a_deployment_that_works_passes(nats_url: str) -> None:
    """A broker without an agent and a gateway are enough: the run is stored, cut, resumed, and whole."""
    async with service("broker", nats_url) as broker, service("gateway", nats_url) as gateway:
        await broker.is_ready()
        await gateway.is_ready()
        where = {"GATEWAY_URL": gateway.base, "BROKER_URL": broker.base, "TOKEN": "none needed"}
        async with running(*python(CHECK), env=where) as check:
            assert await check.wait() == 0, check.report()
            assert "6 chunks, 3 of them after the cut; none is missing, none was seen twice" in check.lines[0]


@pytest.mark.parametrize("missing", ["GATEWAY_URL", "BROKER_URL"])
async def test_a_deployment_that_does_not_work_fails(nats_url: str, missing: str) -> None:
    """Where one of the two is not there it ends with 1, and says what went wrong in one line."""
    (port,) = free_ports(1)
    async with service("broker", nats_url) as broker, service("gateway", nats_url) as gateway:
        await broker.is_ready()
        await gateway.is_ready()
        where = {"GATEWAY_URL": gateway.base, "BROKER_URL": broker.base, missing: f"http://127.0.0.1:{port}"}
        async with running(*python(CHECK), env=where) as check:
            assert await check.wait() == 1, check.report()
            assert [line for line in check.errors if line.startswith("runstream does not work: ConnectError")]
            assert len(check.errors) == 1
