"""Runs that this process writes: how a block's end is its run's end, whatever happens to either."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
import pytest_asyncio

from runstream.broker.connection import Message
from runstream.broker.errors import (
    AgentFailed,
    ChunkTooLarge,
    Conflict,
    ConversationDeleted,
    Fenced,
    InvalidSettings,
    RunCancelled,
    RunTooLong,
    StoreFull,
    StoreUnavailable,
    TopologyError,
    Unavailable,
)
from runstream.broker.keys import lease_key, request_key
from runstream.broker.log import ENDING, entry_of
from runstream.broker.publisher import Publisher
from runstream.broker.runs import Run, Runs
from runstream.broker.service import Broker
from runstream.broker.topology import INDEX_STREAM, WORK_STREAM, LogAddress, provision
from runstream.schemas import (
    AssistantMessage,
    ConversationRecord,
    ErrorMessage,
    InvalidChunk,
    Kind,
    Ping,
    RunRecord,
    StopReason,
    UsageStatistics,
    new_agent_id,
    new_conversation_id,
    new_run_id,
)
from tests.support.core import Core, kinds, said, texts
from tests.support.faults import replaced
from tests.support.nats import NatsServer
from tests.support.outages import paused, stopped
from tests.support.runs import answer, enqueue_again, over, queue_empty, scripted, tailing
from tests.support.waiting import wait_until

AGENT = new_agent_id()
GOOD = ["ping", "data", "data", "plain", "plain", "end"]
"""The log of a run that said two things and ended well."""


@pytest_asyncio.fixture
async def runs(core: Core) -> AsyncIterator[Runs]:
    """A platform's connection."""
    async with Runs(core.settings.nats_url, settings=core.settings) as entered:
        yield entered


@contextlib.asynccontextmanager
async def runs_with(core: Core, **settings: Any) -> AsyncIterator[Runs]:
    """A platform's connection with settings of its own."""
    async with Runs(core.settings.nats_url, settings=core.settings.model_copy(update=settings)) as entered:
        yield entered


async def record_of(core: Core, run_id: str) -> RunRecord:
    stored = await core.index.run("default", run_id)
    assert stored is not None, f"{run_id} is not in the index"
    return stored.value


async def log_of(core: Core, run_id: str) -> list[str]:
    """The kinds of a run's log, after a check that it is whole, and has one ending that nothing follows."""
    found = await core.stored(LogAddress(run_id, 0))
    assert [entry_of(message).index for message in found] == list(range(len(found)))
    assert kinds(found).count(Kind.END) == 1
    assert kinds(found)[-1] == Kind.END
    marked = [ENDING in message.headers for message in found]
    assert marked == sorted(marked)
    return kinds(found)


async def ending_of(core: Core, run_id: str) -> list[dict[str, Any]]:
    """The messages of a run's ending."""
    await log_of(core, run_id)
    found = await core.stored(LogAddress(run_id, 0))
    return [json.loads(message.body) for message in found[:-1] if ENDING in message.headers]


async def ended_with(core: Core, run_id: str) -> tuple[str, str, str | None]:
    """A run's status, stop reason and error type, after a check that log and record agree, and nothing is left."""
    record = await record_of(core, run_id)
    stop, *rest = await ending_of(core, run_id)
    error = next((part for part in rest if part["message_type"] == "error_message"), None)
    assert stop["stop_reason"] == record.stop_reason
    assert (error or {}).get("error_type") == (record.error or {}).get("error_type")
    assert not await core.holds(lease_key(run_id))
    return record.status, str(record.stop_reason), None if error is None else str(error["error_type"])


async def take_over(core: Core, run_id: str) -> None:
    """Let somebody else have the run."""
    address = LogAddress(run_id, 0)
    last = await core.jetstream.last_message(address.stream, address.subject)
    async with Publisher.after(last, core.jetstream, address, core.settings) as other:
        await other.publish(b'{"other":1}')


Body = Callable[[Run], Awaitable[object]]


async def silence(_: Run) -> None:
    await asyncio.Event().wait()


