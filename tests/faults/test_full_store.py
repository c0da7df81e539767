"""A full store: every party is told, nobody is left waiting, and once there is room nothing is lost or twice."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from runstream.broker.embedded import EmbeddedServer
from runstream.broker.errors import StoreFull, StoreUnavailable
from runstream.broker.fullness import announce_stuck
from runstream.broker.index import Index
from runstream.broker.keys import subject_of
from runstream.broker.runs import Runs
from runstream.schemas import AssistantMessage, RunRecord, new_agent_id, new_otid
from tests.chaos.disk import small_disk
from tests.support.eventsource import EventSource, open_source, source_path
from tests.support.http import DONE, Cut, EventStream, Reply
from tests.support.ingest import said, writer_of
from tests.support.nats import nats_server_running
from tests.support.stack import CountingPuppet, Stack, message, stack_running
from tests.support.waiting import wait_until

LEASE_SECONDS = 1.0
BROKER = {"lease_seconds": LEASE_SECONDS, "silence_seconds": 0.3}
TOLD_SECONDS = 3 * LEASE_SECONDS
"""Within so much whoever follows a run that cannot go on is told: a watchdog says so once a lease, a worker sooner."""
REFUSED = "The store is full: an operator has to make room."
INDEX = "KV_RUNSTREAM"
WORK = "RUNSTREAM_WORK"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runstream.broker.fullness.LONGEST_PAUSE_SECONDS", 0.5)


@pytest_asyncio.fixture(scope="module")
async def stack(nats_url: str) -> AsyncIterator[Stack]:
    """A runstream whose leases last a second, with an agent that counts how often it is asked."""
    async with stack_running(nats_url, agent=CountingPuppet(), broker=BROKER) as running:
        yield running


async def times_full(stack: Stack) -> float:
    """How many of the gateway's writes were refused for want of room, as it shows."""
    shown = (await stack.fetch("GET", "/metrics")).body.decode()
    (said,) = re.findall(r"^runstream_store_full_total (\S+)$", shown, re.MULTILINE)
    return float(said)


@contextlib.asynccontextmanager
async def full(stack: Stack, stream: str) -> AsyncIterator[None]:
    """Not another message fits into a stream; when the block ends there is room."""
    info = await stack.api(f"STREAM.INFO.{stream}")
    # What a worker has taken off the queue may still be on its way out of it.
    size = 1 if stream == WORK else max(info["state"]["bytes"], 1)
    try:
        await stack.api(f"STREAM.UPDATE.{stream}", {**info["config"], "max_bytes": size})
        yield
    finally:
        await stack.api(f"STREAM.UPDATE.{stream}", info["config"])


@contextlib.asynccontextmanager
async def full_index(stack: Stack) -> AsyncIterator[None]:
    """The same of the index, whose size goes up and down: what is left of it is filled up, to the byte."""
    info = await stack.api(f"STREAM.INFO.{INDEX}")
    ballast = subject_of("ballast.>")
    try:
        config = {**info["config"], "max_bytes": info["state"]["bytes"] + 8192}
        await stack.api(f"STREAM.UPDATE.{INDEX}", config)
        await filled(stack, ballast.removesuffix(">"))
        yield
    finally:
        await stack.api(f"STREAM.UPDATE.{INDEX}", info["config"])
        await stack.api(f"STREAM.PURGE.{INDEX}", {"filter": ballast})


async def filled(stack: Stack, subject: str, sizes: Sequence[int] = (1000, 100, 10, 0)) -> None:
    """Store messages below `subject`, ever smaller ones, until not even an empty one is taken."""
    count = 0
    for size in sizes:
        with contextlib.suppress(StoreFull):
            while True:
                await stack.jetstream.publish(f"{subject}{count}", b"." * size, {})
                count += 1


async def told_full(stream: EventStream, run_id: str) -> None:
    """Read a response up to where it says that the store is full, and is cut."""
    with pytest.raises(Cut):
        await stream.rest(TOLD_SECONDS)
    last = stream.seen[-1]
    assert (last.event, last.json["error_type"], last.json["run_id"]) == ("error", "store_full", run_id)
    assert last.json["seq_id"] is None
    assert "[DONE]" not in [event.data for event in stream.seen]


