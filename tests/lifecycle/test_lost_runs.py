"""Runs whose broker is killed: all who follow hear of it, once and in time, and the conversation goes on."""

import asyncio
import contextlib
import re
import time
from datetime import UTC, datetime

from runstream.broker.log import kind_of, last_of
from runstream.broker.survey import stored_at
from runstream.broker.takeover import MOST_ATTEMPTS
from runstream.broker.topology import LogAddress
from runstream.schemas import Kind, RunRecord
from tests.lifecycle.processes import Asked, Peer
from tests.lifecycle.scene import (
    LEASE_SECONDS,
    LOOK_SECONDS,
    Say,
    Scene,
    answered,
    check_free,
    check_life,
    check_repeated,
    ending_of,
    opened,
    run_of,
    said_by,
)
from tests.support.cores import waited_for_cores
from tests.support.http import Event, EventStream, open_stream
from tests.support.nats import NatsServer
from tests.support.outages import stopped
from tests.support.runs import over, queue_empty, submit
from tests.support.waiting import wait_until

FOLLOWERS = 30
LIVE = 200
MANY_LEASE_SECONDS = 3.0
"""With so many to renew a busy machine takes a shorter one for lapsed."""


async def end_seen(stream: EventStream, since: float) -> float:
    """Read to the end; returns how long after `since` it came."""
    await stream.rest(deadline=20)
    return time.monotonic() - since


async def test_every_follower_hears_of_it(scene: Scene) -> None:
    """Thirty followers on two gateways are told `run_lost` and `[DONE]` within a lease and 2 s of the SIGKILL."""
    gateways = [await scene.gateway() for _ in range(2)]
    writer = await scene.broker()
    say = await scene.say(gateways[0], chunks=3, waits=True)
    async with contextlib.AsyncExitStack() as streams:
        first = await streams.enter_async_context(opened(gateways[0], say))
        run_id = await run_of(first)
        others = [open_stream(gateways[n % 2].url, f"/v1/runs/{run_id}/stream", {}) for n in range(1, FOLLOWERS)]
        followers = [first, *[await streams.enter_async_context(other) for other in others]]
        await asyncio.gather(*(follower.take(3 if follower is first else 4) for follower in followers))
        await scene.broker(has_agent=False)
        killed_at = await writer.kill()
        took = await asyncio.gather(*(end_seen(follower, killed_at) for follower in followers))
    print(f"{FOLLOWERS} followers: the last knew {max(took):.2f} s after the kill")
    assert max(took) < LEASE_SECONDS + LOOK_SECONDS
    assert {ending_of(follower.seen) for follower in followers} == {"run_lost"}
    assert len({tuple(event.data for event in follower.seen) for follower in followers}) == 1
    await scene.broker()
    record = await check_life(scene, run_id, first.seen)
    assert record.status == "failed"
    await check_free(scene, gateways[1], say.conversation_id)


async def test_a_foreground_run_is_lost_alike(scene: Scene) -> None:
    """In the foreground the stream ends as in the background, and says so."""
    gateway, writer = await scene.gateway(), await scene.broker()
    say = Say(await scene.conversation(gateway), Asked(chunks=1, waits=True), background=False)
    async with opened(gateway, say) as stream:
        run_id = await run_of(stream)
        await stream.take(1)
        await writer.kill()
        await scene.broker()
        await stream.rest()
    assert ending_of(stream.seen) == "run_lost"
    await check_life(scene, run_id, stream.seen)
    await check_repeated(gateway, say, stream.seen)


async def test_many_runs_at_once(scene: Scene, nats_server: NatsServer) -> None:
    """Two watchdogs share the 200 runs of a broker that was killed: each run is ended once, all of them in time.

    That is a lease and 2 s, and as long as the machine lets those wait for a core, or be blind, who have work with it.
    """
    lease = {"lease_seconds": MANY_LEASE_SECONDS}
    writer = await scene.broker(**lease)
    text = '{"chunks":1,"waits":true}'
    runs = await asyncio.gather(*(submit(scene.core, said=text) for _ in range(LIVE)))
    await wait_until(lambda: len(scene.journal("begun")) == LIVE, 30)
    for run in runs:
        await spoken(scene, run)
    watchdogs = [await scene.broker(**lease) for _ in range(2)]
    at_work = [nats_server.pid, *(watchdog.pid for watchdog in watchdogs)]
    waited = waited_for_cores(*at_work)
    killed_at = datetime.now(UTC)
    await writer.kill()
    # One after the other: all of them asking at once would slow what they wait for.
    records = [await over(scene.core, run, 60) for run in runs]
    ends = [await ended_at(scene, run) for run in runs]
    took = (max(ends) - killed_at).total_seconds()
    waited = waited_for_cores(*at_work) - waited
    blind = max(blind_seconds(watchdog) for watchdog in watchdogs)
    print(f"{LIVE} runs: the last was over after {took:.2f} s; waited for cores {waited:.2f} s, blind {blind:.2f} s")
    assert took < MANY_LEASE_SECONDS + LOOK_SECONDS + waited + blind
    await queue_empty(scene.core)
    assert {(record.status, (record.error or {})["error_type"]) for record in records} == {("failed", "run_lost")}
    await scene.counted(watchdogs, 'runstream_runs_ended_total{status="failed"}', LIVE)
    await scene.counted(watchdogs, "runstream_runs_lost_total", LIVE)
    assert len(scene.journal("begun")) == LIVE
    for run in runs[::10]:
        assert len(await scene.texts(run)) == 1


