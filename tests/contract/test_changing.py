"""What a client changes and removes: conversations and runs."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from runstream.broker.errors import AgentFailed
from runstream.gateway.conversations import Conversations
from runstream.schemas import ConversationRecord, new_agent_id, new_conversation_id, new_run_id
from tests.support.http import DONE, events_of, fetch
from tests.support.stack import PUPPET, Stack, message, stack_running


@pytest_asyncio.fixture(scope="module")
async def stack(nats_url: str) -> AsyncIterator[Stack]:
    """A runstream for this module."""
    async with stack_running(nats_url) as running:
        yield running


async def change(stack: Stack, conversation_id: str, **fields: Any) -> dict[str, Any]:
    """Change a conversation; returns what is answered."""
    reply = await stack.fetch("PATCH", f"/v1/conversations/{conversation_id}", json=fields)
    assert reply.status == 200, reply
    changed: dict[str, Any] = reply.json
    return changed


async def read(stack: Stack, conversation_id: str) -> dict[str, Any]:
    """What a conversation is now."""
    reply = await stack.fetch("GET", f"/v1/conversations/{conversation_id}")
    assert reply.status == 200, reply
    found: dict[str, Any] = reply.json
    return found


# -- conversations ----------------------------------------------------------------------------------------------------


async def test_only_what_is_sent_is_changed(stack: Stack) -> None:
    """The other fields stay, null empties one, and what runstream does not know is kept."""
    conversation_id = await stack.conversation()
    first = await change(stack, conversation_id, summary="one", description="two", mine={"a": [1]})
    second = await change(stack, conversation_id, description=None, model="openai/gpt-x", other=True)
    assert (second["summary"], second["description"], second["model"]) == ("one", None, "openai/gpt-x")
    assert (second["mine"], second["other"]) == ({"a": [1]}, True)
    assert first["created_at"] == second["created_at"]
    assert first["updated_at"] < second["updated_at"]
    assert await read(stack, conversation_id) == second


async def test_archived(stack: Stack) -> None:
    """The moment is kept for as long as it is archived."""
    conversation_id = await stack.conversation()
    first = await change(stack, conversation_id, archived=True)
    again = await change(stack, conversation_id, archived=True)
    assert first["archived_at"] == again["archived_at"] == first["updated_at"]
    assert (await change(stack, conversation_id, archived=False))["archived_at"] is None


async def test_last_message_at_may_be_set(stack: Stack) -> None:
    """In whatever zone it is sent, it is kept as all times are."""
    conversation_id = await stack.conversation()
    changed = await change(stack, conversation_id, last_message_at="2026-01-02T03:04:05+02:00")
    assert changed["last_message_at"] == "2026-01-02T01:04:05.000000Z"


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("0005-01-01T00:00:00Z", "0005-01-01T00:00:00.000000Z"),
        ("0999-12-31T23:00:00-01:00", "1000-01-01T00:00:00.000000Z"),
    ],
)
async def test_a_year_has_four_digits(stack: Stack, sent: str, kept: str) -> None:
    """However long ago: lists are ordered by the text."""
    changed = await change(stack, await stack.conversation(), last_message_at=sent)
    assert changed["last_message_at"] == kept


@pytest.mark.parametrize("sent", ["0001-01-01T00:00:00+23:00", "9999-12-31T23:59:59-01:00"])
async def test_a_time_that_utc_does_not_have(stack: Stack, sent: str) -> None:
    """It is refused, and named."""
    path = f"/v1/conversations/{await stack.conversation()}"
    reply = await stack.fetch("PATCH", path, json={"last_message_at": sent})
    assert reply.status == 422
    assert "this time is in none of the years 1 to 9999 of UTC" in reply.detail


@pytest.mark.parametrize("ids", [{"id": "conv-x"}, {"agent_id": "agent-x"}, {"created_at": "x"}, {"tenant": "x"}])
async def test_what_it_is_cannot_be_changed(stack: Stack, ids: dict[str, str]) -> None:
    """A key of runstream's own is not hidden by a client's."""
    conversation_id = await stack.conversation()
    before = await read(stack, conversation_id)
    after = await change(stack, conversation_id, **ids)
    assert {name: after[name] for name in ("id", "agent_id", "created_at")} == {
        name: before[name] for name in ("id", "agent_id", "created_at")
    }
    await events_of(stack.base, f"/v1/conversations/{conversation_id}/messages", message({"chunks": 1}))


async def test_runs_and_changes_at_the_same_time(stack: Stack) -> None:
    """Neither a run nor a change gets lost, whoever comes in between."""
    conversation_id = await stack.conversation()
    path = f"/v1/conversations/{conversation_id}/messages"

    async def talk() -> None:
        for _ in range(10):
            assert (await events_of(stack.base, path, message({"chunks": 1})))[-1] == DONE

    async with asyncio.TaskGroup() as group:
        group.create_task(talk())
        for number in range(20):
            group.create_task(change(stack, conversation_id, **{f"mine_{number}": number}))
    found = await read(stack, conversation_id)
    assert [found[f"mine_{number}"] for number in range(20)] == [*range(20)]
    assert found["last_message_at"] > found["created_at"]


@pytest.mark.parametrize(
    ("body", "status"),
    [({"summary": 3}, 422), ({"archived": "perhaps"}, 422), ({"model_settings": "openai"}, 422), ([], 422)],
)
async def test_changes_that_make_no_sense(stack: Stack, body: Any, status: int) -> None:
    """What has the wrong type is refused, and nothing is changed."""
    conversation_id = await stack.conversation()
    before = await read(stack, conversation_id)
    reply = await stack.fetch("PATCH", f"/v1/conversations/{conversation_id}", json=body)
    assert reply.status == status
    assert await read(stack, conversation_id) == before


async def test_a_conversation_that_grows_while_a_run_goes_on_in_it(stack: Stack) -> None:
    """It may not, beyond its share; the run ends, and nobody has lost the connection."""
    conversation_id = await stack.conversation()
    path = f"/v1/conversations/{conversation_id}"
    limit = stack.jetstream.connection.max_payload // 4
    async with stack.say_in(conversation_id) as stream:
        (ping,) = await stream.take(1)
        run_id = str(ping.json["run_id"])
        await change(stack, conversation_id, one="x" * (limit - 2000))
        for _ in range(2):
            refused = await stack.fetch("PATCH", path, json={"two": "x" * 2000})
            assert refused.status == 413
            assert re.fullmatch(rf"The conversation would have \d+ bytes; at most {limit} are kept\.", refused.detail)
        stack.puppet.finish(run_id)
        assert (await stream.rest())[-1] == DONE
    assert (await stack.record(run_id)).status == "completed"
    assert stack.jetstream.connection.reconnects == 0
    assert "two" not in await read(stack, conversation_id)


async def test_a_conversation_that_is_made_too_large(stack: Stack) -> None:
    """It is not made."""
    body = {"summary": "x" * (stack.jetstream.connection.max_payload // 4)}
    reply = await stack.fetch("POST", f"/v1/conversations/?agent_id={new_agent_id()}", json=body)
    assert reply.status == 413
    assert reply.detail.startswith("The conversation would have ")


async def test_the_largest_request_and_the_largest_error(stack: Stack) -> None:
    """Whatever may be asked for, and however its agent fails, a run ends."""
    name, otids = "\x01" * 512, [f"{new_run_id()}".ljust(512, "\x01") for _ in range(64)]
    messages = [{"role": "user", "content": "x", "otid": otid} for otid in otids]
    body = message("x", messages=messages, assistant_message_tool_name=name, assistant_message_tool_kwarg=name)
    body["include_return_message_types"] = ["user_message"] * 100
    size = len(json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode())
    room = stack.jetstream.connection.max_payload - 16 * 2**10 - size
    messages[-1] |= {"content": PUPPET, "name": "y" * (room - 20)}
    agent_id = new_agent_id()
    async with stack.create(agent_id=agent_id, **body) as stream:
        (ping,) = await stream.take(1)
        run_id = str(ping.json["run_id"])
        stack.puppet.fail_with(run_id, AgentFailed("漢" * 9000, message="漢" * 9000, detail="\x01" * 9000))
        assert (await stream.rest())[-1] == DONE
    assert (await stack.record(run_id)).status == "failed"


async def test_a_tool_name_that_is_none(stack: Stack) -> None:
    """What the run's record keeps is bounded, and named."""
    for name in ("assistant_message_tool_name", "assistant_message_tool_kwarg"):
        path = f"/v1/agents/{new_agent_id()}/messages/stream"
        reply = await stack.fetch("POST", path, json=message("x", **{name: "x" * 513}))
        assert reply.status == 422
        assert f"('body', '{name}')" in reply.detail


