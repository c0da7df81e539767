"""The console as a person has it: in Chromium, over cuts and kills, with a keyboard, on a phone, in the dark."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from runstream.broker.agents.demo import demo
from runstream.broker.bucket import Bucket, Put
from runstream.broker.keys import run_key
from runstream.gateway.console.pages import VERSION
from runstream.schemas import (
    DEFAULT_TENANT,
    ApprovalRequestMessage,
    AssistantMessage,
    ReasoningMessage,
    RunRecord,
    ToolCall,
    ToolCallMessage,
    UsageStatistics,
    encode_run,
    new_agent_id,
    new_run_id,
)
from tests.browser.conftest import Edge
from tests.support.auth import KeyFile
from tests.support.devtools import Tab
from tests.support.nats import nats_server_running
from tests.support.stack import PUPPET, Stack, stack_running
from tests.support.waiting import wait_until

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
PHONE = (390, 844)
PHONES = [PHONE, (320, 640)]
NOBODYS = "run-00000000-0000-4000-8000-000000000000"
BOUNDED = 1500
"""Nodes that a page may have, however much it shows."""
NODES = """(() => {
  const walker = document.createTreeWalker(document);
  let count = 0;
  while (walker.nextNode()) count += 1;
  return count;
})()"""
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
VERDICT = "(document.querySelector('.proof')?.innerText ?? '')"


@pytest_asyncio.fixture(scope="module")
async def demo_stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A runstream whose agent is the demo agent, on a NATS of its own: the other one's broker would take its runs."""
    async with (
        nats_server_running(tmp_path_factory.mktemp("nats")) as server,
        stack_running(server.url, agent=demo) as running,
    ):
        yield running


async def asking(stack: Stack, **body: Any) -> tuple[str, str]:
    """Let the demo agent ask for approval in a conversation; returns the conversation and the run."""
    conversation = await stack.conversation()
    async with stack.say_in(conversation, {"chunks": 2, "interval_ms": 0, "approval": True}, **body) as stream:
        events = await stream.rest()
    return conversation, str(events[0].json["run_id"])


async def has_begun(stack: Stack, run_id: str) -> bool:
    """Whether its agent was asked."""
    return (await stack.record(run_id)).status != "created"


async def has_ended(stack: Stack, run_id: str) -> bool:
    """Whether its record says so."""
    return (await stack.record(run_id)).is_terminal


async def runs_in(stack: Stack, conversation: str) -> list[dict[str, Any]]:
    """The runs of a conversation, the latest first."""
    found: list[dict[str, Any]] = (await stack.fetch("GET", f"/v1/runs/?conversation_id={conversation}")).json
    return found


async def decision(stack: Stack, asked: str, *, approve: bool) -> list[dict[str, Any]]:
    """The messages that another console answers a run's request for approval with."""
    said = (await stack.fetch("GET", f"/v1/runs/{asked}/messages")).json
    (call,) = [each["tool_call"]["tool_call_id"] for each in said if each["message_type"] == "approval_request_message"]
    otid = f"console-answers-{asked}-{'approve' if approve else 'deny'}"
    answer = {"type": "approval", "tool_call_id": call, "approve": approve}
    return [{"type": "approval", "otid": otid, "approvals": [answer]}]


async def sees_no_runs(tab: Tab) -> None:
    """Let the page's lists of runs be empty until `isBlind` is false: what somebody else does is in the way unseen."""
    await tab.js(
        "(() => { const ask = fetch; window.isBlind = true; window.fetch = async (path, given) =>"
        "isBlind && path.startsWith('/v1/runs/?') ? new Response('[]') : ask(path, given); })()"
    )


HELD = "[...document.querySelectorAll('.decision button')].every((each) => each.disabled)"
"""Whether no answer can be given."""


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
        await tab.call("Runtime.evaluate", expression="history.back()")
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
    await tab.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="(() => { const ask = fetch; window.refusals = 2; window.fetch = async (path, given) => {"
        "if (!path.startsWith('/v1/runs/') || refusals <= 0) return ask(path, given);"
        "refusals -= 1; return new Response('', { status: 503 }); }; })()",
    )
    await tab.goto(run_page(stack.base, run_id))
    await tab.shows("The gateway answers 503.")
    await is_whole(tab, 6)
    assert "answers 503" not in await tab.text("main")


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


async def test_ten_thousand_chunks(demo_stack: Stack, tab: Tab) -> None:
    """They are scrolled through with as many elements as fit on a screen, and all of them are there."""
    run_id, _ = await demo_stack.finished({"chunks": 10_000, "interval_ms": 0})
    await tab.goto(run_page(demo_stack.base, run_id))
    await is_whole(tab, 10_003)
    ids = (await demo_stack.fetch("GET", f"/v1/runstream/runs/{run_id}/outline?limit=1")).json["seq_ids"]
    for part in (0, 0.5, 1):
        await tab.js(
            "new Promise((drawn) => { const list = document.querySelector('.chunks');"
            f"list.scrollTop = list.scrollHeight * {part};"
            "requestAnimationFrame(() => requestAnimationFrame(drawn)); })"
        )
        await tab.until(
            "(({ top, bottom }) => [...document.querySelectorAll('.chunk')].map((each) => each.getBoundingClientRect())"
            ".some((box) => box.top >= top && box.bottom <= bottom))"
            "(document.querySelector('.chunks').getBoundingClientRect())",
            f"nothing is drawn at {part}",
        )
        assert await tab.js(NODES) < BOUNDED
    last = await tab.js("[...document.querySelectorAll('.chunk')].at(-1).innerText")
    assert "[DONE]" in last
    assert int(last.split()[0]) > ids[0] + 10_000


