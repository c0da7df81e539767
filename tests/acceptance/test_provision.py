"""`runstream provision`: run as a person or an installation runs it, it does its work, says what it did, and ends."""

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from runstream.broker.connection import Connection
from runstream.broker.jetstream import JetStream
from tests.support.nats import NatsServer, free_ports
from tests.support.processes import RunningProcess, running, runstream
from tests.support.stack import PUPPET, Stack, message, stack_running
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
SOURCE = {"PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("schemas", "broker", "gateway"))}
END_SECONDS = 20.0


@pytest_asyncio.fixture(autouse=True)
async def jetstream(nats_server: NatsServer) -> AsyncIterator[JetStream]:
    """A connection of the test's own to a server without any stream."""
    await nats_server.wait_ready()
    async with Connection(nats_server.url, name="test") as connection:
        opened = JetStream(connection, timeout_seconds=2)
        for name in (await opened.api("STREAM.NAMES", None))["streams"] or []:
            await opened.api(f"STREAM.DELETE.{name}", None)
        yield opened
        await opened.close()


@contextlib.asynccontextmanager
async def provision(nats_url: str, *args: str) -> AsyncIterator[RunningProcess]:
    """The command, started."""
    async with running(*runstream("provision", "--nats-url", nats_url, *args), env=SOURCE) as process:
        yield process


async def provisioned(nats_url: str, *args: str) -> list[str]:
    """What the command says on stdout, after a check that it succeeded."""
    async with provision(nats_url, *args) as process:
        assert await process.wait(END_SECONDS) == 0, process.report()
        assert "Traceback" not in "\n".join(process.errors)
        return process.lines


async def test_it_makes_what_is_absent_and_says_what_differs(nats_url: str, jetstream: JetStream) -> None:
    """First it makes everything, as its flags say; then nothing; other flags change nothing, and are told."""
    flags = ("--shards", "2", "--retention", "1h", "--max-run-messages", "1000", "--max-log-bytes", "1000000")
    made = await provisioned(nats_url, *flags)
    assert made == [
        f"made {name}" for name in ("RUNS_0", "RUNS_1", "KV_RUNSTREAM", "RUNSTREAM_WORK", "KV_RUNSTREAM_REVOKED")
    ]
    before = (await jetstream.api("STREAM.INFO.RUNS_1", None))["config"]
    assert (before["max_age"], before["max_msgs_per_subject"], before["max_bytes"]) == (3600 * 10**9, 1000, 10**6)
    assert await provisioned(nats_url, *flags) == ["everything is there"]
    assert await provisioned(nats_url, *flags, "--retention", "2h", "--lease-seconds", "5s") == [
        "differs: RUNS_0.max_age is 1h, this configuration says 2h",
        "differs: RUNS_1.max_age is 1h, this configuration says 2h",
        "differs: RUNSTREAM_WORK.max_age is 1h, this configuration says 2h",
        "differs: RUNSTREAM_WORK consumer workers.ack_wait is 10s, this configuration says 5s",
    ]
    assert (await jetstream.api("STREAM.INFO.RUNS_1", None))["config"] == before


async def test_it_rebuilds_the_index_under_a_runstream_that_serves(nats_url: str, jetstream: JetStream) -> None:
    """The bucket is deleted in mid-run: afterwards the ended run can be read, the live one goes on and ends."""
    async with stack_running(nats_url) as stack:
        conversation_id = await stack.conversation()
        messages = [{"role": "user", "content": PUPPET, "otid": "one"}]
        async with stack.say_in(conversation_id, messages=messages) as stream:
            run_id = str((await stream.take(1))[0].json["run_id"])
            stack.puppet.say(run_id, 2)
            await stream.take(2)
            ended_id, events = await stack.finished({"chunks": 3})
            await wait_until(lambda: is_forgotten(jetstream, ended_id))
            await jetstream.api("STREAM.DELETE.KV_RUNSTREAM", None)
            made, rebuilt = await provisioned(nats_url, "--rebuild-index")
            assert made == "made KV_RUNSTREAM"
            assert rebuilt.startswith("rebuilt from 2 logs: 2 records, 1 lease, 1 conversation and 4 lookups that")
            async with stack.resume(ended_id) as again:
                assert await again.rest() == events
            busy = await stack.fetch("POST", f"/v1/conversations/{conversation_id}/messages", json=message("other"))
            assert (busy.status, busy.json["run_id"], busy.json["otid"]) == (409, run_id, None)
            stack.puppet.say(run_id)
            stack.puppet.finish(run_id)
            rest = await stream.rest()
        assert (await is_answered_again(stack, conversation_id, messages)) == run_id
        assert rest[-1].data == "[DONE]"
        assert (await stack.record(run_id)).status == "completed"
        assert (await provisioned(nats_url, "--rebuild-index"))[0] == "everything is there"


async def is_forgotten(jetstream: JetStream, run_id: str) -> bool:
    """Whether the run's lease is gone, which is the last thing its worker does."""
    lease = await jetstream.last_message("KV_RUNSTREAM", f"$KV.RUNSTREAM.lease.{run_id}")
    return lease is not None and "KV-Operation" in lease.headers


async def is_answered_again(stack: Stack, conversation_id: str, messages: list[dict[str, str]]) -> str:
    """The run that answers the same request a second time, to its end."""
    async with stack.say_in(conversation_id, messages=messages) as stream:
        return str((await stream.rest())[0].json["run_id"])


async def test_without_nats_it_says_so_and_fails() -> None:
    """It does not wait: where NATS was looked for is told in one line, with what names another one."""
    (port,) = free_ports(1)
    async with provision(f"nats://127.0.0.1:{port}") as process:
        assert await process.wait(END_SECONDS) == 3
        assert process.lines == []
        (line,) = process.errors
        assert "--nats-url or RUNSTREAM_NATS_URL says where NATS is" in line
        assert f"Cannot reach NATS at nats://127.0.0.1:{port}" in line
        assert "Traceback" not in "\n".join(process.errors)


async def test_a_stream_that_cannot_serve_is_told_and_fails(nats_url: str, jetstream: JetStream) -> None:
    """What would have to be another stream is said with what it should be, and nothing is changed."""
    await jetstream.api("STREAM.CREATE.RUNS_0", {"name": "RUNS_0", "subjects": ["runs.0.>"], "storage": "memory"})
    async with provision(nats_url) as process:
        assert await process.wait(END_SECONDS) == 1
        (line,) = (line for line in process.errors if line.startswith("runstream: "))
        assert "RUNS_0.storage is 'memory', this configuration says 'file'" in line


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
async def test_broken_off_it_does_not_succeed(nats_url: str, nats_server: NatsServer, how: signal.Signals) -> None:
    """Whoever interrupts it is not told that all was done."""
    await provisioned(nats_url)
    await nats_server.pause()
    try:
        async with provision(nats_url, "--rebuild-index") as process:
            process.send_signal(how)
            assert await process.wait(END_SECONDS) != 0
    finally:
        await nats_server.resume()
