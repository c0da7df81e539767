"""Two gateways in processes of their own behind a proxy, a broker in the test's, and a web server for pages."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from runstream.broker.agents.demo import demo
from tests.support.nats import nats_server_running
from tests.support.pages import Pages
from tests.support.processes import RunningProcess, python, running
from tests.support.proxy import Proxy
from tests.support.stack import Stack, stack_running
from tests.support.tab import Tab, browser_open, tab_open

ROOT = Path(__file__).parents[2]
# The source as it lies, wherever the process is started.
SOURCE = {"PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "schemas", "broker", "gateway"))}
RETRY_SECONDS = 0.2
"""When browsers come back, half more or less: soon, as some of these tests let them come back twenty times."""


def gateway(nats_url: str) -> list[str]:
    """The argv of a gateway that says `ready <url>`."""
    return python("-m", "tests.support.gateway_process", nats_url)


@dataclass(frozen=True)
class Edge:
    """What a browser reaches: a proxy, and the gateways behind it, of which it takes the first that lives."""

    proxy: Proxy
    gateways: list[RunningProcess]


@pytest_asyncio.fixture(scope="module")
async def stack(nats_url: str) -> AsyncIterator[Stack]:
    """The broker, whose agent the test leads, and a gateway of the test's own to start runs with."""
    async with stack_running(nats_url) as running_stack:
        yield running_stack


@pytest_asyncio.fixture(scope="module")
async def pages(browser: Browser) -> AsyncIterator[Pages]:
    """The server of the pages; its origin is the one that the gateways list."""
    async with Pages.serving(browser) as serving:
        yield serving


@pytest_asyncio.fixture
async def edge(nats_url: str, stack: Stack, pages: Pages) -> AsyncIterator[Edge]:
    """Two gateways that may be killed."""
    assert stack.base, "the streams are there before the gateways are"
    settings = {"RUNSTREAM_CORS_ORIGINS": pages.origin, "RUNSTREAM_EVENT_SOURCE_RETRY_SECONDS": f"{RETRY_SECONDS}s"}
    async with contextlib.AsyncExitStack() as exits:
        processes = [
            await exits.enter_async_context(running(*gateway(nats_url), env={**SOURCE, **settings})) for _ in range(2)
        ]
        ready = await asyncio.gather(*(process.wait_for_line("^ready ", 20) for process in processes))
        proxy = await exits.enter_async_context(Proxy.running([line.split()[1] for line in ready]))
        yield Edge(proxy, processes)


@pytest_asyncio.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    """A browser for the tabs of a module."""
    async with browser_open() as opened:
        yield opened


@pytest_asyncio.fixture
async def tab(browser: Browser) -> AsyncIterator[Tab]:
    """A fresh tab, which has complained of nothing when its test is over."""
    async with tab_open(browser) as opened:
        yield opened
        assert opened.complaints == []


@pytest_asyncio.fixture(scope="module")
async def demo_stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A runstream whose agent is the demo agent, on a NATS of its own: the other one's broker would take its runs."""
    async with (
        nats_server_running(tmp_path_factory.mktemp("nats")) as server,
        stack_running(server.url, agent=demo) as running,
    ):
        yield running
