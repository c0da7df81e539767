"""What tests of the console ask of its pages: that they are whole, read as they were said, and usable by everybody."""

import json
from pathlib import Path

from tests.support.tab import Tab

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
VERDICT = "(document.querySelector('.proof')?.innerText ?? '')"
BOUNDED = 1500
"""Nodes that a page may have, however much it shows."""
NODES = """(() => {
  const walker = document.createTreeWalker(document);
  let count = 0;
  while (walker.nextNode()) count += 1;
  return count;
})()"""


def run_page(base: str, run_id: str) -> str:
    return f"{base}/console/runs/{run_id}"


async def is_whole(tab: Tab, chunks: int) -> None:
    """Wait until the page has shown by itself that it has each chunk once."""
    await tab.until(
        f"{VERDICT}.includes('0 missing, 0 twice') && {VERDICT}.includes('{chunks:,} chunks')",
        "the page does not have each chunk once",
    )


async def said(tab: Tab) -> list[str]:
    """The words that the agent has said, as they are read."""
    texts = await tab.js("[...document.querySelectorAll('.reading .prose')].map((each) => each.innerText)")
    return " ".join(texts).split()


async def is_usable(tab: Tab) -> None:
    """See that axe finds nothing, in the light and in the dark."""
    await tab.js(AXE.read_text(encoding="utf-8") + "; null")
    for scheme in ("light", "dark"):
        await tab.scheme(scheme)
        found = json.loads(
            await tab.js(
                "axe.run().then(({ violations }) => JSON.stringify(violations.map(({ id, nodes }) =>"
                "[id, nodes.slice(0, 3).map((each) => [each.html, each.failureSummary])])))"
            )
        )
        assert found == [], scheme
