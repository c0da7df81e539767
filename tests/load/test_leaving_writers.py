"""Writers that hang up, stall or are killed: a broker holds what docs/bounds.md says, and nothing of them is left."""

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
import pytest_asyncio

from runstream.broker.embedded import MAX_PAYLOAD_BYTES
from runstream.broker.settings import BrokerSettings
from runstream.schemas import new_agent_id, new_conversation_id
from tests.load.bounds import ALLOCATOR, upload_bytes
from tests.load.census import MIB, Census, census, forget_peak, keys, logs, memory_bytes, metric
from tests.load.form import FORM
from tests.support.ingest import Upload, lines, said, writer_of
from tests.support.processes import python, running
from tests.support.services import SOURCE, Service, service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(FORM.seconds)

AT_ONE_TIME = 20
GROWTH = 8 * MIB
"""What memory may have grown by after the first fifth of the writers: the allocator's, as for clients that leave."""
LINE_BYTES = MAX_PAYLOAD_BYTES - 2**16


class Scene(NamedTuple):
    """A broker, and what knows of it."""

    broker: Service
    nats_url: str
    monitor: str


@pytest_asyncio.fixture
async def scene(monitored_nats: tuple[str, str]) -> AsyncIterator[Scene]:
    """A broker whose writers count as dead after a second; new for each test, as what one has been given is kept."""
    nats_url, monitor = monitored_nats
    async with service("broker", nats_url, "--agent", "demo") as broker:
        await broker.is_ready()
        yield Scene(broker, nats_url, monitor)


async def drop(base: str, dice: random.Random) -> None:
    """Open a run and an upload to it, and hang up: before a line, after some, or within one."""
    writer = await writer_of(base)
    async with writer.upload(0) as upload:
        for number in range(dice.randrange(3)):
            await upload.say(number)
        if dice.random() < 0.5:
            await upload.send(lines(said(9, size=1000))[:500])
        if dice.random() < 0.5:
            upload.connection.writer.close()  # In good order; else leaving the block resets it.
            await upload.connection.writer.wait_closed()


async def nobody_writes(scene: Scene) -> bool:
    """Whether every upload is over, and every run has ended."""
    counted = await keys(scene.nats_url)
    is_over = await metric(scene.broker, "runstream_ingest_uploads") == 0 and not counted["lease"]
    return is_over and set(counted) <= {"run", "agent", "pulse", "conversation"}


async def test_nothing_is_left_of_uploads_that_are_dropped(scene: Scene) -> None:
    """Their runs end as lost, and of each its record is there, and its agent's; memory does not grow with them."""
    broker, nats_url, monitor = scene
    pid = broker.process.pid
    dice = random.Random(0)

    async def come(count: int) -> None:
        for first in range(0, count, AT_ONE_TIME):
            numbers = range(first, min(first + AT_ONE_TIME, count))
            await asyncio.gather(*(drop(broker.base, random.Random(dice.random())) for _ in numbers))

    await come(FORM.dropped_uploads // 5)
    await wait_until(lambda: nobody_writes(scene), 60, "writers that hung up still write")
    before, warm = await census(broker, nats_url, monitor), memory_bytes(pid)
    await come(FORM.dropped_uploads)
    await wait_until(lambda: nobody_writes(scene), 60, "writers that hung up still write")
    growth = memory_bytes(pid) - warm
    await wait_until(lambda: _is_within(before, scene), 30, f"there is more than before, {before}")
    counted = await keys(nats_url)
    assert counted["run"] == counted["agent"] == await logs(nats_url)
    print(f"\n{counted['run']} uploads dropped; the broker has {memory_bytes(pid) / MIB:.1f} MiB, +{growth / MIB:.1f}")
    assert growth <= GROWTH


async def test_stalled_uploads_hold_one_line_each(scene: Scene) -> None:
    """Uploads that stop within the longest line there is cost what they are said to cost, and nothing when they go."""
    broker, nats_url, monitor = scene
    pid = broker.process.pid
    await wait_until(lambda: nobody_writes(scene), 60)
    before, quiet = await census(broker, nats_url, monitor), memory_bytes(pid)
    forget_peak(pid)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(FORM.stalled_uploads):
            writer = await writer_of(broker.base)
            upload = await stack.enter_async_context(Upload(broker.base, writer.run_id))
            await upload.send(lines(said(0, size=LINE_BYTES)).removesuffix(b"\n"))

        expected = FORM.stalled_uploads * LINE_BYTES
        await wait_until(lambda: memory_bytes(pid) - quiet > expected, 20, "the lines are not held")
        held = memory_bytes(pid, "VmHWM") - quiet
        # All that came has been read: nothing waits to be stored.
        each = upload_bytes(BrokerSettings(), MAX_PAYLOAD_BYTES) - BrokerSettings().writer_queue_bytes
        bound = ALLOCATOR * FORM.stalled_uploads * each
        print(f"\n{FORM.stalled_uploads} stalled uploads: {held / MIB:.0f} of {bound / MIB:.0f} MiB")
        assert held <= bound
    await wait_until(lambda: nobody_writes(scene), 60, "uploads that left are still there")
    await wait_until(lambda: _is_within(before, scene), 30, f"there is more than before, {before}")


async def test_nothing_is_left_of_library_writers_that_are_killed(scene: Scene) -> None:
    """Their connections go with them, and a broker ends their runs."""
    broker, nats_url, monitor = scene
    await wait_until(lambda: nobody_writes(scene), 60)
    before = await census(broker, nats_url, monitor)
    runs = await logs(nats_url)
    for _ in range(FORM.killed_writers):
        told = (nats_url, new_agent_id(), new_conversation_id(), "steady")
        async with running(*python("-m", "tests.support.library_writer", *told), env=SOURCE) as process:
            await process.wait_for_line("^stored 3 ", 20)
            process.send_signal(signal.SIGKILL)
            assert await process.wait() == -signal.SIGKILL
    await wait_until(lambda: nobody_writes(scene), 60, "runs of killed writers go on")
    await wait_until(lambda: _is_within(before, scene), 30, f"there is more than before, {before}")
    assert await logs(nats_url) == runs + FORM.killed_writers
    assert (await keys(nats_url))["run"] == runs + FORM.killed_writers


async def _is_within(before: Census, scene: Scene) -> bool:
    return (await census(*scene)).is_within(before)
