"""Executing runs: each once, from its first message to its end, whatever the agent does."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field

import msgspec
import pytest
import pytest_asyncio

from runstream.broker.agents import Agent
from runstream.broker.agents.demo import demo
from runstream.broker.connection import Message, Subscription
from runstream.broker.errors import AgentFailed, Fenced, StoreRefused, Unavailable
from runstream.broker.lease import Lease
from runstream.broker.log import KIND, entry_of
from runstream.broker.queue import Task, WorkQueue
from runstream.broker.receiving import Heard
from runstream.broker.service import Broker
from runstream.broker.topology import LogAddress
from runstream.broker.watchdog import Watchdog
from runstream.schemas import (
    MESSAGE_TYPES,
    AssistantMessage,
    Chunk,
    ErrorMessage,
    Kind,
    Ping,
    RequestConfig,
    RunRecord,
    RunRequest,
    StopReason,
    UsageStatistics,
    new_conversation_id,
    new_run_id,
)
from tests.support.core import Core, kinds, record_of, request_of, said, texts
from tests.support.nats import NatsServer
from tests.support.outages import paused, stopped
from tests.support.runs import (
    GOOD_END,
    Line,
    active_run,
    answer,
    empty_queue,
    enqueue_again,
    following,
    over,
    queue_empty,
    scripted,
    submit,
)
from tests.support.waiting import wait_until

KNOBS = {"chunks": 5, "interval_ms": 1}


@pytest_asyncio.fixture(autouse=True)
async def _queue(core: Core) -> AsyncIterator[None]:
    """Each test begins with an empty queue."""
    await empty_queue(core)
    yield


def broker(core: Core, agent: Agent, *, worker_concurrency: int = 1000) -> Broker:
    settings = core.settings.model_copy(update={"worker_concurrency": worker_concurrency})
    return Broker(settings, agent=agent)


async def ending(core: Core, run: RunRecord) -> list[dict[str, object]]:
    """The messages of a run's ending, decoded, after a check that the log is whole and has one ending."""
    stored = await core.stored(LogAddress(run.id, run.shard))
    assert [entry_of(message).index for message in stored] == list(range(len(stored)))
    assert kinds(stored).count(Kind.END) == 1
    assert kinds(stored)[-1] == Kind.END
    first = next(at for at, message in enumerate(stored) if "Rs-Ending" in message.headers)
    assert all("Rs-Ending" in message.headers for message in stored[first:])
    return [msgspec.json.decode(message.body) for message in stored[first:-1]]


# -- from the first message to the end ----------------------------------------------------------------------------


async def test_a_run_of_the_demo_agent(core: Core) -> None:
    """The log of a run is a ping, an attempt, the answer, stop reason, usage and the end; nothing else is left."""
    async with broker(core, demo):
        run = await submit(core, said=json.dumps(KNOBS))
        record = await over(core, run)
        await queue_empty(core)
    stored = await core.stored(LogAddress(run.id, run.shard))
    assert kinds(stored) == ["ping", "attempt", *["data"] * 5, "plain", "plain", "end"]
    assert await core.bodies(LogAddress(run.id, run.shard)) == [message.body for message in stored]
    stop, usage = await ending(core, run)
    assert stop == {"message_type": "stop_reason", "stop_reason": "end_turn"}
    assert (usage["message_type"], usage["completion_tokens"]) == ("usage_statistics", 5)
    assert (record.status, record.stop_reason, record.error) == ("completed", "end_turn", None)
    assert record.first_seq == stored[0].seq
    assert record.completed_at is not None
    assert 0 < (record.total_duration_ns or 0) < 20e9
    assert await active_run(core, run) is None


async def test_what_a_scripted_agent_says_is_stored_as_said(core: Core) -> None:
    """Structs and mappings are stored in the order in which they were said, and pings of the agent's are not."""
    odd = {"message_type": "of_tomorrow", "content": "2", "new_key": [1]}
    async with broker(core, scripted(said(0), Ping(), said(1), odd, *GOOD_END)):
        run = await submit(core)
        await over(core, run)
    stored = await core.stored(LogAddress(run.id, run.shard))
    assert kinds(stored) == ["ping", "attempt", "data", "data", "data", "plain", "plain", "end"]
    assert texts(stored) == ["0", "1", "2"]
    assert msgspec.json.decode(stored[4].body) == {**odd, "run_id": run.id}
    assert (await ending(core, run))[1]["total_tokens"] == 7


