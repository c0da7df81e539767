"""A real Prometheus that watches a real gateway and broker at work: every rule and every panel shows something."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from runstream.broker.tasks import end_task
from tests.deploy.prometheus import Prometheus, prometheus_running
from tests.deploy.test_dashboards import FILES, queries
from tests.deploy.test_rules import ALERTS, RECORDINGS
from tests.support.ingest import writer_of
from tests.support.nats import free_ports, nats_server_running
from tests.support.processes import running, runstream
from tests.support.stack import Stack, stack_running
from tests.support.waiting import wait_until

TAIL_CHUNKS = 32
PAUSE_SECONDS = 0.2


async def work(stack: Stack) -> None:
    """What clients and writers do, a little of each, again and again."""
    while True:
        run_id, _ = await stack.finished({"chunks": 2 * TAIL_CHUNKS})
        async with stack.resume(run_id) as stream:
            await stream.rest()
        short, events = await stack.finished({"chunks": 3})
        async with stack.resume(short, events[1].seq_id) as stream:
            await stream.rest()
        writer = await writer_of(stack.broker_base)
        await writer.append(0, 1, 2)
        await writer.end()
        await asyncio.sleep(PAUSE_SECONDS)  # Time for others: nothing is waited for.


@contextlib.asynccontextmanager
async def gateway_of_workers(nats_url: str) -> AsyncIterator[str]:
    """A gateway of two workers, which nobody uses: what it shows of them is where this says."""
    port, metrics_port = free_ports(2)
    ports = ["--port", str(port), "--metrics-port", str(metrics_port)]
    async with running(*runstream("gateway", "--nats-url", nats_url, "--workers", "2", *ports)) as gateway:
        await gateway.wait_for_line("^ready ", 60)
        yield f"127.0.0.1:{metrics_port}"


@pytest_asyncio.fixture(scope="module")
async def watched(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Prometheus]:
    """A runstream under load, and a gateway of workers, watched."""
    settings = {"tail_chunks": TAIL_CHUNKS, "tail_fill_chunks": TAIL_CHUNKS // 2}
    async with contextlib.AsyncExitStack() as entered:
        server = await entered.enter_async_context(nats_server_running(tmp_path_factory.mktemp("nats")))
        stack = await entered.enter_async_context(
            stack_running(server.url, gateway=settings, broker={"max_log_bytes": 10**9})
        )
        working = asyncio.create_task(work(stack), name="work")
        entered.push_async_callback(end_task, working)
        targets = [base.removeprefix("http://") for base in (stack.base, stack.broker_base)]
        targets.append(await entered.enter_async_context(gateway_of_workers(server.url)))
        directory = tmp_path_factory.mktemp("prometheus")
        yield await entered.enter_async_context(prometheus_running(directory, targets))


async def shows(watched: Prometheus, query: str) -> bool:
    """Whether a query gives a series with a number."""
    return any(math.isfinite(float(series["value"][1])) for series in await watched.ask(query))


async def check(watched: Prometheus, asked: Sequence[str]) -> None:
    """Wait until all of them show something: the first rates take a few scrapes."""
    left = list(asked)

    async def all_show() -> bool:
        left[:] = [query for query in left if not await shows(watched, query)]
        return not left

    try:
        await wait_until(all_show, 30)
    except AssertionError:
        pytest.fail("these show nothing:\n" + "\n".join(left))


async def test_every_recording_has_data(watched: Prometheus) -> None:
    """What is recorded is there under its name."""
    await check(watched, [rule["record"] for rule in RECORDINGS])


async def test_every_alert_looks_at_something(watched: Prometheus) -> None:
    """Its condition is false, and not about nothing: as 0 and 1 it has a value."""
    conditions = [rule["expr"].replace("> ", "> bool ").replace("== ", "== bool ") for rule in ALERTS]
    await check(watched, conditions)
    firing = await watched.ask('ALERTS{alertstate="firing"}')
    assert firing == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
async def test_every_panel_has_data(watched: Prometheus, path: Path) -> None:
    """Each of its queries."""
    await check(watched, list(queries(path)))
