"""SIGKILL at each write to NATS in a run's life, in turn, until one lives: no step can be forgotten here."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from runstream.schemas import DEFAULT_TENANT, RunRecord
from tests.lifecycle.processes import Peer
from tests.lifecycle.scene import (
    Scene,
    answered,
    check_free,
    check_life,
    check_repeated,
    ending_of,
    opened,
    post,
    run_of,
    said_by,
    scene_running,
)
from tests.support.core import core_running
from tests.support.http import Cut, open_stream
from tests.support.nats import NatsServer, nats_server_running
from tests.support.runs import queue_empty
from tests.support.waiting import wait_until

LANES = 8
"""Points that are tried at the same time, each on a NATS of its own: what takes time is a lease, not the machine."""
MOST_WRITES = 60

MOMENTS = ["after", pytest.param("before", marks=pytest.mark.long)]
"""Before a write NATS is as after the one before it, but for what of a batch was on its way."""

Try = Callable[[Scene, int], Awaitable[list[str] | None]]
"""Kill a process at its n-th write; the subjects of all its writes if it had fewer."""


@pytest_asyncio.fixture(scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[NatsServer]]:
    """A nats-server for each lane."""
    async with contextlib.AsyncExitStack() as stack:
        running = [nats_server_running(tmp_path_factory.mktemp("lane")) for _ in range(LANES)]
        servers = [await stack.enter_async_context(server) for server in running]
        for server in servers:
            # One after the other makes its streams, as each waits for the disk.
            async with core_running(server.url):
                pass
        yield servers


async def at_every_write(servers: Sequence[NatsServer], directory: Path, attempt: Try) -> list[str]:
    """Try a death at each write, beginning with the first, until one is outlived; returns all the writes there are."""

    async def at(number: int, server: NatsServer) -> list[str] | None:
        async with scene_running(server.url, directory / str(number)) as scene:
            writes = await attempt(scene, number)
            await queue_empty(scene.core)
            # What is left of a run would be seen to by the next process that is to die, which counts its writes.
            await wait_until(lambda: nothing_left(scene), 20, "a run is never done with")
            return writes

    for first in itertools.count(1, len(servers)):
        assert first < MOST_WRITES, "no process outlives its run"
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(at(first + lane, server)) for lane, server in enumerate(servers)]
        for task in tasks:
            if (writes := task.result()) is not None:
                return writes
    raise AssertionError


async def nothing_left(scene: Scene) -> bool:
    """Whether no broker has anything to do any more."""
    return not await scene.core.index.leases() and not await scene.core.index.cancel_wishes()


async def survived(peer: Peer, number: int) -> list[str] | None:
    """The writes of a process that has not come to its `number`-th; it is killed now, as the next run is not its."""
    writes = peer.writes()
    if not peer.is_dead:
        await peer.kill()
    return writes if len(writes) < number else None


def check_covers(writes: Sequence[str], *steps: str) -> None:
    """The writes have these steps, in this order."""
    rest = iter(writes)
    missing = [step for step in steps if not any(step in write for write in rest)]
    assert not missing, (missing, writes)


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_broker(servers: list[NatsServer], tmp_path: Path, moment: str) -> None:
    """Killed anywhere, a broker costs its run nothing before the first chunk, and its rest after it; never twice."""

    async def attempt(scene: Scene, number: int) -> list[str] | None:
        gateway = await scene.gateway()
        broker = await scene.broker(dies_at=number, moment=moment)
        say = await scene.say(gateway, chunks=3, interval=0.15)
        async with opened(gateway, say) as stream:
            run_id = await run_of(stream)
            await dead_or_done(scene, broker, await scene.record(run_id))
            await scene.broker()
            await stream.rest(deadline=20)
        await check_life(scene, run_id, stream.seen)
        writes = await survived(broker, number)
        lost = {(chunks, "run_lost") for chunks in (1, 2, 3)}
        assert (len(said_by(stream.seen)), ending_of(stream.seen)) in {(3, "end_turn"), *lost}
        await check_repeated(gateway, say, stream.seen)
        await check_free(scene, gateway, say.conversation_id)
        return writes

    writes = await at_every_write(servers, tmp_path, attempt)
    check_covers(
        writes, "runs.", "lease.", "run.default", "runs.", "runs.", "runs.", "runs.", "runs.",
        "run.default", "request.", "conversation.", "runs.", "lease.", "+ACK",
    )  # fmt: skip


async def dead_or_done(scene: Scene, peer: Peer, run: RunRecord) -> None:
    """Wait until the process is dead, or has brought the run to its end and told the queue."""

    async def settled() -> bool:
        return peer.is_dead or (await scene.core.is_over(run) and await scene.core.queued() == 0)

    await wait_until(settled, 20, "the process neither dies nor ends its run")


async def dead_or_forgotten(scene: Scene, peer: Peer, run: RunRecord) -> bool:
    """Whether the process is dead, or nothing is left of the run that is a watchdog's."""
    return peer.is_dead or (await scene.core.is_over(run) and not await scene.core.holds(f"lease.{run.id}"))


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_gateway(servers: list[NatsServer], tmp_path: Path, moment: str) -> None:
    """Killed anywhere while it starts a run, a gateway leaves none or one; the client's retry streams that one."""

    async def attempt(scene: Scene, number: int) -> list[str] | None:
        gateway = await scene.gateway()
        broker = await scene.broker()
        deadly = await scene.gateway(dies_at=number, moment=moment)
        say = await scene.say(gateway, chunks=3)
        with contextlib.suppress(Cut, ConnectionError):
            await answered(deadly, say)
        events = await answered(gateway, say)
        run_id = str(events[0].json["run_id"])
        record = await check_life(scene, run_id, events)
        writes = await survived(deadly, number)
        assert (ending_of(events), len(said_by(events))) == ("end_turn", 3)
        assert [line.run_id for line in scene.journal("begun")] == [run_id]
        assert record.conversation_id == say.conversation_id
        assert broker.writes()
        await check_free(scene, gateway, say.conversation_id)
        return writes

    writes = await at_every_write(servers, tmp_path, attempt)
    check_covers(
        writes, "claim.", "otid.", "conversation.", "run.default", "request.", "lease.", "agent.", "runs.", "work."
    )


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_broker_that_obeys_a_cancel(servers: list[NatsServer], tmp_path: Path, moment: str) -> None:
    """A run that was cancelled is ended as cancelled, wherever its broker dies, and not as lost."""

    async def attempt(scene: Scene, number: int) -> list[str] | None:
        gateway = await scene.gateway()
        broker = await scene.broker(dies_at=number, moment=moment)
        say = await scene.say(gateway, chunks=0, waits=True)
        async with opened(gateway, say) as stream:
            run_id = await run_of(stream)
            await scene.broker(has_agent=False)
            await wait_until(lambda: broker.is_dead or scene.journal("begun", run_id))
            reply = await post(gateway, f"conversations/{say.conversation_id}/cancel")
            assert (reply.status, reply.json) == (200, {run_id: "cancelled"})
            await stream.rest()
        assert ending_of(stream.seen) == "cancelled"
        await scene.broker()
        await check_life(scene, run_id, stream.seen)
        writes = await survived(broker, number)
        await check_repeated(gateway, say, stream.seen)
        await check_free(scene, gateway, say.conversation_id)
        return writes

    writes = await at_every_write(servers, tmp_path, attempt)
    check_covers(writes, "lease.", "runs.", "run.default", "request.", "conversation.", "runs.", "lease.", "cancel.")


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_platforms_own_process(servers: list[NatsServer], tmp_path: Path, moment: str) -> None:
    """Killed anywhere, a writer of the library's leaves no run, or one that ends once, as lost or as it had told."""

    async def attempt(scene: Scene, number: int) -> list[str] | None:
        gateway = await scene.gateway()
        await scene.broker()
        conversation_id = await scene.conversation(gateway)
        writer = await scene.writer(gateway, conversation_id, dies_at=number, moment=moment)
        writer.tell()
        await wait_until(lambda: writer.is_dead or "written" in writer.lines(), 20, "it neither dies nor ends its run")
        run_id = await latest_run(scene, conversation_id)
        if run_id is not None:
            async with open_stream(gateway.url, f"/v1/runs/{run_id}/stream", {}) as stream:
                events = await stream.rest(deadline=20)
            await check_life(scene, run_id, events)
            assert ending_of(events) == "run_lost" or (len(said_by(events)), ending_of(events)) == (3, "end_turn")
        writes = await survived(writer, number)
        await check_free(scene, gateway, conversation_id)
        return writes

    writes = await at_every_write(servers, tmp_path, attempt)
    check_covers(
        writes, "conversation.", "run.default", "lease.", "agent.", "lease.", "runs.", "run.default", "runs.", "runs.",
        "runs.", "runs.", "runs.", "run.default", "request.", "conversation.", "runs.", "lease.",
    )  # fmt: skip


