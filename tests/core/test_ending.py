"""Killed anywhere in a run, between any two steps of its ending too: whoever finds the run does what is left."""

import asyncio
import contextlib
import itertools
import signal
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from runstream.broker.service import Broker
from runstream.broker.topology import LogAddress
from runstream.schemas import Kind, RunRecord
from tests.core.broker_process import Wish, agent
from tests.support.core import Core, kinds, record_of, request_of, texts
from tests.support.processes import RunningProcess, python, running
from tests.support.runs import Follower, active_run, empty_queue, following, over, queue_empty, submit
from tests.support.waiting import wait_until

STEPS = ["tell", "release", "seal", "forget"]
POINTS = [f"{step}:{moment}" for step in STEPS for moment in ("before", "after")]


@pytest_asyncio.fixture(autouse=True)
async def _queue(core: Core) -> AsyncIterator[None]:
    """Each test begins with an empty queue."""
    await empty_queue(core)
    yield


@contextlib.asynccontextmanager
async def broker_process(core: Core, point: str = "") -> AsyncIterator[RunningProcess]:
    """A broker in a process of its own, ready, that kills itself at the point that is named."""
    async with running(*python("-m", "tests.core.broker_process", core.settings.nats_url, point)) as process:
        await process.wait_for_line("ready", timeout=20)
        yield process


async def wish(core: Core, **asked: Any) -> RunRecord:
    """Submit a run that says what is asked for."""
    return await submit(core, said=msgspec.json.encode(Wish(**asked)).decode())


async def found(core: Core, run: RunRecord) -> RunRecord:
    """Let a second broker find the run and bring it to its end; nothing but log and record is left of it."""
    async with Broker(core.settings, agent=agent):
        record = await over(core, run)
        await queue_empty(core)
    assert await active_run(core, run) is None
    successor = record_of(conversation_id=run.conversation_id)
    assert (await core.index.claim(successor, request_of(successor))).is_new
    return record


async def ending(core: Core, run: RunRecord, follower: Follower) -> list[dict[str, Any]]:
    """The messages of a run's one ending, which a follower has seen as they are stored, and nothing after them."""
    stored = await core.stored(LogAddress(run.id, run.shard))
    await wait_until(lambda: follower.ended)
    assert [entry.seq for entry in follower.entries] == [message.seq for message in stored]
    assert [entry.index for entry in follower.entries] == list(range(len(stored)))
    assert follower.failures == []
    told = [message for message in stored if "Rs-Ending" in message.headers]
    assert kinds(stored).count(Kind.END) == 1
    assert [message.seq for message in told] == [message.seq for message in stored[-len(told) :]]
    assert kinds(told)[-1] == Kind.END
    return [msgspec.json.decode(message.body) for message in told[:-1]]


async def killed(process: RunningProcess) -> None:
    """Wait until the process has been killed, by itself or otherwise."""
    assert await process.wait(timeout=20) == -signal.SIGKILL


@pytest.mark.parametrize("point", POINTS)
async def test_killed_in_the_ending_of_a_good_run(core: Core, point: str) -> None:
    """A run whose broker dies at any step of its ending is ended once, by another, as what it was."""
    async with broker_process(core, point) as process:
        run = await wish(core, ending="good")
        async with following(core, run) as follower:
            await killed(process)
            record = await found(core, run)
            told = await ending(core, run, follower)
    assert texts(await core.stored(LogAddress(run.id, run.shard))) == ["0", "1", "2"]
    if point == "tell:before":
        assert [message["message_type"] for message in told] == ["stop_reason", "error_message"]
        assert (record.status, record.stop_reason) == ("failed", "error")
        assert told[1]["error_type"] == "run_lost"
        assert (record.error, record.usage) == (told[1], None)
    else:
        assert [message["message_type"] for message in told] == ["stop_reason", "usage_statistics"]
        assert (told[0]["stop_reason"], told[1]["total_tokens"]) == ("end_turn", 7)
        assert (record.status, record.stop_reason, record.error) == ("completed", "end_turn", None)
        assert msgspec.to_builtins(record.usage) == told[1]
        # Whoever finishes what another had told does not know when that one began to speak.
        assert (record.ttft_ns is None) == (point in {"tell:after", "release:before"})


