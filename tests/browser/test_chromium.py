"""A page's EventSource in Chromium, as far as it can be seen from both ends: the page's, and the proxy's in between."""

import contextlib
import json
import signal
from pathlib import Path

import pytest

from runstream.schemas import new_agent_id, new_run_id
from tests.browser.conftest import RETRY_SECONDS, Edge
from tests.support.auth import Client, Issuer
from tests.support.documents import blocks_below
from tests.support.eventsource import source_path, told_of
from tests.support.http import Event
from tests.support.nats import NatsServer
from tests.support.outages import stopped
from tests.support.pages import Page, Pages, Seen
from tests.support.proxy import Proxy, random_cuts
from tests.support.stack import Stack, message, stack_running

HERE = Path(__file__).parent
CONNECTING, CLOSED = 0, 2
LATER_SECONDS = 5 * RETRY_SECONDS
"""By then a browser that meant to come back once more would have done so."""


def script(name: str, **constants: object) -> str:
    """A script of this directory, with the constants that it asks for."""
    given = "".join(f"const {constant} = {json.dumps(value)};\n" for constant, value in constants.items())
    return given + (HERE / name).read_text(encoding="utf-8")


def follow(edge: Edge, run_id: str) -> str:
    """The script that follows a run through the proxy."""
    return script("follow.js", url=edge.proxy.url + source_path(run_id), laterMs=int(LATER_SECONDS * 1000))


def shown(page: Page) -> list[Event]:
    """What the page was handed of the run itself: pings and the browser's own events aside."""
    return [
        Event(None if seen.type == "message" else seen.type, seen.data or "", int(seen.id or 0))
        for seen in page.of_type("message", "run_error")
        if '"message_type":"ping"' not in (seen.data or "")
    ]


def methods(edge: Edge) -> list[str]:
    """How it was asked."""
    return [request.split(" ")[0] for request in edge.proxy.requests]


async def closed_for_good(page: Page, edge: Edge) -> None:
    """Wait until the browser has given up by itself, and see that it then leaves the gateways in peace."""
    await page.until(lambda: any(seen.state == CLOSED for seen in page.of_type("error")), "the page is not closed")
    asked = list(edge.proxy.requests)
    assert (await page.sees("later")).state == CLOSED
    assert edge.proxy.requests == asked


async def test_gateway_is_killed_in_mid_run(stack: Stack, edge: Edge, pages: Pages) -> None:
    """SIGKILL of the gateway that serves: the browser goes on at the other by itself; every id once, in order."""
    async with stack.live(10) as (run_id, creator), pages.opened(follow(edge, run_id)) as page:
        await page.until(lambda: len(shown(page)) == 10, "the page does not show what was said")
        assert edge.proxy.passages[-1].server == edge.proxy.servers[0]
        edge.gateways[0].send_signal(signal.SIGKILL)
        stack.puppet.say(run_id, 10)
        await page.until(lambda: len(shown(page)) == 20, "the page does not show what was said after the kill")
        stack.puppet.finish(run_id)
        await creator.rest()
        await closed_for_good(page, edge)
        told = await told_of(stack, run_id)
        assert shown(page) == told
        assert edge.proxy.requests == [f"GET {source_path(run_id)}"] * 3
        assert edge.proxy.last_event_ids == [str(told[9].id), str(told[-1].id)]
        assert [passage.server for passage in edge.proxy.passages if passage.asked][-1] == edge.proxy.servers[1]
        # It was lost once, it had the whole run once, and it was told once that there is no more.
        assert [seen.state for seen in page.of_type("error")] == [CONNECTING, CONNECTING, CLOSED]


@pytest.mark.parametrize("seed", [1, 2])
async def test_cut_at_twenty_points(stack: Stack, edge: Edge, pages: Pages, seed: int) -> None:
    """Twenty resets, within events too, while the agent speaks: every id once, in order, nothing missing."""
    # The first is late enough for the browser to have heard when to come back: until then it takes 3 s each time.
    edge.proxy.cuts.extend([2000, *random_cuts(seed, 19)])
    async with stack.create({"chunks": 300, "interval_ms": 10, "chunk_bytes": 300}) as creator:
        (ping,) = await creator.take(1)
        run_id = str(ping.json["run_id"])
        async with pages.opened(follow(edge, run_id)) as page:
            await creator.rest()
            await closed_for_good(page, edge)
            assert shown(page) == await told_of(stack, run_id)
            assert not edge.proxy.cuts, "the run was over before it was cut as often as it was to be"


async def test_failing_run(stack: Stack, edge: Edge, pages: Pages) -> None:
    """A run's error is heard by those who listen for it, and is not taken for the loss of the connection."""
    async with stack.live(2) as (run_id, creator), pages.opened(follow(edge, run_id)) as page:
        await page.until(lambda: len(shown(page)) == 2, "the page does not show what was said")
        stack.puppet.fail(run_id)
        await creator.rest()
        await closed_for_good(page, edge)
        told = await told_of(stack, run_id)
        assert shown(page) == told
        (error,) = page.of_type("run_error")
        assert json.loads(error.data or "")["error_type"] == "llm_error"
        assert [seen.data for seen in page.of_type("error")] == [None, None]
        assert told[-2].event == "run_error"


async def test_finished_run_is_read_once(stack: Stack, edge: Edge, pages: Pages) -> None:
    """A run that has ended long ago costs two requests: all of it, and that there is no more."""
    run_id, _ = await stack.finished({"chunks": 5, "interval_ms": 0})
    async with pages.opened(follow(edge, run_id)) as page:
        await closed_for_good(page, edge)
        assert shown(page) == await told_of(stack, run_id)
        assert len(edge.proxy.requests) == 2