async def latest_run(scene: Scene, conversation_id: str) -> str | None:
    """The run that was started last in a conversation, None before the first."""
    stored = await scene.core.index.conversation(DEFAULT_TENANT, conversation_id)
    assert stored is not None
    return stored.value.latest_run


async def test_a_watchdog(servers: list[NatsServer], tmp_path: Path) -> None:
    """A broker that dies over the end of a dead broker's run leaves the rest of it to the next."""

    async def attempt(scene: Scene, number: int) -> list[str] | None:
        gateway = await scene.gateway()
        writer = await scene.broker()
        say = await scene.say(gateway, chunks=2, waits=True)
        async with opened(gateway, say) as stream:
            run_id = await run_of(stream)
            await stream.take(2)
            watchdog = await scene.broker(has_agent=False, dies_at=number, moment="after")
            await writer.kill()
            record = await scene.record(run_id)
            await wait_until(lambda: dead_or_forgotten(scene, watchdog, record), 20)
            await scene.broker()
            await stream.rest(deadline=20)
        assert (ending_of(stream.seen), len(said_by(stream.seen))) == ("run_lost", 2)
        await check_life(scene, run_id, stream.seen)
        writes = await survived(watchdog, number)
        await check_free(scene, gateway, say.conversation_id)
        return writes

    writes = await at_every_write(servers, tmp_path, attempt)
    check_covers(writes, "runs.", "runs.", "run.default", "request.", "conversation.", "runs.", "lease.")
