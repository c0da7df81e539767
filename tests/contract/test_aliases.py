"""The same API below /latest, with /v1 and without."""

from collections.abc import Callable

import pytest

from runstream.schemas import new_agent_id, new_run_id
from tests.support.eventsource import source_path
from tests.support.http import open_stream
from tests.support.stack import Stack, message

PREFIXES = ["/latest", "/latest/v1"]


def alias(prefix: str) -> Callable[[str], str]:
    return lambda path: prefix + path.removeprefix("/v1")


@pytest.fixture(params=PREFIXES)
def at(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Where a path below /v1 is, too."""
    return alias(request.param)


async def test_everything_is_there(stack: Stack, at: Callable[[str], str]) -> None:
    """A conversation that is made, asked and resumed there is the one that is below /v1."""
    made = await stack.fetch("POST", at(f"/v1/conversations/?agent_id={new_agent_id()}"), json={})
    conversation_id = made.json["id"]
    assert (await stack.fetch("GET", at(f"/v1/conversations/{conversation_id}"))).json == made.json
    path = at(f"/v1/conversations/{conversation_id}/messages")
    async with open_stream(stack.base, path, message({"chunks": 2, "interval_ms": 0})) as stream:
        seen = await stream.rest()
    run_id = seen[0].json["run_id"]
    for resumed in (f"/v1/runs/{run_id}/stream", f"/v1/conversations/{conversation_id}/stream"):
        async with open_stream(stack.base, at(resumed), {"starting_after": seen[0].seq_id}) as stream:
            assert await stream.rest() == seen[1:]
    there = await stack.fetch("GET", f"/v1/runs/{run_id}")
    assert (await stack.fetch("GET", at(f"/v1/runs/{run_id}"))).json == there.json
    path = at(f"/v1/agents/{new_agent_id()}/messages/stream")
    async with open_stream(stack.base, path, message({"chunks": 1})) as other:
        assert (await other.rest())[-1].is_done
    last = {"Last-Event-ID": str(await stack.tip(await stack.record(run_id)))}
    assert (await stack.fetch("GET", at(source_path(run_id)), headers=last)).status == 204
    cancelled = await stack.fetch("POST", at(f"/v1/conversations/{conversation_id}/cancel"))
    assert cancelled.status == 409


async def test_refusals_are_the_same(stack: Stack, at: Callable[[str], str]) -> None:
    """The same status, body and headers as below /v1, with 405 and 307."""
    for method, path, headers in (
        ("GET", f"/v1/runs/{new_run_id()}", {}),
        ("GET", "/v1/runs/run-1", {}),
        ("PUT", f"/v1/runs/{new_run_id()}", {}),
        ("GET", "/v1/nothing", {}),
        ("GET", f"/v1/runs/{new_run_id()}", {"user_id": "x"}),
        ("POST", "/v1/agents/agent-1/messages/stream", {}),
        ("POST", "/v1/agents/agent-1/messages/cancel", {}),
    ):
        here = await stack.fetch(method, at(path), headers={"X-Request-ID": "one", **headers})
        there = await stack.fetch(method, path, headers={"X-Request-ID": "one", **headers})
        assert (here.status, here.body) == (there.status, there.body), path
        assert {**here.headers, "date": ""} == {**there.headers, "date": ""}, path
    moved = await stack.fetch("POST", at("/v1/conversations?agent_id=x"))
    assert (moved.status, moved.headers["location"]) == (307, at("/v1/conversations/?agent_id=x"))


async def test_nothing_else_is_below_latest(stack: Stack) -> None:
    """Probes are where they were, and /v1 is not doubled."""
    for path in (
        "/latest/livez",
        "/latest/latest/runs/",
        "/v1/v1/runs/x",
        "/latest/v1/latest/runs/x",
        "/v1/latest/runs/x",
    ):
        assert (await stack.fetch("GET", path)).status == 404, path