async def burst(run: Run) -> None:
    for number in range(1_000_000):
        await run.publish(said(number))


# -- a run that ends well -----------------------------------------------------------------------------------------


async def test_what_is_published_is_what_followers_see(core: Core, runs: Runs) -> None:
    """Structs and mappings, in order, each with the sequence that `publish` returned; a ping of the agent's is not."""
    odd = {"message_type": "of_tomorrow", "content": "2", "seq_id": 7, "new_key": [1]}
    usage = UsageStatistics(total_tokens=7)
    async with runs.open(agent_id=AGENT) as run, tailing(core, LogAddress(run.run_id, 0)) as follower:
        seqs = [await run.publish(chunk) for chunk in (said(0), Ping(), said(1), odd)]
        held = [await run.publish(chunk) for chunk in (StopReason(stop_reason="max_steps"), usage)]
        await wait_until(lambda: follower.said() == 3)
        assert follower.kinds() == ["ping", "data", "data", "data"]
        assert [seq for seq in seqs if seq is not None] == [entry.seq for entry in follower.entries[1:]]
        assert (seqs[1], held) == (None, [None, None])
    bodies = [json.loads(entry.body) for entry in follower.entries[1:]]
    assert [body["content"] for body in bodies] == ["0", "1", "2"]
    assert bodies[2] == {"message_type": "of_tomorrow", "content": "2", "new_key": [1], "run_id": run.run_id}
    stop, counted = await ending_of(core, run.run_id)
    assert (stop["stop_reason"], counted["total_tokens"]) == ("max_steps", 7)
    assert await ended_with(core, run.run_id) == ("completed", "max_steps", None)
    record = await record_of(core, run.run_id)
    assert record.usage == usage
    assert record.ttft_ns is not None
    assert record.total_duration_ns is not None
    assert 0 < record.ttft_ns <= record.total_duration_ns


async def test_a_block_that_gives_no_stop_reason_ends_its_turn(core: Core, runs: Runs) -> None:
    """Leaving the block is success: `end_turn`, with a usage of zeros."""
    async with runs.open(agent_id=AGENT) as run:
        await run.publish(said(0))
        await run.publish(said(1))
    assert await log_of(core, run.run_id) == GOOD
    assert await ended_with(core, run.run_id) == ("completed", "end_turn", None)
    record = await record_of(core, run.run_id)
    assert (record.background, record.run_type, record.agent_id) == (True, "library", AGENT)


async def test_a_run_may_say_nothing(core: Core, runs: Runs) -> None:
    """An empty block is a run of a first message and an ending."""
    async with runs.open(agent_id=AGENT, background=False) as run:
        pass
    assert await log_of(core, run.run_id) == ["ping", "plain", "plain", "end"]
    record = await record_of(core, run.run_id)
    assert (record.background, record.ttft_ns, record.usage) == (False, None, UsageStatistics())


async def test_a_run_is_running_while_its_block_lasts(core: Core, runs: Runs) -> None:
    """The record has the first sequence, the conversation is the run's, and is free when the block is left."""
    conversation_id = new_conversation_id()
    async with runs.open(agent_id=AGENT, conversation_id=conversation_id) as run:
        record = await record_of(core, run.run_id)
        stored = await core.index.conversation("default", conversation_id)
        assert stored is not None
        assert (record.status, stored.value.active_run, stored.value.agent_id) == ("running", run.run_id, AGENT)
        assert record.first_seq == (await core.stored(LogAddress(run.run_id, 0)))[0].seq
        assert not await core.holds(request_key("default", run.run_id))
    async with runs.open(agent_id=AGENT, conversation_id=conversation_id) as following:
        assert following.run_id != run.run_id


async def test_an_error_that_is_published_fails_the_run(core: Core, runs: Runs) -> None:
    """The error is the run's, with its type's stop reason, though the block is left as if all were well."""
    async with runs.open(agent_id=AGENT) as run:
        await run.publish(ErrorMessage(run_id=run.run_id, error_type="llm_timeout", message="too slow"))
    assert await ended_with(core, run.run_id) == ("failed", "llm_api_error", "llm_timeout")