def contents(events: Sequence[object]) -> list[str]:
    found = [event for event in events if getattr(event, "message_type", None) == "assistant_message"]
    return [event.json["content"] for event in found]  # type: ignore[attr-defined]


async def whole(stack: Stack, run_id: str) -> EventStream:
    """A run as it is after its end, from its first message on."""
    async with stack.resume(run_id) as stream:
        assert (await stream.rest())[-1] == DONE
    return stream


async def ended(stack: Stack, run_id: str) -> RunRecord:
    """A run's record once its log has its end; nothing of it is twice."""

    async def is_over() -> bool:
        return (await stack.record(run_id)).is_terminal

    await wait_until(is_over, 10, "the run does not end")
    record = await stack.record(run_id)
    if record.background:
        stream = await whole(stack, run_id)
        assert [event.message_type for event in stream.seen].count("stop_reason") == 1
    return record


async def takes_messages(stack: Stack, conversation_id: str) -> None:
    """Another run comes to its end in that conversation."""
    async with stack.say_in(conversation_id, {"chunks": 1, "interval_ms": 0}) as stream:
        assert (await stream.rest())[-1] == DONE


# -- the log --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", [True, False])
async def test_a_log_that_is_full_in_the_middle_of_a_run(stack: Stack, *, background: bool) -> None:
    """Who follows it is told at once, then cut; the run ends as `store_full` when there is room, with all it stored."""
    conversation_id = await stack.conversation()
    async with stack.say_in(conversation_id, background=background) as stream:
        run_id = str((await stream.take(1))[0].json["run_id"])
        stack.puppet.say(run_id, 2)
        await stream.take(2)
        async with full(stack, "RUNS_0"):
            stack.puppet.say(run_id, 2)
            await told_full(stream, run_id)
            shown = await stack.fetch("GET", f"/v1/runs/{run_id}")
            assert shown.json["status"] == "running"  # It has not ended: nobody can read an end of it.
            reply = await stack.fetch("POST", f"/v1/conversations/{conversation_id}/messages", json=message("next"))
            assert (reply.status, reply.json["run_id"]) == (409, run_id)
    record = await ended(stack, run_id)
    assert (record.status, (record.error or {})["error_type"]) == ("failed", "store_full")
    said_so_far = await stack.fetch("GET", f"/v1/runs/{run_id}/messages")
    assert [found["content"] for found in said_so_far.json] == ["0 ", "1 "]
    await takes_messages(stack, conversation_id)


async def test_whoever_comes_while_the_log_is_full(stack: Stack) -> None:
    """He gets what is stored, and is told within a bound, however often he comes; with room he gets the rest, once."""
    async with stack.live(2) as (run_id, stream):
        async with full(stack, "RUNS_0"):
            stack.puppet.say(run_id)
            await told_full(stream, run_id)
            for _ in range(2):
                async with stack.resume(run_id) as late:
                    await told_full(late, run_id)
                assert late.seen[:-1] == stream.seen[:-1]
            async with stack.resume(run_id, stream.cursor) as at_the_tip:
                await told_full(at_the_tip, run_id)
            assert len(at_the_tip.seen) == 1
        await ended(stack, run_id)
        async with stack.resume(run_id, stream.cursor) as rest:
            kinds = [event.message_type for event in await rest.rest()]
    assert kinds == ["stop_reason", "error_message", None]
    assert contents((await whole(stack, run_id)).seen) == ["0 ", "1 "]


