"""The console's connection: cut, resumed, killed and left; what comes is each chunk once, and the page proves it."""

import signal

from runstream.gateway.console.pages import VERSION
from tests.browser.conftest import Edge
from tests.browser.console import VERDICT, is_usable, is_whole, run_page, said
from tests.support.stack import Stack
from tests.support.tab import Tab
from tests.support.waiting import wait_until


async def test_cut_and_resumed_by_hand(stack: Stack, tab: Tab) -> None:
    """What was said while the page was away comes when it is back, each word once, and the page proves it."""
    async with stack.live(5) as (run_id, creator):
        await tab.goto(run_page(stack.base, run_id))
        await tab.shows("Connected")
        await tab.until("document.querySelectorAll('.chunk').length >= 6", "the chunks are not shown")
        await tab.click("Cut my connection")
        await tab.shows("Cut by you")
        stack.puppet.say(run_id, 7)
        await creator.take(7)
        await tab.click("Resume")
        stack.puppet.say(run_id, 3)
        stack.puppet.finish(run_id)
        await creator.rest()
        # Fifteen words, the stop reason, the usage and the end.
        await is_whole(tab, 18)
        assert await said(tab) == [str(number) for number in range(15)]
        fifth = creator.seen[5].seq_id
        await tab.shows(f"resumed by you, starting_after\t{fifth}")
        assert await tab.text("#said") == "0 missing, 0 twice"


async def test_a_page_that_is_left_follows_no_more(stack: Stack, tab: Tab) -> None:
    """A browser may keep it for whoever comes back; then it goes on where it was."""
    async with stack.live(5) as (run_id, creator):
        await tab.goto(run_page(stack.base, run_id))
        await tab.until(f"{VERDICT}.includes('5 chunks')", "the chunks are not shown")
        await tab.goto(f"{stack.base}/console/assets/{VERSION}/icon.svg")
        tail = stack.hub.followed(run_id)
        assert tail is not None
        await wait_until(lambda: len(tail.followers) == 1, 10, "the page still follows")
        stack.puppet.say(run_id, 5)
        await creator.take(5)
        await tab.back()
        await tab.until(f"{VERDICT}.includes('10 chunks')", "it does not go on")
        stack.puppet.finish(run_id)
        await is_whole(tab, 13)


async def test_a_run_that_is_left_before_it_is_read(stack: Stack, tab: Tab) -> None:
    """Nobody follows it then, and nobody looks at it: what was asked for before it was left begins nothing."""
    async with stack.live(2) as (run_id, _):
        await tab.goto(f"{stack.base}/console/?q={run_id}")
        await tab.shows(f"{run_id[:12]}…")
        await tab.js(
            "(() => { const ask = fetch; window.asked = [];"
            "const late = (given, go) => setTimeout(() => go(ask(...given)), 500);"
            "window.fetch = (...given) => { asked.push(given[0]); return new Promise((go) => late(given, go)); }; })()"
        )
        await tab.click(f"{run_id[:12]}…")
        await tab.until("location.pathname.startsWith('/console/runs/')", "the run is not opened")
        await tab.js("history.back()")
        await tab.until("location.pathname === '/console/'", "back does not lead back")
        await tab.js("new Promise((go) => setTimeout(go, 3000))")
        tail = stack.hub.followed(run_id)
        assert tail is not None
        assert len(tail.followers) == 1
        assert not await tab.js("asked.some((path) => path.endsWith('/followers'))")


async def test_the_network_goes_away(stack: Stack, edge: Edge, tab: Tab) -> None:
    """The browser comes back by itself, with Last-Event-ID, and nothing is missing and nothing twice."""
    async with stack.live(5) as (run_id, creator):
        await tab.goto(run_page(edge.proxy.url, run_id))
        await tab.until(f"{VERDICT}.includes('5 chunks')", "the chunks are not shown")
        async with edge.proxy.away():
            await tab.shows("Connecting")
            stack.puppet.say(run_id, 20)
            await creator.take(20)
        await tab.until(f"{VERDICT}.includes('25 chunks')", "what was missed does not come")
        stack.puppet.finish(run_id)
        await is_whole(tab, 28)
        assert await said(tab) == [str(number) for number in range(25)]
        await tab.shows("came back by itself, Last-Event-ID")
        assert str(creator.seen[5].seq_id) in edge.proxy.last_event_ids


