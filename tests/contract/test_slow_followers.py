"""Nobody waits for a slow follower, and a slow follower loses nothing; memory stays bounded whatever it does."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from runstream.broker.log import Entry
from runstream.broker.messages import StoredMessage
from runstream.gateway.follower import Follower
from runstream.gateway.window import Frame, Window
from runstream.schemas import CreateMessagesRequest, RetrieveStreamRequest
from tests.support.eventsource import open_source
from tests.support.http import DEADLINE_SECONDS, DONE, Cut, Event
from tests.support.stack import Puppet, Stack, stack_running
from tests.support.standstill import Untimely, measured_again
from tests.support.waiting import wait_until

RECEIVE_BUFFER = 4096
CHUNK_BYTES = 20_000
TAIL_BYTES = 512 * 2**10
FOLLOWER_BUFFER_BYTES = 64 * 2**10
WRITE_DEADLINE_SECONDS = 1.0
SMALL: dict[str, Any] = {
    "tail_bytes": TAIL_BYTES,
    "follower_buffer_bytes": FOLLOWER_BUFFER_BYTES,
    "keepalive_seconds": 3600,
}


@pytest.fixture(autouse=True)
def _own_objects() -> Iterator[None]:
    """Leave what a test has not made itself out of what it looks among: of a process that has run thousands of tests it
    is a look of seconds, in which nothing goes on that it looks for."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def puppet() -> Puppet:
    """One for both: a run of the one may be executed by the other, which is on the same NATS."""
    return Puppet()


@pytest_asyncio.fixture(scope="module")
async def patient(nats_url: str, puppet: Puppet) -> AsyncIterator[Stack]:
    """A runstream that keeps half a megabyte of a run, and lets a follower be slow for long."""
    settings = {**SMALL, "write_deadline_seconds": 60}
    async with stack_running(nats_url, agent=puppet, gateway=settings) as running:
        yield running


@pytest_asyncio.fixture(scope="module")
async def impatient(nats_url: str, puppet: Puppet) -> AsyncIterator[Stack]:
    """The same with one second for a write."""
    settings = {**SMALL, "write_deadline_seconds": WRITE_DEADLINE_SECONDS}
    async with stack_running(nats_url, agent=puppet, gateway=settings) as running:
        yield running


def followers_of(run_id: str) -> list[Follower]:
    """The gateway's side of a run's followers."""
    return [found for found in gc.get_objects() if isinstance(found, Follower) and found.run_id == run_id]


def numbers(events: Sequence[Event]) -> list[int]:
    """Which chunks of the puppet's these are."""
    return [int(event.json["content"].split(" ")[0]) for event in events if event.message_type == "assistant_message"]


async def metric(stack: Stack, name: str, **labels: str) -> float:
    text = (await stack.fetch("GET", "/metrics")).body.decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items())


async def test_a_slow_follower_delays_nobody_and_loses_nothing(patient: Stack) -> None:
    """While one does not read, twenty megabytes go to the others at full speed; then it reads, and has everything."""
    count = 20 * 10**6 // CHUNK_BYTES
    async with patient.live() as (run_id, fast), patient.resume(run_id, receive_buffer=RECEIVE_BUFFER) as slow:
        await wait_until(lambda: patient.hub.seats.taken == 2)
        held = followers_of(run_id)
        peak = 0
        clock = asyncio.get_running_loop().time
        slowest = 0.0
        for _ in range(count):
            # The next chunk is said when the fast one has this one: one that waited for the slow one would never come.
            said = clock()
            patient.puppet.say(run_id, size=CHUNK_BYTES)
            await fast.take(1)
            slowest = max(slowest, clock() - said)
            peak = max(peak, *(follower.response.buffered for follower in held))
        patient.puppet.finish(run_id)
        await fast.rest()
        assert slowest < DEADLINE_SECONDS / 5
        # One stretch out of the window is written at once; what waits beyond the mark is never added to.
        assert FOLLOWER_BUFFER_BYTES < peak <= FOLLOWER_BUFFER_BYTES + TAIL_BYTES
        assert await metric(patient, "runstream_slow_followers_total") >= 1
        events = await slow.rest()
    assert events == fast.seen
    assert numbers(events) == list(range(count))
    await patient.nobody_follows()


