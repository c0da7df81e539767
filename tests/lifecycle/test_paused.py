"""Brokers that are stopped and go on, or hear nothing: they find themselves fenced, and harm nobody."""

import asyncio
import time

import pytest

from runstream.broker.lease import RENEWALS_PER_LEASE
from runstream.broker.topology import LogAddress
from runstream.schemas import RunRecord
from tests.lifecycle.scene import (
    LEASE_SECONDS,
    Scene,
    begun,
    check_free,
    check_life,
    check_repeated,
    ending_of,
    opened,
    post,
    run_of,
    said_by,
)
from tests.support.waiting import wait_until

SLACK_SECONDS = 0.5
"""What a machine of two cores with other things to do may add to a time that is measured."""


@pytest.mark.parametrize("asked", [{"chunks": 100_000, "interval": 0.01}, {"chunks": 2, "waits": True}])
async def test_a_writer_that_was_only_paused(scene: Scene, asked: dict[str, object]) -> None:
    """Stopped past its lease, a writer stops for good when it goes on, talking or silent; its next run is fine."""
    gateway, writer = await scene.gateway(), await scene.broker()
    await scene.broker(has_agent=False)
    say = await scene.say(gateway, **asked)
    async with opened(gateway, say) as stream:
        run_id = await run_of(stream)
        await stream.take(2)
        await writer.pause()
        await stream.rest(deadline=20)
    assert ending_of(stream.seen) == "run_lost"
    record = await scene.record(run_id)
    resumed_at = writer.resume()
    await wait_until(lambda: scene.journal("closed", run_id), 5, "its agent is not closed")
    took = scene.journal("closed", run_id)[0].at - resumed_at
    print(f"the agent was closed {took:.2f} s after SIGCONT")
    assert took < LEASE_SECONDS / RENEWALS_PER_LEASE + SLACK_SECONDS
    await writer.logged("run_fenced")
    await scene.counted([writer], "runstream_runs_fenced_total", 1)
    await check_free(scene, gateway, say.conversation_id)
    await check_silent(scene, record)
    await check_repeated(gateway, say, stream.seen)
    assert len(scene.journal("begun", run_id)) == 1


async def check_silent(scene: Scene, ended: RunRecord) -> None:
    """Nothing was written after the end of a run, and its record is as it was."""
    last = await scene.core.jetstream.last_message(f"RUNS_{ended.shard}", LogAddress(ended.id, ended.shard).subject)
    assert last is not None
    assert last.headers["Rs-Kind"] == "end"
    assert await scene.record(ended.id) == ended
    assert not await scene.core.holds(f"lease.{ended.id}")


async def test_a_writer_whose_run_another_has_begun(scene: Scene) -> None:
    """A silent writer that was paused stops, too, when its run was not ended, but given to another."""
    gateway, writer = await scene.gateway(), await scene.broker()
    say = await scene.say(gateway, chunks=0, waits=True)
    async with opened(gateway, say) as stream:
        run_id = await run_of(stream)
        await begun(scene, run_id)
        await writer.pause()
        await scene.broker()
        await wait_until(lambda: len(scene.journal("begun", run_id)) == 2)
        resumed_at = writer.resume()
        await wait_until(lambda: scene.journal("closed", run_id), 5, "its agent is not closed")
        (closed,) = scene.journal("closed", run_id)
        print(f"the agent was closed {closed.at - resumed_at:.2f} s after SIGCONT")
        assert (closed.pid, closed.at - resumed_at < LEASE_SECONDS / RENEWALS_PER_LEASE + SLACK_SECONDS) == (
            writer.pid,
            True,
        )
        assert (await post(gateway, f"conversations/{say.conversation_id}/cancel")).json == {run_id: "cancelled"}
        await stream.rest()
    assert ending_of(stream.seen) == "cancelled"
    await check_life(scene, run_id, stream.seen)
    assert len(scene.journal("begun", run_id)) == 2


async def test_a_writer_that_was_paused_for_less_than_its_lease(scene: Scene) -> None:
    """A pause that the lease outlasts costs nothing."""
    gateway, writer = await scene.gateway(), await scene.broker()
    await scene.broker(has_agent=False)
    say = await scene.say(gateway, chunks=20, interval=0.05)
    async with opened(gateway, say) as stream:
        run_id = await run_of(stream)
        await stream.take(2)
        await writer.pause()
        await asyncio.sleep(LEASE_SECONDS / 3)  # how long the pause is
        writer.resume()
        await stream.rest()
    assert (ending_of(stream.seen), len(said_by(stream.seen))) == ("end_turn", 20)
    await check_life(scene, run_id, stream.seen)


