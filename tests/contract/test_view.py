"""What lists are made of: bounded, filled while others are served, and right again after whatever befalls NATS."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runstream.broker.feed import Feed
from runstream.broker.rebuild import rebuild
from runstream.broker.topology import INDEX_STREAM, provision
from runstream.schemas import new_agent_id
from tests.support.lists import put_conversation, put_run
from tests.support.nats import NatsServer, nats_server_running
from tests.support.stack import Stack, stack_running
from tests.support.waiting import wait_until


async def listed(stack: Stack, what: str, **query: Any) -> list[str]:
    """The ids in a list."""
    asked = "&".join(f"{name}={value}" for name, value in query.items())
    reply = await stack.fetch("GET", f"/v1/{what}/?{asked}")
    assert reply.status == 200, reply
    return [one["id"] for one in reply.json]


async def test_what_operators_see(nats_url: str) -> None:
    """How many there are, how often they were read, and how long ago something was heard."""
    async with stack_running(nats_url) as stack:
        await put_run(stack.jetstream)
        await put_conversation(stack.jetstream)
        await listed(stack, "runs")
        lines = (await stack.fetch("GET", "/metrics")).body.decode().splitlines()
        values = dict(line.split(" ") for line in lines if line.startswith("runstream_view_"))
        counts = {name.removeprefix("runstream_view_"): float(value) for name, value in values.items()}
        assert counts.pop("silent_seconds") < 5
        assert counts.pop("runs") >= 1
        assert counts.pop("conversations") >= 0
        assert counts == {"watches_total": 1, "resets_total": 1}


async def test_a_list_is_bounded(tmp_path: Path) -> None:
    """Beyond the bound the oldest ended runs are not listed; a client that was shown one goes on from there."""
    bounds = {"view_runs": 10, "view_conversations": 5}
    async with nats_server_running(tmp_path) as server, stack_running(server.url, gateway=bounds) as stack:
        agent_id = new_agent_id()
        made = [
            await put_run(stack.jetstream, agent_id=agent_id, status="running" if number in {3, 5} else "completed")
            for number in range(30)
        ]
        there = [run.id for run in [made[3], made[5], *made[22:]]][::-1]
        assert await listed(stack, "runs", agent_id=agent_id) == there
        assert await listed(stack, "runs", agent_id=agent_id, after=made[15].id) == there[-2:]
        assert await listed(stack, "runs", agent_id=agent_id, before=made[15].id, limit=2) == there[-4:-2]
        ended = msgspec.structs.replace(made[3], status="completed", stop_reason="end_turn")
        await put_run(stack.jetstream, ended)
        assert await listed(stack, "runs", agent_id=agent_id) == there
        newest = await put_run(stack.jetstream, agent_id=agent_id)
        assert await listed(stack, "runs", agent_id=agent_id) == [newest.id, *there[:-1]]
        talks = [(await put_conversation(stack.jetstream, agent_id=agent_id)).id for _ in range(8)]
        assert await listed(stack, "conversations", agent_id=agent_id) == talks[:2:-1]
        assert await listed(stack, "conversations", agent_id=agent_id, after=talks[0]) == []
        assert await listed(stack, "conversations", agent_id=agent_id, after=talks[1], order="asc") == talks[3:]


async def test_before_everything_is_read(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list waits, and then says when to come back; whatever needs no list is served, and the gateway is ready."""
    reading = asyncio.Event()
    watch = Feed._watch

    async def wait_and_watch(feed: Feed) -> None:
        await reading.wait()
        await watch(feed)

    monkeypatch.setattr(Feed, "_watch", wait_and_watch)
    async with stack_running(nats_url, gateway={"open_seconds": 0.3}) as stack:
        assert (await stack.fetch("GET", "/readyz")).status == 200
        for path in ("/v1/runs/", "/v1/runs/active", "/v1/conversations/"):
            reply = await stack.fetch("GET", path)
            assert (reply.status, reply.headers["retry-after"]) == (503, "2")
            assert reply.detail == "This gateway is still reading what there is. Try again."
        run_id, events = await stack.finished({"chunks": 1})
        assert events[-1].is_done
        reading.set()

        async def is_listed() -> bool:
            reply = await stack.fetch("GET", "/v1/runs/?limit=1")
            return reply.status == 200 and reply.json[0]["id"] == run_id

        await wait_until(is_listed, 10, "the run is not listed")


async def test_an_index_that_is_made_again(nats_server: NatsServer) -> None:
    """Deleted under a gateway and rebuilt from the logs: the lists have what there is, and nothing of what was."""
    async with stack_running(nats_server.url) as stack:
        agent_id = new_agent_id()
        gone = await put_run(stack.jetstream, agent_id=agent_id)
        conversation_id = await stack.conversation()
        async with stack.say_in(conversation_id, {"chunks": 1, "interval_ms": 0}) as stream:
            run_id = str((await stream.rest())[0].json["run_id"])
        async with stack.live(1, agent_id=agent_id) as (live_id, creator):
            assert await listed(stack, "runs", agent_id=agent_id) == [live_id, gone.id]
            await stack.api(f"STREAM.DELETE.{INDEX_STREAM}")
            assert (await stack.fetch("GET", "/v1/runs/")).status == 503
            await provision(stack.jetstream, stack.settings)
            await rebuild(stack.jetstream, stack.index)
            assert await listed(stack, "runs", agent_id=agent_id) == [live_id]
            assert run_id in await listed(stack, "runs", statuses="completed", limit=1000)
            assert conversation_id in await listed(stack, "conversations", order_by="last_run_completion")
            stack.puppet.finish(live_id)
            await creator.rest()
        assert await listed(stack, "runs", agent_id=agent_id, active="true") == []


async def test_nats_is_killed(nats_server: NatsServer) -> None:
    """While runs are made: when it is back, what was made is listed, each once."""
    async with stack_running(nats_server.url) as stack:
        agent_id = new_agent_id()
        made: list[str] = []
        for _ in range(2):
            for _ in range(5):
                run_id, _ = await stack.finished({"chunks": 1, "interval_ms": 0}, agent_id=agent_id)
                made.insert(0, run_id)
            await nats_server.kill()
            await nats_server.wait_ready()
            await stack.is_back()

            async def is_there() -> bool:
                return (await stack.fetch("GET", "/v1/runs/?limit=1")).status == 200

            await wait_until(is_there, 20, "no list")
            assert await listed(stack, "runs", agent_id=agent_id) == made