async def test_a_record_is_running_while_its_run_is(core: Core) -> None:
    """From its attempt to its end a run's record says that it runs, and where its log begins."""
    go = asyncio.Event()
    async with broker(core, scripted(said(0), go, *answer(1))):
        run = await submit(core)
        async with following(core, run) as follower:
            await wait_until(lambda: follower.said() == 1)
            record = await core.record(run)
            assert (record.status, record.stop_reason) == ("running", None)
            assert record.first_seq == follower.entries[0].seq
            assert await active_run(core, run) == run.id
            assert await core.holds(f"lease.{run.id}")
            assert await core.queued() == 1
            go.set()
            await wait_until(lambda: follower.ended)
        assert (await over(core, run)).status == "completed"


async def test_a_run_without_a_first_message_gets_one(core: Core) -> None:
    """A run that was claimed and enqueued by a gateway that died before it began the log is executed all the same."""
    run = record_of(conversation_id=new_conversation_id())
    await core.index.claim(run, request_of(run))
    await WorkQueue(core.jetstream).put(run.tenant, run.id)
    async with broker(core, scripted(*answer(2))):
        record = await over(core, run)
    stored = await core.stored(LogAddress(run.id, run.shard))
    assert kinds(stored) == ["ping", "attempt", "data", "data", "plain", "plain", "end"]
    assert record.first_seq == stored[0].seq


async def test_who_sees_the_end_can_go_on_at_once(core: Core) -> None:
    """When the end of a run arrives, its conversation is free and its record terminal, every time."""
    conversation = new_conversation_id()
    async with broker(core, scripted(*answer(1))):
        for _ in range(20):
            record = record_of(conversation_id=conversation)
            end_seen = asyncio.Event()

            async def arrived(message: Message, end_seen: asyncio.Event = end_seen) -> None:
                if (message.headers or {})["Rs-Kind"] == Kind.END:
                    end_seen.set()

            live = await core.connection.subscribe(LogAddress(record.id, 0).live_subject, arrived)
            assert (await core.index.claim(record, request_of(record))).is_new
            await WorkQueue(core.jetstream).put(record.tenant, record.id)
            await end_seen.wait()
            assert await active_run(core, record) is None
            assert (await core.record(record)).status == "completed"
            await live.close()


async def test_a_run_that_is_neither_completed_nor_failed(core: Core) -> None:
    """A stop reason other than a good one is told without usage, and says the status."""
    async with broker(core, scripted(said(0), StopReason(stop_reason="cancelled"), UsageStatistics())):
        run = await submit(core)
        record = await over(core, run)
    assert (record.status, record.stop_reason) == ("cancelled", "cancelled")
    assert [message["message_type"] for message in await ending(core, run)] == ["stop_reason"]


EVERY_TYPE: Sequence[Mapping[str, object]] = [{"message_type": name, "id": name} for name in MESSAGE_TYPES]
OTHERS: Sequence[Mapping[str, object]] = [{"message_type": "a_newer_one"}, {"no": "message"}, {"message_type": ["odd"]}]


@pytest.mark.parametrize("wanted", [None, [], *([name] for name in MESSAGE_TYPES), ["user_message", "event_message"]])
async def test_a_client_is_spared_the_message_types_it_does_not_want(core: Core, wanted: list[str] | None) -> None:
    """They are not stored; pings, what is no message of Letta's and the ending are never left out."""
    async with broker(core, scripted(*EVERY_TYPE, *OTHERS, *GOOD_END)):
        run = await submit(core, request_config=RequestConfig(include_return_message_types=wanted))
        await over(core, run)
        stored = await core.stored(LogAddress(run.id, run.shard))
    shown = [msgspec.json.decode(message.body) for message in stored if message.headers[KIND] == Kind.DATA]
    expected = MESSAGE_TYPES if wanted is None else tuple(wanted)
    assert [chunk.get("message_type") for chunk in shown] == [*expected, "a_newer_one", None, ["odd"]]
    assert kinds(stored)[0] == Kind.PING
    assert kinds(stored)[-3:] == [Kind.PLAIN, Kind.PLAIN, Kind.END]


