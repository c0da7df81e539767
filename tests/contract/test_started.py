"""A run that was started is never answered with a status that makes a client start another."""

import asyncio
from functools import partial

from runstream.schemas import RunRecord, RunRequest, is_run_id, new_agent_id, new_run_id
from tests.support.http import Connection, encoded
from tests.support.stack import message, stack_running
from tests.support.waiting import wait_until


async def test_a_started_run_that_cannot_be_read_is_not_to_be_repeated(nats_url: str) -> None:
    """The 503 of a run that exists names it, and keeps letta-client from posting the message again."""
    async with stack_running(nats_url) as stack:
        stack.hub.settings = stack.hub.settings.model_copy(update={"open_seconds": 0.000_001})
        path = f"/v1/agents/{new_agent_id()}/messages/stream"
        reply = await stack.fetch("POST", path, json=message("hello", background=True))
        assert reply.status == 503
        assert reply.headers["x-should-retry"] == "false"
        assert "retry-after" not in reply.headers
        run_id = reply.json["run_id"]
        assert is_run_id(run_id)
        assert reply.json["detail"] == f"Run {run_id} was started, but cannot be read at the moment. Resume it."
        assert (await stack.record(run_id)).agent_id in path
        # A resume that meets the same trouble starts nothing: it may be repeated.
        again = await stack.fetch("POST", f"/v1/runs/{run_id}/stream", json={})
        assert (again.status, again.headers["retry-after"]) == (503, "2")
        assert "x-should-retry" not in again.headers


async def test_a_client_that_leaves_while_its_run_is_started_locks_nothing(nats_url: str) -> None:
    """Gone 0 to 20 ms after it posted, on 60 conversations: whatever was claimed is executed, and frees them all."""
    async with stack_running(nats_url) as stack:
        said = encoded(message({"chunks": 1, "interval_ms": 0}, background=True))

        async def leave(conversation: str, seconds: float) -> None:
            async with Connection.open(stack.base) as connection:
                path = f"/v1/conversations/{conversation}/messages"
                await connection.send("POST", path, body=said, headers={"Content-Type": "application/json"})
                await asyncio.sleep(seconds)  # Not a wait: the moment at which it leaves.

        conversations = await asyncio.gather(*(stack.conversation() for _ in range(60)))
        await asyncio.gather(*(leave(name, at / 3000) for at, name in enumerate(conversations)))

        async def is_settled(conversation: str) -> bool:
            stored = await stack.index.conversation("default", conversation)
            if stored is None or stored.value.active_run is not None:
                return False
            latest = stored.value.latest_run
            # The gateway may claim a run after its client has left: one that is there is waited for, to its end.
            return latest is None or (await stack.record(latest)).status == "completed"

        for conversation in conversations:
            await wait_until(partial(is_settled, conversation), 10, f"{conversation} stays locked, or its run undone")


async def test_a_run_whose_gateway_died_before_it_was_enqueued_is_executed(nats_url: str) -> None:
    """Claimed and never enqueued: a broker has the run executed, once, unasked, and its conversation is free again."""
    async with stack_running(nats_url, broker={"lease_seconds": 1}) as stack:
        conversation_id = await stack.conversation()
        conversation = await stack.fetch("GET", f"/v1/conversations/{conversation_id}")
        record = RunRecord(
            id=new_run_id(),
            agent_id=conversation.json["agent_id"],
            conversation_id=conversation_id,
            background=True,
            shard=0,
        )
        body = message({"chunks": 2, "interval_ms": 0})
        request = RunRequest(run_id=record.id, agent_id=record.agent_id, body=body)
        await stack.index.claim(record, request)
        refused = await stack.fetch("POST", f"/v1/conversations/{record.conversation_id}/messages", json=message("hi"))
        assert (refused.status, refused.json["run_id"]) == (409, record.id)
        async with stack.resume(record.id) as stream:
            events = await stream.rest()
        assert [event.message_type for event in events].count("assistant_message") == 2
        assert (await stack.record(record.id)).status == "completed"
        stored = await stack.index.conversation("default", record.conversation_id or "")
        assert stored is not None
        assert stored.value.active_run is None