async def test_what_has_the_focus_keeps_it(demo_stack: Stack, tab: Tab) -> None:
    """However its list is scrolled, while it is drawn; when it is not any more, the list has the focus, and no keys are
    lost."""
    run_id, _ = await demo_stack.finished({"chunks": 300, "interval_ms": 0})
    await tab.goto(run_page(demo_stack.base, run_id))
    await is_whole(tab, 303)

    async def scrolled(to: int) -> None:
        """Scroll to a row, and wait until those are drawn that are then: eight more on either side."""
        await tab.js(f"document.querySelector('.chunks').scrollTop = {24 * to}; null")
        drawn = "[...document.querySelectorAll('.chunk')].map((each) => Number(each.dataset.index))"
        await tab.until(f"Math.min(...{drawn}) === {max(0, to - 8)}", "the list is not drawn anew")

    await scrolled(100)
    await tab.js("document.querySelector('.chunk[data-index=\"105\"]').focus()")
    for row in (103, 98):
        await scrolled(row)
        assert await tab.js("document.activeElement.dataset.index") == "105"
    await scrolled(0)
    assert await tab.js("document.activeElement.classList.contains('chunks')") is True


async def test_a_thousand_live_runs(stack: Stack, tab: Tab) -> None:
    """All are there, a screenful is drawn, and a search finds one of them at once."""
    bucket = Bucket(stack.jetstream)
    records = [RunRecord(id=new_run_id(), agent_id=new_agent_id(), status="running", shard=0) for _ in range(1000)]
    await asyncio.gather(
        *(bucket.write([Put(run_key(DEFAULT_TENANT, each.id), encode_run(each), 0)]) for each in records)
    )
    try:
        await tab.goto(f"{stack.base}/console/")
        await tab.until("document.querySelector('.grid-foot').innerText.startsWith('1,000')", "they are not all there")
        assert await tab.js(NODES) < BOUNDED
        await tab.js("document.querySelector('input[type=search]').focus()")
        await tab.type(records[500].agent_id)
        await tab.until("document.querySelectorAll('.space .grid-row').length === 1", "the one is not found")
        assert records[500].id[:12] in await tab.text(".space")
        assert records[500].agent_id in str(await tab.js("location.search"))
        # A part of an id is looked for page by page, also behind pages that do not have it.
        await tab.goto(f"{stack.base}/console/?status=all&q={records[0].id[4:24]}")
        await tab.shows("No runs match")
        while not await tab.js("document.querySelectorAll('.space .grid-row').length"):
            await tab.click("Load older")
            await tab.until("!document.querySelector('.grid-foot button').disabled", "nothing older is loaded")
        assert records[0].id[:12] in await tab.text(".space")
    finally:
        await asyncio.gather(*(bucket.write([Put(run_key(DEFAULT_TENANT, each.id), None)]) for each in records))


async def test_filters_stand_in_the_address(stack: Stack, tab: Tab) -> None:
    """Back leads back, and an address that is opened anew shows the same; an otid finds its run."""
    messages = [{"role": "user", "content": '{"chunks": 1}', "otid": "otid-of-the-console"}]
    run_id, _ = await stack.finished({}, messages=messages)
    await tab.goto(f"{stack.base}/console/")
    await tab.click("Completed")
    await tab.shows(run_id[:12])
    assert await tab.js("document.activeElement.innerText") == "Completed"
    await tab.js("document.querySelector('input[type=search]').focus()")
    await tab.type("otid-of-the-console")
    await tab.press("Enter")
    await tab.until("document.querySelectorAll('.space .grid-row').length === 1", "the otid finds nothing")
    assert await tab.js("location.search") == "?q=otid-of-the-console&status=completed"
    await tab.click(f"{run_id[:12]}…")
    await tab.shows("Has the whole run")
    await tab.js("history.back()")
    await tab.shows("1 completed run")
    assert await tab.js("document.querySelector('input[type=search]').value") == "otid-of-the-console"
    await tab.goto(f"{stack.base}/console/?q=otid-of-the-console&status=completed")
    await tab.shows("1 completed run")


async def test_it_is_used_with_a_keyboard(stack: Stack, tab: Tab) -> None:
    """Down goes from run to run, Enter opens one, and where the view begins has the focus then."""
    await stack.finished({"chunks": 1})
    await tab.goto(f"{stack.base}/console/?status=all")
    await tab.until("document.querySelectorAll('.space .grid-row').length > 0", "there is no run")
    await tab.js("document.querySelector('.scroller').focus()")
    await tab.press("ArrowDown")
    assert await tab.js("document.activeElement.closest('[data-index]').dataset.index") == "0"
    await tab.press("Enter")
    await tab.until("location.pathname.startsWith('/console/runs/run-')", "Enter does not open the run")
    assert await tab.js("document.activeElement.id") == "main"


async def test_who_skips_to_the_content_keeps_it(stack: Stack, tab: Tab) -> None:
    """The page's first link leads to what is shown, and does not begin it anew: its address names no other place."""
    async with stack.live(5) as (run_id, _):
        await tab.goto(run_page(stack.base, run_id))
        await tab.until(f"{VERDICT}.includes('5 chunks')", "the chunks are not shown")
        await tab.js("document.querySelector('.run').dataset.kept = 'yes'")
        skip = "document.querySelector('.skip').click()"
        await tab.js(f"new Promise((done) => {{ addEventListener('hashchange', () => done()); {skip}; }})")
        assert await tab.js("location.hash") == "#main"
        assert await tab.js("document.querySelector('.run').dataset.kept") == "yes"