# -- the agent fails ----------------------------------------------------------------------------------------------


class Mute(Exception):
    """An exception that cannot say what it is."""

    def __str__(self) -> str:
        raise ValueError

    @property
    def status_code(self) -> int:
        raise ValueError


TOO_LONG = AssistantMessage(content="x" * 2**20)
OWN_ERROR = ErrorMessage(error_type="quota", message="No more today.", detail="Ask again tomorrow.")


@pytest.mark.parametrize(
    ("lines", "stop_reason", "error"),
    [
        ([AgentFailed("llm_timeout")], "llm_api_error", ("llm_timeout", "timed out", None)),
        (
            [AgentFailed("of_my_own", message="I failed.", detail="Why, I know.")],
            "error",
            ("of_my_own", "I failed.", "Why, I know."),
        ),
        ([ValueError("a defect")], "error", ("internal_error", "during agent execution", None)),
        ([TimeoutError()], "llm_api_error", ("llm_timeout", "timed out", None)),
        ([SystemExit(3)], "error", ("internal_error", "during agent execution", None)),
        ([KeyboardInterrupt()], "error", ("internal_error", "during agent execution", None)),
        ([GeneratorExit()], "error", ("internal_error", "during agent execution", None)),
        (
            [AgentFailed("internal_error", detail="half \ud83d of a pair")],
            "error",
            ("internal_error", "unknown error", "half \ufffd of a pair"),
        ),
        ([AgentFailed("\ud83d", detail="\ud83d")], "error", ("\ufffd", "", "\ufffd")),
        ([Mute()], "error", ("internal_error", "during agent execution", None)),
        ([], "error", ("stream_incomplete", "without stop_reason", None)),
        ([TOO_LONG, *GOOD_END], "error", ("chunk_too_large", "too large", "size=")),
        ([{}, *GOOD_END], "error", ("internal_error", "", "at least one key")),
        ([{"content": {1: 2}}, *GOOD_END], "error", ("internal_error", "", "keys of a chunk")),
        ([OWN_ERROR], "error", ("quota", "No more today.", "Ask again tomorrow.")),
        ([ErrorMessage(error_type="llm_timeout", message="Late.")], "llm_api_error", ("llm_timeout", "Late.", None)),
        (
            [StopReason(stop_reason="llm_api_error"), OWN_ERROR],
            "llm_api_error",
            ("quota", "No more today.", "Ask again tomorrow."),
        ),
        ([UsageStatistics()], "error", ("stream_incomplete", "without stop_reason", None)),
        (
            [StopReason(stop_reason="end_turn"), AgentFailed("llm_error")],
            "llm_api_error",
            ("llm_error", "An error occurred with the LLM request.", None),
        ),
    ],
    ids=[
        "of the catalogue",
        "of its own",
        "a defect",
        "a time-out",
        "sys.exit",
        "an interrupt",
        "a generator's exit",
        "half a surrogate pair",
        "a type that is no text",
        "an error that cannot be told",
        "no stop reason",
        "an over-long chunk",
        "an empty chunk",
        "an invalid chunk",
        "an error chunk",
        "an error chunk of the catalogue",
        "an error chunk with a stop reason",
        "usage without a stop reason",
        "a failure after the stop reason",
    ],
)
async def test_a_failing_agent(
    core: Core, lines: list[Line], stop_reason: str, error: tuple[str, str, str | None]
) -> None:
    """However an agent fails, its run keeps what was said, and ends with one stop reason, one error and the end."""
    error_type, message, detail = error
    async with broker(core, scripted(said(0), said(1), *lines)):
        run = await submit(core)
        record = await over(core, run)
        await queue_empty(core)
    assert kinds(await core.stored(LogAddress(run.id, run.shard))) == [
        *("ping", "attempt", "data", "data"),
        *("plain", "error", "end"),
    ]
    stop, told = await ending(core, run)
    assert stop == {"message_type": "stop_reason", "stop_reason": stop_reason}
    assert (told["error_type"], told["run_id"]) == (error_type, run.id)
    assert message in str(told["message"])
    assert (detail is None) == (told["detail"] is None)
    assert (detail or "") in str(told["detail"])
    assert (record.status, record.stop_reason, record.error) == ("failed", stop_reason, told)
    assert await active_run(core, run) is None


