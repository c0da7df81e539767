"""The index: of any number of claims one wins, what is written stays true, and an unknown outcome is found out."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from runstream.broker import bucket
from runstream.broker.bucket import Bucket, Put, Stored
from runstream.broker.connection import Connection
from runstream.broker.ending import ENDING_BYTES
from runstream.broker.errors import (
    Conflict,
    ConversationDeleted,
    ConversationTooLarge,
    Fenced,
    NotSent,
    RecordTooLarge,
    StoreRefused,
    Unavailable,
    Unsettled,
    WrongLastSequence,
)
from runstream.broker.index import CONVERSATION_SHARE, Claimed, Index
from runstream.broker.jetstream import BatchWrite, JetStream
from runstream.broker.keys import run_key, subject_of
from runstream.broker.messages import StoredMessage
from runstream.broker.topology import INDEX_STREAM, LogAddress
from runstream.schemas import (
    ConversationRecord,
    RunRecord,
    encode_conversation,
    new_agent_id,
    new_conversation_id,
    new_otid,
    new_run_id,
    timestamp,
)
from tests.support.core import Core, core_running, record_of, request_of
from tests.support.faults import FaultyJetStream, lost
from tests.support.nats import NatsServer
from tests.support.outages import stopped
from tests.support.waiting import wait_until


@pytest_asyncio.fixture(scope="module")
async def gateways(nats_server: NatsServer) -> AsyncIterator[list[Core]]:
    """Four processes' worth of connections to the same index."""
    await nats_server.wait_ready()
    async with (
        core_running(nats_server.url, name="a") as a,
        core_running(nats_server.url, name="b") as b,
        core_running(nats_server.url, name="c") as c,
        core_running(nats_server.url, name="d") as d,
    ):
        yield [a, b, c, d]


async def outcome(index: Index, record: RunRecord) -> Claimed | Conflict:
    """What a claim comes to; a conflict is an ordinary answer."""
    try:
        return await index.claim(record, request_of(record))
    except Conflict as conflict:
        return conflict


async def claimed(core: Core, **facts: Any) -> RunRecord:
    """A run that was just started."""
    record = record_of(**facts)
    found = await core.index.claim(record, request_of(record))
    assert found == Claimed(record, is_new=True)
    return record


def ended(record: RunRecord, status: str = "completed", stop_reason: str = "end_turn") -> RunRecord:
    """The record of a run that has come to its end; the same each time for the same end."""
    completed_at = record.created_at.removesuffix("Z")
    return msgspec.structs.replace(
        record, status=status, stop_reason=stop_reason, completed_at=completed_at, total_duration_ns=1
    )


async def deleted_conversation(core: Core, index: Index | None = None) -> str:
    """A conversation that was made and deleted."""
    conversation_id = new_conversation_id()
    await core.index.create_conversation(
        ConversationRecord(tenant="default", id=conversation_id, agent_id=new_agent_id())
    )
    changed = await (index or core.index).update_conversation(
        "default", conversation_id, lambda found: msgspec.structs.replace(found, deleted=True, updated_at=timestamp())
    )
    assert changed is not None, "it was deleted, and is said not to have been there"
    return conversation_id


async def active_run(core: Core, conversation_id: str) -> str | None:
    stored = await core.index.conversation("default", conversation_id)
    assert stored is not None
    return stored.value.active_run


# -- claims -------------------------------------------------------------------------------------------------------


async def test_a_claim_writes_everything(core: Core) -> None:
    """A new run has its record, its request, its lease, its otids, its conversation and its agent in the index."""
    conversation_id = new_conversation_id()
    run = await claimed(core, conversation_id=conversation_id, otids=["one", "two"])
    assert await core.record(run) == run
    assert await core.index.request("default", run.id) == request_of(run)
    assert await core.holds(f"lease.{run.id}")
    for otid in ("one", "two"):
        found = await core.index.run_with_otid("default", otid)
        assert found is not None
        assert found.value == run
    latest = await core.index.latest_run_of_agent("default", run.agent_id)
    assert latest is not None
    assert latest.value == run
    conversation = await core.index.conversation("default", conversation_id)
    assert conversation is not None
    assert (conversation.value.active_run, conversation.value.latest_run) == (run.id, run.id)
    assert conversation.value.agent_id == run.agent_id


