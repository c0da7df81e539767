"""examples/browser: a page of plain HTML and JavaScript follows a run, is cut, resumes, and is loaded again."""

import json
from pathlib import Path

from runstream.broker.agents.demo import DEFAULT_TEXT
from tests.support.devtools import Tab
from tests.support.documents import blocks_below, desk_in, making

CHUNKS = 40
WORDS = "document.getElementById('answer').innerText.trim().split(/\\s+/)"


async def test_the_page(tab: Tab, tmp_path: Path) -> None:
    """It shows each word once, over a connection that it has cut itself; loaded again it shows all of the same run."""
    (start,) = blocks_below("examples/browser/README.md", "A page in a browser", "sh")
    said = DEFAULT_TEXT.split()
    whole = [said[number % len(said)] for number in range(CHUNKS)]
    async with making(start, desk_in(tmp_path)) as example:
        page = (await example.wait_for_line("^page ", 90)).split()[1]
        await tab.goto(page)
        knobs = json.dumps(json.dumps({"chunks": CHUNKS, "interval_ms": 100}))
        await tab.js(f"document.getElementById('question').value = {knobs}")
        await tab.click("Ask")
        await tab.until(f"{WORDS}.length > 3", "the page does not show the answer")
        await tab.click("Cut the connection")
        await tab.shows("Cut. The run goes on.")
        before = await tab.js(f"{WORDS}.length")
        assert before < CHUNKS
        await tab.click("Resume")
        await tab.shows("The run has ended.")
        assert await tab.js(WORDS) == whole
        await tab.js("location.reload()")
        await tab.until(f"{WORDS}.length === {CHUNKS}", "the page that was loaded again does not show the run")
        assert await tab.js(WORDS) == whole
