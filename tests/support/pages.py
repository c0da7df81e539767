"""Pages of the test's own, in a browser: each says what it sees, to the server that it came from."""

import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web
from playwright.async_api import Browser

from tests.support.stack import listener
from tests.support.tab import PATIENCE_SECONDS, tab_open
from tests.support.waiting import wait_until

PAGE = Path(__file__).parents[1] / "browser" / "page.html"


class Seen(NamedTuple):
    """What a page has seen: for an EventSource, an event with its `lastEventId` and the `readyState` at that moment."""

    type: str
    data: str | None = None
    id: str | None = None
    state: int | None = None


class Page:
    """One page, and what it has reported so far."""

    def __init__(self, seen: list[Seen]) -> None:
        self.seen = seen

    async def until(self, predicate: Callable[[], Any], message: str) -> None:
        """Wait until the page has reported what makes `predicate` true."""
        try:
            await wait_until(predicate, PATIENCE_SECONDS, message)
        except AssertionError as error:
            raise AssertionError(f"{error}; the page has seen {self.seen[-20:]}") from None

    async def sees(self, kind: str) -> Seen:
        """Wait until the page has seen something of that type, and give the first."""
        await self.until(lambda: self.of_type(kind), f"the page does not see {kind!r}")
        return self.of_type(kind)[0]

    def of_type(self, *kinds: str) -> list[Seen]:
        """All that the page has seen of these types."""
        return [seen for seen in self.seen if seen.type in kinds]


class Pages:
    """A web server of the test's at `origin`, for pages and what they report."""

    def __init__(self, origin: str, browser: Browser) -> None:
        self.origin = origin
        self._browser = browser
        self._numbers = itertools.count(1)
        self._documents: dict[str, str] = {}
        self._seen: dict[str, list[Seen]] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def serving(cls, browser: Browser) -> AsyncIterator["Pages"]:
        """A server for as long as the block lasts."""
        bound = listener()
        pages = cls(f"http://127.0.0.1:{bound.getsockname()[1]}", browser)
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
        """A page that runs `script`, in a tab of its own, for as long as the block lasts."""
        page = str(next(self._numbers))
        self._documents[page] = PAGE.read_text(encoding="utf-8").replace("// the test's script", script)
        seen = self._seen[page] = []
        async with tab_open(self._browser) as tab:
            await tab.goto(f"{self.origin.replace('127.0.0.1', host)}/{page}/")
            opened = Page(seen)
            yield opened
            assert opened.of_type("defect") == []

    async def _show(self, request: web.Request) -> web.Response:
        return web.Response(text=self._documents[request.match_info["page"]], content_type="text/html")

    async def _report(self, request: web.Request) -> web.Response:
        self._seen[request.match_info["page"]].append(Seen(**json.loads(await request.text())))
        return web.Response(status=204)
