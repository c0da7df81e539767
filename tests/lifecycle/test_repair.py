"""Index and queue that disagree with the logs: whoever notices mends it, and counts it."""

import msgspec
import pytest

from runstream.broker.keys import cancel_key, conversation_key, lease_key, request_key, run_key, subject_of
from runstream.schemas import DEFAULT_TENANT, RunRecord, encode_conversation, encode_run, new_run_id
from tests.lifecycle.processes import Asked, Peer
from tests.lifecycle.scene import (
    LEASE_SECONDS,
    Say,
    Scene,
    answered,
    begun,
    check_free,
    check_life,
    ending_of,
    opened,
    post,
    run_of,
)
from tests.support.http import fetch
from tests.support.runs import over
from tests.support.waiting import wait_until


async def put(scene: Scene, key: str, value: bytes) -> None:
    """Write a key of the index by force."""
    await scene.core.jetstream.publish(subject_of(key), value, {})


async def delete(scene: Scene, key: str) -> None:
    """Delete a key of the index by force."""
    await scene.core.jetstream.publish(subject_of(key), b"", {"KV-Operation": "DEL"})


async def unended(scene: Scene, run_id: str) -> RunRecord:
    """Make the index say that an ended run goes on, and holds its conversation; returns its true record."""
    record = await scene.record(run_id)
    running = msgspec.structs.replace(
        record, status="running", stop_reason=None, error=None, completed_at=None, total_duration_ns=None
    )
    await put(scene, run_key(record.tenant, run_id), encode_run(running))
    assert record.conversation_id is not None
    stored = await scene.core.index.conversation(record.tenant, record.conversation_id)
    assert stored is not None
    held = msgspec.structs.replace(stored.value, active_run=run_id)
    await put(scene, conversation_key(record.tenant, record.conversation_id), encode_conversation(held))
    return record


async def repaired(scene: Scene, peer: Peer, kind: str) -> None:
    """Wait until the process has counted one repair of that kind."""
    await scene.counted([peer], f'runstream_repairs_total{{kind="{kind}"}}', 1)


async def ended_run(scene: Scene, gateway: Peer, **asked: object) -> tuple[Say, str]:
    """A run that has come to its end, with nothing left to do."""
    say = await scene.say(gateway, **asked)
    events = await answered(gateway, say)
    run_id = str(events[0].json["run_id"])
    await check_life(scene, run_id, events)
    return say, run_id


async def test_in_peace_there_is_nothing_to_repair(scene: Scene) -> None:
    """Runs that nobody disturbs leave nothing to a watchdog, those included that were cancelled."""
    gateway, brokers = await scene.gateway(), [await scene.broker() for _ in range(2)]
    for waits in (False, True) * 5:
        say = await scene.say(gateway, chunks=2, waits=waits)
        async with opened(gateway, say) as stream:
            run_id = await run_of(stream)
            if waits:
                await stream.take(2)
                assert (await post(gateway, f"conversations/{say.conversation_id}/cancel")).status == 200
            await stream.rest()
        await check_life(scene, run_id, stream.seen)
    await scene.counted(brokers, "runstream_runs_ended_total", 10)
    assert await scene.metric([gateway, *brokers], "runstream_repairs_total") == 0


async def test_a_record_that_was_not_ended_is_met_by_a_create(scene: Scene) -> None:
    """A conversation that only the index holds busy is free: its log says that the run has ended."""
    gateway = await scene.gateway()
    await scene.broker()
    say, run_id = await ended_run(scene, gateway)
    truth = await unended(scene, run_id)
    await check_free(scene, gateway, say.conversation_id)
    await repaired(scene, gateway, "record_not_terminal")
    mended = await over(scene.core, truth)
    assert (mended.status, mended.stop_reason) == (truth.status, truth.stop_reason)


async def test_a_record_that_was_not_ended_has_a_lease(scene: Scene) -> None:
    """A watchdog makes it terminal a lease later, as its log says, and its conversation free."""
    gateway, broker = await scene.gateway(), await scene.broker()
    say, run_id = await ended_run(scene, gateway)
    truth = await unended(scene, run_id)
    await put(scene, lease_key(run_id), truth.tenant.encode())
    mended = await over(scene.core, truth, LEASE_SECONDS + 4)
    assert (mended.status, mended.stop_reason) == (truth.status, truth.stop_reason)
    await repaired(scene, broker, "record_not_terminal")
    await check_free(scene, gateway, say.conversation_id)


async def test_a_lease_without_a_run(scene: Scene) -> None:
    """A lease of a run that nobody knows is deleted once it has lapsed."""
    broker = await scene.broker(has_agent=False)
    run_id = new_run_id()
    await put(scene, lease_key(run_id), DEFAULT_TENANT.encode())
    await repaired(scene, broker, "lease_without_run")
    assert not await scene.core.holds(lease_key(run_id))