async def test_an_event_source_comes_back_until_there_is_room(stack: Stack) -> None:
    """It is told when to come back, and nothing else; it has every message once, and is stopped by 204."""
    async with stack.live(2) as (run_id, _):
        source = EventSource(stack.base + source_path(run_id))
        browsing = asyncio.create_task(source.run())
        await wait_until(lambda: len(source.messages) == 3)  # the ping, too
        async with full(stack, "RUNS_0"), open_source(stack.base, source_path(run_id)) as stream:
            stack.puppet.say(run_id)
            with pytest.raises(Cut):
                await stream.rest(TOLD_SECONDS)
            assert [event.event for event in stream.seen] == [None, None, None]
            assert stream.retry is not None
            assert stream.retry >= 1000
        await ended(stack, run_id)
        async with asyncio.timeout(10):
            await browsing
    assert source.statuses[-1] == 204
    ids = [heard.last_event_id for heard in source.messages[1:]]
    assert len(ids) == len(set(ids))
    assert [heard.type for heard in source.messages][-2:] == ["run_error", "message"]
    assert source.messages[-1].data == "[DONE]"


async def test_a_whole_answer_while_the_log_is_full(stack: Stack) -> None:
    """503 with the run, and not to be sent again; once there is room the same request has its answer."""
    agent_id, otid = new_agent_id(), new_otid()
    body = {"messages": [{"role": "user", "content": "puppet", "otid": otid}], "background": True}

    async def asked() -> Reply:
        return await stack.fetch("POST", f"/v1/agents/{agent_id}/messages", json=body)

    asking = asyncio.create_task(asked())
    run_id = await wait_until(lambda: stack.run_of(otid), 5)
    assert run_id is not None
    stack.puppet.say(run_id)

    async def has_said() -> bool:
        return len((await stack.fetch("GET", f"/v1/runs/{run_id}/messages")).json) == 1

    await wait_until(has_said)
    async with full(stack, "RUNS_0"):
        stack.puppet.finish(run_id)
        async with asyncio.timeout(TOLD_SECONDS):
            refused = await asking
        assert (refused.status, refused.json["run_id"], refused.headers["x-should-retry"]) == (503, run_id, "false")
        assert "the store is full" in refused.detail
        async with asyncio.timeout(TOLD_SECONDS):
            assert (await asked()).status == 503
    assert (await ended(stack, run_id)).stop_reason == "end_turn"
    answered = await asked()
    assert (answered.status, [found["content"] for found in answered.json["messages"]]) == (200, ["0 "])
    assert isinstance(stack.agent, CountingPuppet)
    assert stack.agent.runs_of(agent_id) == [run_id]


async def test_a_whole_answer_whose_writer_cannot_store(stack: Stack) -> None:
    """Its writer says so, and it is answered at once, though this gateway has NATS: 503, with the run."""
    otid = new_otid()
    body = {"messages": [{"role": "user", "content": "puppet", "otid": otid}], "background": True}
    asking = asyncio.create_task(stack.fetch("POST", f"/v1/agents/{new_agent_id()}/messages", json=body))
    run_id = await wait_until(lambda: stack.run_of(otid), 5)
    assert run_id is not None

    async def is_answered() -> bool:
        await announce_stuck(stack.jetstream.connection, run_id, StoreUnavailable(run_id=run_id))
        return asking.done()

    await wait_until(is_answered, TOLD_SECONDS, "the answer is waited for still")
    refused = asking.result()
    assert (refused.status, refused.json["run_id"], refused.headers["x-should-retry"]) == (503, run_id, "false")
    stack.puppet.finish(run_id)
    await ended(stack, run_id)


async def test_what_an_agent_came_to_is_kept_until_there_is_room(stack: Stack) -> None:
    """It ended well, and only its end had no room: it ends so, with its usage, and not as a failure."""
    conversation_id = await stack.conversation()
    async with stack.say_in(conversation_id) as stream:
        run_id = str((await stream.take(1))[0].json["run_id"])
        stack.puppet.say(run_id, 3)
        await stream.take(3)
        async with full(stack, "RUNS_0"):
            stack.puppet.finish(run_id, "max_steps")
            await told_full(stream, run_id)
            lapsed = asyncio.get_running_loop().time() + 2 * LEASE_SECONDS
            await wait_until(lambda: asyncio.get_running_loop().time() > lapsed)  # what must not happen is no condition
    record = await ended(stack, run_id)
    assert (record.status, record.stop_reason) == ("completed", "max_steps")
    assert contents((await whole(stack, run_id)).seen) == ["0 ", "1 ", "2 "]
    await takes_messages(stack, conversation_id)


