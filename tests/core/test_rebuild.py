"""The index is rebuilt from the logs: what they tell is there again, and nobody who knows more is overwritten."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from runstream.broker.bucket import Stored
from runstream.broker.ending import Ending, Outcome, end_run, failed, first_message
from runstream.broker.errors import Conflict
from runstream.broker.index import Index
from runstream.broker.jetstream import JetStream
from runstream.broker.keys import conversation_key, run_key, subject_of
from runstream.broker.messages import StoredMessage
from runstream.broker.publisher import Publisher, Write
from runstream.broker.rebuild import Rebuilt, rebuild
from runstream.broker.service import Broker
from runstream.broker.topology import INDEX_STREAM, LogAddress, provision
from runstream.schemas import (
    Kind,
    RunRecord,
    StopReason,
    UsageStatistics,
    encode_run,
    new_agent_id,
    new_conversation_id,
    new_otid,
)
from tests.support.core import Core, core_running, record_of, request_of, said
from tests.support.nats import NatsServer
from tests.support.runs import active_run, empty_queue, over, scripted, submit
from tests.support.waiting import wait_until

CANCELLED = Outcome("cancelled")


@pytest_asyncio.fixture(autouse=True)
async def _empty(core: Core) -> AsyncIterator[None]:
    """Each test begins without a log, a run request, or a key."""
    await empty_queue(core)
    await core.jetstream.api("STREAM.PURGE.RUNS_0", {})
    await core.jetstream.api(f"STREAM.PURGE.{INDEX_STREAM}", {})
    yield


async def lose_index(core: Core) -> None:
    """Delete the bucket, and make an empty one."""
    await core.jetstream.api(f"STREAM.DELETE.{INDEX_STREAM}", None)
    assert (await provision(core.jetstream, core.settings)).made == [INDEX_STREAM]


async def rebuilt(core: Core) -> Rebuilt:
    return await rebuild(core.jetstream, core.index)


async def keys(core: Core) -> dict[str, tuple[int, bytes]]:
    """What the index holds but for leases, which are renewed meanwhile: each key's sequence and value."""
    info = await core.jetstream.api(f"STREAM.INFO.{INDEX_STREAM}", {"subjects_filter": ">"})
    found = {}
    for subject in info["state"].get("subjects", {}):
        message = await core.jetstream.last_message(INDEX_STREAM, subject)
        if message is not None and not subject.startswith(subject_of("lease.")):
            found[subject] = (message.seq, message.body)
    return found


GOOD = Outcome("end_turn", usage=UsageStatistics(total_tokens=7))


async def ended_run(core: Core, outcome: Outcome | str = GOOD, **facts: Any) -> RunRecord:
    """A run that has come to its end, as its writer leaves it: to an outcome, or to an error of that type."""
    record = await live_run(core, **facts)
    came_to = failed(record.id, outcome, detail="asked for") if isinstance(outcome, str) else outcome
    async with writer(core, record, messages=2) as publisher:
        await end_run(publisher, core.index, record, came_to)
    return await core.record(record)


async def live_run(core: Core, **facts: Any) -> RunRecord:
    """A run that goes on: claimed, begun, with one chunk of the agent's."""
    record = record_of(**{"conversation_id": new_conversation_id(), "otids": [new_otid()], **facts})
    assert (await core.index.claim(record, request_of(record))).is_new
    async with core.publisher(LogAddress(record.id, record.shard)) as publisher:
        first_seq = await publisher.publish_marked(first_message(record))
        await publisher.publish_marked(Write(Kind.ATTEMPT, b""))
    return await core.index.begin(record, first_seq=first_seq)


def writer(core: Core, record: RunRecord, *, messages: int) -> Publisher:
    """Go on writing a run's log, which has that many messages."""
    first_seq = record.first_seq or 0
    return core.publisher(LogAddress(record.id, record.shard), last_seq=first_seq + messages - 1, next_index=messages)


def comparable(record: RunRecord) -> RunRecord:
    """A record without what a log cannot tell, or tells a moment later."""
    times = {"completed_at": None, "total_duration_ns": None}
    return msgspec.structs.replace(record, otids=[], **times)


def same_request(record: RunRecord) -> RunRecord:
    """The record of the run that would answer the same request again."""
    return record_of(
        agent_id=record.agent_id, conversation_id=record.conversation_id, otids=record.otids, shard=record.shard
    )


# -- what is written ----------------------------------------------------------------------------------------------