async def test_health_is_looked_at_without_losing_the_place(stack: Stack, tab: Tab) -> None:
    """Who is in a table stays there while its figures change."""
    await tab.goto(f"{stack.base}/console/health")
    await tab.shows("RUNS_0")
    await tab.js("document.querySelector('.table-wrap').focus()")
    await tab.js("window.facts = document.querySelector('.facts').innerText")
    async with stack.live(1):
        await tab.until("document.querySelector('.facts').innerText !== facts", "the figures do not change")
        assert await tab.js("document.activeElement.className") == "table-wrap"


async def test_cancel_asks_first(stack: Stack, tab: Tab) -> None:
    """Escape leaves the run alone; who says so twice ends it."""
    async with stack.live(2) as (run_id, creator):
        await tab.goto(run_page(stack.base, run_id))
        await tab.click("Cancel run")
        await tab.shows("It ends for everybody who follows it")
        await tab.press("Escape")
        await tab.until("document.querySelector('dialog') === null", "the question stays")
        assert (await stack.record(run_id)).status == "running"
        await tab.click("Cancel run")
        await tab.until("document.querySelector('dialog')?.open", "nobody is asked")
        await tab.click("Cancel run", "dialog button")
        await tab.shows("The run has ended: cancelled.")
        await creator.rest()


async def test_a_question_does_not_outlive_its_view(stack: Stack, tab: Tab) -> None:
    """Back takes it along: it would be about a run that is not shown any more."""
    async with stack.live(1) as (run_id, _):
        await tab.goto(f"{stack.base}/console/?q={run_id}")
        await tab.click(f"{run_id[:12]}…")
        await tab.click("Cancel run")
        await tab.until("document.querySelector('dialog')?.open", "nobody is asked")
        await tab.js("history.back()")
        await tab.until("document.querySelector('dialog') === null", "the question stays")
        assert (await stack.record(run_id)).status == "running"


async def test_what_an_agent_says_stays_text(stack: Stack, tab: Tab) -> None:
    """Markup is shown as it was said, and is none."""
    evil = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
    run_id, _ = await stack.finished({"chunks": 3, "text": evil})
    await tab.goto(run_page(stack.base, run_id))
    await tab.shows("<script>document.title=2</script>")
    assert await tab.js("document.querySelectorAll('main img, main script').length") == 0
    assert "Run" in str(await tab.js("document.title"))


async def test_what_looks_like_a_ping_is_none(stack: Stack, tab: Tab) -> None:
    """A message that has one within counts as what it is, and the proof holds."""
    async with stack.live(1) as (run_id, _):
        stack.puppet.say_this(run_id, {"message_type": "event_message", "event_data": {"message_type": "ping"}})
        stack.puppet.finish(run_id)
        await tab.goto(run_page(stack.base, run_id))
        # It, a word, the stop reason, the usage and the end.
        await is_whole(tab, 5)


async def test_arguments_are_shown_as_they_were_written(stack: Stack, tab: Tab) -> None:
    """Long numbers to their last digit; and what would turn the direction of the text turns nothing."""
    written = '{"id":12345678901234567890,"a":[],"b":{"c":1.0, "c":2},"d":"x: {\\"y\\"}, \u202e"}'
    shown = [
        "{",
        '  "id": 12345678901234567890,',
        '  "a": [],',
        '  "b": {',
        '    "c": 1.0,',
        '    "c": 2',
        "  },",
        '  "d": "x: {\\"y\\"}, \\u202e"',
        "}",
    ]
    async with stack.live() as (run_id, _):
        called = ToolCallMessage(tool_call=ToolCall(name="search", arguments=written, tool_call_id="call-1"))
        stack.puppet.say_this(run_id, called)
        stack.puppet.finish(run_id)
        await tab.goto(run_page(stack.base, run_id))
        await is_whole(tab, 4)
        assert (await tab.text(".reading pre")).splitlines() == shown


async def test_what_is_no_message_is_shown_as_it_came(stack: Stack, tab: Tab) -> None:
    """Whatever an agent calls one, all else is read, and the page gets to its end."""
    odd = [
        {"message_type": "tool_return_message", "id": "message-1", "tool_returns": "no list"},
        {"message_type": "tool_call_message", "id": "message-2", "tool_call": {"name": {"toString": 1, "valueOf": 1}}},
        {"message_type": "approval_response_message", "approvals": [None]},
        {"message_type": ["assistant_message"], "content": "no type"},
        {"message_type": "constructor"},
    ]
    async with stack.live(1) as (run_id, _):
        for each in odd:
            stack.puppet.say_this(run_id, each)
        stack.puppet.say(run_id)
        stack.puppet.finish(run_id)
        await tab.goto(run_page(stack.base, run_id))
        # What is odd, two words, the stop reason, the usage and the end.
        await is_whole(tab, len(odd) + 5)
        assert await said(tab) == ["0", "1"]
        assert "no list" in await tab.text(".reading")
        assert await tab.js(
            "[...document.querySelectorAll('.chunk')].some((row) => row.children[1].innerText === 'constructor')"
        )