async def test_an_agent_whose_own_task_is_cancelled(core: Core) -> None:
    """Cancelled from within, an agent has failed like any other: its run ends, and is not tried again and again."""
    executed: list[str] = []

    async def agent(request: RunRequest) -> AsyncGenerator[Chunk, None]:
        executed.append(request.run_id)
        asking = asyncio.create_task(asyncio.Event().wait())
        asking.cancel()
        await asking
        yield said(0)

    async with broker(core, agent):
        run = await submit(core)
        record = await over(core, run)
        await queue_empty(core)
    assert executed == [run.id]
    assert (record.status, (record.error or {})["error_type"]) == ("failed", "internal_error")
    assert kinds(await core.stored(LogAddress(run.id, run.shard))) == ["ping", "attempt", "plain", "error", "end"]


async def test_a_failure_is_no_failure_of_others(core: Core) -> None:
    """Runs whose agents fail do not disturb a run beside them."""

    async def agent(request: RunRequest) -> AsyncGenerator[Chunk, None]:
        yield said(0)
        if request.body["input"] == "fail":
            raise RuntimeError
        yield said(1)
        yield StopReason(stop_reason="end_turn")

    async with broker(core, agent):
        runs = [await submit(core, said="fail" if number % 2 else "do") for number in range(10)]
        records = [await over(core, run) for run in runs]
    assert [record.status for record in records] == ["completed", "failed"] * 5


# -- stopping, sharing, repeating ---------------------------------------------------------------------------------


async def test_a_broker_that_stops_ends_what_its_agents_have_begun_to_say(core: Core) -> None:
    """It closes them, so that they can clean up, and their runs end at once, as interrupted, for good."""
    closed: list[str] = []

    async def agent(request: RunRequest) -> AsyncGenerator[Chunk, None]:
        try:
            yield said(0)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # cleaning up may take its turns
            closed.append(request.run_id)

    async with broker(core, agent):
        run = await submit(core)
        async with following(core, run) as follower:
            await wait_until(lambda: follower.said() == 1)
        assert closed == []
    assert closed == [run.id]
    assert not [task for task in asyncio.all_tasks() if run.id in task.get_name()]
    assert await core.is_over(run)
    told = await ending(core, run)
    assert (told[0]["stop_reason"], told[1]["error_type"]) == ("error", "stream_task_cancelled")
    async with broker(core, agent):
        record = await over(core, run)
        await queue_empty(core)
    assert record.error == told[1]
    assert closed == [run.id]


async def test_a_run_whose_broker_stopped_before_its_agent_spoke_is_another_brokers(core: Core) -> None:
    """It has said nothing, so nothing is said twice: another broker executes it from its beginning."""
    asked = asyncio.Event()

    async def silent(_: RunRequest) -> AsyncGenerator[Chunk, None]:
        asked.set()
        await asyncio.Event().wait()
        yield said(0)

    async with broker(core, silent):
        run = await submit(core)
        await asked.wait()
    async with broker(core, scripted(*answer(2))):
        record = await over(core, run)
    assert record.status == "completed"
    assert kinds(await core.stored(LogAddress(run.id, run.shard)))[:4] == ["ping", "attempt", "attempt", "data"]


async def test_a_run_that_was_cancelled_before_it_was_taken(core: Core) -> None:
    """Its agent never hears of it, and it counts as none that was handed to it."""
    executed: list[str] = []

    async def agent(request: RunRequest) -> AsyncGenerator[Chunk, None]:
        executed.append(request.run_id)
        yield said(0)

    run = await submit(core)
    await core.index.wish_cancelled(run.tenant, run.id)
    serving = broker(core, agent)
    async with serving:
        record = await over(core, run)
    assert record.status == "cancelled"
    assert executed == []
    assert serving.metrics.registry.get_sample_value("runstream_runs_started_total") == 0