async def test_several_speeds_at_once(patient: Stack) -> None:
    """Followers that read in fits and starts fall back and catch up again and again, each for itself."""
    async with (
        patient.live() as (run_id, fast),
        patient.resume(run_id, receive_buffer=RECEIVE_BUFFER) as halting,
        patient.resume(run_id, receive_buffer=RECEIVE_BUFFER) as late,
    ):
        for _ in range(10):
            patient.puppet.say(run_id, 40, size=CHUNK_BYTES)
            await fast.take(40)
            await halting.take(30)
        patient.puppet.finish(run_id)
        await fast.rest()
        await asyncio.gather(halting.rest(), late.rest())
        assert halting.seen == late.seen == fast.seen
        assert numbers(late.seen) == list(range(400))


async def test_who_never_reads_again_is_cut(impatient: Stack) -> None:
    """A write that stays blocked past the deadline ends the response, incomplete, and gives its memory back."""
    async with impatient.live() as (run_id, fast), impatient.resume(run_id, receive_buffer=RECEIVE_BUFFER) as slow:
        await wait_until(lambda: impatient.hub.seats.taken == 2)
        held = followers_of(run_id)
        transports = [follower.response._transport for follower in held]
        before = await metric(impatient, "runstream_streams_cut_total", cause="blocked")
        clock = asyncio.get_running_loop().time
        begun = clock()
        impatient.puppet.say(run_id, 400, size=CHUNK_BYTES)
        await fast.take(400)
        await wait_until(lambda: impatient.hub.seats.taken == 1, WRITE_DEADLINE_SECONDS + DEADLINE_SECONDS)
        assert clock() - begun > WRITE_DEADLINE_SECONDS
        assert await metric(impatient, "runstream_streams_cut_total", cause="blocked") == before + 1
        await wait_until(
            lambda: sum(transport.get_write_buffer_size() for transport in transports if transport) == 0,
            message="the gateway still holds what nobody reads",
        )
        with pytest.raises(Cut):
            await slow.rest()
        assert DONE not in slow.seen
        assert slow.seen == fast.seen[: len(slow.seen)]
        # It comes back with its cursor, as after any cut.
        async with impatient.resume(run_id, slow.cursor) as again:
            impatient.puppet.finish(run_id)
            await fast.rest()
            assert slow.seen + await again.rest() == fast.seen
    await impatient.nobody_follows()


async def test_who_does_not_read_a_finished_run_is_cut(impatient: Stack) -> None:
    """The same for a reader of the log: nothing of a run that has ended is held for it past the deadline."""
    run_id, events = await impatient.finished({"chunks": 400, "interval_ms": 0, "chunk_bytes": CHUNK_BYTES})
    async with impatient.resume(run_id, receive_buffer=RECEIVE_BUFFER) as slow:
        await wait_until(lambda: impatient.hub.seats.taken == 1)
        await wait_until(lambda: impatient.hub.seats.taken == 0)
        with pytest.raises(Cut):
            await slow.rest()
        assert slow.seen == events[: len(slow.seen)]
    await impatient.nobody_follows()
    assert await impatient.consumers() == 0


def held(*kinds: type) -> list[Any]:
    """All of these kinds that something holds: the collector knows their holders, and not them."""
    found = {id(each): each for holder in gc.get_objects() for each in gc.get_referents(holder) if type(each) in kinds}
    return list(found.values())


def held_aside() -> int:
    """How many chunks are held that are neither in a run's window nor in a socket's buffer."""
    gc.collect()  # What failed in a test before may be in a cycle with what it read.
    windows = [found for found in gc.get_objects() if isinstance(found, Window)]
    kept = {id(each) for window in windows for frame in window._frames for each in (frame, frame.entry)}
    aside = [each for each in held(Frame, Entry, StoredMessage) if id(each) not in kept]
    return sum(type(each) is Frame or len(each.body) >= CHUNK_BYTES for each in aside)