async def test_ended_runs_are_as_they_were(core: Core) -> None:
    """Good, failed, cancelled, to a conversation or an agent: the records are back, and so is what leads to them."""
    runs = [
        await ended_run(core, background=True, run_type="send_conversation_message"),
        await ended_run(core, "llm_timeout", otids=["a", "b"]),
        await ended_run(core, CANCELLED),
        await ended_run(core, Outcome("error")),
        await ended_run(core, conversation_id=None),
    ]
    await lose_index(core)
    assert await rebuilt(core) == Rebuilt(logs=5, records=5, conversations=4, lookups=5 + 5 + 6)
    for run in runs:
        record = await core.record(run)
        assert comparable(record) == comparable(run)
        assert record.completed_at is not None
        assert run.completed_at is not None
        assert run.completed_at <= record.completed_at
        assert record.total_duration_ns is not None
        found = await core.index.claim(same_request(run), request_of(run))
        assert (found.record, found.is_new) == (record, False)
        for otid in run.otids:
            held = await core.index.run_with_otid("default", otid)
            assert held is not None
            assert held.value == record
        latest = await core.index.latest_run_of_agent("default", run.agent_id)
        assert latest is not None
        assert latest.value == record
        assert not await core.holds(f"lease.{run.id}")


async def test_what_waits_for_approval_waits_again(core: Core) -> None:
    """A conversation, or an agent, whose youngest run asked for approval waits for it; one that went on does not."""
    facts: dict[str, Any] = {"conversation_id": new_conversation_id(), "agent_id": new_agent_id()}
    asked = Outcome("requires_approval")
    waiting = await ended_run(core, asked, conversation_id=None)
    await ended_run(core, asked, **facts)
    await ended_run(core, **facts)
    await lose_index(core)
    await rebuilt(core)
    assert await core.index.waiting_for_approval("default", waiting.agent_id) == waiting.id
    assert await core.index.waiting_for_approval("default", facts["conversation_id"]) is None


async def test_a_request_for_approval_that_was_withdrawn_stays_so(core: Core) -> None:
    """Where the index is there, and only that key was deleted, nothing waits after a rebuild either."""
    run = await ended_run(core, Outcome("requires_approval"))
    await core.index.withdraw_approval(run)
    before = await keys(core)
    assert (await rebuilt(core)).lookups == 0
    assert await keys(core) == before


async def test_an_agents_default_conversation_is_busy_again(core: Core) -> None:
    """A run that goes on in an agent's default conversation holds it after the rebuild, too."""
    run = await live_run(core, conversation_id=None, in_default=True)
    await lose_index(core)
    await rebuilt(core)
    assert (await core.record(run)).in_default
    refused = record_of(agent_id=run.agent_id, in_default=True)
    with pytest.raises(Conflict) as conflict:
        await core.index.claim(refused, request_of(refused))
    assert conflict.value.run_id == run.id


async def test_a_conversation_comes_back_without_what_a_client_set(core: Core) -> None:
    """It is free or busy as before and knows its latest run, and begins with the oldest run that is known."""
    facts: dict[str, Any] = {"conversation_id": new_conversation_id(), "agent_id": new_agent_id()}
    runs = [await ended_run(core, **facts) for _ in range(3)]
    await lose_index(core)
    await rebuilt(core)
    stored = await core.index.conversation("default", facts["conversation_id"])
    assert stored is not None
    found = stored.value
    assert (found.agent_id, found.active_run, found.latest_run) == (facts["agent_id"], None, runs[-1].id)
    assert (found.created_at, found.last_message_at) == (runs[0].created_at, runs[-1].created_at)
    following = record_of(**facts, otids=[new_otid()])
    assert (await core.index.claim(following, request_of(following))).is_new


async def test_a_run_goes_on_while_the_index_is_lost_and_rebuilt(core: Core) -> None:
    """The worker of a live run notices nothing: the run is busy again, has a lease that is renewed, and ends well."""
    goes_on = asyncio.Event()
    agent = scripted(said(0), goes_on, said(1), StopReason(stop_reason="end_turn"), UsageStatistics())
    async with Broker(core.settings, agent=agent):
        run = await submit(core, otids=[new_otid()])

        async def has_spoken() -> bool:
            return len(await core.stored(LogAddress(run.id, run.shard))) == 3

        await wait_until(has_spoken)
        before = await core.record(run)
        await lose_index(core)
        done = await rebuilt(core)
        assert (done.records, done.leases, done.conversations) == (1, 1, 1)
        assert comparable(await core.record(run)) == comparable(before)
        assert await active_run(core, run) == run.id
        refused = record_of(conversation_id=run.conversation_id, agent_id=run.agent_id)
        with pytest.raises(Conflict) as conflict:
            await core.index.claim(refused, request_of(refused))
        assert (conflict.value.run_id, conflict.value.otid) == (run.id, None)
        assert not (await core.index.claim(same_request(run), request_of(run))).is_new
        lease = await core.index.lease(run.id)

        async def is_renewed() -> bool:
            return await core.index.lease(run.id) != lease

        await wait_until(is_renewed, 5, "the lease is not renewed")
        goes_on.set()
        assert (await over(core, run)).status == "completed"
    assert await active_run(core, run) is None


