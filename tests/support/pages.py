"""Debian's Chromium without a driver: it opens a page of the test's, and the page says what it sees."""

import contextlib
import itertools
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiohttp import web

from tests.support.processes import RunningProcess, running
from tests.support.stack import listener
from tests.support.waiting import wait_until

FLAGS = [
    "--headless",
    "--no-sandbox",  # it runs as root where CI does
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-breakpad",  # its own process would outlive it
    "--disable-dev-shm-usage",  # a container has 64 MB of it
]
PATIENCE_SECONDS = 30.0
"""What a page may take for anything: a browser on a machine of two cores takes one second to start, or ten."""

PAGE = Path(__file__).parents[1] / "browser" / "page.html"


class Seen(NamedTuple):
    """What a page has seen: for an EventSource, an event with its `lastEventId` and the `readyState` at that moment."""

    type: str
    data: str | None = None
    id: str | None = None
    state: int | None = None


class Page:
    """One page in a browser of its own, and what it has reported so far."""

    def __init__(self, seen: list[Seen], browser: RunningProcess) -> None:
        self.seen = seen
        self._browser = browser

    async def until(self, predicate: Callable[[], Any], message: str) -> None:
        """Wait until the page has reported what makes `predicate` true."""
        try:
            await wait_until(predicate, PATIENCE_SECONDS, message)
        except AssertionError as error:
            complaint = f"{error}; the page has seen {self.seen[-20:]}; {self._browser.report()}"
            raise AssertionError(complaint) from None

    async def sees(self, kind: str) -> Seen:
        """Wait until the page has seen something of that type, and give the first."""
        await self.until(lambda: self.of_type(kind), f"the page does not see {kind!r}")
        return self.of_type(kind)[0]

    def of_type(self, *kinds: str) -> list[Seen]:
        """All that the page has seen of these types."""
        return [seen for seen in self.seen if seen.type in kinds]


class Pages:
    """A web server of the test's at `origin`, for pages and what they report."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self._numbers = itertools.count(1)
        self._documents: dict[str, str] = {}
        self._seen: dict[str, list[Seen]] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def serving(cls) -> AsyncIterator["Pages"]:
        """A server for as long as the block lasts."""
        bound = listener()
        pages = cls(f"http://127.0.0.1:{bound.getsockname()[1]}")
        app = web.Application()
        app.add_routes([web.get("/{page}/", pages._show), web.post("/{page}/seen", pages._report)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.SockSite(runner, bound).start()
            yield pages
        finally:
            await runner.cleanup()

    @contextlib.asynccontextmanager
    async def opened(self, script: str, *, host: str = "127.0.0.1") -> AsyncIterator[Page]:
        """A page that runs `script`, in a fresh browser of which nothing is left when the block ends."""
        program = shutil.which("chromium")
        if program is None:
            pytest.fail("There is no Chromium, which these tests are about: apt-get install chromium")
        page = str(next(self._numbers))
        self._documents[page] = PAGE.read_text(encoding="utf-8").replace("// the test's script", script)
        seen = self._seen[page] = []
        url = f"{self.origin.replace('127.0.0.1', host)}/{page}/"
        # Not pytest's directory: it makes sockets there, whose paths must be short.
        with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as home:
            places = {"HOME": home, "TMPDIR": home, "XDG_CONFIG_HOME": home, "XDG_CACHE_HOME": home}
            async with running(program, *FLAGS, f"--user-data-dir={home}/profile", url, env=places) as browser:
                opened = Page(seen, browser)
                yield opened
                assert opened.of_type("defect") == []

    async def _show(self, request: web.Request) -> web.Response:
        return web.Response(text=self._documents[request.match_info["page"]], content_type="text/html")

    async def _report(self, request: web.Request) -> web.Response:
        self._seen[request.match_info["page"]].append(Seen(**json.loads(await request.text())))
        return web.Response(status=204)
