"""A platform's process that writes runs, and is sent SIGTERM."""

import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from runstream.broker.agents.demo import demo
from tests.support.core import SETTINGS
from tests.support.http import DONE, Event
from tests.support.nats import NatsServer
from tests.support.processes import RunningProcess, python, running
from tests.support.stack import Stack, stack_running
from tests.support.standstill import check_timely, measured_again

START_SECONDS = 30.0
UVLOOP = (
    "import runpy, sys, uvloop; uvloop.install(); sys.argv = sys.argv[1:];"
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest_asyncio.fixture(scope="module")
async def stack(nats_server: NatsServer) -> AsyncIterator[Stack]:
    """A broker and a gateway beside the writers."""
    await nats_server.wait_ready()
    async with stack_running(nats_server.url, agent=demo, broker=SETTINGS) as serving:
        yield serving


@contextlib.asynccontextmanager
async def writer(
    stack: Stack, doing: str, *, drain_seconds: float = 5, handler: str = "nobody", on_uvloop: bool = False
) -> AsyncIterator[tuple[RunningProcess, str]]:
    """A process that has stored something, and its run."""
    path = Path(__file__).parents[1] / "support" / "stopped_writer.py"
    program = ["-c", UVLOOP, str(path)] if on_uvloop else ["-m", "tests.support.stopped_writer"]
    argv = python(*program, stack.settings.nats_url, str(drain_seconds), doing, handler)
    async with running(*argv, env={"PYTHONPATH": ":".join(sys.path)}) as process:
        run_id = (await process.wait_for_line("^open ", START_SECONDS)).split()[1]
        await process.wait_for_line("^stored")
        yield process, run_id


async def ending(stack: Stack, run_id: str) -> list[str]:
    """What a follower is told of the run's end."""
    async with stack.resume(run_id) as stream:
        events: list[Event] = await stream.rest()
    assert events[-1] == DONE
    return [
        str(event.json.get("stop_reason") or event.json["error_type"])
        for event in events
        if not event.is_done and event.message_type in {"stop_reason", "error_message"}
    ]


@pytest.mark.parametrize("on_uvloop", [False, True])
async def test_a_run_that_ends_in_time_ends_well(stack: Stack, on_uvloop: bool) -> None:
    """No other is opened meanwhile, what it still says is stored, and then the signal ends the process."""
    async with writer(stack, "finish", on_uvloop=on_uvloop) as (process, run_id):
        process.send_signal(signal.SIGTERM)
        await process.wait_for_line("^refused")
        assert await process.wait() == -signal.SIGTERM
    assert len([line for line in process.lines if line.startswith("stored")]) == 2
    assert await ending(stack, run_id) == ["end_turn"]


async def test_a_run_that_does_not_end_in_time_is_ended(stack: Stack) -> None:
    """As `stream_task_cancelled`, and not as `run_lost` a lease later."""
    async with writer(stack, "last", drain_seconds=0.2) as (process, run_id):
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == -signal.SIGTERM
    assert await ending(stack, run_id) == ["error", "stream_task_cancelled"]


@measured_again
async def test_a_second_signal_ends_the_process_at_once(stack: Stack) -> None:
    """Whoever sends it does not want to wait; a broker ends the run."""
    async with writer(stack, "last", drain_seconds=60) as (process, run_id):
        process.send_signal(signal.SIGTERM)
        await process.wait_for_line("^refused")
        asked_at = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == -signal.SIGTERM
        check_timely((took := time.monotonic() - asked_at) < 1, took)
    assert await ending(stack, run_id) == ["error", "run_lost"]


@pytest.mark.parametrize("handler", ["before", "after"])
async def test_a_process_that_handles_the_signal_itself_is_left_alone(stack: Stack, handler: str) -> None:
    """Its handler is called, leaving `Runs` ends the run, and the process ends with its own code."""
    async with writer(stack, "last", handler=handler) as (process, run_id):
        process.send_signal(signal.SIGTERM)
        await process.wait_for_line("^handled")
        assert await process.wait() == 7
    assert await ending(stack, run_id) == ["error", "stream_task_cancelled"]


async def test_uvicorn_stops_as_it_does(stack: Stack) -> None:
    """It handles the signal; the platform leaves `Runs` with it, and its run is ended."""
    argv = python("-m", "tests.support.uvicorn_writer", stack.settings.nats_url)
    async with running(*argv) as process:
        run_id = (await process.wait_for_line("^open ", START_SECONDS)).split()[1]
        process.send_signal(signal.SIGTERM)
        await process.wait_for_line("^left")
        await process.wait()
    assert await ending(stack, run_id) == ["error", "stream_task_cancelled"]


async def test_nothing_is_written_to_stdout(stack: Stack) -> None:
    """It is the program's own: what the library has to say goes to the standard library's logging."""
    async with writer(stack, "last", drain_seconds=0) as (process, _):
        process.send_signal(signal.SIGTERM)
        await process.wait()
    assert [line.split()[0] for line in process.lines] in (["open", "stored"], ["open", "stored", "refused"])
