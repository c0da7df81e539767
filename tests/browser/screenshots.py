"""Takes the pictures of the console that README shows, `make screenshots`, to be looked at before they are committed.

With a second directory it takes all others there, to be looked at only.
"""

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.async_api import Browser

from runstream.broker.agents.demo import demo
from tests.support.nats import nats_server_running
from tests.support.stack import Stack, stack_running
from tests.support.tab import Tab, browser_open, tab_open

TEXT = (
    "A stream that is only sent is gone with the connection that it was sent on. One that is stored first can be read "
    "by whoever comes, from wherever they were: each message has a number, and a reader who knows the last one that it "
    "saw asks for what follows. So a phone in a tunnel, a lid that was closed and a gateway that was replaced are all "
    "the same to the run, which goes on, and to its reader, who misses nothing and sees nothing twice. "
)
SHOWN = {"chunks": 120, "interval_ms": 35, "reasoning": True, "tool_call": True, "silence_ms": 1800, "text": TEXT}
WIDE, PHONE, SMALL = (1280, 800), (390, 844), (320, 640)
NOBODYS = "run-00000000-0000-4000-8000-000000000000"


async def start(stack: Stack, **knobs: Any) -> str:
    """Begin a run in a conversation and leave it to itself."""
    async with stack.say_in(await stack.conversation(), knobs) as stream:
        (ping,) = await stream.take(1)
    return str(ping.json["run_id"])


async def in_both(tab: Tab, directory: Path, name: str) -> None:
    """Take a picture in the light, and one in the dark."""
    for scheme in ("light", "dark"):
        await tab.scheme(scheme)
        await tab.picture(directory / f"{name}-{scheme}.png")


async def take_run(stack: Stack, tab: Tab, directory: Path) -> str:
    """A run that is followed, cut and taken up again while it goes on, and checked at its end."""
    run_id = await start(stack, **SHOWN)
    await tab.goto(f"{stack.base}/console/runs/{run_id}")
    await tab.until("document.querySelectorAll('.chunk').length > 12", "the run does not begin")
    await tab.click("Cut my connection")
    await asyncio.sleep(1)  # What is missed meanwhile is in the picture.
    await tab.click("Resume")
    await tab.shows("The run has ended")
    await tab.until("document.querySelector('.proof').innerText.includes('0 missing, 0 twice')", "it is not checked")
    await in_both(tab, directory, "run")
    return run_id


async def take_others(stack: Stack, browser: Browser, directory: Path, run_id: str) -> None:
    """Everything else, which README does not show, on a screen and on a phone."""
    for interval in (40, 60, 90, 130, 200, 350, 500, 800):
        await start(stack, chunks=2000, interval_ms=interval)
    await stack.finished({"chunks": 30, "error_after": 12, "interval_ms": 1})
    asks, _ = await stack.finished({"chunks": 20, "interval_ms": 1, "approval": True})
    async with stack.create({"chunks": 3000, "interval_ms": 8}) as followed:
        (ping, *_) = await followed.take(20)
        live = f"runs/{ping.json['run_id']}"
        views = {"runs": ("?status=all", "/s"), "health": ("health", "RUNS_0"), "try": ("try", "Start the run")}
        views |= {"live": (live, "Connected"), "whole": (f"runs/{run_id}", "0 missing, 0 twice")}
        views |= {"asks": (f"runs/{asks}", "Approve"), "none": (f"runs/{NOBODYS}", "There is no such run")}
        views |= {"empty": ("?status=cancelled", "No cancelled runs")}
        for size, where in ((WIDE, ""), (PHONE, "phone-"), (SMALL, "small-")):
            async with tab_open(browser, size) as tab:
                for name, (path, shows) in views.items():
                    await tab.goto(f"{stack.base}/console/{path}")
                    await tab.until(f"document.body.textContent.includes('{shows}')", f"{name} does not show {shows}")
                    await in_both(tab, directory, where + name)
                    if name == "live":
                        await tab.shows("Letta, in the background")
                        await tab.js("scrollTo(0, document.body.scrollHeight)")
                        await in_both(tab, directory, f"{where}followers")
                assert tab.complaints == []


async def main(directory: Path, others: Path | None = None) -> None:
    """Serve, look, and keep what is to be seen."""
    with tempfile.TemporaryDirectory() as home:
        async with (
            nats_server_running(Path(home)) as server,
            stack_running(server.url, agent=demo) as stack,
            browser_open() as browser,
            tab_open(browser) as tab,
        ):
            run_id = await take_run(stack, tab, directory)
            if others is not None:
                await take_others(stack, browser, others, run_id)
            assert tab.complaints == []


if __name__ == "__main__":
    asyncio.run(main(*map(Path, sys.argv[1:])))
