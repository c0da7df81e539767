"""Requests for approval in the console: answered once, by whoever is first, and by nobody who may not."""

import json
from pathlib import Path
from typing import Any

import pytest

from runstream.schemas import (
    ApprovalRequestMessage,
    ToolCall,
    new_agent_id,
)
from tests.browser.console import is_usable, run_page
from tests.support.auth import KeyFile
from tests.support.nats import nats_server_running
from tests.support.stack import PUPPET, Stack, stack_running
from tests.support.tab import Tab
from tests.support.waiting import wait_until

HELD = "[...document.querySelectorAll('.decision button')].every((each) => each.disabled)"
"""Whether no answer can be given."""


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
    await tab.before(
        "(() => { const [ask, later] = [fetch, setTimeout];"
        "window.asked = []; window.looks = 0; window.most ??= 3;"
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
    await tab.before("most = 12")
    await tab.goto(run_page(stack.base, asked))
    await tab.shows("The agent waits for an answer.")
    assert not await tab.js(HELD)
    assert await tab.js("asked.length >= 10")


async def test_a_run_beside_the_one_that_asks_is_no_answer(stack: Stack, tab: Tab) -> None:
    """An agent's own go on side by side: one that was there before the request is named, and keeps nobody from it."""
    agent = new_agent_id()
    # The one beside has spoken: a run that is begun after the request is refused.
    async with stack.live(agent_id=agent) as (asked, _), stack.live(1, agent_id=agent) as (beside, other):
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