async def test_a_change_needs_a_body(stack: Stack) -> None:
    """As in the reference."""
    reply = await stack.fetch("PATCH", f"/v1/conversations/{await stack.conversation()}")
    assert reply.status == 422
    assert "Field required" in reply.detail


async def test_a_deleted_conversation_is_not_there(stack: Stack) -> None:
    """Not to be read, changed, written to, cancelled or deleted; its runs are."""
    conversation_id = await stack.conversation()
    path = f"/v1/conversations/{conversation_id}"
    async with stack.say_in(conversation_id) as stream:
        (ping,) = await stream.take(1)
        run_id = ping.json["run_id"]
        deleted = await stack.fetch("DELETE", path)
        assert (deleted.status, deleted.json) == (200, None)
        for method, where, options in (
            ("GET", "", {}),
            ("PATCH", "", {"json": {"summary": "x"}}),
            ("DELETE", "", {}),
            ("POST", "/cancel", {}),
            ("POST", "/messages", {"json": message("hello")}),
        ):
            reply = await stack.fetch(method, path + where, **options)
            assert (reply.status, reply.detail) == (404, f"Conversation not found with id='{conversation_id}'")
        stack.puppet.say(run_id)
        await stream.take(1)
        stack.puppet.finish(run_id)
        assert (await stream.rest())[-1] == DONE
    assert (await events_of(stack.base, f"/v1/runs/{run_id}/stream", {}))[-1] == DONE