async def test_concurrent_calls_are_stored_in_their_order(core: Core, runs: Runs) -> None:
    """Many tasks may publish at once, and each gets the sequence of its own chunk."""
    async with runs.open(agent_id=AGENT) as run:
        seqs = await asyncio.gather(*(run.publish(said(number)) for number in range(2000)))
    found = await core.stored(LogAddress(run.run_id, 0))
    assert texts(found) == [str(number) for number in range(2000)]
    assert seqs == [message.seq for message in found[1:2001]]


async def test_fifty_runs_in_one_process(core: Core, runs: Runs) -> None:
    """Runs side by side are each whole, and none knows of another."""

    async def one(number: int) -> str:
        async with runs.open(agent_id=AGENT, conversation_id=new_conversation_id()) as run:
            for at in range(20):
                await run.publish(said(1000 * number + at))
        return run.run_id

    run_ids = await asyncio.gather(*(one(number) for number in range(50)))
    for number, run_id in enumerate(run_ids):
        assert texts(await core.stored(LogAddress(run_id, 0))) == [str(1000 * number + at) for at in range(20)]
        assert await ended_with(core, run_id) == ("completed", "end_turn", None)


# -- refused before anything is stored ----------------------------------------------------------------------------


async def test_a_busy_conversation_is_refused(core: Core, runs: Runs) -> None:
    """The run that holds it is named, and is not disturbed."""
    conversation_id = new_conversation_id()
    async with runs.open(agent_id=AGENT, conversation_id=conversation_id, otids=["a", ""]) as run:
        with pytest.raises(Conflict) as refused:
            async with runs.open(agent_id=AGENT, conversation_id=conversation_id, otids=["b"]):
                raise AssertionError
        assert (refused.value.run_id, refused.value.otid, refused.value.shares_otid) == (run.run_id, "a", False)
        assert f"The conversation is busy until run {run.run_id} has ended." in str(refused.value)
    assert await ended_with(core, run.run_id) == ("completed", "end_turn", None)


async def test_a_deleted_conversation_is_refused(core: Core, runs: Runs) -> None:
    """It is named, and the process may open the next run."""
    conversation_id = new_conversation_id()
    record = ConversationRecord(tenant="default", id=conversation_id, agent_id=AGENT, deleted=True)
    await core.index.create_conversation(record)
    with pytest.raises(ConversationDeleted, match=conversation_id):
        async with runs.open(agent_id=AGENT, conversation_id=conversation_id):
            raise AssertionError
    async with runs.open(agent_id=AGENT) as run:
        pass
    assert await ended_with(core, run.run_id) == ("completed", "end_turn", None)


@pytest.mark.parametrize("again", [["1", "2"], ["2", "1"], ["2"]])
async def test_an_otid_is_answered_once(runs: Runs, again: list[str]) -> None:
    """The same otids, or some of them, are refused during the run and after it, with the run that has them."""
    scope = new_agent_id()
    first, second = [f"{scope}-{number}" for number in "12"], [f"{scope}-{number}" for number in again]
    async with runs.open(agent_id=scope, otids=first) as run:
        with pytest.raises(Conflict) as during:
            await runs.open(agent_id=scope, otids=second).__aenter__()
    with pytest.raises(Conflict) as after:
        await runs.open(agent_id=scope, otids=second).__aenter__()
    assert [(error.value.run_id, error.value.shares_otid) for error in (during, after)] == [(run.run_id, True)] * 2
    words = "The same request, by its otids," if again == ["1", "2"] else f"The otid '{scope}-2' belongs to another"
    assert all(words in str(error.value) and run.run_id in repr(error.value) for error in (during, after))


@pytest.mark.parametrize(
    "wrong",
    [
        {"agent_id": "agent-1"},
        {"agent_id": AGENT.upper()},
        {"agent_id": AGENT, "conversation_id": "default"},
        {"agent_id": AGENT, "conversation_id": AGENT},
        {"agent_id": AGENT, "otids": ["a", "a"]},
        {"agent_id": AGENT, "otids": ["a" * 513]},
        {"agent_id": AGENT, "otids": [str(number) for number in range(65)]},
    ],
)
async def test_ids_that_are_none_are_refused(runs: Runs, wrong: Mapping[str, Any]) -> None:
    """Whoever mistakes one id for another hears it at once."""
    with pytest.raises(ValueError, match=r"id is|otid"):
        runs.open(**wrong)


