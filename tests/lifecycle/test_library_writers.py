"""Runs that are written by a process of the platform's, which is killed, paused and cancelled."""

import contextlib
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from runstream.broker.agents.demo import demo
from runstream.schemas import DEFAULT_TENANT
from tests.support.core import SETTINGS
from tests.support.documents import blocks_below
from tests.support.http import DONE, Event, EventStream
from tests.support.nats import NatsServer
from tests.support.outages import stopped
from tests.support.processes import RunningProcess, is_stopped, python, running
from tests.support.stack import Stack, stack_running
from tests.support.standstill import check_timely, measured_again
from tests.support.waiting import wait_until

LEASE_SECONDS = float(SETTINGS["lease_seconds"])
START_SECONDS = 30.0
"""A process imports for half a second of its own, and a machine may have other things to do."""
OWN_PACKAGES = "import sys, types; sys.modules |= {n: types.ModuleType(n) for n in ('schemas', 'broker', 'gateway')}\n"
"""A platform may have packages that are called as runstream's folders are."""


@pytest_asyncio.fixture(scope="module")
async def stack(nats_server: NatsServer) -> AsyncIterator[Stack]:
    """A broker and a gateway beside the writers, with a short lease."""
    await nats_server.wait_ready()
    async with stack_running(nats_server.url, agent=demo, broker=SETTINGS) as serving:
        yield serving


@dataclass
class Writer:
    """A platform's process, and what one follower of its run sees."""

    process: RunningProcess
    run_id: str
    conversation_id: str
    stream: EventStream

    def stored(self) -> list[int]:
        """The seq_ids that the writer was told."""
        return [int(line.split()[2]) for line in self.process.lines if line.startswith("stored")]


@contextlib.asynccontextmanager
async def writer(stack: Stack, doing: str) -> AsyncIterator[Writer]:
    """A writer that has stored something, and a follower that has seen it."""
    conversation = await stack.fetch("GET", f"/v1/conversations/{await stack.conversation()}")
    named = [str(conversation.json[key]) for key in ("agent_id", "id")]
    argv = python("-m", "tests.support.library_writer", stack.settings.nats_url, *named, doing)
    async with running(*argv) as process:
        await process.wait_for_line("^started", START_SECONDS)
        run_id = (await process.wait_for_line("^open ")).split()[1]
        await process.wait_for_line("^stored")
        async with stack.resume(run_id) as stream:
            await stream.take(2)
            yield Writer(process, run_id, named[1], stream)


def ending(events: list[Event]) -> list[str]:
    """What the end of a stream says: the stop reason, the error's type, and that it is done; there is one of it."""
    said = [
        str(event.json.get("stop_reason") or event.json["error_type"])
        for event in events
        if not event.is_done and event.message_type in {"stop_reason", "error_message"}
    ]
    assert events[-1] == DONE
    assert events.count(DONE) == 1
    return said


async def cancel(stack: Stack, run_id: str) -> None:
    """Wish that a run end."""
    await stack.index.wish_cancelled(DEFAULT_TENANT, run_id)


async def accepts_another(stack: Stack, conversation_id: str) -> None:
    """Post a message to the conversation, and see it answered."""
    async with stack.say_in(conversation_id, {"chunks": 1}) as stream:
        assert ending(await stream.rest()) == ["end_turn"]


async def test_followers_see_what_the_writer_stored(stack: Stack) -> None:
    """Each chunk has the seq_id that the writer was told, and the run ends when the block does."""
    async with writer(stack, "ten") as it:
        events = await it.stream.rest()
        await it.process.wait_for_line("^ended")
        assert await it.process.wait() == 0
        whole = stack.resume(it.run_id)
        async with whole as again:
            everything = await again.rest()
    assert [event.seq_id for event in everything if event.message_type == "assistant_message"] == it.stored()
    assert everything[2:] == events
    assert ending(events) == ["end_turn"]
    run = (await stack.fetch("GET", f"/v1/runs/{it.run_id}")).json
    assert (run["status"], run["metadata"]["run_type"], run["background"]) == ("completed", "library", True)
    await accepts_another(stack, it.conversation_id)