async def test_no_such_run(edge: Edge, pages: Pages) -> None:
    """What is permanent stops a browser at once."""
    async with pages.opened(follow(edge, new_run_id())) as page:
        await closed_for_good(page, edge)
        assert [(seen.type, seen.state) for seen in page.seen] == [("error", CLOSED), ("later", CLOSED)]
        assert len(edge.proxy.requests) == 1


async def test_outage_of_nats(stack: Stack, edge: Edge, pages: Pages, nats_server: NatsServer) -> None:
    """A page that is opened while NATS is away is turned away for a while, never stopped, and then has the run."""
    run_id, _ = await stack.finished({"chunks": 5, "interval_ms": 0})
    told = await told_of(stack, run_id)
    async with contextlib.AsyncExitStack() as exits:
        async with stopped(nats_server):
            page = await exits.enter_async_context(pages.opened(follow(edge, run_id)))
            assert (await page.sees("error")).state == CONNECTING
            assert [seen.type for seen in page.seen][:2] == ["open", "error"]
        await closed_for_good(page, edge)
        assert shown(page) == told
        assert [seen.state for seen in page.of_type("error")].count(CLOSED) == 1
    await stack.is_back()


WATCH_TEXT = 'setInterval(() => report({ type: "text", data: document.body.innerText, state: null }), 50);'
WATCH = 'setInterval(() => report({ type: "text", data: document.body.innerText, state: source.readyState }), 50);'


def latest(page: Page) -> str:
    """The text that the page shows."""
    return (page.seen or [Seen("text", "")])[-1].data or ""


async def test_lines_of_the_guide(stack: Stack, edge: Edge, pages: Pages) -> None:
    """The guide's lines, as they stand there, show the whole answer, each word once, over the death of a gateway."""
    (lines,) = blocks_below("docs/guides/browser.md", "Five lines", "js")
    async with stack.create({"chunks": 100, "interval_ms": 60}) as creator:
        (ping,) = await creator.take(1)
        names = f"const base = {json.dumps(edge.proxy.url)}, run = {json.dumps(ping.json['run_id'])};\n"
        async with pages.opened(names + lines + WATCH) as page:
            await page.until(lambda: len(latest(page).split()) > 20, "the page does not show the answer")
            edge.gateways[0].send_signal(signal.SIGKILL)
            await page.until(lambda: page.seen[-1].state == CLOSED, "the page does not close its source")
            contents = [
                event.json["content"] for event in (await creator.rest()) if event.message_type == "assistant_message"
            ]
            assert latest(page).split() == "".join(contents).split()
            # The page has closed it at `[DONE]`: nobody has to be told that nothing follows.
            assert len(edge.proxy.requests) == 2


async def test_lines_of_the_guide_where_authentication_is_on(nats_url: str, pages: Pages, tmp_path: Path) -> None:
    """A ticket lets the page in, and another one after its network was away: the whole answer, each word once."""
    issuer = Issuer()
    auth, settings = issuer.settings(tmp_path, None), {"cors_origins": (pages.origin,)}
    (lines,) = blocks_below("docs/guides/browser.md", "A ticket", "js")
    async with stack_running(nats_url, auth=auth, gateway=settings) as stack, Proxy.running([stack.base]) as proxy:
        client = Client(stack.base, issuer.token(scope="runs:read runs:write"))
        path, asked = f"/v1/agents/{new_agent_id()}/messages/stream", message({"chunks": 100, "interval_ms": 60})
        async with client.stream(path, asked) as creator:
            (ping,) = await creator.take(1)
            run_id = str(ping.json["run_id"])
            told = {"base": proxy.url, "run": run_id, "token": issuer.token(scope="runs:read", run_id=run_id)}
            names = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in told.items())
            async with pages.opened(names + lines + WATCH_TEXT) as page:
                await page.until(lambda: len(latest(page).split()) > 20, "the page does not show the answer")
                async with proxy.away():
                    pass
                contents = [
                    event.json["content"]
                    for event in (await creator.rest())
                    if event.message_type == "assistant_message"
                ]
                whole = "".join(contents).split()
                await page.until(lambda: len(latest(page).split()) >= len(whole), "the page does not show the rest")
                assert latest(page).split() == whole
                assert proxy.requests.count(f"POST /v1/runs/{run_id}/tickets") == 2


@pytest.mark.parametrize("is_listed", [True, False])
async def test_pages_of_another_origin(edge: Edge, pages: Pages, is_listed: bool) -> None:
    """A page of an origin that is listed may post, with a credential, and read; one that is not gets nothing."""
    create, refuse = f"{edge.proxy.url}/v1/agents/{new_agent_id()}/messages/stream", f"{edge.proxy.url}/v1/runs/run-1"
    host = "127.0.0.1" if is_listed else "localhost"
    async with pages.opened(script("ask.js", create=create, refuse=refuse), host=host) as page:
        if is_listed:
            assert ((await page.sees("created")).data or "").endswith("data: [DONE]\n\n")
            assert "Invalid run ID format" in ((await page.sees("refused")).data or "")
            assert methods(edge)[:2] == ["OPTIONS", "POST"]
        else:
            assert "TypeError" in ((await page.sees("kept from it")).data or "")
            # It was not even asked for an answer: the browser asks first, and was not told yes.
            assert methods(edge) == ["OPTIONS"]


async def test_event_source_of_another_origin(stack: Stack, edge: Edge, pages: Pages) -> None:
    """The same for an EventSource, which the browser does not ask for first: its answer is kept from the page."""
    run_id, _ = await stack.finished({"chunks": 2, "interval_ms": 0})
    async with pages.opened(follow(edge, run_id), host="localhost") as page:
        await closed_for_good(page, edge)
        assert [(seen.type, seen.state) for seen in page.seen] == [("error", CLOSED), ("later", CLOSED)]