@pytest.mark.parametrize("point", POINTS)
async def test_killed_in_the_ending_of_a_failed_run(core: Core, point: str) -> None:
    """A failed run whose broker dies at any step of its ending is ended once, by another, with its own error."""
    async with broker_process(core, point) as process:
        run = await wish(core, ending="bad")
        async with following(core, run) as follower:
            await killed(process)
            record = await found(core, run)
            told = await ending(core, run, follower)
    lost = point == "tell:before"
    assert [message["message_type"] for message in told] == ["stop_reason", "error_message"]
    assert told[0]["stop_reason"] == ("error" if lost else "llm_api_error")
    assert told[1]["error_type"] == ("run_lost" if lost else "llm_timeout")
    assert (record.status, record.stop_reason, record.error) == ("failed", told[0]["stop_reason"], told[1])


async def test_killed_after_its_first_chunks(core: Core) -> None:
    """A run that had said something when its broker was killed is lost, and says so; what it said is complete."""
    async with broker_process(core) as process:
        run = await wish(core, chunks=2, ending="wait")
        async with following(core, run) as follower:
            await wait_until(lambda: follower.said() == 2)
            process.send_signal(signal.SIGKILL)
            await killed(process)
            record = await found(core, run)
            told = await ending(core, run, follower)
    assert texts(await core.stored(LogAddress(run.id, run.shard))) == ["0", "1"]
    assert [message["message_type"] for message in told] == ["stop_reason", "error_message"]
    assert (told[0]["stop_reason"], told[1]["error_type"]) == ("error", "run_lost")
    assert (record.status, record.error) == ("failed", told[1])


async def test_killed_before_its_first_chunk(core: Core) -> None:
    """A run that had said nothing when its broker was killed is executed again, and everything is seen once."""
    async with broker_process(core) as process:
        run = await wish(core, chunks=0, ending="wait")
        async with following(core, run) as follower:
            await wait_until(lambda: follower.said(Kind.ATTEMPT) == 1)
            process.send_signal(signal.SIGKILL)
            await killed(process)
            async with broker_process(core) as second:
                await wait_until(lambda: follower.said(Kind.ATTEMPT) == 2)
                second.send_signal(signal.SIGKILL)
                await killed(second)
            await say_instead(core, run, Wish(chunks=3))
            record = await found(core, run)
            told = await ending(core, run, follower)
    stored = await core.stored(LogAddress(run.id, run.shard))
    assert kinds(stored) == ["ping", *["attempt"] * 3, *["data"] * 3, "plain", "plain", "end"]
    assert texts(stored) == ["0", "1", "2"]
    assert told[0]["stop_reason"] == "end_turn"
    assert (record.status, record.first_seq) == ("completed", stored[0].seq)


async def say_instead(core: Core, run: RunRecord, other: Wish) -> None:
    """Change what a run asks for, so that it does not wait again."""
    request = request_of(run, msgspec.json.encode(other).decode())
    await core.jetstream.publish(f"$KV.RUNSTREAM.request.{run.tenant}.{run.id}", msgspec.json.encode(request), {})


async def test_many_runs_of_a_killed_broker(core: Core) -> None:
    """A broker killed with 30 runs in hand costs each of them nothing but its rest: all end, none twice."""
    async with broker_process(core) as process, contextlib.AsyncExitStack() as stack:
        said = itertools.cycle([0, 1, 2])
        runs = [await wish(core, chunks=next(said), ending="wait") for _ in range(30)]
        followers = [await stack.enter_async_context(following(core, run)) for run in runs]
        for number, follower in enumerate(followers):
            expected = 2 + number % 3
            await wait_until(lambda follower=follower, n=expected: len(follower.entries) == n)  # type: ignore[misc]
        process.send_signal(signal.SIGKILL)
        await killed(process)
        for run in runs[::3]:
            await say_instead(core, run, Wish(chunks=1))
        records = []
        async with Broker(core.settings, agent=agent):
            records = await asyncio.gather(*(over(core, run) for run in runs))
            await queue_empty(core)
        for run, follower in zip(runs, followers, strict=True):
            assert len(await ending(core, run, follower)) == 2
    assert [record.status for record in records] == ["completed", "failed", "failed"] * 10