async def test_publishing_is_for_the_block(runs: Runs) -> None:
    """Before the block and after it there is no run to publish to, and a run is entered once."""
    run = runs.open(agent_id=AGENT)
    with pytest.raises(RuntimeError, match="not open"):
        await run.publish(said(0))
    async with run:
        pass
    with pytest.raises(RuntimeError, match="not open"):
        await run.publish(said(0))
    with pytest.raises(RuntimeError, match="opened before"):
        await run.__aenter__()


async def test_no_nats() -> None:
    """Where NATS is not is said with the URL, and without the password in it."""
    with pytest.raises(Unavailable, match=r"Cannot reach NATS at nats://127.0.0.1:1") as error:
        await Runs("nats://user:secret@127.0.0.1:1").__aenter__()
    assert "secret" not in str(error.value)
    with pytest.raises(InvalidSettings):
        Runs("http://127.0.0.1:1")


async def test_a_store_without_streams(core: Core) -> None:
    """A platform's process makes no streams: it says that a broker does, and with how many shards."""
    with pytest.raises(TopologyError, match=r"RUNS_1 is not there\. A broker makes the streams"):
        async with runs_with(core, shards=2):
            pass
    for stream in (WORK_STREAM, INDEX_STREAM, "RUNS_0"):
        await core.jetstream.api(f"STREAM.DELETE.{stream}", None)
    try:
        with pytest.raises(TopologyError, match="A broker makes the streams"):
            async with runs_with(core):
                pass
    finally:
        await provision(core.jetstream, core.settings)


# -- chunks that are refused --------------------------------------------------------------------------------------


async def test_a_chunk_that_is_refused_is_not_the_end(core: Core, runs: Runs) -> None:
    """What is no chunk, or too large, is refused and stores nothing; the run goes on."""
    async with runs.open(agent_id=AGENT) as run:
        await run.publish(said(0))
        for wrong in ({}, {1: 2}, "text"):
            with pytest.raises(InvalidChunk):
                await run.publish(wrong)  # type: ignore[arg-type]
        with pytest.raises(ChunkTooLarge):
            await run.publish(AssistantMessage(content="x" * 2**20))
        await run.publish(said(1))
    assert await log_of(core, run.run_id) == GOOD


async def test_a_run_that_is_too_long_still_ends(core: Core) -> None:
    """There is room for an ending, whether the block takes the refusal for its end or not."""
    async with runs_with(core, max_run_messages=16) as runs:
        with pytest.raises(RunTooLong):
            async with runs.open(agent_id=AGENT) as run:
                await burst(run)
        async with runs.open(agent_id=AGENT) as other:
            with pytest.raises(RunTooLong):
                await burst(other)
    assert await ended_with(core, run.run_id) == ("failed", "error", "run_too_long")
    assert await ended_with(core, other.run_id) == ("completed", "end_turn", None)


async def test_a_chunk_that_is_missing_is_told(core: Core, runs: Runs) -> None:
    """A store that is full fails the run, even if the block ignores it: nobody takes the answer for whole."""
    info = await core.jetstream.api("STREAM.INFO.RUNS_0", None)

    async def careless(run: Run) -> None:
        await core.jetstream.api("STREAM.UPDATE.RUNS_0", {**info["config"], "max_msgs_per_subject": 2})
        await run.publish(said(0))
        for number in (1, 2):
            with pytest.raises(StoreFull):
                await run.publish(said(number))
        await core.jetstream.api("STREAM.UPDATE.RUNS_0", info["config"])

    run = runs.open(agent_id=AGENT)
    with pytest.raises(StoreFull):
        await block(run, careless)
    assert await ended_with(core, run.run_id) == ("failed", "error", "store_full")
    assert texts(await core.stored(LogAddress(run.run_id, 0))) == ["0"]


