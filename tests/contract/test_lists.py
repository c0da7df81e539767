"""The lists of runs and conversations: filters, orders, pages, and what was just done is in them."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import pytest
import pytest_asyncio

from runstream.broker.keys import KV_OPERATION, run_key, subject_of
from runstream.schemas import RunRecord, new_agent_id, new_conversation_id, new_run_id
from tests.support.captures import matrix
from tests.support.lists import put_conversation, put_run
from tests.support.stack import Stack, stack_running

Query = Mapping[str, Any] | Sequence[tuple[str, Any]]


def written(query: Query) -> str:
    return urlencode(query, doseq=True)


async def runs(stack: Stack, **query: Any) -> list[dict[str, Any]]:
    """A page of the list of runs."""
    reply = await stack.fetch("GET", f"/v1/runs/?{written(query)}")
    assert reply.status == 200, reply
    found: list[dict[str, Any]] = reply.json
    return found


async def run_ids(stack: Stack, **query: Any) -> list[str]:
    return [run["id"] for run in await runs(stack, **query)]


async def conversation_ids(stack: Stack, **query: Any) -> list[str]:
    reply = await stack.fetch("GET", f"/v1/conversations/?{written(query)}")
    assert reply.status == 200, reply
    return [conversation["id"] for conversation in reply.json]


@pytest_asyncio.fixture(scope="module")
async def some(stack: Stack) -> list[RunRecord]:
    """Runs of an agent of their own that differ in all that can be asked for, the newest first."""
    agent_id, conversations = new_agent_id(), [None, new_conversation_id(), new_conversation_id()]
    endings: list[dict[str, Any]] = [
        {"status": "created"},
        {"status": "running"},
        {"status": "completed"},
        {"status": "completed", "stop_reason": "requires_approval"},
        {"status": "failed", "stop_reason": "llm_api_error", "error": {"message_type": "error_message"}},
        {"status": "cancelled", "stop_reason": "cancelled"},
    ]
    return [
        await put_run(
            stack.jetstream,
            agent_id=agent_id,
            conversation_id=conversations[number % 3],
            background=number % 2 == 0,
            created_at=f"2026-11-21T04:{59 - number}:28.000000Z",
            **endings[number % 6],
        )
        for number in range(40)
    ]


# -- runs ---------------------------------------------------------------------------------------------------------


async def test_a_run_in_the_list_is_the_run(stack: Stack) -> None:
    """It is what reading it gives, while it goes on and when it has ended."""
    agent_id = new_agent_id()
    async with stack.create(agent_id=agent_id) as stream:
        (ping,) = await stream.take(1)
        run_id = str(ping.json["run_id"])
        (listed,) = await runs(stack, agent_id=agent_id)
        assert listed["status"] in {"created", "running"}
        stack.puppet.fail(run_id)
        await stream.rest()
    (listed,) = await runs(stack, agent_id=agent_id)
    assert listed == (await stack.fetch("GET", f"/v1/runs/{run_id}")).json
    assert (listed["status"], listed["stop_reason"]) == ("failed", "llm_api_error")


@pytest.mark.parametrize(
    ("query", "matches"),
    [
        ({}, lambda _: True),
        ({"statuses": ["completed", "failed"]}, lambda run: run.status in {"completed", "failed"}),
        ({"active": "true"}, lambda run: not run.is_terminal),
        ({"active": "true", "statuses": ["cancelled"]}, lambda run: run.status == "cancelled"),
        ({"active": "false"}, lambda _: True),
        ({"background": "true"}, lambda run: run.background),
        ({"background": "false", "active": "1"}, lambda run: not run.background and not run.is_terminal),
        ({"stop_reason": "requires_approval"}, lambda run: run.stop_reason == "requires_approval"),
        ({"stop_reason": "end_turn", "background": "true"}, lambda run: run.stop_reason == "end_turn"),
        ({"stop_reason": "max_steps"}, lambda _: False),
        ({"order_by": "created_at"}, lambda _: True),
        ({"zzz": "passed over"}, lambda _: True),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)
async def test_filters(stack: Stack, some: list[RunRecord], query: dict[str, Any], matches: Any) -> None:
    """Each filter, and several together, in either order and in pages."""
    agent_id = some[0].agent_id
    expected = [run.id for run in some if matches(run)]
    assert await run_ids(stack, agent_id=agent_id, **query) == expected
    assert await run_ids(stack, agent_id=agent_id, order="asc", **query) == expected[::-1]
    assert await run_ids(stack, agent_id=agent_id, ascending="true", order="desc", **query) == expected[::-1]
    assert await run_ids(stack, agent_id=agent_id, limit=3, **query) == expected[:3]


async def test_whose_runs(stack: Stack, some: list[RunRecord]) -> None:
    """Of an agent, of several by the older name, which loses against the newer; of a conversation; of nobody."""
    agent_id, other = some[0].agent_id, await put_run(stack.jetstream)
    mine = [run.id for run in some]
    assert await run_ids(stack, agent_ids=[agent_id, other.agent_id]) == [other.id, *mine]
    assert await run_ids(stack, agent_ids=[other.agent_id], agent_id=agent_id) == mine
    assert await run_ids(stack, agent_ids=[agent_id, agent_id]) == mine
    assert await run_ids(stack, agent_id=new_agent_id()) == []
    assert await run_ids(stack, agent_id="zzz") == []
    assert await run_ids(stack, conversation_id=some[1].conversation_id) == mine[1::3]
    assert await run_ids(stack, conversation_id=some[1].conversation_id, agent_id=other.agent_id) == []


async def test_runs_that_go_on(stack: Stack, some: list[RunRecord]) -> None:
    """The deprecated path has them with fewer filters."""
    expected = [run.id for run in some if not run.is_terminal]
    agent_id = some[0].agent_id
    reply = await stack.fetch("GET", f"/v1/runs/active?agent_id={agent_id}")
    assert [run["id"] for run in reply.json] == expected
    reply = await stack.fetch("GET", f"/v1/runs/active?agent_ids={agent_id}&background=true")
    assert [run["id"] for run in reply.json] == [run.id for run in some if not run.is_terminal and run.background]


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages(stack: Stack, some: list[RunRecord], order: str) -> None:
    """`after` is followed by what follows, `before` is led up to by what is directly before it; together, between."""
    listed = [run.id for run in some][:: 1 if order == "desc" else -1]
    for at in (0, 1, 20, 38, 39):
        asked = {"agent_id": some[0].agent_id, "order": order, "limit": 5}
        assert await run_ids(stack, **asked, after=listed[at]) == listed[at + 1 : at + 6]
        assert await run_ids(stack, **asked, before=listed[at]) == listed[max(0, at - 5) : at]
    between = {**asked, "after": listed[10], "limit": 4}
    assert await run_ids(stack, **between, before=listed[14]) == listed[11:14]
    assert await run_ids(stack, **between, before=listed[30]) == listed[26:30]
    assert await run_ids(stack, **between, before=listed[5]) == []


async def test_a_cursor_need_not_be_of_the_list(stack: Stack, some: list[RunRecord]) -> None:
    """What comes after a run is found also where that run is none of those that are wanted."""
    listed = [run for run in some if run.status == "failed"]
    cursor = next(run for run in some if run.created_at < listed[2].created_at)
    assert cursor.status != "failed"
    assert await run_ids(stack, agent_id=some[0].agent_id, statuses="failed", after=cursor.id) == [
        run.id for run in listed[3:]
    ]


async def test_bad_cursors(stack: Stack) -> None:
    """A malformed one is refused in the words for run ids, and one that nobody has is not there."""
    for name in ("after", "before"):
        refused = await stack.fetch("GET", f"/v1/runs/?{name}=zzz")
        assert (refused.status, refused.detail) == (400, (await stack.fetch("GET", "/v1/runs/zzz")).detail)
        missing = new_run_id()
        refused = await stack.fetch("GET", f"/v1/runs/?{name}={missing}")
        assert (refused.status, refused.detail) == (404, f"Run not found with id='{missing}'")
        assert (await stack.fetch("GET", f"/v1/runs/?{name}=")).status == 200
    refused = await stack.fetch("GET", "/v1/conversations/?after=zzz")
    assert (refused.status, refused.detail) == (
        400,
        "INVALID_ARGUMENT: Invalid conversation ID format: zzz. Expected format: 'conv-<uuid4>'",
    )
    missing = new_conversation_id()
    refused = await stack.fetch("GET", f"/v1/conversations/?after={missing}")
    assert (refused.status, refused.detail) == (404, f"Conversation not found with id='{missing}'")


async def test_a_list_looks_as_the_references(stack: Stack, some: list[RunRecord]) -> None:
    """The same keys in the same order, and what differs is of the same form; any bad status is named."""
    completed = next(run for run in some if run.stop_reason == "end_turn")
    listed = await runs(stack, agent_id=completed.agent_id, stop_reason="end_turn", limit=1)
    (expected,) = json.loads(matrix()["runs list"].body)
    expected |= {
        "background": completed.background,
        "conversation_id": completed.conversation_id,
        "total_duration_ns": 1,
    }
    assert list(listed[0]) == list(expected)
    names = ("id", "agent_id", "conversation_id", "created_at", "completed_at")
    assert {**listed[0], **dict.fromkeys(names)} == {**expected, **dict.fromkeys(names)}
    reply = await stack.fetch("GET", "/v1/runs/?statuses=completed&statuses=zzz")
    assert reply.body.decode() == matrix()["runs list status bad"].body


@pytest.mark.parametrize(
    "query",
    ["limit=1001", "limit=x", "limit=1.5", "active=maybe", "background=2", "order=up", "order_by=id", "ascending=x"],
)
async def test_queries_that_are_refused(stack: Stack, query: str) -> None:
    """422, with the place and the value as it was sent."""
    reply = await stack.fetch("GET", f"/v1/runs/?{query}")
    name, value = query.split("=")
    assert reply.status == 422
    assert f"'loc': ('query', '{name}')" in reply.detail
    assert f"'input': '{value}'" in reply.detail


# -- conversations ------------------------------------------------------------------------------------------------


async def test_conversations(stack: Stack) -> None:
    """What was made is listed, newest first, as reading it gives; default conversations and deleted ones are not."""
    agent_id = new_agent_id()
    made = [
        (await stack.fetch("POST", f"/v1/conversations/?agent_id={agent_id}", json={"summary": str(number)})).json
        for number in range(3)
    ]
    await put_conversation(stack.jetstream, id=agent_id, agent_id=agent_id)
    deleted = await put_conversation(stack.jetstream, agent_id=agent_id, deleted=True)
    reply = await stack.fetch("GET", f"/v1/conversations/?agent_id={agent_id}")
    assert reply.json == made[::-1]
    assert await conversation_ids(stack, agent_id=agent_id, order="asc", limit=2) == [one["id"] for one in made[:2]]
    assert await conversation_ids(stack, agent_id=agent_id, after=made[2]["id"]) == [made[1]["id"], made[0]["id"]]
    # Whoever comes back with it was shown it before it was deleted.
    assert await conversation_ids(stack, agent_id=agent_id, after=deleted.id) == [one["id"] for one in made[::-1]]
    assert made[0]["id"] in await conversation_ids(stack, limit=1000)
    assert agent_id not in await conversation_ids(stack, limit=1000)


async def test_conversations_that_are_archived(stack: Stack) -> None:
    """They are listed if they are asked for."""
    agent_id = new_agent_id()
    one, two, three = [
        (await put_conversation(stack.jetstream, agent_id=agent_id, archived=archived)).id
        for archived in (None, True, False)
    ]
    assert await conversation_ids(stack, agent_id=agent_id) == [three, one]
    assert await conversation_ids(stack, agent_id=agent_id, archive_status="unarchived") == [three, one]
    assert await conversation_ids(stack, agent_id=agent_id, archive_status="archived") == [two]
    assert await conversation_ids(stack, agent_id=agent_id, archive_status="all") == [three, two, one]


async def test_conversations_with_a_text(stack: Stack) -> None:
    """Those whose summaries have it, however many have not."""
    agent_id = new_agent_id()
    for number in range(30):
        await put_conversation(stack.jetstream, agent_id=agent_id, summary=f"Talk {number} about the sea")
    await put_conversation(stack.jetstream, agent_id=agent_id)
    found = await stack.fetch("GET", f"/v1/conversations/?agent_id={agent_id}&summary_search=k%202&limit=3")
    assert [one["summary"].split()[1] for one in found.json] == ["29", "28", "27"]
    again = await conversation_ids(stack, agent_id=agent_id, summary_search="k 2", after=found.json[-1]["id"])
    assert len(again) == 8
    assert await conversation_ids(stack, agent_id=agent_id, summary_search="ocean") == []


async def test_conversations_by_when_they_were_used(stack: Stack) -> None:
    """By their last message and by the end of their last run; those that never had one come last either way."""
    agent_id = new_agent_id()
    base = f"/v1/conversations/?agent_id={agent_id}"
    never, first, second = [(await stack.fetch("POST", base, json={})).json["id"] for _ in range(3)]
    async with stack.say_in(first) as early:
        run_id = str((await early.take(1))[0].json["run_id"])
        async with stack.say_in(second, {"chunks": 1, "interval_ms": 0}) as late:
            await late.rest()
        stack.puppet.finish(run_id)
        await early.rest()
    orders = {"last_message_at": [second, first], "last_run_completion": [first, second], "created_at": []}
    for order_by, used in orders.items():
        expected = [*used, never] if used else [second, first, never]
        ascending = [*used[::-1], never] if used else [never, first, second]
        assert await conversation_ids(stack, agent_id=agent_id, order_by=order_by) == expected
        assert await conversation_ids(stack, agent_id=agent_id, order_by=order_by, order="asc") == ascending
        for order, listed in (("desc", expected), ("asc", ascending)):
            asked = {"agent_id": agent_id, "order_by": order_by, "order": order, "limit": 1}
            assert await conversation_ids(stack, **asked, after=listed[0]) == listed[1:2]
            assert await conversation_ids(stack, **asked, after=listed[1]) == listed[2:]


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "order=up", "order_by=name", "archive_status=old"])
async def test_queries_for_conversations_that_are_refused(stack: Stack, query: str) -> None:
    """422, as for runs."""
    reply = await stack.fetch("GET", f"/v1/conversations/?{query}")
    assert reply.status == 422
    assert f"'loc': ('query', '{query.partition('=')[0]}')" in reply.detail


# -- what was just done -------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module")
async def other(stack: Stack, nats_url: str) -> AsyncIterator[Stack]:
    """Another gateway on the same NATS."""
    async with stack_running(nats_url, agent=stack.agent) as running:
        yield running


async def test_who_did_something_finds_it_so(stack: Stack, other: Stack) -> None:
    """At whichever gateway: a run that was begun is active, and one that has ended is not, as soon as that is known."""
    agent_id = new_agent_id()
    gateways = [stack, other]
    for _ in range(15):
        random.shuffle(gateways)
        here, there = gateways
        async with here.create(agent_id=agent_id) as stream:
            run_id = str((await stream.take(1))[0].json["run_id"])
            assert await run_ids(there, agent_id=agent_id, active="true") == [run_id]
            here.puppet.finish(run_id)
            await stream.rest()
        assert await run_ids(there, agent_id=agent_id, active="true") == []
        assert (await run_ids(there, agent_id=agent_id, statuses="completed"))[0] == run_id
        conversation_id = await here.conversation()
        assert (await conversation_ids(there, limit=1)) == [conversation_id]


async def test_lists_under_load(stack: Stack, other: Stack) -> None:
    """Fifty clients that each do something and look for it at the other gateway."""

    async def client(number: int) -> None:
        here, there = (stack, other) if number % 2 else (other, stack)
        agent_id = new_agent_id()
        run_id, _ = await here.finished({"chunks": 1, "interval_ms": 0}, agent_id=agent_id)
        assert [run["status"] for run in await runs(there, agent_id=agent_id)] == ["completed"], run_id

    await asyncio.gather(*map(client, range(50)))


async def test_a_record_that_is_deleted_or_swept(stack: Stack) -> None:
    """Is not listed any more, and is no place in a list."""
    run = await put_run(stack.jetstream)
    assert await run_ids(stack, agent_id=run.agent_id) == [run.id]
    await stack.jetstream.publish(subject_of(run_key("default", run.id)), b"", {KV_OPERATION: "DEL"})
    assert await run_ids(stack, agent_id=run.agent_id) == []
    assert (await stack.fetch("GET", f"/v1/runs/?after={run.id}")).status == 404


async def test_a_record_that_cannot_be_read(stack: Stack) -> None:
    """Is passed over: the others are listed."""
    await stack.jetstream.publish(subject_of("run.default.strange"), b"what", {})
    await stack.jetstream.publish(subject_of(f"conversation.default.{new_conversation_id()}"), b"what", {})
    run = await put_run(stack.jetstream)
    assert (await run_ids(stack, limit=1)) == [run.id]