async def test_a_message_that_is_overtaken_by_the_deletion(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was looked up before, and is claimed after: the words are the same, and no run starts."""
    conversation_id = await stack.conversation()
    stored = await stack.index.conversation("default", conversation_id)
    assert stored is not None
    found = stored.value

    async def looked_up_before(*_: object) -> ConversationRecord:
        return found

    assert (await stack.fetch("DELETE", f"/v1/conversations/{conversation_id}")).status == 200
    monkeypatch.setattr(Conversations, "existing", looked_up_before)
    reply = await stack.fetch("POST", f"/v1/conversations/{conversation_id}/messages", json=message("hello"))
    assert (reply.status, reply.detail) == (404, f"Conversation not found with id='{conversation_id}'")
    listed = await stack.fetch("GET", f"/v1/runs/?conversation_id={conversation_id}")
    assert listed.json == []


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
async def test_conversations_that_never_were(stack: Stack, method: str) -> None:
    """404 for a well-formed id, 422 for any other, `default` and agents' included."""
    options: dict[str, Any] = {"json": {}} if method == "PATCH" else {}
    assert (await stack.fetch(method, f"/v1/conversations/{new_conversation_id()}", **options)).status == 404
    for malformed in ("default", new_agent_id(), "conv-x"):
        assert (await stack.fetch(method, f"/v1/conversations/{malformed}", **options)).status == 422


# -- runs -------------------------------------------------------------------------------------------------------------


async def test_a_run_that_goes_on_is_not_removed(stack: Stack) -> None:
    """It has to end first, and its client is told how."""
    async with stack.live(1) as (run_id, stream):
        reply = await stack.fetch("DELETE", f"/v1/runs/{run_id}")
        assert (reply.status, reply.headers["x-should-retry"]) == (409, "false")
        assert reply.detail == f"CONFLICT: Run {run_id} is going on: cancel it, or wait for its end."
        stack.puppet.finish(run_id)
        assert (await stream.rest())[-1] == DONE
    assert (await stack.fetch("DELETE", f"/v1/runs/{run_id}")).status == 200


async def test_a_removed_run_leaves_nothing(stack: Stack) -> None:
    """Not its log, not its record, not what it answered: the same request starts a new run."""
    conversation_id = await stack.conversation()
    path = f"/v1/conversations/{conversation_id}/messages"
    asked = {"messages": [{"role": "user", "content": '{"chunks": 2}', "otid": new_run_id()}], "background": True}
    (ping, *_) = await events_of(stack.base, path, asked)
    run_id = ping.json["run_id"]
    record = await stack.record(run_id)
    shown = (await stack.fetch("GET", f"/v1/runs/{run_id}")).json
    removed = await stack.fetch("DELETE", f"/v1/runs/{run_id}")
    assert (removed.status, removed.json) == (200, shown)
    assert await stack.jetstream.last_message(f"RUNS_{record.shard}", f"runs.{record.shard}.{run_id}") is None
    otid = asked["messages"][0]["otid"]  # type: ignore[index]
    for method, where, options in (
        ("GET", f"/v1/runs/{run_id}", {}),
        ("DELETE", f"/v1/runs/{run_id}", {}),
        ("POST", f"/v1/runs/{run_id}/stream", {"json": {}}),
        ("GET", f"/v1/runs/{run_id}/stream", {}),
        ("POST", f"/v1/conversations/{conversation_id}/stream", {"json": {"otid": otid}}),
        ("POST", f"/v1/conversations/{conversation_id}/stream", {"json": {"run_id": run_id}}),
    ):
        assert (await stack.fetch(method, where, **options)).status == 404, (method, where)
    by_conversation = await stack.fetch("POST", f"/v1/conversations/{conversation_id}/stream", json={})
    assert by_conversation.detail == "INVALID_ARGUMENT: No active runs found for this conversation."
    (ping, *_) = await events_of(stack.base, path, asked)
    assert ping.json["run_id"] != run_id


async def test_a_run_that_waits_for_approval_waits_no_longer_when_it_is_removed(stack: Stack) -> None:
    """Its conversation takes other messages again."""
    conversation_id = await stack.conversation()
    path = f"/v1/conversations/{conversation_id}/messages"
    (ping, *_) = await events_of(stack.base, path, message({"approval": True}))
    assert (await stack.fetch("DELETE", f"/v1/runs/{ping.json['run_id']}")).status == 200
    events = await events_of(stack.base, path, message({"chunks": 1}))
    assert events[-3].json == {"message_type": "stop_reason", "stop_reason": "end_turn"}


@pytest.mark.parametrize(("run_id", "status"), [("run-x", 400), (new_run_id(), 404)], ids=["no id", "nobody's"])
async def test_runs_that_never_were(stack: Stack, run_id: str, status: int) -> None:
    """As when they are read."""
    assert (await fetch(stack.base, "DELETE", f"/v1/runs/{run_id}")).status == status