async def test_what_nobody_wrote_is_not_there(core: Core) -> None:
    """Each question about something unknown is answered with None."""
    assert await core.index.run("default", new_run_id()) is None
    assert await core.index.request("default", new_run_id()) is None
    assert await core.index.conversation("default", new_conversation_id()) is None
    assert await core.index.run_with_otid("default", new_otid()) is None
    assert await core.index.latest_run_of_agent("default", new_agent_id()) is None


async def test_of_simultaneous_same_requests_one_starts_a_run(gateways: list[Core]) -> None:
    """Twenty same requests over four connections: one is new, and all get its run; a hundred times."""
    for times in range(100):
        facts: dict[str, Any] = {
            "agent_id": new_agent_id(),
            "conversation_id": new_conversation_id() if times % 2 else None,
            "otids": [new_otid(), new_otid()],
        }
        records = [record_of(**facts) for _ in range(20)]
        outcomes = await asyncio.gather(
            *(
                gateway.index.claim(record, request_of(record))
                for gateway, record in zip(itertools.cycle(gateways), records, strict=False)
            )
        )
        (winner,) = [found.record.id for found in outcomes if found.is_new]
        assert {found.record.id for found in outcomes} == {winner}
        stored = [record.id for record in records if await gateways[0].index.run("default", record.id) is not None]
        assert stored == [winner]


async def test_of_simultaneous_requests_in_a_conversation_one_starts_a_run(gateways: list[Core]) -> None:
    """Different requests, some of them twice, that want one conversation: one is new, the others hear whose it is."""
    for _ in range(25):
        conversation_id = new_conversation_id()
        lists = [[new_otid()] for _ in range(8)] * 2 + [[]] * 4
        records = [record_of(conversation_id=conversation_id, otids=otids) for otids in lists]
        random.shuffle(records)
        outcomes = await asyncio.gather(
            *(
                outcome(gateway.index, record)
                for gateway, record in zip(itertools.cycle(gateways), records, strict=False)
            )
        )
        (winner,) = [found.record for found in outcomes if isinstance(found, Claimed) and found.is_new]
        for record, found in zip(records, outcomes, strict=True):
            if record.otids and record.otids == winner.otids:
                assert isinstance(found, Claimed)
                assert found.record.id == winner.id
            elif record.id != winner.id:
                assert isinstance(found, Conflict)
                assert found.run_id == winner.id
                assert found.otid == (winner.otids[0] if winner.otids else None)
                assert not found.shares_otid
        assert await active_run(gateways[0], conversation_id) == winner.id


async def test_of_lists_that_share_an_otid_one_starts_a_run(gateways: list[Core]) -> None:
    """Simultaneous requests whose lists overlap, in conversations of their own: one wins, the others are refused."""
    for _ in range(25):
        shared = new_otid()
        lists = [[shared], [shared, new_otid()], [new_otid(), shared], [new_otid(), shared, new_otid()]]
        records = [record_of(conversation_id=new_conversation_id(), otids=otids) for otids in lists]
        outcomes = await asyncio.gather(
            *(outcome(gateway.index, record) for gateway, record in zip(gateways, records, strict=True))
        )
        (winner,) = [found.record.id for found in outcomes if isinstance(found, Claimed)]
        conflicts = [found for found in outcomes if isinstance(found, Conflict)]
        assert len(conflicts) == 3
        for conflict in conflicts:
            assert (conflict.run_id, conflict.otid, conflict.shares_otid) == (winner, shared, True)


async def test_another_list_with_the_same_otid_is_refused(core: Core) -> None:
    """A list that shares an otid with a run's, the same ones in another order too, names that run and the otid."""
    run = await claimed(core, conversation_id=new_conversation_id(), otids=["a1", "b1"])
    for otids, shared in ((["b1", "a1"], "b1"), (["a1"], "a1"), (["c1", "b1"], "b1"), (["a1", "b1", "c1"], "a1")):
        for conversation_id in (run.conversation_id, new_conversation_id(), None):
            record = record_of(agent_id=run.agent_id, conversation_id=conversation_id, otids=otids)
            found = await outcome(core.index, record)
            assert isinstance(found, Conflict)
            assert (found.run_id, found.otid, found.shares_otid) == (run.id, shared, True)
    found = await core.index.claim(run, request_of(run))
    assert found == Claimed(run, is_new=False)