@pytest.mark.parametrize("doing", ["steady", "silent"])
async def test_a_killed_writers_run_is_lost_in_time(stack: Stack, doing: str) -> None:
    """All that it was told is stored is there, everybody hears `run_lost`, and the conversation is free."""
    async with writer(stack, doing) as it, stack.resume(it.run_id) as other:
        it.process.send_signal(signal.SIGKILL)
        killed_at = time.monotonic()
        endings = [await stream.rest() for stream in (it.stream, other)]
        assert time.monotonic() - killed_at < LEASE_SECONDS + 2
        await it.process.wait()
    assert [ending(events) for events in endings] == [["error", "run_lost"]] * 2
    seen = [event.seq_id for event in endings[1] if event.message_type == "assistant_message"]
    assert it.stored() == seen[: len(it.stored())]
    record = await stack.record(it.run_id)
    assert (record.status, record.stop_reason, (record.error or {})["error_type"]) == ("failed", "error", "run_lost")
    await accepts_another(stack, it.conversation_id)


@pytest.mark.parametrize("doing", ["steady", "silent"])
async def test_a_writer_that_was_paused_for_too_long_is_fenced(stack: Stack, doing: str) -> None:
    """It finds its run ended, says so, and nothing that it writes later is in the log."""
    async with writer(stack, doing) as it:
        it.process.send_signal(signal.SIGSTOP)
        await wait_until(lambda: is_stopped(it.process.pid))
        events = await it.stream.rest()
        assert ending(events) == ["error", "run_lost"]
        tip = await stack.tip(await stack.record(it.run_id))
        it.process.send_signal(signal.SIGCONT)
        await it.process.wait_for_line("^Fenced")
        assert await it.process.wait() == 0
        assert await stack.tip(await stack.record(it.run_id)) == tip
    await accepts_another(stack, it.conversation_id)


@pytest.mark.parametrize("doing", ["steady", "silent", "deaf", "frozen"])
@measured_again
async def test_a_cancel_ends_the_run_within_a_second(stack: Stack, doing: str) -> None:
    """Whether its writer speaks, is silent, ignores the cancel or does not even hear of it."""
    async with writer(stack, doing) as it:
        if doing == "frozen":
            await it.process.wait_for_line("^frozen")
        asked_at = time.monotonic()
        await cancel(stack, it.run_id)
        events = await it.stream.rest()
        check_timely((took := time.monotonic() - asked_at) < 1, took)
        assert ending(events) == ["cancelled"]
        if doing in {"steady", "silent"}:
            await it.process.wait_for_line("^RunCancelled", 1)
            assert await it.process.wait() == 0
        assert (await stack.record(it.run_id)).status == "cancelled"
        await accepts_another(stack, it.conversation_id)
        async with stack.resume(it.run_id) as again:
            assert (await again.rest())[-len(events) :] == events


async def test_an_outage_is_no_death(stack: Stack, nats_server: NatsServer) -> None:
    """NATS is gone for two leases: the writer goes on, and nothing is lost, twice or out of order."""
    async with writer(stack, "steady") as it:
        async with stopped(nats_server):
            with pytest.raises(AssertionError, match="still running"):
                await it.process.wait(2 * LEASE_SECONDS)
        stored = len(it.stored())
        await wait_until(lambda: len(it.stored()) > stored + 10, 20)
        await stack.is_back()
        await cancel(stack, it.run_id)
        await it.process.wait_for_line("^RunCancelled")
        await it.stream.rest()
        async with stack.resume(it.run_id) as again:
            events = await again.rest()
    said = [event.json for event in events if event.message_type == "assistant_message"]
    assert [chunk["content"] for chunk in said] == [str(number) for number in range(len(said))]
    assert [chunk["seq_id"] for chunk in said][: len(it.stored())] == it.stored()
    assert ending(events) == ["cancelled"]


async def test_the_guides_program_does_what_it_says(stack: Stack) -> None:
    """It runs as it stands, in a process that has top-level packages of its own."""
    (program,) = blocks_below("docs/guides/library.md", "The whole program", "python")
    program = program.replace("nats://localhost:4222", stack.settings.nats_url)
    async with running(*python("-c", OWN_PACKAGES + program)) as process:
        run_id = (await process.wait_for_line("^run-", START_SECONDS)).strip()
        assert await process.wait() == 0, process.report()
    async with stack.resume(run_id) as stream:
        events = await stream.rest()
    said = "".join(event.json["content"] for event in events if event.message_type == "assistant_message")
    assert said == "What is said is stored first. "
    assert ending(events) == ["end_turn"]
