"""A run that was started is never answered with a status that makes a client start another."""

from runstream.schemas import is_run_id, new_agent_id
from tests.support.stack import message, stack_running


async def test_a_started_run_that_cannot_be_read_is_not_to_be_repeated(nats_url: str) -> None:
    """The 503 of a run that exists names it, and keeps letta-client from posting the message again."""
    async with stack_running(nats_url, gateway={"open_seconds": 0.000_001}) as stack:
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