async def test_each_kind_of_message_is_read(demo_stack: Stack, tab: Tab) -> None:
    """Thoughts are folded, calls and returns are cards, an error is plain, and so is how it ended."""
    knobs = {"chunks": 6, "interval_ms": 0, "reasoning": True, "tool_call": True, "error_after": 4}
    run_id, _ = await demo_stack.finished(knobs)
    await tab.goto(run_page(demo_stack.base, run_id))
    await tab.shows("The run has ended: failed.")
    for words in ("Thought", "Calls", "Returned", "llm_error", "Stopped:"):
        assert words in await tab.text(".reading")
    assert not await tab.js("document.querySelector('.reading details').open")
    approval, _ = await demo_stack.finished({"chunks": 1, "approval": True})
    await tab.goto(run_page(demo_stack.base, approval))
    await tab.shows("Asks for approval to call")


@pytest.mark.parametrize(("button", "says"), [("Approve", "was approved"), ("Deny", "was denied")])
async def test_a_request_for_approval_is_answered(demo_stack: Stack, tab: Tab, button: str, says: str) -> None:
    """The card of the call has the buttons; the answer reaches the agent, and the run that goes on is opened."""
    conversation, asked = await asking(demo_stack)
    await tab.goto(run_page(demo_stack.base, asked))
    await tab.shows("The agent waits for an answer.")
    assert await tab.js("document.querySelector('.decision').closest('.card').innerText.includes('look_outside')")
    await is_usable(tab)
    await tab.js("document.querySelector('.decision input').focus()")
    await tab.type("because of the rain")
    await tab.click(button)
    await tab.shows(says)
    await tab.shows("The run has ended: completed.")
    if button == "Deny":
        await tab.shows("because of the rain")
    (answering, first) = await runs_in(demo_stack, conversation)
    assert first["id"] == asked
    assert await tab.js("location.pathname") == f"/console/runs/{answering['id']}"
    # Who comes back to the one that asked is not asked again, and is led on.
    await tab.js("history.back()")
    await tab.shows("It does not wait any more.")
    assert await tab.js("document.querySelectorAll('.decision button').length") == 0
    await tab.click(f"{answering['id'][:12]}…")
    await tab.until(f"location.pathname.endsWith('{answering['id']}')", "the link does not lead on")


async def test_a_request_of_an_agent_without_a_conversation_is_answered(demo_stack: Stack, tab: Tab) -> None:
    """Also one of a run in the foreground; what was refused meanwhile has not answered it."""
    agent = new_agent_id()
    knobs = {"chunks": 1, "interval_ms": 0, "approval": True}
    async with demo_stack.create(knobs, agent_id=agent, background=False) as stream:
        asked = str((await stream.rest())[0].json["run_id"])
    async with demo_stack.create({"chunks": 1}, agent_id=agent) as stream:
        await stream.rest()
    await tab.goto(run_page(demo_stack.base, asked))
    await tab.click("Approve")
    await tab.shows("was approved")


async def test_what_somebody_else_has_answered_is_not_answered_again(demo_stack: Stack, tab: Tab) -> None:
    """The buttons go when the answer came from elsewhere, and one that was late starts no run."""
    conversation, asked = await asking(demo_stack)
    await tab.goto(run_page(demo_stack.base, asked))
    await tab.shows("The agent waits for an answer.")
    messages = await decision(demo_stack, asked, approve=True)
    async with demo_stack.say_in(conversation, messages=messages) as stream:
        await stream.rest()
    await tab.js("[...document.querySelectorAll('.decision button')].at(-1)?.click()")
    await tab.shows("It does not wait any more.")
    assert len(await runs_in(demo_stack, conversation)) == 2


@pytest.mark.parametrize("approve", [True, False])
async def test_who_decides_otherwise_than_somebody_else_is_told(stack: Stack, tab: Tab, approve: bool) -> None:
    """While the run of the first answer goes on the other one starts none, and is not led to that one."""
    conversation, asked = await asking(stack)
    await tab.goto(run_page(stack.base, asked))
    await tab.shows("The agent waits for an answer.")
    await sees_no_runs(tab)
    messages = [{"role": "user", "content": PUPPET}, *await decision(stack, asked, approve=approve)]
    async with stack.say_in(conversation, messages=messages) as stream:
        first = str((await stream.take(1))[0].json["run_id"])
        await wait_until(lambda: has_begun(stack, first), 10, "it is not begun")
        await tab.click("Deny" if approve else "Approve")
        verbs = ("denied", "approved") if approve else ("approved", "denied")
        await tab.shows("Not {}: somebody else has {} it.".format(*verbs))
        assert await tab.js("location.pathname") == f"/console/runs/{asked}"
        assert await tab.js("document.querySelector('.decision .alert a').title") == first
        await tab.js("isBlind = false")
        await tab.shows("It does not wait any more.")
        assert await tab.js("document.querySelector('.decision .alert').checkVisibility()")
        stack.puppet.finish(first)
        await stream.rest()
    assert [each["id"] for each in await runs_in(stack, conversation)] == [first, asked]