# -- blocks that raise --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "error_type", "message"),
    [
        (ZeroDivisionError("by zero"), "internal_error", "An error occurred during agent execution."),
        (AgentFailed("llm_rate_limit"), "llm_rate_limit", "Rate limit exceeded"),
        (AgentFailed("my_own", message="Mine."), "my_own", "Mine."),
        (TimeoutError(), "llm_timeout", "timed out"),
        (ExceptionGroup("tasks", [AgentFailed("my_own")]), "my_own", ""),
        (RunCancelled(run_id=new_run_id()), "internal_error", "An error occurred during agent execution."),
    ],
)
async def test_what_a_block_raises_fails_its_run(
    core: Core, runs: Runs, error: Exception, error_type: str, message: str
) -> None:
    """The clients get an error, and the caller the exception itself."""

    async def failing(run: Run) -> None:
        await run.publish(said(0))
        raise error

    run = runs.open(agent_id=AGENT)
    with pytest.raises(type(error)) as raised:
        await block(run, failing)
    assert raised.value is error
    assert (await ended_with(core, run.run_id))[::2] == ("failed", error_type)
    told = (await ending_of(core, run.run_id))[1]
    assert message in told["message"]
    assert told["detail"] is None


async def test_a_task_that_is_cancelled_stays_cancelled(core: Core, runs: Runs) -> None:
    """A shutdown ends the run as interrupted, and the cancellation goes on."""
    run = runs.open(agent_id=AGENT)
    task = asyncio.create_task(block(run, silence))
    await wait_until(lambda: open_in(runs) == 1)
    task.cancel("shutdown")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert await ended_with(core, run.run_id) == ("failed", "error", "stream_task_cancelled")


@pytest.mark.parametrize("answers", range(1, 10))
async def test_an_open_that_is_cancelled_holds_nothing(core: Core, runs: Runs, answers: int) -> None:
    """Whichever answer of NATS it waits for then: the conversation is free, and no run is left without an end."""
    conversation_id = new_conversation_id()
    run = runs.open(agent_id=AGENT, conversation_id=conversation_id)
    assert runs._store is not None
    connection = runs._store.jetstream.connection
    ask, count = connection.request, 0

    async def counting(*args: Any, **options: Any) -> Message:
        nonlocal count
        count += 1
        if count == answers:
            task.cancel()
        return await ask(*args, **options)

    replaced(connection, "request", counting)
    task = asyncio.create_task(block(run, silence))
    await wait_until(lambda: count >= answers)
    with pytest.raises(asyncio.CancelledError):
        await task
    stored = await core.index.run("default", run.run_id)
    assert stored is None or await ended_with(core, run.run_id) == ("failed", "error", "stream_task_cancelled")
    async with runs.open(agent_id=AGENT, conversation_id=conversation_id):
        pass


async def test_a_process_that_exits_says_so(core: Core, runs: Runs) -> None:
    """`sys.exit` within a block is no error of the agent's."""
    with pytest.raises(KeyboardInterrupt):
        async with runs.open(agent_id=AGENT) as run:
            raise KeyboardInterrupt
    assert await ended_with(core, run.run_id) == ("failed", "error", "stream_task_cancelled")


async def test_leaving_runs_ends_what_is_open(core: Core) -> None:
    """Blocks that are open are cancelled and their runs ended, those of tasks that hear nothing, too."""

    async def deaf(_: Run) -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
                return
            if asked.is_set():
                return

    asked = asyncio.Event()
    async with runs_with(core) as runs:
        opened = [runs.open(agent_id=AGENT) for _ in range(4)]
        bodies = [silence, thinking, burst, deaf]
        tasks = [asyncio.create_task(block(run, body)) for run, body in zip(opened, bodies, strict=True)]
        await wait_until(lambda: open_in(runs) == 4)
        late = runs.open(agent_id=AGENT)
    with pytest.raises(RuntimeError, match="within"):
        runs.open(agent_id=AGENT)
    with pytest.raises(RuntimeError, match="within"):
        await late.__aenter__()
    for run in opened:
        assert await ended_with(core, run.run_id) == ("failed", "error", "stream_task_cancelled")
    asked.set()
    tasks[-1].cancel()
    await asyncio.wait(tasks)
    assert [task.cancelled() for task in tasks] == [True, True, True, False]