async def test_the_same_list_elsewhere_is_another_request(core: Core) -> None:
    """A claim is for its conversation, or its agent: the same otids in another one are taken, not repeated."""
    run = await claimed(core, conversation_id=new_conversation_id(), otids=[new_otid()])
    found = await outcome(core.index, record_of(conversation_id=new_conversation_id(), otids=run.otids))
    assert isinstance(found, Conflict)
    assert found.run_id == run.id


async def test_tenants_do_not_meet(core: Core) -> None:
    """The same conversation and otids belong to each tenant apart, and neither sees the other's."""
    facts: dict[str, Any] = {
        "agent_id": new_agent_id(),
        "conversation_id": new_conversation_id(),
        "otids": [new_otid()],
    }
    ours = await claimed(core, **facts)
    theirs = await claimed(core, tenant="other", **facts)
    assert await core.index.run("other", ours.id) is None
    for tenant, run in (("default", ours), ("other", theirs)):
        found = await core.index.run_with_otid(tenant, ours.otids[0])
        assert found is not None
        assert found.value.id == run.id


async def test_requests_without_otids_are_never_the_same(core: Core) -> None:
    """Without otids and without a conversation every request starts a run, simultaneous ones too."""
    agent_id = new_agent_id()
    records = [record_of(agent_id=agent_id) for _ in range(10)]
    outcomes = await asyncio.gather(*(core.index.claim(record, request_of(record)) for record in records))
    assert [found.is_new for found in outcomes] == [True] * 10
    assert len({found.record.id for found in outcomes}) == 10


async def test_an_ended_run_still_answers_its_request(core: Core) -> None:
    """The same request, repeated after the end, is answered by the same run, as it is now."""
    run = await claimed(core, conversation_id=new_conversation_id(), otids=[new_otid()])
    await core.index.release(ended(run))
    await core.index.forget(run.id)
    again = record_of(conversation_id=run.conversation_id, otids=run.otids)
    found = await core.index.claim(again, request_of(again))
    assert not found.is_new
    assert found.record == await core.record(run)
    assert found.record.status == "completed"
    assert await active_run(core, str(run.conversation_id)) is None


async def test_a_busy_conversation_is_refused_until_it_is_released(core: Core) -> None:
    """While a run holds its conversation another request hears of it; after the release the next starts at once."""
    conversation_id = new_conversation_id()
    run = await claimed(core, conversation_id=conversation_id, otids=["first-" + conversation_id])
    for _ in range(2):
        found = await outcome(core.index, record_of(conversation_id=conversation_id, otids=[new_otid()]))
        assert isinstance(found, Conflict)
        assert (found.run_id, found.otid, found.shares_otid) == (run.id, run.otids[0], False)
    await core.index.release(ended(run))
    following = await claimed(core, conversation_id=conversation_id, otids=[new_otid()])
    assert await active_run(core, conversation_id) == following.id


async def test_a_holder_that_is_over_is_no_holder(core: Core) -> None:
    """A conversation whose active run is terminal, or not there, is free, whoever forgot to say so."""
    for holder in (record_of(status="failed"), None):
        conversation_id, agent_id = new_conversation_id(), new_agent_id()
        run_id = new_run_id() if holder is None else holder.id
        if holder is not None:
            await core.index.release(ended(holder))
        await core.index.create_conversation(
            ConversationRecord(id=conversation_id, agent_id=agent_id, active_run=run_id)
        )
        run = await claimed(core, conversation_id=conversation_id, agent_id=agent_id)
        assert await active_run(core, conversation_id) == run.id


async def test_a_conversation_keeps_what_was_written_on_it(core: Core) -> None:
    """A claim changes who holds a conversation and when it was used, nothing else."""
    conversation = ConversationRecord(
        id=new_conversation_id(), agent_id=new_agent_id(), summary="about that", extra={"theirs": 1}
    )
    await core.index.create_conversation(conversation)
    await core.index.create_conversation(msgspec.structs.replace(conversation, summary="too late"))
    run = await claimed(core, conversation_id=conversation.id, agent_id=conversation.agent_id)
    stored = await core.index.conversation("default", conversation.id)
    assert stored is not None
    assert stored.value == msgspec.structs.replace(
        conversation,
        active_run=run.id,
        latest_run=run.id,
        last_message_at=run.created_at,
        updated_at=run.created_at,
    )


