"""Long uploads: lines are stored as they come, and the run lives as long as its upload is open."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from runstream.broker.agents.demo import demo
from runstream.broker.service import Broker
from runstream.schemas import DEFAULT_TENANT
from tests.support.core import SETTINGS
from tests.support.http import DONE, Connection
from tests.support.ingest import Upload, Writer, headers_of, lines, numbers_of, said, told, writer_of
from tests.support.nats import NatsServer
from tests.support.outages import stopped
from tests.support.processes import RunningProcess, running, runstream
from tests.support.stack import Stack, listener, stack_running, url_of
from tests.support.standstill import check_timely, measured_again
from tests.support.waiting import wait_until

LEASE_SECONDS = float(SETTINGS["lease_seconds"])
ENVIRONMENT = {"RUNSTREAM_LEASE_SECONDS": "1"}
START_SECONDS = 30.0


async def count_of(stack: Stack, run_id: str) -> int:
    """How many chunks of a run are stored."""
    record = await stack.record(run_id)
    last = await stack.jetstream.last_message(f"RUNS_{record.shard}", f"runs.{record.shard}.{run_id}")
    assert last is not None
    return int(last.headers["Rs-Writer"].rpartition(":")[2])


async def has(stack: Stack, run: Writer, count: int) -> None:
    """Wait until so many chunks of a run are stored."""

    async def is_stored() -> bool:
        return await count_of(stack, run.run_id) >= count

    await wait_until(is_stored, 10, f"{count} chunks are not stored")


async def ended(stack: Stack, run: Writer) -> None:
    """Wait until a run has ended."""

    async def is_over() -> bool:
        return (await stack.record(run.run_id)).is_terminal

    await wait_until(is_over, 10, "the run goes on")


async def test_lines_are_stored_as_they_come(stack: Stack, broker: str) -> None:
    """However they are cut into pieces; the last one need not end."""
    run = await writer_of(broker)
    async with run.upload() as upload, stack.resume(run.run_id) as live:
        await live.take(1)
        for number in range(3):
            await upload.say(number)
            (event,) = await live.take(1)
            assert event.json["content"] == f"{number} "
        whole = lines(said(3), said(4)) + b"\r\n" + lines(said(5)).rstrip()
        for at in range(0, len(whole), 7):
            await upload.send(whole[at : at + 7])
        reply = await upload.finish()
    assert (reply.status, reply.json["stored"], reply.json["index"]) == (200, 6, 6)
    await run.end()
    assert await numbers_of(stack, run.run_id) == [*range(6)]


@measured_again
async def test_an_upload_that_is_no_more_framed_is_answered_at_once(stack: Stack, broker: str) -> None:
    """A chunk of its encoding that is none ends it: what came before is stored and counted, and its run dies."""
    run = await writer_of(broker)
    async with run.upload() as upload:
        await upload.say(0)
        await has(stack, run, 1)
        await upload.connection.send_raw(lines(said(1)).join([b"%x\r\n" % len(lines(said(1))), b"\r\nZZ\r\n"]))
        began = time.monotonic()
        refused = await upload.reply()
        took = time.monotonic() - began
        check_timely(took < 1, took)
        assert told(refused) == (422, "invalid_request")
        assert "not framed" in refused.detail
        assert (refused.json["stored"], refused.json["index"]) == (2, 2)
        assert refused.headers["connection"] == "close"
        await ended(stack, run)
    assert await numbers_of(stack, run.run_id) == [0, 1]


async def test_an_open_upload_keeps_its_run_alive(stack: Stack, broker: str) -> None:
    """It says nothing for three leases, and goes on."""
    run = await writer_of(broker)
    async with run.upload() as upload:
        await upload.say(0)
        due = time.monotonic() + 3 * LEASE_SECONDS
        await wait_until(lambda: time.monotonic() >= due)
        assert not (await stack.record(run.run_id)).is_terminal
        await upload.say(1)
        assert (await upload.finish()).json["stored"] == 2
    await run.end()
    assert await numbers_of(stack, run.run_id) == [0, 1]


@pytest.mark.parametrize("is_silent", [True, False])
@measured_again
async def test_a_cancel_ends_an_upload_within_a_second(stack: Stack, broker: str, is_silent: bool) -> None:
    """It is answered at once, and its run has ended as cancelled, once; so is told whatever else is tried."""
    run = await writer_of(broker)
    async with run.upload() as upload, stack.resume(run.run_id) as live:
        await upload.say(0, 1)
        await live.take(3)
        talking = asyncio.create_task(asyncio.sleep(0) if is_silent else talk(upload))
        asked_at = time.monotonic()
        await stack.index.wish_cancelled(DEFAULT_TENANT, run.run_id)
        refused = await upload.reply()
        check_timely((took := time.monotonic() - asked_at) < 1, took)
        events = await live.rest()
        check_timely((took := time.monotonic() - asked_at) < 1, took)
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)
    assert told(refused) == (409, "run_cancelled")
    numbers = await numbers_of(stack, run.run_id)
    assert numbers == [*range(refused.json["stored"])]
    assert refused.json["index"] == len(numbers)
    assert [event.json.get("stop_reason") for event in events[-2:-1]] == ["cancelled"]
    assert events[-1] == DONE
    after = [
        await run.append(9),
        await run.end(),
        await run.post("lease"),
        await run.post("fail", {"error_type": "x", "message": "y"}),
    ]
    assert [told(reply) for reply in after] == [(409, "run_cancelled")] * 4


async def talk(upload: Upload) -> None:
    """Go on talking."""
    for number in range(2, 500):
        await upload.say(number)
        await asyncio.sleep(0.01)  # A model's pace.


@pytest.mark.parametrize("what", ["append", "lease", "end"])
async def test_a_wish_to_cancel_is_heeded_by_the_next_request(stack: Stack, broker: str, what: str) -> None:
    """A broker would end the run half a second later; who asks before is told, and has it ended."""
    run = await writer_of(broker)
    await run.append(0)
    await stack.index.wish_cancelled(DEFAULT_TENANT, run.run_id)
    refused = await (run.append(1) if what == "append" else run.end() if what == "end" else run.post(what))
    assert told(refused) == (409, "run_cancelled")
    record = await stack.record(run.run_id)
    assert (record.status, record.stop_reason) == ("cancelled", "cancelled")
    assert await numbers_of(stack, run.run_id) == [0]


async def test_a_writer_that_hangs_up_in_mid_line_loses_that_line_only(stack: Stack, broker: str) -> None:
    """The lines before it are stored, the run goes on, and the writer comes back with its index."""
    for turn in range(20):
        run = await writer_of(broker)
        async with run.upload() as upload:
            await upload.send(lines(*map(said, range(50))) + b'{"half')
            if turn % 2:
                upload.connection.writer.write_eof()
                await upload.connection.ends()
        await has(stack, run, 50)
        reply = await run.append(49, 50, expected_index=49)
        assert (reply.status, reply.json["stored"], reply.json["index"]) == (200, 2, 51)
        await run.end()
        assert await numbers_of(stack, run.run_id) == [*range(51)]


@pytest.mark.parametrize("media", ["application/json", "application/x-ndjson"])
async def test_a_writer_that_hangs_up_is_no_error(broker: str, caplog: pytest.LogCaptureFixture, media: str) -> None:
    """One line says which run it has left in the middle of a body; nothing is logged as a defect."""
    run = await writer_of(broker)
    with capture_logs() as logs:
        async with Connection.open(broker) as connection:
            headers = {"Content-Type": media, "Content-Length": "99"}
            await connection.send("POST", f"/ingest/v1/runs/{run.run_id}/chunks", headers=headers)
            await connection.send_raw(b'{"a":1}\n')
            await asyncio.sleep(0.1)  # it is being read
        await wait_until(lambda: [line for line in logs if line["event"] == "ingest_hung_up"], 5, "it is not told")
    (line,) = [line for line in logs if line["event"] == "ingest_hung_up"]
    assert (line["log_level"], line["run_id"], line["operation"]) == ("info", run.run_id, "append")
    # A machine that stood still for seconds is told by the watchdog, at its next look: this writer has no part in that.
    told = {line["event"] for line in logs if line["log_level"] in {"warning", "error"}}
    assert told <= {"watchdog_sees_again"}
    assert not [record for record in caplog.records if record.name.startswith("aiohttp")]


async def test_a_writer_that_hangs_up_while_it_is_slowed_down_loses_nothing_complete(
    stack: Stack, broker: str, nats_server: NatsServer
) -> None:
    """What had arrived while the store was away is stored when it is back."""
    run = await writer_of(broker)
    async with run.upload() as upload:
        await upload.say(0)
        await has(stack, run, 1)
        async with stopped(nats_server):
            await upload.send(lines(*map(said, range(1, 300))) + b"half")
            upload.connection.writer.write_eof()
        await stack.is_back()
        await has(stack, run, 300)
    await run.end()
    assert await numbers_of(stack, run.run_id) == [*range(300)]


async def test_an_upload_survives_an_outage(stack: Stack, broker: str, nats_server: NatsServer) -> None:
    """NATS is gone for two leases: the writer is slowed down, and nothing is lost, twice or out of order."""
    run = await writer_of(broker)
    async with run.upload() as upload:
        await upload.say(0, 1)
        await has(stack, run, 2)
        async with stopped(nats_server):
            await upload.say(2, 3)
            due = time.monotonic() + 2 * LEASE_SECONDS
            await wait_until(lambda: time.monotonic() >= due)
        await stack.is_back()
        await upload.say(4)
        reply = await upload.finish()
    assert (reply.status, reply.json["stored"]) == (200, 5)
    await run.end()
    assert await numbers_of(stack, run.run_id) == [*range(5)]


async def test_a_request_while_nats_is_away_may_be_repeated(stack: Stack, broker: str, nats_server: NatsServer) -> None:
    """503 with Retry-After, and then the same again: nothing is lost or twice."""
    run = await writer_of(broker)
    await run.append(0)
    async with stopped(nats_server):
        refused = [await run.append(1, expected_index=1), await run.end(), await run.post("lease")]
        assert [told(reply) for reply in refused] == [(503, "store_unavailable")] * 3
        assert {reply.headers["retry-after"] for reply in refused} == {"2"}
    await stack.is_back()

    async def stored() -> bool:
        return (await run.append(1, expected_index=1)).status == 200

    await wait_until(stored, 10)
    assert (await run.end()).status == 200
    assert await numbers_of(stack, run.run_id) == [0, 1]


async def test_an_upload_that_brings_no_line_is_not_waited_for(nats_server: NatsServer) -> None:
    """A byte now and then is no line, and does not keep the run alive: 408, with what is stored."""
    await nats_server.wait_ready()
    settings = {**SETTINGS, "ingest_silence_seconds": 0.5, "body_seconds": 0.5}
    async with stack_running(nats_server.url, agent=demo, broker=settings) as stack:
        run = await writer_of(stack.broker_base)
        async with run.upload() as upload:
            await upload.say(0)
            dripping = asyncio.create_task(drip(upload))
            refused = await upload.reply()
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)
        assert told(refused) == (408, "too_slow")
        assert (refused.json["stored"], refused.json["index"]) == (1, 1)
        async with Connection.open(stack.broker_base) as connection:
            head = {"Content-Type": "application/json", "Content-Length": "100"}
            await connection.send("POST", f"/ingest/v1/runs/{run.run_id}/chunks", headers=head)
            assert told(await connection.reply()) == (408, "too_slow")
        assert (await run.end()).status == 200


async def drip(upload: Upload) -> None:
    while True:
        await upload.send(b" ")
        await asyncio.sleep(0.05)  # A slow line's pace.


@contextlib.asynccontextmanager
async def broker_process(nats_url: str) -> AsyncIterator[tuple[RunningProcess, str]]:
    """A broker in a process of its own, and where it is."""
    async with running(*runstream("broker", "--nats-url", nats_url, "--port", "0"), env=ENVIRONMENT) as process:
        yield process, (await process.wait_for_line("^ready ", START_SECONDS)).split()[1]


async def test_a_broker_that_is_killed_loses_nothing(stack: Stack, broker: str) -> None:
    """In the middle of an upload; the writer sends it all again at another, from where it had begun."""
    async with broker_process(stack.settings.nats_url) as (process, base):
        run = await writer_of(broker)
        await run.append(0, 1)
        async with run.at(base).upload(2) as upload:
            await upload.send(lines(*map(said, range(2, 200))))
            await has(stack, run, 20)
            process.send_signal(signal.SIGKILL)
    kept = await count_of(stack, run.run_id)
    async with run.upload(expected_index=2) as again:
        await again.send(lines(*map(said, range(2, 250))))
        reply = await again.finish()
    assert (reply.status, reply.json["stored"], reply.json["index"]) == (200, 248, 250)
    await run.end()
    assert await numbers_of(stack, run.run_id) == [*range(250)]
    assert kept >= 20


async def test_a_broker_that_stops_tells_its_uploads_how_far_they_came(stack: Stack, broker: str) -> None:
    """Within a second of SIGTERM, and it has stopped right after; the writer goes on at another."""
    async with broker_process(stack.settings.nats_url) as (process, base):
        run = await writer_of(base)
        async with run.upload() as upload:
            await upload.say(*range(10))
            await has(stack, run, 10)
            stopped_at = time.monotonic()
            process.send_signal(signal.SIGTERM)
            refused = await upload.reply()
            assert time.monotonic() - stopped_at < 1
            assert told(refused) == (503, "broker_stopping")
            assert (refused.json["stored"], refused.json["index"]) == (10, 10)
            run = run.at(broker)
            assert (await run.append(10, expected_index=refused.json["index"])).json["index"] == 11
            await run.end()
        assert await process.wait() == 0
        assert time.monotonic() - stopped_at < 4
    assert await numbers_of(stack, run.run_id) == [*range(11)]


async def test_a_writer_is_read_no_faster_than_is_stored(nats_server: NatsServer) -> None:
    """While the store is away the broker takes what its bounds allow, and then leaves the rest with the writer."""
    await nats_server.wait_ready()
    async with stack_running(nats_server.url, agent=demo, broker={**SETTINGS, "writer_queue_chunks": 16}) as stack:
        run = await writer_of(stack.broker_base)
        async with run.upload() as upload:
            await upload.say(0)
            await has(stack, run, 1)
            async with stopped(nats_server):
                big = lines(*(said(number, size=50_000) for number in range(1, 501)))
                sending = asyncio.create_task(upload.connection.send_raw(b"%x\r\n%b\r\n" % (len(big), big)))
                waiting = upload.connection.writer.transport
                assert isinstance(waiting, asyncio.Transport)
                await wait_until(lambda: 0 < waiting.get_write_buffer_size() < len(big))
                left = waiting.get_write_buffer_size()
                assert left > len(big) / 2
            await stack.is_back()
            await sending
            assert (await upload.finish()).json["stored"] == 501
        await run.end()


async def test_a_run_is_as_long_as_runs_may_be(stack: Stack, broker: str) -> None:
    """An array that does not fit stores nothing, an upload what fits; the end still does."""
    run = await writer_of(broker)
    whole = 600 - 8 - 1
    await run.append(*range(500))
    refused = await run.append(*range(500, whole + 1))
    assert told(refused) == (409, "run_too_long")
    assert (refused.json["stored"], refused.json["index"]) == (0, 500)
    async with run.upload(expected_index=500) as upload:
        await upload.send(lines(*map(said, range(500, whole + 5))))
        refused = await upload.reply()
    assert told(refused) == (409, "run_too_long")
    assert (refused.json["stored"], refused.json["index"]) == (whole - 500, whole)
    assert (await run.end()).status == 200
    assert await numbers_of(stack, run.run_id) == [*range(whole)]


async def test_a_full_store_is_told(nats_server: NatsServer) -> None:
    """507, with what is stored, and no word of coming back."""
    await nats_server.wait_ready()
    async with stack_running(nats_server.url, agent=demo, broker=SETTINGS) as stack:
        run = await writer_of(stack.broker_base)
        config = (await stack.api("STREAM.INFO.RUNS_0"))["config"]
        await run.append(0)
        state = (await stack.api("STREAM.INFO.RUNS_0"))["state"]
        await stack.api("STREAM.UPDATE.RUNS_0", {**config, "max_bytes": state["bytes"] + 100})
        try:
            refused = await run.post("chunks", [{"content": "1 ".ljust(1000)}, said(2)])
            assert told(refused) == (507, "store_full")
            assert "retry-after" not in refused.headers
            assert (refused.json["stored"], refused.json["index"]) == (0, 1)
        finally:
            await stack.api("STREAM.UPDATE.RUNS_0", config)
        assert (await run.append(1, expected_index=1)).status == 200
        assert (await run.end()).status == 200
        assert await numbers_of(stack, run.run_id) == [0, 1]


async def test_a_broker_without_an_agent_takes_runs(stack: Stack) -> None:
    """Whoever writes its runs itself needs no agent."""
    with listener() as bound:
        async with Broker(stack.settings, agent=None, listener=bound):
            run = await writer_of(url_of(bound))
            assert (await run.append(0)).status == 200
            assert headers_of(None) == {}
        assert (await run.at(stack.broker_base).end()).status == 200