async def test_a_cancel_while_the_log_is_full(stack: Stack) -> None:
    """It is heeded, and waits for room as any other end does; who follows the run is told, and it ends cancelled."""
    conversation_id = await stack.conversation()
    async with stack.say_in(conversation_id) as stream:
        run_id = str((await stream.take(1))[0].json["run_id"])
        stack.puppet.say(run_id)
        await stream.take(1)
        async with full(stack, "RUNS_0"):
            reply = await stack.fetch("POST", f"/v1/conversations/{conversation_id}/cancel")
            assert (reply.status, reply.json) == (200, {run_id: "cancelled"})
            await told_full(stream, run_id)
            stack.puppet.say(run_id)
    assert (await ended(stack, run_id)).status == "cancelled"
    assert contents((await whole(stack, run_id)).seen) == ["0 "]
    await takes_messages(stack, conversation_id)


async def test_a_cancel_that_finds_no_room_is_tried_again_now_and_then(tmp_path: Path) -> None:
    """Not with every look: whoever cancels many runs to make room would keep the broker busy with nothing else."""
    async with (
        nats_server_running(tmp_path) as server,  # Where no other broker looks after it, too.
        stack_running(server.url, agent=CountingPuppet(), broker={**BROKER, "lease_seconds": 30}) as stack,
    ):
        conversation_id = await stack.conversation()
        async with stack.say_in(conversation_id) as stream:
            run_id = str((await stream.take(1))[0].json["run_id"])
            stack.puppet.say(run_id)
            await stream.take(1)
            with capture_logs() as logs:
                async with full(stack, "RUNS_0"):
                    assert (await stack.fetch("POST", f"/v1/conversations/{conversation_id}/cancel")).status == 200
                    until = asyncio.get_running_loop().time() + 2.5
                    await wait_until(lambda: asyncio.get_running_loop().time() > until)
                    tries = [line for line in logs if line["event"] == "run_not_looked_after"]
                    assert [line["run_id"] for line in tries] == [run_id]
            with contextlib.suppress(Cut):
                await stream.rest()
        assert (await ended(stack, run_id)).status == "cancelled"


async def test_a_message_while_the_log_is_full(stack: Stack) -> None:
    """It is claimed, and said so: not to be repeated. Who follows it is told, and it is executed once, with room."""
    conversation_id = await stack.conversation()
    path = f"/v1/conversations/{conversation_id}/messages"
    async with full(stack, "RUNS_0"):
        refused = await stack.fetch("POST", path, json=message({"chunks": 2, "interval_ms": 0}))
        assert (refused.status, refused.headers["x-should-retry"]) == (503, "false")
        run_id = str(refused.json["run_id"])
        assert "the store is full" in refused.detail
        busy = await stack.fetch("POST", path, json=message("another"))
        assert (busy.status, busy.json["run_id"]) == (409, run_id)
        async with stack.resume(run_id) as stream:
            await told_full(stream, run_id)
        assert len(stream.seen) == 1
    assert (await ended(stack, run_id)).status == "completed"
    assert isinstance(stack.agent, CountingPuppet)
    assert stack.agent.runs_of(conversation_id) == [run_id]
    await takes_messages(stack, conversation_id)


async def test_a_library_writer_whose_log_is_full(stack: Stack) -> None:
    """It is told at once, nothing behind the refused chunk is taken, and with room the run ends as `store_full`."""
    async with Runs(stack.settings.nats_url, settings=stack.settings) as runs:
        with contextlib.suppress(StoreFull):
            async with runs.open(agent_id=new_agent_id()) as run:
                await run.publish(AssistantMessage(content="0"))
                async with stack.resume(run.run_id) as stream, contextlib.AsyncExitStack() as filling:
                    await stream.take(2)
                    await filling.enter_async_context(full(stack, "RUNS_0"))
                    with pytest.raises(StoreFull):
                        await run.publish(AssistantMessage(content="1"))
                    with pytest.raises(StoreFull):
                        await run.publish(AssistantMessage(content="2"))
    assert ((await ended(stack, run.run_id)).error or {})["error_type"] == "store_full"
    assert contents((await whole(stack, run.run_id)).seen) == ["0"]