async def ended_at(scene: Scene, run: RunRecord) -> datetime:
    """When the end of a run was stored."""
    last = await last_of(scene.core.jetstream, LogAddress(run.id, run.shard))
    assert last is not None
    assert kind_of(last) is Kind.END
    return stored_at(last)


def blind_seconds(watchdog: Peer) -> float:
    """How much later a watchdog judges, as it was blind for a time: it counts anew once it sees again."""
    spans = [re.search(r"watchdog_sees_again after_seconds=([\d.]+)", line) for line in watchdog.lines()]
    return sum(float(span[1]) + MANY_LEASE_SECONDS for span in spans if span)


async def spoken(scene: Scene, run: RunRecord) -> None:
    """Wait until the run has said something."""

    async def has_spoken() -> bool:
        return bool(await scene.texts(run))

    await wait_until(has_spoken, 30)


async def test_the_last_broker_of_all(scene: Scene) -> None:
    """With no broker left nothing ends; the first one that starts, much later, finds what was lost."""
    gateway, writer = await scene.gateway(), await scene.broker()
    say, unheard = await scene.say(gateway, chunks=2, waits=True), await scene.say(gateway)
    async with opened(gateway, say) as stream:
        run_id = await run_of(stream)
        await stream.take(2)
        await writer.kill()
        waiting = asyncio.create_task(answered(gateway, unheard))
        await outlasted(2 * LEASE_SECONDS)
        assert not (await scene.record(run_id)).is_terminal
        await scene.broker()
        await stream.rest()
    assert ending_of(stream.seen) == "run_lost"
    events: list[Event] = await waiting
    assert (ending_of(events), len(said_by(events))) == ("end_turn", 3)
    for seen in (stream.seen, events):
        await check_life(scene, str(seen[0].json["run_id"]), seen)


async def outlasted(seconds: float) -> None:
    """Let time pass in which something must not happen."""
    await asyncio.sleep(seconds)


async def test_everything_dies_at_once(scene: Scene, nats_server: NatsServer) -> None:
    """After a power cut a run that had spoken is lost, one that had not is executed, and clients find both again."""
    gateway, writer = await scene.gateway(), await scene.broker()
    spoke, silent = await scene.say(gateway, chunks=2, waits=True), await scene.say(gateway, chunks=2)
    async with opened(gateway, spoke) as stream:
        run_id = await run_of(stream)
        await stream.take(2)
        await writer.pause()
        async with opened(gateway, silent) as other:
            other_id = await run_of(other)
            async with stopped(nats_server):
                await asyncio.gather(gateway.kill(), writer.kill())
    gateway, _ = await scene.gateway(), await scene.broker()
    await wait_until(lambda: scene.core.connection.is_connected)
    lost, executed = await asyncio.gather(answered(gateway, spoke), answered(gateway, silent))
    assert (ending_of(lost), len(said_by(lost)), lost[0].json["run_id"]) == ("run_lost", 2, run_id)
    assert (ending_of(executed), len(said_by(executed)), executed[0].json["run_id"]) == ("end_turn", 2, other_id)
    await check_life(scene, run_id, lost)
    await check_life(scene, other_id, executed)


async def test_what_kills_every_broker_is_given_up(scene: Scene) -> None:
    """A run over which five brokers have died, before it said anything, is lost, and is no sixth one's death."""
    gateway = await scene.gateway()
    writer = await scene.broker()
    await scene.broker(has_agent=False)
    say = await scene.say(gateway, chunks=0, waits=True)
    async with opened(gateway, say) as stream:
        run_id = await run_of(stream)
        for deaths in range(1, MOST_ATTEMPTS + 1):
            await wait_until(lambda deaths=deaths: len(scene.journal("begun", run_id)) == deaths)  # type: ignore[misc]
            await writer.kill()
            writer = await scene.broker()
        await stream.rest()
    assert ending_of(stream.seen) == "run_lost"
    assert len(scene.journal("begun", run_id)) == MOST_ATTEMPTS
    await check_life(scene, run_id, stream.seen)
    await check_free(scene, gateway, say.conversation_id)