async def block(run: Run, body: Body) -> None:
    """Enter a run and do something in it."""
    async with run:
        await body(run)


def open_in(runs: Runs) -> int:
    """How many blocks are open."""
    return 0 if runs._store is None else len(runs._store.open)


# -- cancelled ----------------------------------------------------------------------------------------------------


async def thinking(_: Run) -> None:
    """Wait for something in tasks of its own."""
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.Event().wait())


async def many_voices(run: Run) -> None:
    """Let tasks publish, who hear of the cancel by themselves."""
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(burst(run))


async def stubborn(_: Run) -> None:
    """Swallow the cancellation, and leave as if nothing had been."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()


async def crashing(_: Run) -> None:
    """Fail over the cancellation."""
    try:
        await asyncio.Event().wait()
    finally:
        raise ZeroDivisionError


async def talkative(run: Run) -> None:
    """Want to say a last word."""
    try:
        await asyncio.Event().wait()
    finally:
        await run.publish(said(0))


@pytest.mark.parametrize("body", [silence, burst, thinking, many_voices, stubborn, crashing, talkative])
async def test_a_cancel_reaches_the_block_wherever_it_is(core: Core, runs: Runs, body: Body) -> None:
    """Within a second the block has raised RunCancelled, and the log has one stop reason, and nothing after the end."""
    conversation_id = new_conversation_id()
    run = runs.open(agent_id=AGENT, conversation_id=conversation_id)

    async def cancelled() -> int:
        with pytest.raises(RunCancelled) as raised:
            await block(run, body)
        assert raised.value.facts == {"run_id": run.run_id}
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    task = asyncio.create_task(cancelled())
    await wait_until(lambda: open_in(runs) == 1)
    await core.index.wish_cancelled("default", run.run_id)
    async with asyncio.timeout(1):
        assert await task == 0
    assert await ended_with(core, run.run_id) == ("cancelled", "cancelled", None)
    assert (await log_of(core, run.run_id))[-2:] == ["plain", "end"]
    assert not await core.holds(f"cancel.{run.run_id}")
    async with runs.open(agent_id=AGENT, conversation_id=conversation_id):
        pass


async def test_a_cancelled_run_ends_before_its_block_does(core: Core, runs: Runs) -> None:
    """Whoever follows is not kept waiting by what the block does with its cancellation."""
    may_leave = asyncio.Event()

    async def slow(_: Run) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await may_leave.wait()

    run = runs.open(agent_id=AGENT)
    task = asyncio.create_task(block(run, slow))
    await wait_until(lambda: open_in(runs) == 1)
    await core.index.wish_cancelled("default", run.run_id)
    await over(core, await record_of(core, run.run_id), 1)
    with pytest.raises(RunCancelled):
        await run.publish(said(0))
    may_leave.set()
    with pytest.raises(RunCancelled):
        await task
    assert await ended_with(core, run.run_id) == ("cancelled", "cancelled", None)


async def test_a_cancel_and_a_shutdown_at_once(core: Core, runs: Runs) -> None:
    """A cancellation from outside is not taken for the run's own: the run is cancelled, and so is the task."""
    interrupted = asyncio.Event()

    async def twice(_: Run) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            interrupted.set()
            await asyncio.Event().wait()

    run = runs.open(agent_id=AGENT)
    task = asyncio.create_task(block(run, twice))
    await wait_until(lambda: open_in(runs) == 1)
    await core.index.wish_cancelled("default", run.run_id)
    await interrupted.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await ended_with(core, run.run_id) == ("cancelled", "cancelled", None)