@pytest.mark.parametrize("chunks", [0, 2])
async def test_the_only_broker_was_paused(scene: Scene, chunks: int) -> None:
    """Nobody else was there to end or to take its run: it goes on with it, once, though its message came back."""
    gateway, writer = await scene.gateway(), await scene.broker()
    say = await scene.say(gateway, chunks=chunks, waits=True)
    async with opened(gateway, say) as stream:
        run_id = await run_of(stream)
        await stream.take(chunks)
        await begun(scene, run_id)
        await writer.pause()
        await asyncio.sleep(2 * LEASE_SECONDS)  # how long the pause is
        writer.resume()
        await asyncio.sleep(LEASE_SECONDS)  # time in which nothing must happen
        assert (await scene.record(run_id)).status == "running"
        assert (len(scene.journal("begun")), scene.journal("closed")) == (1, [])
        assert (await post(gateway, f"conversations/{say.conversation_id}/cancel")).json == {run_id: "cancelled"}
        await stream.rest()
    assert (ending_of(stream.seen), len(said_by(stream.seen))) == ("cancelled", chunks)
    await check_life(scene, run_id, stream.seen)


async def test_a_watchdog_that_was_paused(scene: Scene) -> None:
    """A broker that saw nothing for two leases ends no run of another when it goes on."""
    gateway, writer = await scene.gateway(), await scene.broker()
    watchdog = await scene.broker(has_agent=False)
    say = await scene.say(gateway, chunks=1, waits=True)
    async with opened(gateway, say) as stream:
        run_id = await run_of(stream)
        await stream.take(1)
        for seconds in (2 * LEASE_SECONDS, 0.5 * LEASE_SECONDS):
            await watchdog.pause()
            await asyncio.sleep(seconds)  # how long the pause is
            watchdog.resume()
            await asyncio.sleep(LEASE_SECONDS / 2)  # time in which it must do nothing
        assert (await scene.record(run_id)).status == "running"
        assert not scene.journal("closed")
        killed_at = await writer.kill()
        await stream.rest()
    assert time.monotonic() - killed_at < 2 * LEASE_SECONDS + 1
    assert ending_of(stream.seen) == "run_lost"


async def test_a_watchdog_that_hears_of_no_renewal(scene: Scene) -> None:
    """What was not heard is not missing: a lease counts as it is in the index, however long nobody heard of it."""
    gateway = await scene.gateway()
    watchdog = await scene.broker(has_agent=False, is_deaf_to_leases=True)
    writer = await scene.broker()
    say = await scene.say(gateway, chunks=1, waits=True)
    async with opened(gateway, say) as stream:
        run_id = await run_of(stream)
        await stream.take(1)
        second = await scene.broker(has_agent=False, is_deaf_to_leases=True)
        await asyncio.sleep(2.5 * LEASE_SECONDS)  # time in which they must do nothing
        assert (await scene.record(run_id)).status == "running"
        assert await scene.metric([watchdog, second], "runstream_runs_ended_total") == 0
        assert not scene.journal("closed")
        await writer.kill()
        await stream.rest()
    assert ending_of(stream.seen) == "run_lost"


async def test_a_broker_without_an_agent_looks_after_runs(scene: Scene) -> None:
    """A run that nobody has begun is enqueued again by a broker that could not execute it."""
    gateway, writer = await scene.gateway(), await scene.broker()
    watchdog = await scene.broker(has_agent=False)
    say = await scene.say(gateway, chunks=0, waits=True)
    async with opened(gateway, say) as stream:
        run_id = await run_of(stream)
        await begun(scene, run_id)
        await scene.core.jetstream.api("STREAM.PURGE.RUNSTREAM_WORK", {})
        await writer.kill()
        await wait_until(scene.core.queued, message="it is not on the queue again")
        await scene.counted([watchdog], 'runstream_repairs_total{kind="not_enqueued"}', 1)
        await scene.broker()
        await wait_until(lambda: len(scene.journal("begun", run_id)) == 2)