async def test_a_library_writers_end_waits_for_room(stack: Stack) -> None:
    """Its readers, later ones, too, do not wait with it; once there is room the run is what its writer says it is."""
    async with Runs(stack.settings.nats_url, settings=stack.settings) as runs:
        run = runs.open(agent_id=new_agent_id())
        await run.__aenter__()
        await run.publish(AssistantMessage(content="0"))
        async with stack.resume(run.run_id) as stream:
            await stream.take(2)
            async with full(stack, "RUNS_0"):
                leaving = asyncio.create_task(run.__aexit__(None, None, None))
                await told_full(stream, run.run_id)
                async with stack.resume(run.run_id) as late:
                    await told_full(late, run.run_id)
                assert not leaving.done()
            await leaving
    assert (await ended(stack, run.run_id)).status == "completed"
    assert contents((await whole(stack, run.run_id)).seen) == ["0"]


async def test_a_library_writers_end_that_finds_no_room(stack: Stack) -> None:
    """Leaving the block raises `StoreFull` in the end, and its readers, later ones, too, do not wait for ever."""
    settings = stack.settings.model_copy(update={"write_patience_seconds": 1.0})
    async with Runs(stack.settings.nats_url, settings=settings) as runs:
        run = runs.open(agent_id=new_agent_id())
        await run.__aenter__()
        await run.publish(AssistantMessage(content="0"))
        async with stack.resume(run.run_id) as stream:
            await stream.take(2)
            async with full(stack, "RUNS_0"):
                async with asyncio.timeout(5):
                    with pytest.raises(StoreFull):
                        await run.__aexit__(None, None, None)
                await told_full(stream, run.run_id)
                async with stack.resume(run.run_id) as late:
                    await told_full(late, run.run_id)
    record = await ended(stack, run.run_id)
    assert (record.error or {})["error_type"] == "run_lost"
    assert contents((await whole(stack, run.run_id)).seen) == ["0"]


async def test_a_writer_over_http_whose_log_is_full(stack: Stack) -> None:
    """507 to its chunks and to its end, which tells its readers; sent again when there is room, both are stored."""
    run = await writer_of(stack.broker_base)
    assert (await run.append(0)).status == 200
    async with stack.resume(run.run_id) as stream:
        await stream.take(2)
        async with full(stack, "RUNS_0"):
            refused = await run.append(1, expected_index=1)
            assert (refused.status, refused.json["error_type"], refused.json["index"]) == (507, "store_full", 1)
            refused = await run.end()
            assert (refused.status, refused.json["error_type"]) == (507, "store_full")
            await told_full(stream, run.run_id)
    assert (await run.append(1, expected_index=1)).status == 200
    assert (await run.end()).status == 200
    assert (await ended(stack, run.run_id)).status == "completed"
    assert contents((await whole(stack, run.run_id)).seen) == [said(number)["content"] for number in range(2)]


# -- the index ------------------------------------------------------------------------------------------------------


async def test_no_living_run_is_lost_because_the_index_is_full(stack: Stack) -> None:
    """Its lease cannot be renewed, and no watchdog takes that for its death: it goes on, and so does a writer's."""
    written = await writer_of(stack.broker_base)
    async with stack.live(1) as (run_id, stream):
        async with full_index(stack):
            for number in range(3):
                lapsed = asyncio.get_running_loop().time() + 1.2 * LEASE_SECONDS
                await wait_until(lambda at=lapsed: asyncio.get_running_loop().time() > at)  # type: ignore[misc]
                stack.puppet.say(run_id)
                await stream.take(1)
                assert (await written.append(number)).status == 200
        stack.puppet.finish(run_id)
        assert (await stream.rest())[-1] == DONE
    assert (await stack.record(run_id)).stop_reason == "end_turn"
    assert (await written.end()).status == 200
    assert (await ended(stack, written.run_id)).status == "completed"


