"""Letta's clients list runs and conversations: its own tests of lists, and pages that it turns by itself."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from letta_client import AsyncLetta, BadRequestError, Letta, NotFoundError, UnprocessableEntityError

from runstream.schemas import RUN_STATUSES, RunRecord, new_agent_id, new_conversation_id, new_run_id
from tests.support.lists import put_conversation, put_run
from tests.support.stack import Stack


async def made(stack: Stack, count: int, **facts: Any) -> list[RunRecord]:
    """Runs of an agent's own, the newest first."""
    known = {"agent_id": new_agent_id(), **facts}
    return [await put_run(stack.jetstream, **known) for _ in range(count)][::-1]


def ids(runs: Sequence[Any]) -> list[str]:
    return [run.id for run in runs]


# -- what the server's own tests ask --------------------------------------------------------------------------------


async def test_the_filters_of_the_servers_own_tests(letta: AsyncLetta, stack: Stack) -> None:
    """By agent, conversation, status, several of them, background and stop reason; the newest first, or the oldest."""
    agent_id, conversation_id = new_agent_id(), new_conversation_id()
    created = await put_run(stack.jetstream, agent_id=agent_id, status="created", background=True)
    completed = await put_run(stack.jetstream, agent_id=agent_id, conversation_id=conversation_id)
    failed = await put_run(stack.jetstream, agent_id=agent_id, status="failed", stop_reason="error")

    async def listed(**asked: Any) -> list[str]:
        return [run.id async for run in letta.runs.list(agent_id=agent_id, **asked)]

    assert await listed() == [failed.id, completed.id, created.id]
    assert await listed(order="asc") == [created.id, completed.id, failed.id]
    assert await listed(ascending=True) == [created.id, completed.id, failed.id]
    assert await listed(statuses=["completed"]) == [completed.id]
    assert await listed(statuses=["failed", "created"]) == [failed.id, created.id]
    assert await listed(active=True) == [created.id]
    assert await listed(background=True) == [created.id]
    assert await listed(stop_reason="error") == [failed.id]
    assert await listed(conversation_id=conversation_id) == [completed.id]
    assert [run.id async for run in letta.runs.list(agent_ids=[agent_id])] == await listed()
    assert ids((await letta.runs.list(agent_id=agent_id, limit=1)).items) == [failed.id]


@pytest.mark.parametrize("status", RUN_STATUSES)
async def test_every_status_may_be_asked_for(letta: AsyncLetta, stack: Stack, status: Any) -> None:
    """A status is taken as it is written, alone and with others."""
    (run,) = await made(stack, 1, status=status)
    for statuses in ([status], list(RUN_STATUSES)):
        page = await letta.runs.list(agent_id=run.agent_id, statuses=statuses)
        assert [one.status for one in page.items] == [status]


@pytest.mark.parametrize("statuses", [["zzz"], ["completed", "zzz"], ["COMPLETED"]])
async def test_a_bad_status(letta: AsyncLetta, statuses: list[str]) -> None:
    """Is a bad request, and named."""
    with pytest.raises(BadRequestError) as refused:
        await letta.runs.list(statuses=statuses)
    body: Any = refused.value.body
    assert body == {"detail": f"'{statuses[-1]}' is not a valid RunStatus"}


async def test_what_else_is_refused(letta: AsyncLetta) -> None:
    """A limit out of bounds, a stop reason that there is not, a cursor that is none, and one that nobody has."""
    wrong: list[dict[str, Any]] = [{"limit": 0}, {"limit": 1001}, {"stop_reason": "zzz"}, {"order": "zzz"}]
    for asked in wrong:
        with pytest.raises(UnprocessableEntityError):
            await letta.runs.list(**asked)
    with pytest.raises(BadRequestError, match="Invalid run ID format: zzz"):
        await letta.runs.list(after="zzz")
    with pytest.raises(NotFoundError, match="Run not found"):
        await letta.runs.list(before=new_run_id())


