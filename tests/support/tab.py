"""Debian's Chromium led over its DevTools protocol: a tab that is looked at, clicked in, and has its network cut."""

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.chromium import FLAGS, PATIENCE_SECONDS
from tests.support.processes import running
from tests.support.waiting import wait_until

KEYS = {"Enter": 13, "ArrowDown": 40, "ArrowUp": 38, "Tab": 9, "Escape": 27}


class Devtools:
    """The connection to one browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.events: list[dict[str, Any]] = []

    async def listen(self) -> None:
        """Read until the browser is gone."""
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                answer = self._answers.pop(said["id"])
                if not answer.done():
                    answer.set_result(said)
            else:
                self.events.append(said)

    async def call(self, method: str, session: str | None = None, **params: Any) -> Any:
        """Have the browser do something; gives what it answers."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        whose = {} if session is None else {"sessionId": session}
        await self._socket.send_json({"id": number, "method": method, "params": params, **whose})
        async with asyncio.timeout(PATIENCE_SECONDS):
            said = await answer
        assert "error" not in said, f"{method}: {said['error']}"
        return said["result"]


class Tab:
    """One tab of a browser."""

    def __init__(self, devtools: Devtools, session: str) -> None:
        self._devtools = devtools
        self._session = session

    async def call(self, method: str, **params: Any) -> Any:
        """Have the tab do something."""
        return await self._devtools.call(method, self._session, **params)

    @property
    def complaints(self) -> list[str]:
        """What it has complained of: defects, and what its policy forbade; that a network was away is none."""
        found = []
        for event in self._devtools.events:
            params = event["params"]
            if event.get("sessionId") != self._session:
                continue
            match event["method"]:
                case "Runtime.exceptionThrown":
                    details = params["exceptionDetails"]
                    found.append(str(details.get("exception", {}).get("description", details["text"])))
                case "Runtime.consoleAPICalled" if params["type"] in {"error", "warning", "assert"}:
                    found.append(str([each.get("value", each.get("description")) for each in params["args"]]))
                case "Log.entryAdded" if params["entry"]["level"] == "error" and params["entry"]["source"] != "network":
                    found.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        return found

    async def goto(self, url: str) -> None:
        """Open an address."""
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'", f"{url} is not loaded")

    async def js(self, expression: str) -> Any:
        """Evaluate an expression, wait for it if it is a promise, and give its value."""
        given = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        answer = await self.call("Runtime.evaluate", **given)
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    async def until(self, expression: str, message: str) -> None:
        """Wait until an expression is true. Of a page that is not drawn yet none is."""
        forgiving = f"(() => {{ try {{ return {expression} }} catch {{ return false }} }})()"

        async def is_true() -> bool:
            return bool(await self.js(forgiving))

        try:
            await wait_until(is_true, PATIENCE_SECONDS, message)
        except AssertionError as error:
            shown = await self.js("document.body.innerText.slice(0, 2000)")
            complaint = f"{error}; the page shows {shown!r}, and complains of {self.complaints}"
            raise AssertionError(complaint) from None

    async def text(self, selector: str) -> str:
        """The text of the first element that a selector finds."""
        return str(await self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    async def shows(self, text: str) -> None:
        """Wait until the page shows a text."""
        await self.until(f"document.body.innerText.includes({json.dumps(text)})", f"the page does not show {text!r}")

    async def click(self, text: str, selector: str = "button, a") -> None:
        """Click, with the mouse, on what says exactly this."""
        find = (
            f"[...document.querySelectorAll({json.dumps(selector)})]"
            f".find((each) => each.innerText.trim() === {json.dumps(text)} && each.checkVisibility())"
        )
        await self.until(f"Boolean({find})", f"there is nothing that says {text!r}")
        await self.js(f"{find}.scrollIntoView({{ block: 'nearest' }})")
        box = await self.js(
            f"(({{ x, y, width, height }}) => [x + width / 2, y + height / 2])({find}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    async def press(self, key: str) -> None:
        """Press a key."""
        given = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        text = {"text": "\r"} if key == "Enter" else {}  # Without it a form is not sent.
        await self.call("Input.dispatchKeyEvent", type="keyDown", **given, **text)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **given)

    async def type(self, text: str) -> None:
        """Type into what has the focus."""
        await self.call("Input.insertText", text=text)

    async def size(self, width: int, height: int) -> None:
        """Be as large as a screen, or as a phone."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 700
        )

    async def scheme(self, name: str) -> None:
        """Prefer `dark` or `light`."""
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    async def offline(self, is_offline: bool) -> None:
        """Have no network, or have it back."""
        given = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        await self.call("Network.emulateNetworkConditions", offline=is_offline, **given)

    async def picture(self, path: Path) -> None:
        """Keep what is to be seen as a PNG."""
        found = await self.call("Page.captureScreenshot", format="png", optimizeForSpeed=False)
        path.write_bytes(base64.b64decode(found["data"]))


@contextlib.asynccontextmanager
async def browser_open() -> AsyncIterator[Devtools]:
    """A browser of which nothing is left when the block ends."""
    program = shutil.which("chromium")
    if program is None:
        pytest.fail("There is no Chromium, which this is about: apt-get install chromium")
    # Not pytest's directory: it makes sockets there, whose paths must be short.
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as home:
        places = {"HOME": home, "TMPDIR": home, "XDG_CONFIG_HOME": home, "XDG_CACHE_HOME": home}
        told = Path(home) / "profile" / "DevToolsActivePort"
        flags = [*FLAGS, f"--user-data-dir={told.parent}", "--remote-debugging-port=0", "about:blank"]
        async with running(program, *flags, env=places) as browser:

            def is_told() -> bool:
                return told.exists() and len(told.read_text(encoding="utf-8").splitlines()) == 2

            await wait_until(is_told, PATIENCE_SECONDS, "the browser does not start")
            port, path = told.read_text(encoding="utf-8").splitlines()
            async with (
                aiohttp.ClientSession() as http,
                http.ws_connect(f"ws://127.0.0.1:{port}{path}", max_msg_size=0) as socket,
            ):
                devtools = Devtools(socket)
                listening = asyncio.create_task(devtools.listen(), name="devtools")
                try:
                    yield devtools
                finally:
                    listening.cancel()
                    await asyncio.gather(listening, return_exceptions=True)
                    assert browser.returncode is None, f"the browser has ended by itself; {browser.report()}"


@contextlib.asynccontextmanager
async def tab_open(devtools: Devtools) -> AsyncIterator[Tab]:
    """A tab that knows of no other, neither cookies nor storage."""
    context = (await devtools.call("Target.createBrowserContext"))["browserContextId"]
    try:
        target = await devtools.call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = await devtools.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        tab = Tab(devtools, attached["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            await tab.call(f"{domain}.enable")
        await tab.size(1280, 800)
        yield tab
    finally:
        await devtools.call("Target.disposeBrowserContext", browserContextId=context)