@pytest.mark.parametrize("approve", [True, False])
async def test_an_answer_that_is_queued(tmp_path: Path, tab: Tab, approve: bool) -> None:
    """The page says that it is being answered, and takes no other answer; a late one is told who was first."""
    async with (
        nats_server_running(tmp_path) as server,
        stack_running(server.url, broker={"worker_concurrency": 1}) as stack,
    ):
        conversation, asked = await asking(stack)
        await tab.goto(run_page(stack.base, asked))
        await tab.shows("The agent waits for an answer.")
        await sees_no_runs(tab)
        messages = await decision(stack, asked, approve=approve)
        async with stack.live(), stack.say_in(conversation, messages=messages) as stream:
            await stream.take(1)
            await tab.click("Deny" if approve else "Approve")
            await tab.shows(f"somebody else has {'approved' if approve else 'denied'} it.")
            await tab.js("isBlind = false")
            await tab.shows("It is being answered.")
            assert await tab.js(HELD)
            await is_usable(tab)
        await tab.shows("It does not wait any more.")
        assert len(await runs_in(stack, conversation)) == 2


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
async def test_an_answer_that_comes_to_nothing(stack: Stack, tab: Tab, outcome: str) -> None:
    """While it goes on no other one is taken; then the page names it, takes an answer again, and starts another run."""
    conversation, asked = await asking(stack)
    messages = [{"role": "user", "content": PUPPET}, *await decision(stack, asked, approve=True)]
    async with stack.say_in(conversation, messages=messages) as stream:
        first = str((await stream.take(1))[0].json["run_id"])
        await wait_until(lambda: has_begun(stack, first), 10, "it is not begun")
        await tab.goto(run_page(stack.base, asked))
        await tab.shows("It does not wait any more.")
        assert await tab.js("document.querySelectorAll('.decision button').length") == 0
        if outcome == "failed":
            stack.puppet.fail(first)
        else:
            await stack.fetch("POST", f"/v1/conversations/{conversation}/cancel")
        await stream.rest()
    await tab.shows("The agent waits for an answer. A run since then may have been one: ")
    assert await tab.js("document.querySelector('.decision a').title") == first
    await tab.click("Approve")
    await tab.shows("was approved")
    assert len(await runs_in(stack, conversation)) == 3


async def test_what_came_after_is_read_a_page_at_a_time(stack: Stack, tab: Tab) -> None:
    """Each look goes on where the last one stopped; after ten pages it may be answered, whatever else there is."""
    _, asked = await asking(stack)
    await tab.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="(() => { const [ask, later] = [fetch, setTimeout];"
        "window.asked = []; window.looks = 0; window.most = 3;"
        "window.setTimeout = (go, after) => later(go, after / 10);"
        "window.fetch = async (path, given) => {"
        "if (path.endsWith('/followers')) looks += 1;"
        "if (!path.startsWith('/v1/runs/?')) return ask(path, given);"
        "if (asked.length >= most) return new Promise(() => {});"
        "const { conversation_id, before } = Object.fromEntries(new URL(path, location).searchParams);"
        "asked.push(before);"
        "return new Response(JSON.stringify(Array.from({ length: 100 }, (_, each) =>"
        "({ id: `run-${asked.length}-${each}`, conversation_id, status: 'failed' })))); }; })()",
    )
    await tab.goto(run_page(stack.base, asked))
    await tab.shows("Looking at what came after it.")
    assert await tab.js(HELD)
    await tab.until("asked.length === 3", "it is not read on")
    assert await tab.js("asked") == [asked, "run-1-0", "run-2-0"]
    assert await tab.js("looks >= 2"), "all was read in one look"
    await tab.call("Page.addScriptToEvaluateOnNewDocument", source="most = 12")
    await tab.goto(run_page(stack.base, asked))
    await tab.shows("The agent waits for an answer.")
    assert not await tab.js(HELD)
    assert await tab.js("asked.length >= 10")


async def test_a_run_beside_the_one_that_asks_is_no_answer(stack: Stack, tab: Tab) -> None:
    """An agent's own go on side by side: one that was there before the request is named, and keeps nobody from it."""
    agent = new_agent_id()
    async with stack.live(agent_id=agent) as (asked, _), stack.live(agent_id=agent) as (beside, other):
        call = ToolCall(name="look_outside", arguments="{}", tool_call_id="call_1")
        stack.puppet.say_this(asked, ApprovalRequestMessage(tool_call=call, tool_calls=[call]))
        stack.puppet.finish(asked, "requires_approval")
        await wait_until(lambda: has_ended(stack, asked), 10, "it does not end")
        stack.puppet.finish(beside)
        await other.rest()
    await tab.goto(run_page(stack.base, asked))
    await tab.shows("The agent waits for an answer. A run since then may have been one: ")
    await tab.click("Approve")
    await tab.shows("was approved")


@pytest.mark.parametrize(
    ("status", "says"), [(409, "Another run goes on"), (403, "runs:write"), (429, "Too many runs"), (503, "away")]
)
async def test_an_answer_that_is_refused(demo_stack: Stack, tab: Tab, status: int, says: str) -> None:
    """Why is said in plain words, and it can be given again."""
    _, asked = await asking(demo_stack)
    await tab.goto(run_page(demo_stack.base, asked))
    await tab.shows("The agent waits for an answer.")
    await tab.js(
        "(() => { const ask = fetch; window.isRefused = true; window.fetch = async (path, given) =>"
        "isRefused && given?.method === 'POST' ? new Response(JSON.stringify({ detail: 'away' }),"
        f"{{ status: {status} }}) : ask(path, given); }})()"
    )
    await tab.click("Approve")
    await tab.until(
        f"document.querySelector('.decision .alert').innerText.includes({json.dumps(says)})", "it is not said why"
    )
    await tab.js("window.isRefused = false")
    await tab.click("Approve")
    await tab.shows("was approved")


async def asks_whom(stack: Stack, **headers: str) -> str:
    """Let an agent ask for approval, where it is asked who asks; returns the run."""
    body = {"input": '{"chunks": 1, "approval": true}', "background": True}
    agent = new_agent_id()
    await stack.fetch("POST", f"/v1/agents/{agent}/messages", json=body, headers=headers)
    (run,) = (await stack.fetch("GET", f"/v1/runs/?agent_id={agent}", headers=headers)).json
    return str(run["id"])


async def signs_in(tab: Tab, key: str) -> None:
    await tab.shows("Key or token")
    await tab.js("document.getElementById('key').focus()")
    await tab.type(key)
    await tab.press("Enter")


