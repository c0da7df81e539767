"""A gateway that serves as many streams as it may: further ones are refused, and none that is there gives way."""

import asyncio
import contextlib
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
import pytest_asyncio

from runstream.schemas import new_agent_id
from tests.load.census import metric
from tests.load.form import FORM
from tests.support.eventsource import open_source, source_path
from tests.support.http import DONE, Connection, EventStream, Reply, open_stream
from tests.support.ingest import Writer, writer_of
from tests.support.services import Service, service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(FORM.seconds)

SEATS = 40
AT_ONE_TIME = 16


class Scene(NamedTuple):
    """A full gateway, and the broker whose run it serves."""

    gateway: Service
    broker: Service


@pytest_asyncio.fixture(scope="module")
async def scene(nats_url: str) -> AsyncIterator[Scene]:
    """A gateway with forty places."""
    few = {"RUNSTREAM_MAX_FOLLOWERS": str(SEATS)}
    async with (
        service("broker", nats_url, "--agent", "demo", env={"RUNSTREAM_LEASE_SECONDS": "60"}) as broker,
        service("gateway", nats_url, env=few) as gateway,
    ):
        await broker.is_ready()
        await gateway.is_ready()
        yield Scene(gateway, broker)


async def residents(base: str, run_id: str, stack: contextlib.AsyncExitStack) -> list[EventStream]:
    """As many followers of a run as there are places, of either kind."""
    path = f"/v1/runs/{run_id}/stream"
    kinds = [open_stream(base, path, {}) if number % 2 else open_source(base, path) for number in range(SEATS)]
    return [await stack.enter_async_context(opening) for opening in kinds]


async def refused(base: str, run_id: str, number: int) -> Reply:
    """What one more client is answered, which asks for the run in one of three ways."""
    async with Connection.open(base) as connection:
        match number % 3:
            case 0:
                path = f"/v1/agents/{new_agent_id()}/messages/stream"
                await connection.send("POST", path, json={"input": "x", "background": True})
            case 1:
                await connection.send("POST", f"/v1/runs/{run_id}/stream", json={})
            case _:
                await connection.send("GET", source_path(run_id))
        return await connection.reply()


def check(reply: Reply) -> int:
    """See that a refusal says when to come back, in the form that its client understands."""
    if reply.status == 200:
        assert re.fullmatch(rb"retry: \d+\n", reply.body), reply
    else:
        assert reply.status == 503, reply
        assert int(reply.headers["retry-after"]) > 0
        assert list(json.loads(reply.body)) == ["detail"]
    return reply.status


async def test_a_full_gateway_refuses_and_evicts_nobody(scene: Scene) -> None:
    """While clients crowd at the door, all who are in get each chunk of their run once, in order, to its end."""
    gateway, broker = scene
    writer = await writer_of(broker.base)
    async with contextlib.AsyncExitStack() as stack:
        inside = await residents(gateway.base, writer.run_id, stack)
        assert await metric(gateway, "runstream_followers") == SEATS
        statuses = Counter[int]()
        said = 0
        for first in range(0, FORM.refused, AT_ONE_TIME):
            numbers = range(first, min(first + AT_ONE_TIME, FORM.refused))
            crowd = (refused(gateway.base, writer.run_id, number) for number in numbers)
            stored, *replies = await asyncio.gather(writer.append(said), *crowd)
            assert stored.status == 200
            said += 1
            statuses.update(map(check, replies))
        await writer.end()
        histories = await asyncio.gather(*(stream.rest() for stream in inside))
    event_sources = FORM.refused // 3
    assert statuses == {200: event_sources, 503: FORM.refused - event_sources}
    for history in histories:
        contents = [event.json["content"] for event in history if event.message_type == "assistant_message"]
        assert [int(content) for content in contents] == list(range(said))
        assert history[-1][:2] == DONE[:2]
    await room_is_used_again(gateway, writer)


async def room_is_used_again(gateway: Service, writer: Writer) -> None:
    """Once they have left, whoever comes is served."""

    async def is_empty() -> bool:
        return await metric(gateway, "runstream_followers") == 0

    await wait_until(is_empty, 20, "those who have their run's end still have their places")
    async with open_stream(gateway.base, f"/v1/runs/{writer.run_id}/stream", {}) as stream:
        assert (await stream.rest())[-1] == DONE
    assert await metric(gateway, "runstream_streams_cut_total") == 0
