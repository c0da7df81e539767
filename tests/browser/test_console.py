"""The console as a person goes through it: lists, search, addresses, a keyboard, cancel, signing in and trying it."""

import asyncio
from pathlib import Path

import pytest

from runstream.broker.agents.demo import demo
from runstream.broker.bucket import Bucket, Put
from runstream.broker.keys import run_key
from runstream.schemas import (
    DEFAULT_TENANT,
    RunRecord,
    encode_run,
    new_agent_id,
    new_run_id,
)
from tests.browser.console import BOUNDED, NODES, VERDICT, is_usable, is_whole, run_page
from tests.support.auth import KeyFile
from tests.support.stack import Stack, stack_running
from tests.support.tab import Tab

NOBODYS = "run-00000000-0000-4000-8000-000000000000"


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
        (cookie,) = await tab.cookies(f"{stack.base}/v1/")
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
        assert await tab.cookies(f"{stack.base}/v1/") == []
