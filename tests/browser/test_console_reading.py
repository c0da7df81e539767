"""What the console shows of what an agent said: every kind of it, ten thousand of it, and never as markup."""

import json
from typing import Any

from runstream.schemas import (
    ApprovalRequestMessage,
    AssistantMessage,
    ReasoningMessage,
    ToolCall,
    ToolCallMessage,
    UsageStatistics,
)
from tests.browser.console import BOUNDED, NODES, is_whole, run_page, said
from tests.support.stack import Stack
from tests.support.tab import Tab


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
        # The words beside the timeline are drawn anew with it, a moment later.
        await tab.until("!document.querySelector('main').innerText.includes('so far')", "something goes on")
        assert await tab.text("#said") in {"The run has ended.", "The agent waits for an answer."}
        await tab.click("Approve")
        await tab.shows("was approved")


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