async def test_what_stands_before_the_gateway_refuses(stack: Stack, tab: Tab) -> None:
    """A balancer that answers 502 stops an EventSource for good; the page waits until that has passed, and goes on."""
    async with stack.live(5) as (run_id, creator):
        await tab.goto(run_page(stack.base, run_id))
        await tab.until(f"{VERDICT}.includes('5 chunks')", "the chunks are not shown")
        await tab.js(
            "(() => { const [source, ask] = [EventSource, fetch]; window.isAway = true;"
            "window.EventSource = class extends source { constructor(url) { super(isAway ? '/v1/nothing' : url); } };"
            "window.fetch = async (...given) => isAway ? new Response('', { status: 502 }) : ask(...given); })()"
        )
        await tab.click("Cut my connection")
        await tab.click("Resume")
        await tab.shows("The gateway answers 502.")
        stack.puppet.say(run_id, 5)
        stack.puppet.finish(run_id)
        await creator.rest()
        await tab.js("window.isAway = false")
        await is_whole(tab, 13)
        assert await said(tab) == [str(number) for number in range(10)]
        await tab.until("!document.body.innerText.includes('answers 502')", "it is still complained of")


async def test_a_page_that_is_opened_in_an_outage(stack: Stack, tab: Tab) -> None:
    """It shows the run once the outage is over: nobody has to load it anew."""
    run_id, _ = await stack.finished({"chunks": 3})
    await tab.before(
        "(() => { const ask = fetch; window.refusals = 2; window.fetch = async (path, given) => {"
        "if (!path.startsWith('/v1/runs/') || refusals <= 0) return ask(path, given);"
        "refusals -= 1; return new Response('', { status: 503 }); }; })()",
    )
    await tab.goto(run_page(stack.base, run_id))
    await tab.shows("The gateway answers 503.")
    await is_whole(tab, 6)
    await tab.until("!document.querySelector('main').innerText.includes('answers 503')", "it is still complained of")


async def test_a_run_whose_log_is_gone(stack: Stack, tab: Tab) -> None:
    """The page says so, and neither that it has the run nor that nothing is missing."""
    run_id, _ = await stack.finished({"chunks": 3})
    record = await stack.record(run_id)
    await stack.purge_up_to(record, await stack.tip(record))
    await tab.goto(run_page(stack.base, run_id))
    await tab.shows("Refused")
    proof = await tab.text(".proof")
    assert "Has the whole run" not in proof
    assert "0 missing" not in proof


async def test_the_gateway_is_killed(stack: Stack, edge: Edge, tab: Tab) -> None:
    """The page goes on at another gateway, and says so."""
    async with stack.live(5) as (run_id, creator):
        await tab.goto(run_page(edge.proxy.url, run_id))
        await tab.until(f"{VERDICT}.includes('5 chunks')", "the chunks are not shown")
        edge.gateways[0].send_signal(signal.SIGKILL)
        stack.puppet.say(run_id, 5)
        stack.puppet.finish(run_id)
        await creator.rest()
        await is_whole(tab, 13)
        assert await said(tab) == [str(number) for number in range(10)]
        await tab.shows("connection 2")


async def test_what_is_said_when_the_gateway_is_gone(stack: Stack, edge: Edge, tab: Tab) -> None:
    """Since when, and nothing as if it were so now; nothing can be cancelled until it is back."""
    async with stack.live(2) as (run_id, _):
        await tab.goto(run_page(edge.proxy.url, run_id))
        await tab.until(f"{VERDICT}.includes('2 chunks')", "the chunks are not shown")
        cancel = "[...document.querySelectorAll('button')].find((each) => each.innerText === 'Cancel run')"
        await tab.until(f"{cancel}.checkVisibility() && !{cancel}.disabled", "it cannot be cancelled")
        async with edge.proxy.away():
            await tab.shows("Not connected since ")
            assert await tab.js(f"{cancel}.disabled")
            looks = "(({{ color, backgroundColor }}) => color + backgroundColor)(getComputedStyle({}))"
            idle = "document.body.appendChild(Object.assign(document.createElement('button'), { disabled: true }))"
            assert await tab.js(looks.format(cancel)) == await tab.js(looks.format(idle))
            await tab.js("document.body.lastChild.remove()")
            assert "running, as of " in await tab.text(".state")
            await is_usable(tab)
        await tab.until(f"!{cancel}.disabled", "it can still not be cancelled")
        await tab.until("document.querySelector('.state').innerText === 'running'", "it is said as of then")
        await tab.until("!document.querySelector('main').innerText.includes('Not connected')", "it is still said")


async def test_the_record_waits_for_nothing_else(stack: Stack, tab: Tab) -> None:
    """How a run is shows at once, and its age goes on, while the outline of its log is still being read."""
    async with stack.live(3) as (run_id, _):
        await tab.before(
            "(() => { const ask = fetch; window.fetch = (path, given) => "
            "path.includes('/outline') ? new Promise(() => {}) : ask(path, given); })()",
        )
        await tab.goto(run_page(stack.base, run_id))
        await tab.until("document.querySelector('.state').innerText === 'running'", "the status is not shown")
        await tab.until(f"{VERDICT}.includes('3 chunks')", "it is not followed")
        age = "document.querySelectorAll('.facts dd')[3].innerText"
        await tab.js(f"window.age = {age}")
        await tab.until(f"{age} !== window.age", "the age stands still")
        assert "Reading the log" in await tab.text(".timeline")