async def test_who_may_not_answer_is_told(nats_url: str, tmp_path: Path, tab: Tab) -> None:
    """A key that only reads gets no buttons, and hears what the answer would need."""
    keys = KeyFile(tmp_path / "keys")
    reads, writes = keys.add(scopes="runs:read"), keys.add()
    async with stack_running(nats_url, auth=keys.settings) as stack:
        asked = await asks_whom(stack, Authorization=f"Bearer {writes}")
        await tab.goto(run_page(stack.base, asked))
        await signs_in(tab, reads)
        await tab.shows("Yours needs the scope runs:write.")
        assert await tab.js("document.querySelectorAll('.decision button').length") == 0


async def test_a_key_for_one_run_is_told_that_it_may_not_answer(nats_url: str, tmp_path: Path, tab: Tab) -> None:
    """It sees no other run, nor so whether it was answered: that is said on the card, and complained of nowhere."""
    keys = KeyFile(tmp_path / "keys")
    everything = keys.add()
    async with stack_running(nats_url, auth=keys.settings) as stack:
        asked = await asks_whom(stack, Authorization=f"Bearer {everything}")
        narrowed = keys.add(scopes="runs:read runs:write", run_id=asked)
        headers = {"Authorization": f"Bearer {narrowed}"}

        async def counts() -> bool:
            return (await stack.fetch("GET", f"/v1/runs/{asked}", headers=headers)).status == 200

        await wait_until(counts, 10, "the key does not count yet")
        await tab.goto(run_page(stack.base, asked))
        await tab.js(
            "(() => { const ask = fetch; window.looks = 0; window.fetch = (path, given) => {"
            "if (path.endsWith('/followers')) looks += 1; return ask(path, given); }; })()"
        )
        await signs_in(tab, narrowed)
        await tab.shows("Your key may not see what came after it, and so not answer.")
        await tab.js("looks = 0; null")
        await tab.until("looks > 2", "the run is not looked at")
        assert await tab.js("document.querySelectorAll('.decision button').length") == 0
        assert await tab.js("[...document.querySelectorAll('[role=alert]')].every((each) => !each.checkVisibility())")
        await is_usable(tab)


async def test_a_platforms_own_chunks_are_one_block(stack: Stack, tab: Tab) -> None:
    """What reads as text is put together, all else is folded, and nothing is called what it is not."""
    async with stack.live() as (run_id, _):
        own: list[dict[str, Any]] = [{"text": "Hello "}, {"delta": "from "}, {"content": "elsewhere."}]
        for each in (*own, {"usage": {"tokens": 4}}, {"content": ["no text"]}):
            stack.puppet.say_this(run_id, each)
        stack.puppet.finish(run_id)
        await tab.goto(run_page(stack.base, run_id))
        await is_whole(tab, 8)
        assert " ".join(await said(tab)) == "Hello from elsewhere."
        reading = await tab.text(".reading")
        assert reading.count("The platform's own chunks") == 1
        assert "2 chunks without text, as they came" in reading
        assert await tab.js("document.querySelector('.reading details').open") is False
        raw = str(await tab.js("document.querySelector('.reading details pre').textContent"))
        assert [json.loads(line).keys() - {"seq_id"} for line in raw.splitlines()] == [{"usage"}, {"content"}]


async def test_text_has_the_direction_of_its_language(stack: Stack, tab: Tab) -> None:
    """Hebrew begins on the right, paragraph by paragraph, and English beside it on the left."""
    async with stack.live() as (run_id, _):
        stack.puppet.say_this(run_id, AssistantMessage(content="שלום עולם.\nHello world."))
        stack.puppet.finish(run_id)
        await tab.goto(run_page(stack.base, run_id))
        await is_whole(tab, 4)
        sides = await tab.js(
            "(() => { const prose = document.querySelector('.reading .prose');"
            "const box = prose.getBoundingClientRect(); const text = prose.firstChild;"
            "return [[0, 10], [11, 23]].map(([from, to]) => {"
            "const range = document.createRange(); range.setStart(text, from); range.setEnd(text, to);"
            "const { left, right } = range.getBoundingClientRect();"
            "return left - box.left > box.right - right ? 'right' : 'left'; }); })()"
        )
        assert sides == ["right", "left"]


async def test_a_foreground_run_is_read(demo_stack: Stack, tab: Tab) -> None:
    """It cannot be followed, and the page says so and shows what it has said."""
    run_id, _ = await demo_stack.finished({"chunks": 3}, background=False)
    await tab.goto(run_page(demo_stack.base, run_id))
    await tab.shows("made in the foreground")
    await tab.until("document.querySelector('.reading .prose') !== null", "what it has said is not shown")


async def test_a_foreground_run_that_ends_while_it_is_looked_at(stack: Stack, tab: Tab) -> None:
    """What it said since is there, each word once, its end is said, and a request for approval can be answered."""
    async with stack.live(2, background=False) as (run_id, _):
        await tab.goto(run_page(stack.base, run_id))
        await tab.shows("This is what it has said so far.")
        stack.puppet.say(run_id, 2)
        call = ToolCall(name="look_outside", arguments="{}", tool_call_id="call_1")
        stack.puppet.say_this(run_id, ApprovalRequestMessage(tool_call=call, tool_calls=[call]))
        stack.puppet.finish(run_id, "requires_approval")
        await tab.shows("The run has ended: completed.")
        assert await said(tab) == ["0", "1", "2", "3"]
        assert "so far" not in await tab.text("main")
        assert await tab.text("#said") in {"The run has ended.", "The agent waits for an answer."}
        await tab.click("Approve")
        await tab.shows("was approved")


