"""The console for everybody: on a phone, in the dark, with axe's eyes, each head above its column."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.browser.console import is_usable, run_page
from tests.support.stack import Stack
from tests.support.tab import Tab, tab_open

SIDEWAYS = """[...document.querySelectorAll('body, body *')].filter((each) => {
  const { overflowX } = getComputedStyle(each);
  return each.scrollWidth > each.clientWidth + 1 && ['auto', 'scroll'].includes(overflowX);
}).map((each) => `${each.className} ${each.scrollWidth} > ${each.clientWidth}`)"""
"""What can be scrolled sideways."""
CUT = """(() => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const { data, parentElement } = walker.currentNode;
    const isUnseen = parentElement.closest('.hidden, .skip, .table-wrap thead') || !parentElement.checkVisibility();
    if (!data.trim() || isUnseen || getComputedStyle(parentElement).textOverflow === 'ellipsis') continue;
    const range = document.createRange();
    range.selectNodeContents(walker.currentNode);
    if (range.getBoundingClientRect().right > innerWidth + 1) found.push(data);
  }
  return found;
})()"""
"""Texts that go on beyond the right edge of the screen, without saying so."""
PHONES = [(390, 844), (320, 640)]


async def test_heads_stand_above_their_columns(demo_stack: Stack, tab: Tab) -> None:
    """Also while a scrollbar stands beside the rows; and what has the focus shows it whole."""
    await asyncio.gather(*(demo_stack.finished({"chunks": 1, "interval_ms": 0}) for _ in range(30)))
    await tab.goto(f"{demo_stack.base}/console/?status=all")
    await tab.until(
        "(({ scrollHeight, clientHeight }) => scrollHeight > clientHeight)(document.querySelector('.scroller'))",
        "there are too few",
    )
    edges = (
        "[...document.querySelectorAll('{}')[0].children].map((each) => Math.round(each.getBoundingClientRect().right))"
    )
    assert await tab.js(edges.format(".grid-row.head")) == await tab.js(edges.format(".space .grid-row"))
    assert await tab.js("getComputedStyle(document.querySelector('.space .id').parentElement).overflow") == "visible"


@pytest.fixture(params=["", "?status=all", "runs", "asks", "try", "health"])
def view(request: pytest.FixtureRequest) -> str:
    """Each view."""
    return str(request.param)


async def opened(tab: Tab, stack: Stack, view: str) -> None:
    """Open a view, with something in it."""
    knobs = {"chunks": 20, "interval_ms": 0, "reasoning": True, "tool_call": True, "error_after": 12}
    run_id, _ = await stack.finished({"chunks": 2, "approval": True} if view == "asks" else knobs)
    await tab.goto(f"{stack.base}/console/{f'runs/{run_id}' if view in {'runs', 'asks'} else view}")
    shows = {
        "runs": "The run has ended",
        "asks": "waits for an answer",
        "try": "Start the run",
        "health": "RUNS_0",
        "?status=all": run_id[:12],
    }
    await tab.shows(shows.get(view, "live run"))


async def test_everybody_can_use_it(demo_stack: Stack, tab: Tab, view: str) -> None:
    """axe finds nothing, in the light and in the dark: names, roles, landmarks, contrast."""
    await opened(tab, demo_stack, view)
    await is_usable(tab)


@pytest_asyncio.fixture(params=PHONES, ids=lambda size: str(size[0]))
async def phone(request: pytest.FixtureRequest, browser: Browser) -> AsyncIterator[Tab]:
    """A tab on a phone, which has complained of nothing when its test is over."""
    async with tab_open(browser, request.param) as opened:
        yield opened
        assert opened.complaints == []


async def test_it_fits_on_a_phone(demo_stack: Stack, phone: Tab, view: str) -> None:
    """Nothing is wider than the screen, nothing scrolls sideways, and no text is cut."""
    await opened(phone, demo_stack, view)
    assert await phone.js("document.documentElement.scrollWidth <= innerWidth")
    assert await phone.js(SIDEWAYS) == []
    assert await phone.js(CUT) == []


async def test_followers_fit_on_a_phone(stack: Stack, phone: Tab) -> None:
    """Each is a card, whose figures have their names beside them."""
    async with stack.live(5) as (run_id, _):
        await phone.goto(run_page(stack.base, run_id))
        await phone.shows("Letta, in the background")
        assert await phone.js(SIDEWAYS) == []
        assert await phone.js(CUT) == []
        assert await phone.js("document.querySelector('td[data-label=Cursor]').checkVisibility()")


async def test_the_dark(demo_stack: Stack, tab: Tab) -> None:
    """It is as the system is, unless somebody chooses; what was chosen is there at the next visit."""
    dark = "getComputedStyle(document.documentElement).backgroundColor === 'rgb(16, 18, 20)'"
    await tab.goto(f"{demo_stack.base}/console/try")
    assert not await tab.js(dark)
    await tab.scheme("dark")
    assert await tab.js(dark)
    await tab.js(
        "const list = document.getElementById('theme'); list.value = 'light'; list.dispatchEvent(new Event('change'))"
    )
    assert not await tab.js(dark)
    await tab.goto(f"{demo_stack.base}/console/health")
    assert not await tab.js(dark)