async def test_a_run_that_was_not_begun(core: Core) -> None:
    """A log with nothing but its first message is a run that was made, and has not begun."""
    run = await submit(core)
    await lose_index(core)
    await rebuilt(core)
    assert await core.record(run) == run
    assert await core.holds(f"lease.{run.id}")


@pytest.mark.parametrize("last_step", ["tell", "release"])
async def test_a_run_that_was_about_to_end(core: Core, last_step: str) -> None:
    """A log that has a stop reason and no end gets a lease, so that somebody finds it and does the rest."""
    run = await live_run(core)
    async with writer(core, run, messages=2) as publisher:
        ending = Ending(publisher, core.index, run, CANCELLED)
        await ending.tell()
        await lose_index(core)
        if last_step == "release":
            await ending.release()
        done = await rebuilt(core)
        assert done.leases == 1
        assert (await core.record(run)).status == ("running" if last_step == "tell" else "cancelled")
        await ending.release()
        await ending.seal()
        await ending.forget()
    assert (await core.record(run)).status == "cancelled"
    assert await active_run(core, run) is None
    assert not await core.holds(f"lease.{run.id}")


async def test_a_record_that_disagrees_with_its_log_is_ended(core: Core) -> None:
    """A record says that its run goes on, the log has its end: the log is right, and the conversation free."""
    run = await live_run(core)
    kept = await core.jetstream.last_message(INDEX_STREAM, subject_of(f"conversation.default.{run.conversation_id}"))
    assert kept is not None
    async with writer(core, run, messages=2) as publisher:
        await end_run(publisher, core.index, run, failed(run.id, "llm_error"))
    right = await core.record(run)
    for key, value in ((run_key("default", run.id), encode_run(run)), (f"lease.{run.id}", b"default")):
        stored = await core.index.stored(key)
        await core.index.write({key: Stored(value, stored.revision)})
    await core.jetstream.publish(kept.subject, kept.body, {})
    assert await active_run(core, run) == run.id
    done = await rebuilt(core)
    assert (done.ended, done.records) == (1, 0)
    record = await core.record(run)
    assert comparable(record) == comparable(right)
    assert record.otids == right.otids
    assert await active_run(core, run) is None
    assert not await core.holds(f"lease.{run.id}")


async def test_what_agrees_is_left_alone(core: Core) -> None:
    """On an index that has everything, and a second time on one that had nothing, no key is written."""
    await ended_run(core)
    await ended_run(core, "llm_error", conversation_id=None)
    await live_run(core)
    for lost in (False, True):
        if lost:
            await lose_index(core)
            await rebuilt(core)
        before = await keys(core)
        assert await rebuilt(core) == Rebuilt(logs=3)
        assert await keys(core) == before


async def test_logs_that_cannot_tell_are_passed_over(core: Core) -> None:
    """A log whose first message retention has removed, or that is no run's, is counted and stays without a record."""
    run = await ended_run(core)
    await core.purge_before(LogAddress(run.id, run.shard), (run.first_seq or 0) + 1)
    foreign = core.address()
    await core.jetstream.publish(foreign.subject, b"what", {})
    await core.fill([core.address()])
    await lose_index(core)
    assert await rebuilt(core) == Rebuilt(expired=1, unreadable=2)
    assert await keys(core) == {}


async def test_a_record_that_cannot_be_read_stops_nobody(core: Core) -> None:
    """It is counted and stays as it is, and the other runs are restored."""
    run, strange = await ended_run(core), await ended_run(core)
    await lose_index(core)
    await core.jetstream.publish(subject_of(f"run.default.{strange.id}"), b"junk", {})
    done = await rebuilt(core)
    assert (done.records, done.unreadable) == (1, 1)
    assert comparable(await core.record(run)) == comparable(run)


async def test_shards_of_an_earlier_configuration_are_read_too(nats_server: NatsServer) -> None:
    """Runs are found in every stream of logs that is there, whatever the number of shards is now."""
    async with core_running(nats_server.url, shards=3) as core:
        run = await ended_run(core, shard=2)
        await lose_index(core)
        await rebuilt(core)
        assert comparable(await core.record(run)) == comparable(run)
        for shard in (1, 2):
            await core.jetstream.api(f"STREAM.DELETE.RUNS_{shard}", None)


# -- meanwhile ----------------------------------------------------------------------------------------------------