async def test_what_is_complained_of_stays(stack: Stack, tab: Tab) -> None:
    """That a run cannot be followed, and that it was not cancelled, is not taken back by the next look at it."""
    async with stack.live(1, background=False) as (run_id, _):
        await tab.goto(run_page(stack.base, run_id))
        await tab.shows("made in the foreground")
        await tab.js(
            "(() => { const ask = fetch; window.looks = 0; window.fetch = async (path, given) => {"
            "if (path.endsWith('/followers')) looks += 1;"
            "return path.endsWith('/cancel') ? new Response('{}') : ask(path, given); }; })()"
        )
        await tab.click("Cancel run")
        await tab.until("document.querySelector('dialog')?.open", "nobody is asked")
        await tab.click("Cancel run", "dialog button")
        await tab.shows("It is not cancelled.")
        await tab.js("looks = 0; null")
        await tab.until("looks > 2", "the run is not looked at")
        shown = await tab.text("main")
        assert "It is not cancelled." in shown
        assert "made in the foreground" in shown


@pytest.mark.parametrize("path", [f"runs/{NOBODYS}", "runs/nobodys", "runs/%E0%A4%A", "bogus", "runs/a/b"])
async def test_what_there_is_not(stack: Stack, tab: Tab, path: str) -> None:
    """No run and no page: that is said plainly, nothing is drawn of it, and a way leads back."""
    await tab.goto(f"{stack.base}/console/{path}")
    await tab.shows("There is no such")
    assert await tab.js("document.querySelectorAll('.facts, .timeline, .chunks').length") == 0
    await is_usable(tab)
    await tab.click("All runs")
    await tab.until("document.querySelector('.choice a[aria-current]').innerText === 'All'", "there is no way back")


async def test_an_address_turns_no_text_around(stack: Stack, tab: Tab) -> None:
    """In what is no run's id the characters that turn text around are written out, and it looks like nothing else."""
    await tab.goto(f"{stack.base}/console/runs/run-%E2%80%AEfdp.exe")
    await tab.shows("run-\\u202efdp.exe")
    assert "\u202e" not in await tab.text("main") + await tab.js("document.title")


async def test_a_page_that_is_not_there_depends_on_what_is_asked_for(stack: Stack) -> None:
    """A cache that keeps it gives the document to nobody but those who ask for HTML."""
    reply = await stack.fetch("GET", "/console/bogus", headers={"Accept": "text/html"})
    assert reply.status == 404
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert "accept" in reply.headers["vary"].lower()


async def test_the_record_waits_for_nothing_else(stack: Stack, tab: Tab) -> None:
    """How a run is shows at once, and its age goes on, while the outline of its log is still being read."""
    async with stack.live(3) as (run_id, _):
        await tab.call(
            "Page.addScriptToEvaluateOnNewDocument",
            source="(() => { const ask = fetch; window.fetch = (path, given) => "
            "path.includes('/outline') ? new Promise(() => {}) : ask(path, given); })()",
        )
        await tab.goto(run_page(stack.base, run_id))
        await tab.until("document.querySelector('.state').innerText === 'running'", "the status is not shown")
        await tab.until(f"{VERDICT}.includes('3 chunks')", "it is not followed")
        age = "document.querySelectorAll('.facts dd')[3].innerText"
        await tab.js(f"window.age = {age}")
        await tab.until(f"{age} !== window.age", "the age stands still")
        assert "Reading the log" in await tab.text(".timeline")


async def test_one_run_has_one_number_of_chunks(demo_stack: Stack, tab: Tab) -> None:
    """What the page got, what the log holds and what is listed is the same number, of the same thing."""
    run_id, _ = await demo_stack.finished({"chunks": 7, "interval_ms": 0})
    await tab.goto(run_page(demo_stack.base, run_id))
    await is_whole(tab, 10)
    assert "of the 10 in the log" in await tab.text(".proof")
    await tab.until("document.querySelector('.timeline').innerText.includes('10 chunks stored')", "the log has others")
    assert await tab.text(".sides > .panel:last-child .panel-head .quiet:last-child") == "10 chunks, 1 ping"
    assert await tab.js("document.querySelector('.table-wrap tbody tr').lastChild.innerText") == "10"


async def test_one_is_said_of_one(stack: Stack, tab: Tab) -> None:
    """And where no silence was there is said to be none."""
    async with stack.live() as (run_id, _):
        stack.puppet.say_this(run_id, ReasoningMessage(reasoning="."))
        stack.puppet.say_this(run_id, UsageStatistics(prompt_tokens=1, completion_tokens=1, total_tokens=2))
        stack.puppet.finish(run_id)
        await tab.goto(run_page(stack.base, run_id))
        await tab.shows("The run has ended")
        reading = await tab.text(".reading")
        assert "· 1 character\n" in f"{reading}\n"
        assert "1 token in · 1 out · 2 in all" in reading
        await tab.until("document.querySelector('.timeline').innerText.includes('no silence of a second')", "it is odd")


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
        assert await tab.text(".state") == "running"
        assert "Not connected" not in await tab.text("main")