async def test_a_message_that_was_cancelled_is_not_refused(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though its agent waits for approval: whoever cancelled it was told that it ends as cancelled."""

    async def leave_it_to_the_worker(*_: object) -> None:
        pass

    monkeypatch.setattr(Watchdog, "_cancel_unbegun", leave_it_to_the_worker)
    async with broker(core, scripted(StopReason(stop_reason="requires_approval"))):
        waiting = await submit(core)
        await over(core, waiting)
    run = await submit(core, conversation_id=waiting.conversation_id)
    await core.index.wish_cancelled(run.tenant, run.id)
    async with broker(core, scripted(*answer(1))):
        record = await over(core, run)
    assert (record.status, record.error) == ("cancelled", None)
    assert await core.index.waiting_for_approval(run.tenant, run.scope) == waiting.id


@pytest.mark.parametrize("error", [Unavailable("elsewhere"), Fenced("elsewhere"), StoreRefused("elsewhere")], ids=repr)
async def test_an_agent_that_uses_a_store_of_its_own(core: Core, error: Exception) -> None:
    """What goes wrong there is the agent's failure: it is executed once, and its run fails at once."""
    executed: list[str] = []

    async def agent(request: RunRequest) -> AsyncGenerator[Chunk, None]:
        executed.append(request.run_id)
        if executed:
            raise error
        yield said(0)

    async with broker(core, agent):
        run = await submit(core)
        record = await over(core, run)
    assert executed == [run.id]
    assert (record.error or {})["error_type"] == "internal_error"


async def test_two_brokers_share_the_queue(core: Core) -> None:
    """Of 40 runs on the queue of two brokers each is executed exactly once, and both take part."""
    executed: Counter[tuple[str, str]] = Counter()

    def agent(name: str) -> Agent:
        async def counting(request: RunRequest) -> AsyncGenerator[Chunk, None]:
            executed[name, request.run_id] += 1
            yield said(0)
            await wait_until(lambda: len({broker for broker, _ in executed}) == 2)
            yield StopReason(stop_reason="end_turn")

        return counting

    async with broker(core, agent("one"), worker_concurrency=30), broker(core, agent("two"), worker_concurrency=30):
        runs = await asyncio.gather(*(submit(core) for _ in range(40)))
        records = await asyncio.gather(*(over(core, run) for run in runs))
        await queue_empty(core)
    assert sorted(run_id for _, run_id in executed.elements()) == sorted(run.id for run in runs)
    assert {record.status for record in records} == {"completed"}
    for run in runs:
        stored = await core.stored(LogAddress(run.id, run.shard))
        assert kinds(stored) == ["ping", "attempt", "data", "plain", "plain", "end"]


@dataclass
class Waiting:
    """An agent that says one chunk, unless it is silent, waits to be let go, and says another."""

    executed: list[str] = field(default_factory=list)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    is_silent: bool = False

    async def __call__(self, request: RunRequest) -> AsyncGenerator[Chunk, None]:
        self.executed.append(request.run_id)
        if not self.is_silent:
            yield said(0)
        await self.go.wait()
        yield said(1)
        yield StopReason(stop_reason="end_turn")


async def queued(core: Core, count: int) -> None:
    """Wait until so many messages are left on the queue."""

    async def left() -> bool:
        return await core.queued() == count

    await wait_until(left)


async def renewed(core: Core, run: RunRecord) -> None:
    """Wait until the run's writer gives the next sign of life."""
    before = await core.index.lease(run.id)

    async def has_changed() -> bool:
        return await core.index.lease(run.id) != before

    await wait_until(has_changed)


async def test_enqueued_twice_before_it_is_taken(core: Core) -> None:
    """A run with two messages on the queue is executed once, and whoever gets the second takes it off."""
    for _ in range(3):
        agent = Waiting()
        run = await submit(core)
        await enqueue_again(core, run)
        async with broker(core, agent), broker(core, agent):
            async with following(core, run) as follower:
                await wait_until(lambda follower=follower: follower.said() == 1)  # type: ignore[misc]
                await queued(core, 1)
                agent.go.set()
                await wait_until(lambda follower=follower: follower.ended)  # type: ignore[misc]
            record = await over(core, run)
            await queue_empty(core)
        assert agent.executed == [run.id]
        assert record.status == "completed"
        assert texts(await core.stored(LogAddress(run.id, run.shard))) == ["0", "1"]


async def test_enqueued_again_while_it_is_executed(core: Core) -> None:
    """A second message for a run that is being executed, taken by its own worker or another, changes nothing."""
    agent = Waiting()
    async with broker(core, agent), broker(core, agent):
        run = await submit(core)
        async with following(core, run) as follower:
            await wait_until(lambda: follower.said() == 1)
            for _ in range(3):
                await enqueue_again(core, run)
            await queued(core, 1)
            agent.go.set()
            await wait_until(lambda: follower.ended)
        await over(core, run)
        await queue_empty(core)
        assert not follower.failures
    assert agent.executed == [run.id]
    assert texts(await core.stored(LogAddress(run.id, run.shard))) == ["0", "1"]


async def test_enqueued_again_after_its_end(core: Core) -> None:
    """A message for a run that has ended is taken off the queue, and the log stays as it is."""
    async with broker(core, scripted(*answer(2))):
        run = await submit(core)
        record = await over(core, run)
        before = await core.stored(LogAddress(run.id, run.shard))
        await enqueue_again(core, run)
        await queue_empty(core)
        assert await over(core, run) == record
    assert await core.stored(LogAddress(run.id, run.shard)) == before


@pytest.mark.parametrize("outage", [stopped, paused])
@pytest.mark.parametrize("is_silent", [False, True], ids=["speaking", "silent"])
async def test_an_outage_longer_than_a_lease_loses_no_run(
    core: Core,
    nats_server: NatsServer,
    outage: Callable[[NatsServer], AbstractAsyncContextManager[None]],
    is_silent: bool,
) -> None:
    """Runs whose leases could not be renewed, because nobody could, go on after the outage, as if nothing had been.

    Those that had said nothing so far, too: the queue hands them out again, and nobody begins them a second time.
    """
    agent = Waiting(is_silent=is_silent)
    async with broker(core, agent), broker(core, agent):
        runs = await asyncio.gather(*(submit(core) for _ in range(20)))
        await wait_until(lambda: len(agent.executed) == 20)
        async with outage(nats_server):
            await asyncio.sleep(2.5 * core.settings.lease_seconds)  # how long the outage is, not a wait
        for _ in range(5):  # renewals, three a lease: whoever wanted to take a run over has had the time
            await asyncio.gather(*(renewed(core, run) for run in runs))
        agent.go.set()
        records = await asyncio.gather(*(over(core, run) for run in runs))
        await queue_empty(core)
    assert {record.status for record in records} == {"completed"}
    assert sorted(agent.executed) == sorted(run.id for run in runs)
    for run in runs:
        stored = await core.stored(LogAddress(run.id, run.shard))
        chunks = ["data"] * (1 if is_silent else 2)
        assert kinds(stored) == ["ping", "attempt", *chunks, "plain", "plain", "end"]


@pytest.mark.parametrize("has_ended", [False, True], ids=["goes on", "has ended"])
async def test_a_worker_that_stood_still_before_it_had_its_lease(
    core: Core, monkeypatch: pytest.MonkeyPatch, has_ended: bool
) -> None:
    """Another has begun its run by then, or even ended it: its agent is not asked as well, and the other goes on."""
    executed: list[str] = []
    stands, goes_on, may_end = asyncio.Event(), asyncio.Event(), asyncio.Event()
    enter = Lease.__aenter__

    async def stand_still(lease: Lease) -> Lease:
        if not stands.is_set():
            stands.set()
            await goes_on.wait()
        return await enter(lease)

    def agent(name: str) -> Agent:
        async def silent(_: RunRequest) -> AsyncGenerator[Chunk, None]:
            executed.append(name)
            await may_end.wait()
            yield said(0)
            yield StopReason(stop_reason="end_turn")

        return silent

    monkeypatch.setattr(Lease, "__aenter__", stand_still)
    # The first takes one run at a time, so that its message comes back to the other.
    async with broker(core, agent("first"), worker_concurrency=1) as first:
        run = await submit(core)
        await stands.wait()
        async with broker(core, agent("second")) as second:
            await wait_until(lambda: executed == ["second"])
            if has_ended:
                may_end.set()
                await over(core, run)
            goes_on.set()
            await wait_until(lambda: fenced(first) == 1)
            await renewals(core, run, 0 if has_ended else 3)
            may_end.set()
            record = await over(core, run)
            assert fenced(second) == 0
        await queue_empty(core)
    assert (record.status, executed) == ("completed", ["second"])
    assert texts(await core.stored(LogAddress(run.id, run.shard))) == ["0"]


def fenced(serving: Broker) -> float | None:
    """How many runs others have taken from this broker."""
    return serving.metrics.registry.get_sample_value("runstream_runs_fenced_total")


async def renewals(core: Core, run: RunRecord, count: int) -> None:
    """Wait until the run's writer has given so many signs of life."""
    for _ in range(count):
        await renewed(core, run)


async def test_concurrency_is_bounded(core: Core) -> None:
    """A broker executes as many runs at one time as it may, takes the next when one has ended, and never more."""
    running: set[str] = set()
    most = 0
    let_go: asyncio.Queue[None] = asyncio.Queue()

    async def agent(request: RunRequest) -> AsyncGenerator[Chunk, None]:
        nonlocal most
        running.add(request.run_id)
        most = max(most, len(running))
        yield said(0)
        await let_go.get()
        running.remove(request.run_id)
        yield StopReason(stop_reason="end_turn")

    async with broker(core, agent, worker_concurrency=3):
        runs = [await submit(core) for _ in range(9)]
        for done in range(9):
            await wait_until(lambda done=done: len(running) == min(3, 9 - done))  # type: ignore[misc]
            let_go.put_nowait(None)
        records = [await over(core, run) for run in runs]
        await queue_empty(core)
    assert most == 3
    assert {record.status for record in records} == {"completed"}


async def test_a_run_nobody_knows_is_dropped(core: Core) -> None:
    """A message for a run that is not in the index is taken off the queue, and those behind it are executed."""
    executed: list[str] = []

    async def agent(request: RunRequest) -> AsyncGenerator[Chunk, None]:
        executed.append(request.run_id)
        yield StopReason(stop_reason="end_turn")

    unknown = record_of(new_run_id())
    await enqueue_again(core, unknown)
    run = await submit(core)
    async with broker(core, agent, worker_concurrency=1):
        await over(core, run)
        await queue_empty(core)
    assert executed == [run.id]
    assert await core.stored(LogAddress(unknown.id, unknown.shard)) == []


async def test_a_run_that_came_back_all_night_comes_back_as_before(core: Core) -> None:
    """However often it has been handed out, the longest delay is a delay: a store may be full for as long."""
    heard: list[bytes] = []
    reply = "tests.ack.stream.consumer.5000.1.1.0.0"
    await core.connection.listen(reply, lambda some: heard.extend(message.data for message in some))
    work = msgspec.json.encode({"tenant": "default", "run_id": new_run_id()})
    await Task(core.connection, Heard("work", reply, work, None)).give_back()
    await wait_until(lambda: heard)
    assert heard == [b'-NAK {"delay":30000000000}']


async def test_a_queue_that_cannot_be_heard_leaves_nothing_behind(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again each second: each time there would be one more to be told of every reconnect."""

    async def refuse(*_: object) -> Subscription:
        raise Unavailable("refused, by a test")

    monkeypatch.setattr(core.connection, "listen", refuse)
    before = len(core.connection._listeners)
    async with aclosing(WorkQueue(core.jetstream).tasks(lambda: 1, asyncio.Event())) as tasks:
        with pytest.raises(Unavailable):
            await anext(tasks)
    assert len(core.connection._listeners) == before