async def test_a_cancel_without_a_run(scene: Scene) -> None:
    """So is a wish that a run end which nobody knows, or which has ended."""
    gateway, broker = await scene.gateway(), await scene.broker()
    _, ended_id = await ended_run(scene, gateway)
    record = await scene.record(ended_id)
    unknown_id = new_run_id()
    for run_id in (unknown_id, ended_id):
        await put(scene, cancel_key(run_id), DEFAULT_TENANT.encode())
        await wait_until(lambda run_id=run_id: deleted(scene, cancel_key(run_id)))  # type: ignore[misc]
    await repaired(scene, broker, "lease_without_run")
    assert await scene.record(ended_id) == record


async def deleted(scene: Scene, key: str) -> bool:
    return not await scene.core.holds(key)


async def test_a_dead_run_without_a_lease(scene: Scene) -> None:
    """Whoever wants its conversation is refused, and sees to it that the run is found to be lost."""
    gateway, writer = await scene.gateway(), await scene.broker()
    say = await scene.say(gateway, chunks=2, waits=True)
    async with opened(gateway, say) as stream:
        run_id = await run_of(stream)
        await stream.take(2)
        await writer.kill()
        await delete(scene, lease_key(run_id))
        watchdog = await scene.broker(has_agent=False)
        other = Say(say.conversation_id, Asked(chunks=1))
        refused = await fetch(gateway.url, "POST", other.path, json=other.body)
        assert refused.status == 409
        await repaired(scene, gateway, "lease_missing")
        await stream.rest()
    assert ending_of(stream.seen) == "run_lost"
    await scene.counted([watchdog], 'runstream_runs_ended_total{status="failed"}', 1)
    await scene.broker()
    await check_life(scene, run_id, stream.seen)
    await check_free(scene, gateway, say.conversation_id)


@pytest.mark.parametrize("chunks", [0, 2])
async def test_a_dead_run_without_a_lease_on_the_queue(scene: Scene, chunks: int) -> None:
    """A worker that must leave a run to others sees to it that there is somebody who looks at it."""
    gateway, writer = await scene.gateway(), await scene.broker()
    say = await scene.say(gateway, chunks=chunks, waits=True)
    async with opened(gateway, say) as stream:
        run_id = await run_of(stream)
        await stream.take(chunks)
        await begun(scene, run_id)
        await writer.kill()
        await delete(scene, lease_key(run_id))
        other = await scene.broker()
        await repaired(scene, other, "lease_missing")
        if chunks:
            await stream.rest()
            assert ending_of(stream.seen) == "run_lost"
            await check_life(scene, run_id, stream.seen)
        else:
            await wait_until(lambda: len(scene.journal("begun", run_id)) == 2)


async def test_a_live_run_that_lost_its_lease(scene: Scene) -> None:
    """A writer whose lease was deleted writes it anew, and its run goes on."""
    gateway, writer = await scene.gateway(), await scene.broker()
    await scene.broker(has_agent=False)
    say = await scene.say(gateway, chunks=30, interval=0.05)
    async with opened(gateway, say) as stream:
        run_id = await run_of(stream)
        await stream.take(2)
        await delete(scene, lease_key(run_id))
        await wait_until(lambda: scene.core.holds(lease_key(run_id)), LEASE_SECONDS)
        await repaired(scene, writer, "lease_missing")
        await writer.logged("lease_restored")
        await stream.rest()
    assert ending_of(stream.seen) == "end_turn"
    await check_life(scene, run_id, stream.seen)


async def test_a_request_that_is_gone(scene: Scene) -> None:
    """A run of which nobody knows any more what it was asked fails, and does not wait for ever."""
    gateway, writer = await scene.gateway(), await scene.broker()
    say = await scene.say(gateway, chunks=0, waits=True)
    async with opened(gateway, say) as stream:
        run_id = await run_of(stream)
        await begun(scene, run_id)
        await delete(scene, request_key(DEFAULT_TENANT, run_id))
        await writer.kill()
        await scene.broker(has_agent=False)
        await stream.rest()
    assert ending_of(stream.seen) == "run_lost"
    await scene.broker()
    await check_life(scene, run_id, stream.seen)


async def test_a_log_that_is_gone(scene: Scene) -> None:
    """A run whose log retention has removed is ended all the same, so that whoever follows it finds the hole."""
    gateway, writer = await scene.gateway(), await scene.broker()
    say = await scene.say(gateway, chunks=2, waits=True)
    async with opened(gateway, say) as stream:
        run_id = await run_of(stream)
        await stream.take(2)
        await writer.kill()
    record = await scene.record(run_id)
    await scene.core.jetstream.api(f"STREAM.PURGE.RUNS_{record.shard}", {"filter": f"runs.{record.shard}.{run_id}"})
    await scene.broker()
    await wait_until(lambda: is_forgotten(scene, run_id), 5)
    assert (await scene.record(run_id)).status == "failed"
    assert await scene.texts(record) == []
    await check_free(scene, gateway, say.conversation_id)


async def is_forgotten(scene: Scene, run_id: str) -> bool:
    """Whether the run has neither lease nor cancel key, and its record is terminal."""
    left = [key for key in (lease_key(run_id), cancel_key(run_id)) if await scene.core.holds(key)]
    return not left and (await scene.record(run_id)).is_terminal