async def test_a_whole_id_leads_to_its_run(stack: Stack, tab: Tab) -> None:
    """Enter opens the run whose id was typed; an id that is shown short is copied whole, by the row and on its page."""
    run_id, _ = await stack.finished({"chunks": 1})
    await tab.goto(f"{stack.base}/console/?status=all")
    await tab.shows(run_id[:12])
    await tab.js(
        "Object.defineProperty(navigator, 'clipboard',"
        "{ value: { writeText: async (text) => { window.copied = text; } } })"
    )
    await tab.js(f"document.querySelector('.copy[data-text=\"{run_id}\"]').click()")
    await tab.until(f"window.copied === '{run_id}'", "the whole id is not copied")
    assert await tab.text("#said") == "Copied."
    await tab.js("document.querySelector('input[type=search]').focus()")
    await tab.type(run_id)
    await tab.press("Enter")
    await tab.until(f"location.pathname === '/console/runs/{run_id}'", "the run is not opened")
    await tab.shows("Has the whole run")
    await tab.js("window.copied = null; document.querySelector('.run-title .copy').click()")
    await tab.until(f"window.copied === '{run_id}'", "the whole id is not copied")


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


async def test_the_first_visit(demo_stack: Stack, stack: Stack, tab: Tab) -> None:
    """Where nothing runs it is said what to do; where there is no demo agent nobody is sent to try it."""
    await tab.goto(f"{demo_stack.base}/console/")
    await tab.shows("Nothing runs at the moment.")
    await tab.click("See all runs, ended ones too")
    await tab.until("location.search === '?status=all'", "it does not lead to all")
    await tab.goto(f"{demo_stack.base}/console/")
    await tab.click("Try it: start a run of the demo agent")
    await tab.shows("Start the run")
    await tab.goto(f"{stack.base}/console/")
    await tab.shows("Nothing runs at the moment.")
    assert "start a run" not in await tab.text("main")


async def test_the_chosen_example_is_marked(demo_stack: Stack, tab: Tab) -> None:
    """As long as the fields say what it says."""
    pressed = "[...document.querySelectorAll('[aria-pressed=true]')].map((each) => each.innerText)"
    await tab.goto(f"{demo_stack.base}/console/try")
    await tab.shows("Start the run")
    assert await tab.js(pressed) == ["A plain answer"]
    await tab.click("It fails midway")
    assert await tab.js(pressed) == ["It fails midway"]
    await tab.js("document.getElementById('chunks').focus()")
    await tab.type("1")
    assert await tab.js(pressed) == []


async def test_trying_it(demo_stack: Stack, stack: Stack, tab: Tab) -> None:
    """A run is started and followed to its end; where another agent answers nobody is offered to."""
    await tab.goto(f"{demo_stack.base}/console/")
    await tab.click("Try it")
    await tab.click("Thoughts and a tool")
    await tab.js("document.getElementById('interval_ms').value = 2")
    await tab.click("Start the run")
    await tab.shows("The run has ended: completed.")
    await is_whole(tab, 66)
    assert stack.agent is not demo


async def test_signing_in_leaves_nothing_behind(nats_url: str, tmp_path: Path, tab: Tab) -> None:
    """A key is exchanged for a cookie that the page cannot read; nothing of it is stored or stands in an address."""
    keys = KeyFile(tmp_path / "keys")
    key = keys.add(scopes="runs:read runs:write")
    async with stack_running(nats_url, auth=keys.settings) as stack:
        await tab.goto(f"{stack.base}/console/")
        await tab.shows("Key or token")
        await is_usable(tab)
        wrong = [(each, "admits nobody here") for each in ("“rsk_quoted”", "rsk_wrong")]
        for given, shows in (*wrong, (key, "Nothing runs at the moment")):
            await tab.js("document.getElementById('key').value = ''; document.getElementById('key').focus()")
            await tab.type(given)
            await tab.press("Enter")
            await tab.shows(shows)
        assert await tab.js("document.activeElement.id") == "main"
        kept = await tab.js("[document.cookie, JSON.stringify({...localStorage, ...sessionStorage}), location.href]")
        assert kept == ["", "{}", f"{stack.base}/console/"]
        (cookie,) = (await tab.call("Network.getCookies", urls=[f"{stack.base}/v1/"]))["cookies"]
        assert (cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == (True, True, "Strict")
        assert cookie["value"] not in key
        await tab.goto(f"{stack.base}/console/health")
        await tab.shows("it needs a credential with the scope admin")
        await tab.offline(True)
        await tab.click("Sign out")
        await tab.shows("Not signed out")
        await tab.offline(False)
        await tab.click("Try again")
        await tab.shows("Key or token")
        assert (await tab.call("Network.getCookies", urls=[f"{stack.base}/v1/"]))["cookies"] == []


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


@pytest.mark.parametrize("size", PHONES, ids=lambda size: str(size[0]))
async def test_it_fits_on_a_phone(demo_stack: Stack, tab: Tab, view: str, size: tuple[int, int]) -> None:
    """Nothing is wider than the screen, nothing scrolls sideways, and no text is cut."""
    await tab.size(*size)
    await opened(tab, demo_stack, view)
    assert await tab.js("document.documentElement.scrollWidth <= innerWidth")
    assert await tab.js(SIDEWAYS) == []
    assert await tab.js(CUT) == []


@pytest.mark.parametrize("size", PHONES, ids=lambda size: str(size[0]))
async def test_followers_fit_on_a_phone(stack: Stack, tab: Tab, size: tuple[int, int]) -> None:
    """Each is a card, whose figures have their names beside them."""
    await tab.size(*size)
    async with stack.live(5) as (run_id, _):
        await tab.goto(run_page(stack.base, run_id))
        await tab.shows("Letta, in the background")
        assert await tab.js(SIDEWAYS) == []
        assert await tab.js(CUT) == []
        assert await tab.js("document.querySelector('td[data-label=Cursor]').checkVisibility()")


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