async def test_a_block_may_cancel_its_own_run(core: Core, runs: Runs) -> None:
    """A platform with a stop button of its own raises what a cancel would have raised."""
    run = runs.open(agent_id=AGENT)

    async def stop(run: Run) -> None:
        raise RunCancelled(run_id=run.run_id)

    with pytest.raises(RunCancelled):
        await block(run, stop)
    assert await ended_with(core, run.run_id) == ("cancelled", "cancelled", None)


# -- taken over ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [0, 1])
async def test_a_writer_that_was_taken_over_is_fenced(core: Core, runs: Runs, chunks: int) -> None:
    """Its next chunk is refused, or its end, and it writes nothing more."""

    async def overtaken(run: Run) -> None:
        await take_over(core, run.run_id)
        for number in range(chunks):
            await run.publish(said(number))

    run = runs.open(agent_id=AGENT)
    with pytest.raises(Fenced):
        await block(run, overtaken)
    assert kinds(await core.stored(LogAddress(run.run_id, 0))) == ["ping", "data"]


@pytest.mark.parametrize("body", [silence, stubborn, thinking])
async def test_a_silent_writer_hears_that_its_run_is_gone(core: Core, runs: Runs, body: Body) -> None:
    """Who says nothing finds out at the next renewal of its lease."""
    run = runs.open(agent_id=AGENT)
    task = asyncio.create_task(block(run, body))
    await wait_until(lambda: open_in(runs) == 1)
    await take_over(core, run.run_id)
    await core.index.forget(run.run_id)
    with pytest.raises(Fenced):
        async with asyncio.timeout(2):
            await task
    assert kinds(await core.stored(LogAddress(run.run_id, 0))) == ["ping", "data"]


async def test_no_worker_executes_a_run_of_the_librarys(core: Core, runs: Runs) -> None:
    """Whoever puts it on the work queue, its writer is not disturbed."""
    async with Broker(core.settings, agent=scripted(*answer(3))), runs.open(agent_id=AGENT) as run:
        await enqueue_again(core, await record_of(core, run.run_id))
        await queue_empty(core)
        await run.publish(said(0))
        await run.publish(said(1))
    assert await log_of(core, run.run_id) == GOOD


# -- NATS away ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outage", [stopped, paused])
async def test_an_outage_loses_nothing(core: Core, nats_server: NatsServer, outage: Any) -> None:
    """NATS away for two leases in mid-run: the writer goes on, and its run is whole, with a broker beside it."""
    async with Broker(core.settings, agent=None), runs_with(core) as runs:
        async with runs.open(agent_id=AGENT) as run:
            await run.publish(said(0))
            async with outage(nats_server):
                publishing = asyncio.create_task(run.publish(said(1)))
                await asyncio.wait([publishing], timeout=2 * core.settings.lease_seconds)
                assert not publishing.done()
            assert await publishing is not None
            await run.publish(said(2))
        await wait_until(lambda: core.connection.is_connected)
        assert texts(await core.stored(LogAddress(run.run_id, 0))) == ["0", "1", "2"]
        assert await ended_with(core, run.run_id) == ("completed", "end_turn", None)


async def test_an_end_that_cannot_be_stored_is_told(core: Core, nats_server: NatsServer) -> None:
    """The block is left in bounded time, with StoreUnavailable or what it raised itself, and a broker ends the runs.

    What was sent when NATS went away may be stored when it returns: then the run ends as told, else as lost.
    """
    async with runs_with(core, write_patience_seconds=0.5) as runs:
        first, second = runs.open(agent_id=AGENT), runs.open(agent_id=AGENT)
        await first.__aenter__()
        await second.__aenter__()
        async with stopped(nats_server), asyncio.timeout(5):
            with pytest.raises(StoreUnavailable, match="end"):
                await first.__aexit__(None, None, None)
            error = ZeroDivisionError()
            await second.__aexit__(ZeroDivisionError, error, None)
    await wait_until(lambda: core.connection.is_connected)
    async with Broker(core.settings, agent=None):
        for run, told in ((first, ("completed", "end_turn", None)), (second, ("failed", "error", "internal_error"))):
            await over(core, await record_of(core, run.run_id))
            assert await ended_with(core, run.run_id) in (told, ("failed", "error", "run_lost"))
