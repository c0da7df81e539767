"""A broker that drains: it takes nothing more, lets its runs end, and leaves to others what it has not begun."""

import asyncio
import contextlib
import dataclasses
import gc
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import pytest
import pytest_asyncio

from runstream.broker.errors import Unavailable
from runstream.broker.jetstream import JetStream
from runstream.broker.log import KIND
from runstream.broker.presence import anybody_there
from runstream.broker.queue import WorkQueue
from runstream.broker.service import Broker
from runstream.broker.topology import WORK_STREAM, WORKERS
from runstream.schemas import Kind, new_agent_id
from tests.support.core import Core, said
from tests.support.http import fetch
from tests.support.runs import GOOD_END, Line, answer, empty_queue, following, over, queue_empty, scripted, submit
from tests.support.stack import listener, url_of
from tests.support.waiting import wait_until


@pytest_asyncio.fixture(autouse=True)
async def _queue(core: Core) -> AsyncIterator[None]:
    """Each test begins with an empty queue."""
    await empty_queue(core)
    yield


def broker(core: Core, *lines: Line, window: float = 60) -> Broker:
    """A broker with an agent that does this for every run."""
    return Broker(core.settings.model_copy(update={"drain_seconds": window}), agent=scripted(*lines))


async def test_runs_end_by_themselves(core: Core) -> None:
    """A run that ends within the window ends as its agent says, and then the drain is over."""
    goes_on = asyncio.Event()
    async with broker(core, said(0), goes_on, said(1), *GOOD_END) as one:
        run = await submit(core)
        async with following(core, run) as follower:
            await wait_until(lambda: follower.said() == 1)
            drain = asyncio.create_task(one.drain())
            # The agent goes on when this broker has taken its name off the list: it drains.
            await wait_until(lambda: _nobody(core))
            assert not drain.done()
            goes_on.set()
            async with asyncio.timeout(10):
                await drain
        record = await over(core, run)
    assert (record.status, record.stop_reason) == ("completed", "end_turn")


async def _nobody(core: Core) -> bool:
    """Whether no broker with an agent is there; one that is just leaving the list does not answer any more."""
    with contextlib.suppress(Unavailable):
        return await anybody_there(core.connection, seconds=1) is None
    return False


async def test_the_rest_ends_with_an_honest_error(core: Core) -> None:
    """A run that is still speaking when the window is over is ended by its broker, and says why."""
    async with broker(core, said(0), asyncio.Event(), window=0.2) as one:
        run = await submit(core)
        async with following(core, run) as follower:
            await wait_until(lambda: follower.said() == 1)
            await one.drain()
            assert not await core.is_over(run)
    record = await core.record(run)
    assert (record.status, record.stop_reason) == ("failed", "error")
    assert (record.error or {})["error_type"] == "stream_task_cancelled"


async def test_an_agent_that_is_cut_short_leaves_nothing_unheard(core: Core) -> None:
    """It is told in mid-sentence that its broker stops; asyncio has nothing to complain of."""
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, told: complaints.append(told))
    try:
        async with broker(core, *(said(number) for number in range(50_000)), window=0.1) as one:
            run = await submit(core)
            async with following(core, run) as follower:
                await wait_until(lambda: follower.said() >= 1)
                await one.drain()
        assert (await core.record(run)).stop_reason == "error"
        del one
        gc.collect()
    finally:
        loop.set_exception_handler(before)
    assert complaints == []


async def test_nothing_more_is_taken(core: Core) -> None:
    """A run that comes while a broker drains waits for another one, which has it at once."""
    goes_on = asyncio.Event()
    async with broker(core, said(0), goes_on, *GOOD_END) as one:
        first = await submit(core)
        async with following(core, first) as follower:
            await wait_until(lambda: follower.said() == 1)
            drain = asyncio.create_task(one.drain())
            await wait_until(lambda: _nobody(core))
            second = await submit(core)
            async with broker(core, *answer(2)):
                record = await over(core, second)
            assert not drain.done()
            goes_on.set()
            await drain
        await over(core, first)
        await queue_empty(core)
    assert record.status == "completed"


