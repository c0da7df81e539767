"""Debian's Chromium, led by Playwright: a tab that is looked at, clicked in, and has its network cut."""

import contextlib
import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, ConsoleMessage, Error, Page, async_playwright
from playwright.async_api import TimeoutError as TooLate

PATIENCE_SECONDS = 30.0
"""What a page may take for anything: a browser on a machine of two cores takes one second to start, or ten."""
SCREEN = (1280, 800)
WIDEST_PHONE = 700
AS_PEOPLE_HAVE_IT = ["--hide-scrollbars", "--disable-back-forward-cache"]
"""What Playwright switches off: a scrollbar has its width, and a page that is left may be kept for who comes back."""


class Tab:
    """One tab of a browser."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.complaints: list[str] = []
        """What it has complained of: defects, and what its policy forbade; that a network was away is none."""
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._heard)

    def _heard(self, message: ConsoleMessage) -> None:
        # The browser's own have no arguments.
        is_of_network = not message.args and message.text.startswith("Failed to load resource")
        if message.type in {"error", "warning", "assert"} and not is_of_network:
            self.complaints.append(message.text)

    async def goto(self, url: str) -> None:
        """Open an address."""
        await self._page.goto(url)

    async def back(self) -> None:
        """Go back, to a page that may have been kept as it was: that one is not loaded, and nobody waits for it."""
        await self._page.go_back(wait_until="commit")

    async def before(self, script: str) -> None:
        """Run a script in each page before its own."""
        await self._page.add_init_script(script)

    async def js(self, expression: str) -> Any:
        """Evaluate an expression, wait for it if it is a promise, and give its value."""
        return await self._page.evaluate(expression)

    async def until(self, expression: str, message: str) -> None:
        """Wait until an expression is true. Of a page that is not drawn yet none is."""
        forgiving = f"() => {{ try {{ return Boolean({expression}) }} catch {{ return false }} }}"
        try:
            await self._page.wait_for_function(forgiving, polling=20)
        except TooLate:
            shown = await self.js("document.body.innerText.slice(0, 2000)")
            complaint = f"{message}; the page shows {shown!r}, and complains of {self.complaints}"
            raise AssertionError(complaint) from None

    async def text(self, selector: str) -> str:
        """The text of the first element that a selector finds."""
        return str(await self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    async def shows(self, text: str) -> None:
        """Wait until the page shows a text."""
        await self.until(f"document.body.innerText.includes({json.dumps(text)})", f"the page does not show {text!r}")

    async def click(self, text: str, selector: str = "button, a") -> None:
        """Click, with the mouse, on what says exactly this."""
        exactly = re.compile(rf"^\s*{re.escape(text)}\s*$")
        try:
            await self._page.locator(selector).filter(has_text=exactly, visible=True).first.click()
        except TooLate as error:
            shown = await self.js("document.body.innerText.slice(0, 2000)")
            raise AssertionError(f"nothing that says {text!r} can be clicked on: {shown!r}, {error}") from None

    async def press(self, key: str) -> None:
        """Press a key."""
        await self._page.keyboard.press(key)

    async def type(self, text: str) -> None:
        """Type into what has the focus."""
        await self._page.keyboard.insert_text(text)

    async def scheme(self, name: str) -> None:
        """Prefer `dark` or `light`."""
        await self._page.emulate_media(color_scheme="dark" if name == "dark" else "light")

    async def offline(self, is_offline: bool) -> None:
        """Have no network, or have it back."""
        await self._page.context.set_offline(is_offline)

    async def cookies(self, url: str) -> list[dict[str, Any]]:
        """The cookies that would go to a URL."""
        return [dict(cookie) for cookie in await self._page.context.cookies(url)]

    async def picture(self, path: Path) -> None:
        """Keep what is to be seen as a PNG."""
        await self._page.screenshot(path=path)


@contextlib.asynccontextmanager
async def browser_open() -> AsyncIterator[Browser]:
    """A browser of which nothing is left when the block ends."""
    program = shutil.which("chromium")
    if program is None:
        pytest.fail("There is no Chromium, which this is about: apt-get install chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, ignore_default_args=AS_PEOPLE_HAVE_IT)
        try:
            yield browser
            assert browser.is_connected(), "the browser has ended by itself"
        finally:
            await browser.close()


@contextlib.asynccontextmanager
async def tab_open(browser: Browser, size: tuple[int, int] = SCREEN) -> AsyncIterator[Tab]:
    """A tab that knows of no other, neither cookies nor storage, on a screen or a phone of that size."""
    width, height = size
    context = await browser.new_context(
        viewport={"width": width, "height": height}, is_mobile=width < WIDEST_PHONE, color_scheme="light"
    )
    context.set_default_timeout(PATIENCE_SECONDS * 1000)
    try:
        yield Tab(await context.new_page())
    finally:
        with contextlib.suppress(Error):  # With its browser it is gone already.
            await context.close()