async def test_what_waits_for_a_slow_follower_is_in_its_socket_only(patient: Stack) -> None:
    """One who does not read holds on to no chunk that memory has let go, wherever it stood when its socket was full."""
    finished, _ = await patient.finished({"chunks": 400, "interval_ms": 0, "chunk_bytes": CHUNK_BYTES})
    async with (
        patient.live(20, size=CHUNK_BYTES) as (run_id, fast),
        patient.resume(finished, receive_buffer=RECEIVE_BUFFER),
        patient.resume(run_id, fast.seen[0].seq_id, receive_buffer=RECEIVE_BUFFER),
    ):
        patient.puppet.say(run_id, 400, size=CHUNK_BYTES)
        await fast.take(400)
        (reader,) = followers_of(finished)
        (slow,) = (follower for follower in followers_of(run_id) if follower.cursor < fast.cursor)
        await wait_until(lambda: reader.response.buffered and slow.response.buffered, message="they do not stall")
        await wait_until(lambda: held_aside() == 0, message="chunks are held beside windows and sockets")
        assert reader.response.buffered
        assert slow.response.buffered
    await patient.nobody_follows()


def frames() -> int:
    """How many chunks are held ready to be written."""
    return len(held(Frame))


async def test_a_run_that_nobody_follows_any_more_is_not_in_memory(patient: Stack) -> None:
    """With its last follower a run's chunks go, at once: to a big process the collector comes late."""
    gc.collect()
    gc.disable()
    try:
        before = frames()
        async with patient.live(20, size=CHUNK_BYTES) as (run_id, fast):
            assert frames() >= before + 20
            patient.puppet.finish(run_id)
            await fast.rest()
        await patient.nobody_follows()
        await wait_until(lambda: frames() <= before, message="chunks wait for the collector")
    finally:
        gc.enable()


@measured_again
async def test_who_reads_slowly_but_steadily_is_not_cut(impatient: Stack) -> None:
    """The deadline is one write's, not the response's: whoever goes on reading is served for as long as it takes."""
    async with impatient.live() as (run_id, fast), impatient.resume(run_id, receive_buffer=RECEIVE_BUFFER) as slow:
        impatient.puppet.say(run_id, 200, size=CHUNK_BYTES)
        await fast.take(200)
        impatient.puppet.finish(run_id)
        await fast.rest()
        clock = asyncio.get_running_loop().time
        begun = clock()
        # A reader takes its time over each chunk; all of them together take twice the deadline.
        pause = 2 * WRITE_DEADLINE_SECONDS / len(fast.seen)
        for count in range(len(fast.seen)):
            await wait_until(lambda due=begun + count * pause: clock() >= due)  # type: ignore[misc]  # a default binds
            try:
                await slow.take(1)
            except Cut as cut:
                raise Untimely(cut) from cut
        assert clock() - begun > 1.5 * WRITE_DEADLINE_SECONDS
        assert slow.seen == fast.seen
        assert await slow.rest() == []


BESIDE = ("what a resume says", "beside its cursor")


def held_of_requests() -> set[int]:
    """What there is in memory of the bodies that streams were asked for with: where it lies."""
    gc.collect()
    return {
        id(found)
        for found in gc.get_objects()
        if isinstance(found, CreateMessagesRequest | RetrieveStreamRequest)
        or (type(found) is list and len(found) == len(BESIDE) and tuple(found) == BESIDE)
    }


async def test_what_a_stream_was_asked_for_with_is_not_held_as_long(patient: Stack) -> None:
    """A message may be as long as NATS takes one, and so may what nobody reads of a resume."""
    conversation_id, before = await patient.conversation(), held_of_requests()
    async with (
        patient.live() as (run_id, _),
        patient.say_in(conversation_id) as said,
        patient.resume(run_id, 0, beside=BESIDE),
        open_source(patient.base, f"/v1/runs/{run_id}/stream"),
    ):
        (ping,) = await said.take(1)
        await wait_until(lambda: patient.hub.seats.taken == 4)
        await wait_until(lambda: held_of_requests() <= before, message="a request is held by its stream")
        patient.puppet.finish(ping.json["run_id"])
        await said.rest()
    await patient.nobody_follows()