# -- pages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 7, 23, 100])
async def test_pages_forwards(letta: AsyncLetta, stack: Stack, order: Any, limit: int) -> None:
    """The client turns the pages by itself, and sees each run once, in order."""
    runs = await made(stack, 23)
    expected = ids(runs) if order == "desc" else ids(runs)[::-1]
    listed = letta.runs.list(agent_id=runs[0].agent_id, order=order, limit=limit)
    assert [run.id async for run in listed] == expected


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_backwards(letta: AsyncLetta, stack: Stack, order: Any) -> None:
    """Page by page toward the beginning; within a page the order is the list's."""
    runs = await made(stack, 23)
    expected = ids(runs) if order == "desc" else ids(runs)[::-1]
    page = await letta.runs.list(agent_id=runs[0].agent_id, order=order, limit=5, before=expected[-1])
    pages = [ids(page.items)]
    while page.has_next_page():
        page = await page.get_next_page()
        pages.insert(0, ids(page.items))
    assert [run_id for one in pages for run_id in one] == expected[:-1]
    assert [len(one) for one in pages] == [0, 2, 5, 5, 5, 5]


async def test_pages_with_the_client_that_blocks(blocking_letta: Letta, stack: Stack) -> None:
    """It turns them in the same way."""
    runs = await made(stack, 20)

    def listed() -> list[str]:
        return [run.id for run in blocking_letta.runs.list(agent_id=runs[0].agent_id, limit=9)]

    assert await asyncio.to_thread(listed) == ids(runs)


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("backwards", [False, True])
async def test_pages_while_runs_are_made_and_end(
    letta: AsyncLetta, stack: Stack, order: Any, *, backwards: bool
) -> None:
    """Every run that was there from the beginning is seen once, whatever is made, and whatever ends, meanwhile."""
    agent_id = new_agent_id()
    there = [await put_run(stack.jetstream, agent_id=agent_id, status="running") for _ in range(60)]
    stopped = asyncio.Event()

    async def disturb() -> None:
        for number in range(10_000):
            if stopped.is_set():
                return
            run = there[number * 7 % len(there)]
            run.status, run.stop_reason = "completed", "end_turn"
            await put_run(stack.jetstream, run)
            await put_run(stack.jetstream, agent_id=agent_id)

    disturbing = asyncio.create_task(disturb())
    seen: list[str] = []
    try:
        begin: dict[str, Any] = {"before": there[-1 if order == "asc" else 0].id} if backwards else {}
        async for run in letta.runs.list(agent_id=agent_id, order=order, limit=4, **begin):
            seen.append(run.id)
            if len(set(seen) & {run.id for run in there}) == len(there) - backwards:
                break
    finally:
        stopped.set()
        await disturbing
    assert len(seen) == len(set(seen))
    expected = [run.id for run in there]
    if not backwards:
        shown = [run_id for run_id in seen if run_id in set(expected)]
        assert shown == (expected if order == "asc" else expected[::-1])
    else:
        assert set(expected) - set(seen) == {begin["before"]}


# -- conversations ----------------------------------------------------------------------------------------------------


async def test_conversations(letta: AsyncLetta, stack: Stack) -> None:
    """An agent's conversations, in pages, by their time, by their text, and archived ones only if asked for."""
    agent_id = new_agent_id()
    own = [(await letta.conversations.create(agent_id=agent_id, summary=f"Talk {number}")).id for number in range(5)]
    archived = await put_conversation(stack.jetstream, agent_id=agent_id, archived=True)
    assert ids(await letta.conversations.list(agent_id=agent_id)) == own[::-1]
    assert ids(await letta.conversations.list(agent_id=agent_id, order="asc", limit=2)) == own[:2]
    assert ids(await letta.conversations.list(agent_id=agent_id, order="asc", after=own[1])) == own[2:]
    assert ids(await letta.conversations.list(agent_id=agent_id, summary_search="Talk 3")) == [own[3]]
    assert ids(await letta.conversations.list(agent_id=agent_id, archive_status="archived")) == [archived.id]
    assert len(await letta.conversations.list(agent_id=agent_id, archive_status="all")) == 6
    async with await letta.conversations.messages.create(own[2], input='{"chunks": 1}', background=True) as stream:
        async for _ in stream:
            pass
    for order_by in ("last_message_at", "last_run_completion"):
        first, *_ = await letta.conversations.list(agent_id=agent_id, order_by=order_by)
        assert first.id == own[2]
    assert first == await letta.conversations.retrieve(own[2])
