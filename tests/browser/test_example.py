"""examples/browser: a page of plain HTML and JavaScript follows a run, is cut, resumes, and is loaded again."""

import json
from pathlib import Path

from runstream.broker.agents.demo import DEFAULT_TEXT
from runstream.schemas import ERROR_TYPES
from tests.support.documents import blocks_below, desk_in, making
from tests.support.tab import Tab

CHUNKS = 40
WORDS = "document.getElementById('answer').innerText.trim().split(/\\s+/)"


async def ask(tab: Tab, page: str, chunks: int) -> None:
    """Open the page, and have the demo agent say so many words, ten a second."""
    await tab.goto(page)
    knobs = json.dumps(json.dumps({"chunks": chunks, "interval_ms": 100}))
    await tab.js(f"document.getElementById('question').value = {knobs}")
    await tab.click("Ask")
    await tab.until(f"{WORDS}.length > 3", "the page does not show the answer")


async def test_the_page(tab: Tab, tmp_path: Path) -> None:
    """It shows each word once, over a connection that it has cut itself; loaded again it shows all of the same run."""
    (start,) = blocks_below("examples/browser/README.md", "A page in a browser", "sh")
    said = DEFAULT_TEXT.split()
    whole = [said[number % len(said)] for number in range(CHUNKS)]
    async with making(start, desk_in(tmp_path)) as example:
        page = (await example.wait_for_line("^page ", 90)).split()[1]
        await ask(tab, page, CHUNKS)
        await tab.click("Cut the connection")
        await tab.shows("Cut. The run goes on.")
        before = await tab.js(f"{WORDS}.length")
        assert before < CHUNKS
        await tab.click("Resume")
        await tab.shows("The run has ended.")
        assert await tab.js(WORDS) == whole
        await tab.js("window.isOld = true, location.reload()")
        loaded = f"!window.isOld && {WORDS}.length === {CHUNKS}"
        await tab.until(loaded, "the page that was loaded again does not show the run")
        assert await tab.js(WORDS) == whole


async def test_all_of_it_is_stopped_and_started_again(tab: Tab, tmp_path: Path) -> None:
    """The browser comes back by itself, and shows what has become of the run: it was interrupted, and has ended."""
    (start,) = blocks_below("examples/browser/README.md", "A page in a browser", "sh")
    desk = desk_in(tmp_path)
    async with making(start, desk) as example:
        page = (await example.wait_for_line("^page ", 90)).split()[1]
        await ask(tab, page, 10_000)
        example.interrupt_group()
        await example.wait(30)
    async with making(start, desk) as example:
        await example.wait_for_line("^page ", 90)
        await tab.shows("The run has ended.")
        assert ERROR_TYPES["stream_task_cancelled"].message in await tab.text("#answer")