async def test_a_sign_of_life_while_the_index_is_full(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be stored, and its writer is told what is wrong; with room it can."""
    run = await writer_of(stack.broker_base)

    async def refuse(*_: object, **__: object) -> int:
        raise StoreFull("A limit of the stream is reached.")

    signs: list[Reply] = []

    async def is_refused() -> bool:
        signs.append(await run.post("lease"))
        return signs[-1].status != 200  # Nothing is stored while the last one is fresh.

    with monkeypatch.context() as patch:
        # In a real one a lease that is written anew has the place of the one before, and mostly fits.
        patch.setattr(Index, "renew_lease", refuse)
        await wait_until(is_refused, LEASE_SECONDS)
        assert (signs[-1].status, signs[-1].json["error_type"]) == (507, "store_full"), signs[-1]
    assert (await run.post("lease")).status == 200
    assert (await run.end()).status == 200


async def test_a_run_that_ends_while_the_index_is_full(stack: Stack) -> None:
    """Its readers are told after what it said, and cut before `[DONE]`; with room it ends as it had come to."""
    conversation_id = await stack.conversation()
    async with stack.say_in(conversation_id) as stream:
        run_id = str((await stream.take(1))[0].json["run_id"])
        async with full_index(stack):
            stack.puppet.say(run_id, 2)
            stack.puppet.finish(run_id)
            await told_full(stream, run_id)
            assert contents(stream.seen) == ["0 ", "1 "]
            async with stack.resume(run_id) as late:
                await told_full(late, run_id)
            assert late.seen[:-1] == stream.seen[:-1]
    assert (await ended(stack, run_id)).stop_reason == "end_turn"
    await takes_messages(stack, conversation_id)


async def test_a_message_while_the_index_is_full(stack: Stack) -> None:
    """It is refused and counted, and nothing of it is there: with room it is sent again, and executed once."""
    conversation_id, agent_id, otid = await stack.conversation(), new_agent_id(), new_otid()
    body = {"messages": [{"role": "user", "content": '{"chunks": 1}', "otid": otid}], "background": True}
    path = f"/v1/agents/{agent_id}/messages/stream"
    counted = await times_full(stack)
    async with full_index(stack):
        for where, what in ((path, body), (f"/v1/conversations/{conversation_id}/messages", message("x"))):
            refused = await stack.fetch("POST", where, json=what)
            assert (refused.status, refused.detail, refused.headers["x-should-retry"]) == (503, REFUSED, "false")
            assert "run_id" not in refused.json
        assert await stack.run_of(otid) is None
        assert await times_full(stack) >= counted + 2
    reply = await stack.fetch("POST", f"/v1/agents/{agent_id}/messages", json=body)
    assert reply.status == 200
    assert isinstance(stack.agent, CountingPuppet)
    assert len(stack.agent.runs_of(agent_id)) == 1
    await takes_messages(stack, conversation_id)


# -- the work queue -------------------------------------------------------------------------------------------------


async def test_a_message_while_the_work_queue_is_full(stack: Stack) -> None:
    """It is claimed and begun, and said so; whoever follows it is told; it is executed once when there is room."""
    conversation_id = await stack.conversation()
    path = f"/v1/conversations/{conversation_id}/messages"
    async with full(stack, WORK):
        refused = await stack.fetch("POST", path, json=message({"chunks": 2, "interval_ms": 0}))
        assert (refused.status, refused.headers["x-should-retry"]) == (503, "false")
        run_id = str(refused.json["run_id"])
        assert "the store is full" in refused.detail
        async with stack.resume(run_id) as stream:
            await told_full(stream, run_id)
        assert [event.message_type for event in stream.seen] == ["ping", "error_message"]
    record = await ended(stack, run_id)
    assert record.status == "completed"
    assert isinstance(stack.agent, CountingPuppet)
    assert stack.agent.runs_of(conversation_id) == [run_id]
    await takes_messages(stack, conversation_id)


# -- all of it ------------------------------------------------------------------------------------------------------

ACCOUNT = """
accounts { RUNSTREAM { jetstream { max_file: 4MB, max_mem: 64MB }, users: [{ user: runstream, password: test }] } }
no_auth_user: runstream
"""


async def test_an_account_that_is_full(tmp_path: Path) -> None:
    """Nothing at all can be written: readers are told, messages refused, no run lost; with room each ends as it did."""
    async with (
        EmbeddedServer(tmp_path, extra_config=ACCOUNT) as server,
        stack_running(server.url, agent=CountingPuppet(), broker=BROKER) as stack,
        stack.live(2) as (ending_id, ending),
        stack.live(2) as (failing_id, failing),
        stack.live(2) as (living_id, living),
    ):
        await stack.api("STREAM.CREATE.BALLAST", {"name": "BALLAST", "subjects": ["ballast.>"], "storage": "file"})
        await filled(stack, "ballast.", (100_000, 1000, 100, 10, 0))
        stack.puppet.finish(ending_id)
        stack.puppet.say(failing_id)
        await asyncio.gather(told_full(ending, ending_id), told_full(failing, failing_id))
        async with stack.resume(ending_id) as late:
            await told_full(late, ending_id)
        refused = await stack.fetch("POST", f"/v1/agents/{new_agent_id()}/messages", json=message("x"))
        assert (refused.status, refused.detail) == (503, REFUSED)
        lapsed = asyncio.get_running_loop().time() + 2 * LEASE_SECONDS
        await wait_until(lambda: asyncio.get_running_loop().time() > lapsed)
        assert (await stack.record(living_id)).status == "running"
        await stack.api("STREAM.DELETE.BALLAST")
        assert (await ended(stack, ending_id)).stop_reason == "end_turn"
        assert ((await ended(stack, failing_id)).error or {})["error_type"] == "store_full"
        stack.puppet.say(living_id)
        await living.take(1)
        stack.puppet.finish(living_id)
        assert (await living.rest())[-1] == DONE


async def test_a_disk_that_is_full() -> None:
    """Its writer gives up in bounded time, and who follows is told; a restart of the server, with room, mends it."""
    broker = {**BROKER, "request_timeout_seconds": 0.3, "write_patience_seconds": 1.0}
    async with (
        small_disk(32 * 2**20) as disk,
        EmbeddedServer(disk.path / "nats") as server,
        stack_running(server.url, broker=broker) as stack,
        stack.live(2) as (run_id, stream),
    ):
        disk.fill()
        stack.puppet.say(run_id, 200, size=20_000)
        with pytest.raises(Cut):
            await stream.rest(TOLD_SECONDS)
        last = stream.seen[-1]
        assert (last.event, last.json["error_type"], last.json["seq_id"]) == ("error", "store_unavailable", None)
        disk.empty()
        await server.stop()
        await server.start()
        await stack.is_back()
        assert (await ended(stack, run_id)).status == "failed"
        numbers = [int(text.split()[0]) for text in contents((await whole(stack, run_id)).seen)]
        assert numbers == [*range(len(numbers))]
        assert len(numbers) >= len(contents(stream.seen))


async def test_a_run_at_its_own_limit(tmp_path: Path) -> None:
    """It ends as `run_too_long`, after all the chunks that fit, while there is room for its end."""
    settings = {**BROKER, "max_run_messages": 20}
    async with EmbeddedServer(tmp_path) as server, stack_running(server.url, broker=settings) as stack:
        _, events = await stack.finished({"chunks": 30, "interval_ms": 0})
    assert events[-1] == DONE
    assert events[-2].json["error_type"] == "run_too_long"
    assert len(contents(events)) == 20 - 8 - 2  # less the ending's room, the ping and the attempt
