"""Which run an agent means, where it has several: the newest that goes on, in whichever conversation."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from runstream.schemas import new_agent_id
from tests.support.http import EventStream, Reply, open_stream
from tests.support.stack import Stack, message

NO_ACTIVE_RUN = "INVALID_ARGUMENT: No active runs found for this conversation."
NOT_BACKGROUND = "INVALID_ARGUMENT: Run was not created in background mode, so it cannot be retrieved."


async def conversation_of(stack: Stack, agent_id: str) -> str:
    made = await stack.fetch("POST", f"/v1/conversations/?agent_id={agent_id}", json={})
    return str(made.json["id"])


@contextlib.asynccontextmanager
async def live(stack: Stack, agent_id: str, conversation_id: str | None = None, **body: Any) -> AsyncIterator[str]:
    """A run of that agent's that waits: addressed directly, or in a conversation."""
    where = (
        f"agents/{agent_id}/messages/stream" if conversation_id is None else f"conversations/{conversation_id}/messages"
    )
    async with open_stream(stack.base, f"/v1/{where}", message("puppet", **body)) as stream:
        run_id = str((await stream.take(1))[0].json["run_id"])
        stack.puppet.say(run_id)
        await stream.until("assistant_message")
        try:
            yield run_id
        finally:
            stack.puppet.finish(run_id)
            await stream.rest()


async def resumed(stack: Stack, agent_id: str, path: str, cursor: int = 0) -> str:
    """Resume by agent; returns the run."""
    async with opened(stack, agent_id, path, cursor) as stream:
        return str((await stream.take(1))[0].json["run_id"])


def opened(stack: Stack, agent_id: str, path: str, cursor: int = 0) -> open_stream:
    body = {"agent_id": agent_id, "starting_after": cursor}
    return open_stream(stack.base, f"/v1/conversations/{agent_id if path == 'agent' else path}/stream", body)


async def refused(stack: Stack, agent_id: str, path: str) -> Reply:
    where = agent_id if path == "agent" else path
    return await stack.fetch("POST", f"/v1/conversations/{where}/stream", json={"agent_id": agent_id})


@pytest.mark.parametrize("path", ["default", "agent"])
async def test_the_newest_that_goes_on(stack: Stack, path: str) -> None:
    """In whichever conversation it is; when it ends, the next one, however much older; when none is left, none."""
    agent_id = new_agent_id()
    async with live(stack, agent_id, await conversation_of(stack, agent_id)) as oldest:
        async with live(stack, agent_id) as middle:
            async with live(stack, agent_id, await conversation_of(stack, agent_id)) as newest:
                assert await resumed(stack, agent_id, path) == newest
            assert await resumed(stack, agent_id, path) == middle
            async with live(stack, agent_id, agent_id) as newest:
                assert await resumed(stack, agent_id, path) == newest
        assert await resumed(stack, agent_id, path) == oldest
    reply = await refused(stack, agent_id, path)
    assert (reply.status, reply.detail) == (400, NO_ACTIVE_RUN)


async def test_a_foreground_run_hides_older_ones(stack: Stack) -> None:
    """Only the newest that goes on is looked at, as in the reference."""
    agent_id = new_agent_id()
    async with live(stack, agent_id) as background:
        async with live(stack, agent_id, background=False):
            reply = await refused(stack, agent_id, "default")
            assert (reply.status, reply.detail) == (400, NOT_BACKGROUND)
        assert await resumed(stack, agent_id, "default") == background


@pytest.mark.parametrize("path", ["default", "agent"])
async def test_across_the_finish_line(stack: Stack, path: str) -> None:
    """A cursor in the agent's latest run gets the rest of it, after its end; one of an earlier run does not."""
    agent_id = new_agent_id()
    async with live(stack, agent_id):
        earlier = await resume_cursor(stack, agent_id)
    async with live(stack, agent_id) as latest:
        cursor = await resume_cursor(stack, agent_id)
    async with opened(stack, agent_id, path, cursor) as stream:
        assert [event.message_type for event in await stream.rest()] == ["stop_reason", "usage_statistics", None]
    async with stack.resume(latest, cursor) as whole, opened(stack, agent_id, path, cursor) as stream:
        assert await stream.rest() == await whole.rest()
    body = {"agent_id": agent_id, "starting_after": earlier}
    reply = await stack.fetch("POST", "/v1/conversations/default/stream", json=body)
    assert (reply.status, reply.detail) == (400, NO_ACTIVE_RUN)


async def resume_cursor(stack: Stack, agent_id: str) -> int:
    """The cursor of who has followed the run that goes on."""
    stream: EventStream
    async with opened(stack, agent_id, "default") as stream:
        await stream.until("assistant_message")
        return stream.cursor


async def test_cancelling_an_agent(stack: Stack) -> None:
    """Without ids, its newest run that goes on, and not the one that was started last; then the next; then none."""
    agent_id = new_agent_id()
    path = f"/v1/agents/{agent_id}/messages/cancel"
    async with live(stack, agent_id, await conversation_of(stack, agent_id)) as one, live(stack, agent_id) as two:
        async with live(stack, agent_id) as three:
            pass
        for run_id in (two, one):
            reply = await stack.fetch("POST", path)
            assert (reply.status, reply.json) == (200, {run_id: "cancelled"})
            assert (await stack.record(run_id)).status == "cancelled"
        assert (await stack.record(three)).status == "completed"
    reply = await stack.fetch("POST", f"/v1/conversations/default/cancel?agent_id={agent_id}")
    assert (reply.status, reply.detail) == (409, "CONFLICT: No active runs to cancel for conversation default")