async def test_the_most_otids_a_request_may_have(core: Core) -> None:
    """A claim with 64 otids, the longest there may be and in any script, is one batch like any other."""
    otids = [f"{number}-" + "ü漢 .*>" * 40 for number in range(64)]
    run = await claimed(core, conversation_id=new_conversation_id(), otids=otids)
    found = await core.index.run_with_otid("default", otids[63])
    assert found is not None
    assert found.value == run


async def test_hundreds_of_claims_at_once(core: Core) -> None:
    """Three hundred claims through one index all succeed: no more batches are in flight than the server allows."""
    records = [record_of(conversation_id=new_conversation_id(), otids=[new_otid()]) for _ in range(300)]
    outcomes = await asyncio.gather(*(core.index.claim(record, request_of(record)) for record in records))
    assert all(found.is_new for found in outcomes)


async def test_a_claim_that_was_not_sent_is_surely_not_stored(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too much was on its way: whoever claims is told to come back, and not that there may be a run."""

    async def no_turn(*_: object) -> int:
        raise NotSent

    monkeypatch.setattr(core.jetstream, "publish_batch", no_turn)
    record = record_of(conversation_id=new_conversation_id())
    with pytest.raises(Unavailable) as refused:
        await Index(core.jetstream, patience_seconds=0).claim(record, request_of(record))
    assert not isinstance(refused.value, Unsettled)


async def test_hundreds_of_claims_from_several_processes(gateways: list[Core]) -> None:
    """Five hundred claims through four indexes all succeed, also where the server has too many batches in flight."""
    records = [record_of(conversation_id=new_conversation_id(), otids=[new_otid()]) for _ in range(500)]
    outcomes = await asyncio.gather(
        *(
            gateway.index.claim(record, request_of(record))
            for gateway, record in zip(itertools.cycle(gateways), records, strict=False)
        )
    )
    assert all(found.is_new for found in outcomes)


# -- unknown outcomes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("otids", [[], ["unsettled-1"]])
async def test_a_claim_whose_answer_is_lost_is_settled(core: Core, otids: Sequence[str]) -> None:
    """A batch that was stored, and whose answer is lost, is found: the run is new, and there is one."""
    conversation_id = new_conversation_id()
    faulty = FaultyJetStream(core.jetstream, after=lost(every=100))
    record = record_of(conversation_id=conversation_id, otids=[*otids, new_otid()])
    found = await Index(faulty).claim(record, request_of(record))
    assert found == Claimed(record, is_new=True)
    assert await active_run(core, conversation_id) == record.id
    assert faulty.writes == 1


async def test_a_claim_whose_request_is_lost_is_repeated(core: Core) -> None:
    """A batch that never arrived is sent again."""
    faulty = FaultyJetStream(core.jetstream, before=lost(every=100))
    record = record_of(conversation_id=new_conversation_id(), otids=[new_otid()])
    assert await Index(faulty).claim(record, request_of(record)) == Claimed(record, is_new=True)
    assert await core.record(record) == record


async def test_same_requests_of_which_answers_are_lost(gateways: list[Core]) -> None:
    """Simultaneous same requests, half of whose answers are lost: one run, which one of them is told is new."""
    for _ in range(20):
        facts: dict[str, Any] = {"conversation_id": new_conversation_id(), "otids": [new_otid()]}
        records = [record_of(**facts) for _ in range(8)]

        def sometimes() -> None:
            if random.random() < 0.5:
                raise Unavailable("lost on the way, by a test")

        outcomes = await asyncio.gather(
            *(
                Index(FaultyJetStream(gateway.jetstream, after=sometimes)).claim(record, request_of(record))
                for gateway, record in zip(itertools.cycle(gateways), records, strict=False)
            )
        )
        (winner,) = {found.record.id for found in outcomes}
        assert [found.is_new for found in outcomes] == [record.id == winner for record in records]


async def test_a_claim_whose_batch_is_carried_out_late(core: Core, nats_server: NatsServer) -> None:
    """A claim that times out again and again while the server is paused, and is then carried out, is one run."""
    conversation_id = new_conversation_id()
    record = record_of(conversation_id=conversation_id, otids=[new_otid()])
    pausing = _PausingJetStream(core.jetstream.connection, nats_server)
    claiming = asyncio.create_task(Index(pausing).claim(record, request_of(record)))
    try:
        await wait_until(lambda: pausing.batches and pausing.unanswered >= 3)
    finally:
        await nats_server.resume()
    assert await claiming == Claimed(record, is_new=True)
    assert await active_run(core, conversation_id) == record.id


class _PausingJetStream(JetStream):
    """Pauses the server just before its first batch, and counts the questions that stay unanswered after it."""

    def __init__(self, connection: Connection, server: NatsServer) -> None:
        super().__init__(connection, timeout_seconds=0.1)
        self.batches = 0
        self.unanswered = 0
        self._server = server

    async def publish_batch(self, writes: Sequence[BatchWrite], batch_id: str) -> int:
        self.batches += 1
        if self.batches == 1:
            await self._server.pause()
        return await super().publish_batch(writes, batch_id)

    async def last_message(self, stream: str, subject: str) -> StoredMessage | None:
        try:
            return await super().last_message(stream, subject)
        except Unavailable:
            self.unanswered += 1
            raise


@pytest.mark.parametrize("is_listed", [False, True], ids=["without otids", "with otids"])
async def test_a_claim_that_is_carried_out_while_it_is_tried_again(core: Core, is_listed: bool) -> None:
    """Between the look for its run and what it would be refused for: the run is new, and nobody is in its way."""
    conversation_id = new_conversation_id()
    record = record_of(conversation_id=conversation_id, otids=[new_otid()] if is_listed else [])
    late = _LateJetStream(core.connection, record)
    assert await Index(late).claim(record, request_of(record)) == Claimed(record, is_new=True)
    assert late.is_carried_out
    assert await active_run(core, conversation_id) == record.id


class _LateJetStream(JetStream):
    """Has its first batch carried out late: right after the run that it starts was looked for, and not found."""

    def __init__(self, connection: Connection, run: RunRecord) -> None:
        super().__init__(connection, timeout_seconds=2)
        self.is_carried_out = False
        self._record = subject_of(run_key(run.tenant, run.id))
        self._late: Sequence[BatchWrite] = ()

    async def publish_batch(self, writes: Sequence[BatchWrite], batch_id: str) -> int:
        if not self._late:
            self._late = writes
            raise Unavailable("late, by a test")
        return await super().publish_batch(writes, batch_id)

    async def last_message(self, stream: str, subject: str) -> StoredMessage | None:
        found = await super().last_message(stream, subject)
        if subject == self._record and self._late and not self.is_carried_out:
            self.is_carried_out = True
            await super().publish_batch(self._late, "late")
        return found


async def test_a_claim_that_cannot_be_settled_says_so(
    core: Core, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When NATS goes away with the batch, its outcome is unknown; when it was away before, nothing was stored."""
    monkeypatch.setattr("runstream.broker.index.CLAIM_PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr("runstream.broker.index.SETTLING_SECONDS", 0.5)
    record = record_of(conversation_id=new_conversation_id(), otids=[new_otid()])
    gone = False

    def go() -> None:
        nonlocal gone
        gone = True

    index = Index(_Vanishing(core, lambda: gone, go))
    with pytest.raises(Unsettled, match=record.id):
        await index.claim(record, request_of(record))
    assert await core.record(record) == record
    other = record_of(conversation_id=new_conversation_id())
    async with stopped(nats_server):
        impatient = Index(FaultyJetStream(core.jetstream, timeout_seconds=0.1))
        with pytest.raises(Unavailable) as refused:
            await impatient.claim(other, request_of(other))
    assert not isinstance(refused.value, Unsettled)
    await wait_until(lambda: core.connection.is_connected)
    assert await core.index.run("default", other.id) is None


class _Vanishing(FaultyJetStream):
    """NATS is away from the answer to the first write on."""

    def __init__(self, core: Core, is_gone: Callable[[], bool], go: Callable[[], None]) -> None:
        def vanish() -> None:
            go()
            raise Unavailable("gone, by a test")

        super().__init__(core.jetstream, after=vanish)
        self._is_gone = is_gone

    async def _message(self, stream: str, query: dict[str, object]) -> object:  # type: ignore[override]
        if self._is_gone():
            raise Unavailable("gone, by a test")
        return await super()._message(stream, query)


# -- the life of a run --------------------------------------------------------------------------------------------


async def test_begin_and_release_can_be_repeated(core: Core) -> None:
    """Done twice they change nothing; after the release the request is gone, and the lease is still there."""
    run = await claimed(core, conversation_id=new_conversation_id())
    begun = await core.index.begin(run, first_seq=7)
    assert (begun.status, begun.first_seq) == ("running", 7)
    assert await core.index.begin(run, first_seq=7) == begun == await core.record(run)
    before = await core.index.run("default", run.id)
    await core.index.begin(begun, first_seq=7)
    assert await core.index.run("default", run.id) == before, "the record was written again"
    over = ended(begun)
    await core.index.release(over)
    released = await core.index.run("default", run.id)
    assert released is not None
    assert released.value == over
    await core.index.release(over)
    assert await core.index.run("default", run.id) == released, "the record was written again"
    assert await core.index.request("default", run.id) is None
    assert await core.holds(f"lease.{run.id}")
    assert await active_run(core, str(run.conversation_id)) is None


async def test_a_record_that_somebody_deleted_is_written_again(core: Core) -> None:
    """However it was deleted, the run's writer begins and ends it as if it were there: its log is."""
    for mark in ({"KV-Operation": "DEL"}, {"KV-Operation": "PURGE", "Nats-Rollup": "sub"}):
        run = await claimed(core, conversation_id=new_conversation_id())
        key = subject_of(run_key(run.tenant, run.id))
        await core.write(LogAddress(run.id, run.shard), [b"{}"])
        await core.jetstream.publish(key, b"", mark)
        begun = await core.index.begin(run, first_seq=7)
        assert await core.record(run) == begun
        await core.jetstream.publish(key, b"", mark)
        await core.index.release(ended(begun))
        assert (await core.record(run)).status == "completed"
        assert await active_run(core, str(run.conversation_id)) is None


async def test_a_run_that_was_removed_stays_removed(core: Core) -> None:
    """Whoever has read it before, and would begin or end it now, is told that it is not his any more."""
    run = await claimed(core, conversation_id=new_conversation_id())
    address = LogAddress(run.id, run.shard)
    await core.write(address, [b"{}"], end=True)
    over = ended(run)
    await core.index.release(over)
    await core.purge(address)
    await core.index.remove_run(over)
    with pytest.raises(Fenced):
        await core.index.begin(run, first_seq=7)
    with pytest.raises(Fenced):
        await core.index.release(over)
    assert await core.index.run(run.tenant, run.id) is None


async def test_no_run_is_claimed_in_a_deleted_conversation(core: Core) -> None:
    """Whoever looked before it was deleted, or never looks, is refused, and nothing is stored."""
    conversation_id = await deleted_conversation(core)
    run = record_of(conversation_id=conversation_id)
    with pytest.raises(ConversationDeleted, match=conversation_id):
        await core.index.claim(run, request_of(run))
    assert await core.index.run(run.tenant, run.id) is None
    assert await active_run(core, conversation_id) is None


async def test_an_ended_record_stays_as_it_is(core: Core) -> None:
    """Who comes too late with another end, or with a beginning, changes nothing."""
    run = await claimed(core, conversation_id=new_conversation_id())
    over = ended(run)
    await core.index.release(over)
    await core.index.release(ended(run, "failed", "error"))
    assert await core.index.begin(run, first_seq=9) == over
    assert await core.record(run) == over


async def test_simultaneous_ends_leave_one(gateways: list[Core]) -> None:
    """A writer and those who think it dead end a run at the same moment: the record has one of their ends, for good."""
    for _ in range(20):
        run = await claimed(gateways[0], conversation_id=new_conversation_id())
        ends = [ended(run), ended(run, "failed", "error"), ended(run, "cancelled", "cancelled")]
        late = gateways[3].index.begin(run, first_seq=1)
        await asyncio.gather(
            *(gateway.index.release(over) for gateway, over in zip(gateways, ends, strict=False)), late
        )
        record = await gateways[0].record(run)
        assert record.is_terminal
        assert record.status in {over.status for over in ends}
        assert await active_run(gateways[0], str(run.conversation_id)) is None
        await gateways[1].index.release(ends[0])
        assert await gateways[0].record(run) == record


async def test_release_frees_only_its_own(core: Core) -> None:
    """A run that ends after its conversation went to another leaves it with that one."""
    conversation_id = new_conversation_id()
    run = await claimed(core, conversation_id=conversation_id)
    await core.index.release(ended(run))
    following = await claimed(core, conversation_id=conversation_id)
    await core.index.release(ended(run))
    await core.index.release(ended(run, "failed", "error"))
    assert await active_run(core, conversation_id) == following.id


async def test_a_record_that_is_gone_is_written_by_the_end(core: Core) -> None:
    """The log is the truth: the end of a run that the index does not know makes its record."""
    run = ended(record_of())
    await core.index.release(run)
    assert await core.record(run) == run


@pytest.mark.parametrize("faults", ["before", "after"])
async def test_changes_whose_answers_are_lost_are_made_once(core: Core, faults: str) -> None:
    """Begin and release, of which each first request or answer is lost, come through."""
    run = await claimed(core, conversation_id=new_conversation_id())

    def lossy() -> FaultyJetStream:
        once: dict[str, Any] = {faults: lost(every=100)}
        return FaultyJetStream(core.jetstream, **once)

    beginning, releasing = lossy(), lossy()
    begun = await Index(beginning).begin(run, first_seq=3)
    assert (begun.status, begun.first_seq) == ("running", 3)
    await Index(releasing).release(ended(begun))
    assert await core.record(run) == ended(begun)
    assert await active_run(core, str(run.conversation_id)) is None
    expected = 2 if faults == "before" else 1
    assert (beginning.writes, releasing.writes) == (expected, expected)


async def test_a_full_index_is_said_at_once(core: Core) -> None:
    """A refusal of the store's is not tried again and again."""
    config = (await core.jetstream.api(f"STREAM.INFO.{INDEX_STREAM}", None))["config"]
    await core.jetstream.api(f"STREAM.UPDATE.{INDEX_STREAM}", {**config, "max_bytes": 1})
    try:
        record = record_of(conversation_id=new_conversation_id())
        async with asyncio.timeout(3):
            with pytest.raises(StoreRefused):
                await core.index.claim(record, request_of(record))
    finally:
        await core.jetstream.api(f"STREAM.UPDATE.{INDEX_STREAM}", config)


# -- sizes --------------------------------------------------------------------------------------------------------


async def test_what_does_not_fit_into_a_message_is_not_sent(core: Core) -> None:
    """The server would end the connection with everything on it: so it stays, and nothing of the batch is stored."""
    limit, reconnects = core.connection.max_payload, core.connection.reconnects
    keys = [f"agent.default.{new_agent_id()}" for _ in range(2)]
    for puts in (
        [Put(keys[0], b"x" * (limit - 20), 0)],
        [Put(keys[0], b"small"), Put(keys[1], b"x" * (limit - 100), 0)],
    ):
        with pytest.raises(RecordTooLarge) as refused:
            await Bucket(core.jetstream).write(puts)
        assert refused.value.limit == limit < refused.value.size
    await Bucket(core.jetstream).write([Put(keys[1], b"x" * (limit - 300), 0), Put(new_otid(), b"")])
    assert core.connection.reconnects == reconnects
    assert not await core.holds(keys[0])


async def test_a_conversation_leaves_room(core: Core) -> None:
    """One that would have more than its share is not made, and does not grow to that; it may get smaller."""
    limit = core.connection.max_payload // CONVERSATION_SHARE
    record = ConversationRecord(
        tenant="default", id=new_conversation_id(), agent_id=new_agent_id(), summary="x" * limit
    )
    with pytest.raises(ConversationTooLarge):
        await core.index.create_conversation(record)
    # As one that was made by another version.
    await core.index.write({f"conversation.default.{record.id}": Stored(encode_conversation(record), 0)})

    def say(summary: str) -> Callable[[ConversationRecord], ConversationRecord]:
        return lambda found: msgspec.structs.replace(found, summary=summary)

    with pytest.raises(ConversationTooLarge) as refused:
        await core.index.update_conversation("default", record.id, say("x" * (limit + 1)))
    assert refused.value.limit == limit < refused.value.size
    for summary in ("x" * (limit - 1), "small"):
        assert await core.index.update_conversation("default", record.id, say(summary)) is not None


async def test_a_record_without_room_for_its_end_is_not_claimed(core: Core) -> None:
    """It is refused before anything is stored: the run could not end."""
    run = record_of(run_type="x" * (core.connection.max_payload - ENDING_BYTES))
    with pytest.raises(RecordTooLarge):
        await core.index.claim(run, request_of(run))
    assert await core.index.run(run.tenant, run.id) is None


async def test_a_deletion_whose_answer_was_lost(core: Core) -> None:
    """It finds the conversation deleted, by itself; the next one finds none."""
    index = Index(FaultyJetStream(core.jetstream, after=lost(every=100)))
    conversation_id = await deleted_conversation(core, index)
    assert await index.update_conversation("default", conversation_id, lambda found: found) is None


async def test_a_change_whose_answer_was_lost_is_made_once(core: Core) -> None:
    """It finds its own change, and does not make it again."""
    record = ConversationRecord(tenant="default", id=new_conversation_id(), agent_id=new_agent_id(), summary="")
    await core.index.create_conversation(record)
    index = Index(FaultyJetStream(core.jetstream, after=lost(every=100)))
    changed = await index.update_conversation(
        "default", record.id, lambda found: msgspec.structs.replace(found, summary=f"{found.summary}x")
    )
    assert changed is not None
    assert changed.summary == "x"


# -- leases -------------------------------------------------------------------------------------------------------


async def test_a_lease_shows_signs_of_life(core: Core) -> None:
    """Each renewal gives a lease another revision, and one that is behind is refused."""
    run = await claimed(core)
    lease = await core.index.lease(run.id)
    assert lease is not None
    assert lease.value == run.tenant
    revisions = [lease.revision]
    for _ in range(3):
        revisions.append(await core.index.renew_lease(run.tenant, run.id, revisions[-1]))
        assert await core.index.lease(run.id) == Stored(run.tenant, revisions[-1])
    assert revisions == sorted(set(revisions))
    with pytest.raises(WrongLastSequence):
        await core.index.renew_lease(run.tenant, run.id, revisions[0])


async def test_a_lease_is_restored_where_there_is_none(core: Core) -> None:
    """A run that has a lease keeps it as it is; one that has none gets one."""
    run = await claimed(core)
    lease = await core.index.lease(run.id)
    assert lease is not None
    assert await core.index.restore_lease(run.tenant, run.id) == lease.revision
    await core.index.forget(run.id)
    assert await core.index.lease(run.id) is None
    restored = await core.index.restore_lease(run.tenant, run.id)
    assert await core.index.lease(run.id) == Stored(run.tenant, restored)


async def test_forgetting_deletes_lease_and_cancel_key(core: Core) -> None:
    """After a run is forgotten, once or twice, it has neither, and a late sign of life does not bring them back."""
    run = await claimed(core)
    lease = await core.index.lease(run.id)
    assert lease is not None
    await core.index.wish_cancelled(run.tenant, run.id)
    assert await core.index.cancel_wish(run.id) == run.tenant
    for _ in range(2):
        await core.index.forget(run.id)
        assert await core.index.lease(run.id) is None
        assert await core.index.cancel_wish(run.id) is None
    with pytest.raises(WrongLastSequence):
        await core.index.renew_lease(run.tenant, run.id, lease.revision)
    assert await core.index.lease(run.id) is None
    assert await core.record(run) == run


async def test_leases_and_wishes_are_listed(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both lists name the runs that have one, however many pages they take, and no run that was forgotten."""
    monkeypatch.setattr(bucket, "LIST_PAGE_KEYS", 5)
    runs = [await claimed(core) for _ in range(12)]
    for run in runs[::2]:
        await core.index.wish_cancelled(run.tenant, run.id)
    for run in runs[:4]:
        await core.index.forget(run.id)
    leases, wishes = await core.index.leases(), await core.index.cancel_wishes()
    for at, run in enumerate(runs):
        lease = await core.index.lease(run.id)
        listed = leases.get(run.id)
        assert (None if listed is None else listed.seq) == (None if lease is None else lease.revision)
        assert (run.id in leases) == (at >= 4)
        assert (run.id in wishes) == (at >= 4 and at % 2 == 0)


async def test_renewing_and_forgetting_at_once(gateways: list[Core]) -> None:
    """Whatever overtakes what, a forgotten lease stays forgotten."""
    for _ in range(30):
        run = await claimed(gateways[0])
        lease = await gateways[0].index.lease(run.id)
        assert lease is not None
        renewals = [gateway.index.renew_lease(run.tenant, run.id, lease.revision) for gateway in gateways[1:]]
        results = await asyncio.gather(*renewals, gateways[0].index.forget(run.id), return_exceptions=True)
        assert not [result for result in results if not isinstance(result, (int, WrongLastSequence, type(None)))]
        assert await gateways[0].index.lease(run.id) is None