class _Meanwhile(JetStream):
    """Lets something happen once: when the last message of a subject has been read, or those of all logs (None)."""

    def __init__(self, core: Core, *, subject: str | None, happen: Callable[[], Awaitable[None]]) -> None:
        super().__init__(core.connection, timeout_seconds=2)
        self._subject = subject
        self._happen: Callable[[], Awaitable[None]] | None = happen

    async def last_messages(self, stream: str, pattern: str) -> list[StoredMessage]:
        found = await super().last_messages(stream, pattern)
        if self._subject is None:
            await self._now()
        return found

    async def last_message(self, stream: str, subject: str) -> StoredMessage | None:
        found = await super().last_message(stream, subject)
        if subject == self._subject:
            await self._now()
        return found

    async def _now(self) -> None:
        happen, self._happen = self._happen, None
        if happen is not None:
            await happen()


@pytest.mark.parametrize("survey", [True, False])
@pytest.mark.parametrize("steps", [2, 4])
async def test_a_run_that_ends_meanwhile(core: Core, survey: bool, steps: int) -> None:
    """What its writer writes at the end stays: the record with its otids, no lease once it is over, no busy chat."""
    run = await live_run(core)
    log = LogAddress(run.id, run.shard).subject
    async with writer(core, run, messages=2) as publisher:
        ending = Ending(publisher, core.index, run, CANCELLED)
        todo = [ending.tell, ending.release, ending.seal, ending.forget]

        async def end() -> None:
            for step in todo[:steps]:
                await step()

        await lose_index(core)
        await rebuild(_Meanwhile(core, subject=None if survey else log, happen=end), core.index)
        for step in todo[steps:]:
            await step()
    record = await core.record(run)
    assert (record.status, record.otids) == ("cancelled", run.otids)
    assert await active_run(core, run) is None
    assert not await core.holds(f"lease.{run.id}")


async def test_a_release_that_found_no_conversation_looks_again(core: Core) -> None:
    """A conversation that comes back as busy while its run is about to be released does not stay so."""
    run = await live_run(core)
    key = conversation_key("default", str(run.conversation_id))
    await core.jetstream.purge(INDEX_STREAM, subject_of(key), through=2**62)

    async def come_back() -> None:
        assert (await rebuilt(core)).conversations == 1
        assert await active_run(core, run) == run.id

    late = _Meanwhile(core, subject=subject_of(key), happen=come_back)
    over = msgspec.structs.replace(run, status="cancelled", stop_reason="cancelled")
    await Index(late).release(over)
    assert await core.record(run) == over
    assert await active_run(core, run) is None


async def test_of_two_runs_of_one_conversation_the_one_that_has_it_keeps_it(core: Core) -> None:
    """Claimed by another run since the index was lost, a conversation stays with that one."""
    old = await live_run(core)
    await lose_index(core)
    new = await live_run(core, conversation_id=old.conversation_id, agent_id=old.agent_id)
    await rebuilt(core)
    assert await active_run(core, old) == new.id
    assert (await core.record(old)).status == "running"
    assert await core.holds(f"lease.{old.id}")


async def test_rebuilding_while_runs_are_claimed(nats_server: NatsServer, core: Core) -> None:
    """Two rebuilds and many claims at once, round after round: whoever claims a run has it, and all that it wrote."""
    async with core_running(nats_server.url, name="other") as other:
        for _ in range(8):
            await core.jetstream.api("STREAM.PURGE.RUNS_0", {})
            runs = [await ended_run(core) for _ in range(4)] + [await live_run(core) for _ in range(2)]
            await core.jetstream.api(f"STREAM.PURGE.{INDEX_STREAM}", {})
            wanted = [same_request(run) for run in runs]
            outcomes, *_ = await asyncio.gather(
                asyncio.gather(
                    *(claimed(index, record) for index, record in zip(indexes(core, other), wanted, strict=False))
                ),
                rebuilt(core),
                rebuilt(other),
            )
            for run, record, new in zip(runs, wanted, outcomes, strict=True):
                holder = record if new else run
                assert comparable(await core.record(holder)) == comparable(holder)
                if new:
                    assert await core.record(record) == record
                assert not (await core.index.claim(same_request(run), request_of(run))).is_new
                found = await core.index.claimed_run(run)
                assert found is not None
                assert found.id == holder.id
                held = await core.index.run_with_otid("default", run.otids[0])
                assert held is not None
                assert held.value.id == holder.id
                assert await active_run(core, run) == (holder.id if new or not run.is_terminal else None)


def indexes(*cores: Core) -> Sequence[Index] | Any:
    return itertools.cycle(core.index for core in cores)


async def claimed(index: Index, record: RunRecord) -> bool:
    """Whether a claim starts a run; one that is refused does not."""
    try:
        return (await index.claim(record, request_of(record))).is_new
    except Conflict:
        return False