async def test_a_first_chunk_that_is_on_its_way_is_said(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose agent has just begun to speak is not let go: nobody may execute it again."""
    stored, store = asyncio.Event(), JetStream.publish

    async def slow(self: JetStream, subject: str, body: bytes, headers: Mapping[str, str]) -> int:
        seq = await store(self, subject, body, headers)
        if headers.get(KIND) == Kind.DATA:
            stored.set()
            await asyncio.sleep(0.3)  # Its answer takes that long.
        return seq

    monkeypatch.setattr(JetStream, "publish", slow)
    async with broker(core, said(0), asyncio.Event()):
        run = await submit(core)
        await stored.wait()
    record = await core.record(run)
    assert (record.error or {}).get("error_type") == "stream_task_cancelled"


@pytest.mark.parametrize("is_there", [True, False], ids=["that_is_there", "that_comes_later"])
async def test_a_run_that_nobody_has_begun_to_speak_is_begun_anew_at_once(core: Core, *, is_there: bool) -> None:
    """One whose agent is silent until the window is over is let go: another broker need not wait for its lease."""
    core = dataclasses.replace(core, settings=core.settings.model_copy(update={"lease_seconds": 600.0}))
    async with contextlib.AsyncExitStack() as others, _held_for(core, 600):
        async with broker(core, asyncio.Event(), window=0.2) as one:
            run = await submit(core)
            async with following(core, run) as follower:
                await wait_until(lambda: follower.said(Kind.ATTEMPT) == 1)
                if is_there:
                    await others.enter_async_context(broker(core, *answer(2)))
                await one.drain()
        if not is_there:
            await others.enter_async_context(broker(core, *answer(2)))
        record = await over(core, run)
    assert record.status == "completed"


@contextlib.asynccontextmanager
async def _held_for(core: Core, seconds: float) -> AsyncIterator[None]:
    """The work queue gives what nobody acknowledges to another after that long."""
    info = await core.jetstream.api(f"CONSUMER.INFO.{WORK_STREAM}.{WORKERS}", None)

    async def change(ack_wait: int) -> None:
        config = {**info["config"], "ack_wait": ack_wait}
        change = {"stream_name": WORK_STREAM, "config": config, "action": "update"}
        await core.jetstream.api(f"CONSUMER.CREATE.{WORK_STREAM}.{WORKERS}", change)

    await change(int(seconds * 1e9))
    try:
        yield
    finally:
        await change(info["config"]["ack_wait"])


async def test_what_came_and_was_not_begun_is_given_back_at_once(core: Core) -> None:
    """Requests that came to a worker which has stopped by then do not wait until they are missed."""
    runs = {(await submit(core)).id for _ in range(5)}
    queue = WorkQueue(core.jetstream)
    async with _held_for(core, 600):
        async with aclosing(queue.tasks(lambda: 5, asyncio.Event())) as tasks:
            first = await anext(tasks)
            await wait_until(lambda: _held(core, 5))
        others: set[str] = set()
        async with aclosing(queue.tasks(lambda: 5, asyncio.Event())) as tasks, asyncio.timeout(10):
            while len(others) < 4:
                others.add((await anext(tasks)).run_id)
        assert others == runs - {first.run_id}
        await empty_queue(core)


async def _held(core: Core, count: int) -> bool:
    """Whether so many requests were handed out."""
    info = await core.jetstream.api(f"CONSUMER.INFO.{WORK_STREAM}.{WORKERS}", None)
    return bool(info["num_ack_pending"] == count)


async def test_other_writers_are_told_to_go_elsewhere(core: Core) -> None:
    """A broker that drains opens no runs for them."""
    bound = listener()
    async with Broker(core.settings, agent=None, listener=bound) as one:
        await one.drain()
        body = {"agent_id": new_agent_id()}
        refused = await fetch(url_of(bound), "POST", "/ingest/v1/runs", json=body)
    assert (refused.status, refused.json["error_type"]) == (503, "broker_stopping")


async def test_a_broker_without_an_agent_has_nothing_to_wait_for(core: Core) -> None:
    """Nor has one whose agent has nothing to do."""
    for one in (Broker(core.settings, agent=None), broker(core)):
        async with one:
            began_at = time.monotonic()
            await one.drain()
            assert time.monotonic() - began_at < 5
