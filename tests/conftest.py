"""Fixtures for every test: a real nats-server per module, or a cluster of three. A missing server fails."""

import signal
from collections.abc import AsyncIterator, Generator

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings

from tests.support.nats import NatsCluster, NatsServer, nats_cluster_running, nats_server_running

# By itself it takes an example that needs 200 ms for a failure: a machine that stalls says nothing of the product.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_configure() -> None:
    """Let Ctrl-C reach the processes that are started: a shell that runs this in its background has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let what a test has printed pass between two processes: some of it is no text, as it is about what is none."""
    report = yield
    report.sections = [(name, said.encode(errors="backslashreplace").decode()) for name, said in report.sections]
    return report


@pytest_asyncio.fixture(scope="module")
async def nats_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NatsServer]:
    """A fresh nats-server for this module, which its tests may kill, stop and pause."""
    async with nats_server_running(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture(scope="module")
def nats_url(nats_server: NatsServer) -> str:
    """Where this module's nats-server is."""
    return nats_server.url


@pytest_asyncio.fixture(scope="module")
async def nats_cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NatsCluster]:
    """Three fresh nats-servers in one JetStream cluster, with a leader; a test that kills a node heals it."""
    async with nats_cluster_running(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster
