"""The durable core on a cluster of three: nothing is lost with a leader, nothing comes twice."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial

import pytest_asyncio

from runstream.broker.errors import Conflict, Unavailable, WrongLastSequence
from runstream.broker.feed import Feed, KeyWrite
from runstream.broker.index import Index
from runstream.broker.keys import subject_of
from runstream.broker.log import Entry, entry_of
from runstream.broker.service import Broker
from runstream.broker.topology import INDEX_STREAM, LogAddress
from runstream.schemas import Chunk, RunRequest, StopReason, new_agent_id, new_conversation_id, new_run_id
from tests.support.core import END, Core, chunk, core_running, kinds, record_of, request_of, said, texts
from tests.support.faults import FaultyJetStream
from tests.support.nats import NatsCluster
from tests.support.runs import answer, following, over, request_done, scripted, submit, tailing
from tests.support.waiting import wait_until

ELECTION_SECONDS = 40
"""An election takes 4 to 9 s, on a machine that has nothing else to do."""


@pytest_asyncio.fixture
async def core(nats_cluster: NatsCluster) -> AsyncIterator[Core]:
    """The core on the cluster, three copies of everything; all nodes run when the test begins, and after it."""
    async with core_running(",".join(nats_cluster.urls), replicas=3) as running:
        await nats_cluster.wait_ready(all_current=True)
        yield running
    await nats_cluster.heal()


@contextlib.asynccontextmanager
async def leader_killed(core: Core, cluster: NatsCluster, stream: str) -> AsyncIterator[str]:
    """The stream's leader, killed, for as long as the block lasts."""
    name = await wait_until(lambda: core.leader(stream))
    number = cluster.names.index(name)
    await cluster.kill(number)
    try:
        yield name
    finally:
        await cluster.start(number)


async def another_leads(core: Core, stream: str, dead: str) -> None:
    """Wait until the stream has a leader again."""

    async def led() -> bool:
        return await core.leader(stream) not in {"", dead}

    await wait_until(led, ELECTION_SECONDS, f"{stream} has no new leader")


async def winners(core: Core, count: int = 20) -> list[str]:
    """Make as many identical claims at once; returns the ids of the runs started. Everyone is told the same run."""
    tenant, conversation = new_run_id(), new_conversation_id()
    records = [record_of(tenant=tenant, conversation_id=conversation, otids=["one", "two"]) for _ in range(count)]
    claims = await asyncio.gather(*(core.index.claim(record, request_of(record)) for record in records))
    assert len({claim.record.id for claim in claims}) == 1
    return [claim.record.id for claim in claims if claim.is_new]


# -- all nodes there ----------------------------------------------------------------------------------------------


async def test_writing_reading_following(core: Core) -> None:
    """What is written is read back and followed, in order, once, as on a single server."""
    address = core.address()
    async with tailing(core, address) as follower:
        seqs = await core.write(address, [chunk(number) for number in range(500)], end=True)
        await wait_until(lambda: follower.ended)
    assert await core.bodies(address) == [*(chunk(number) for number in range(500)), b""]
    assert [entry.seq for entry in follower.entries] == seqs
    assert await read(core, address, seqs[-1]) == follower.entries


async def test_claims_that_compete_are_no_outage(core: Core) -> None:
    """However little patience there is with a NATS that is away: it is there, and says who was first."""
    hasty = dataclasses.replace(core, index=Index(core.jetstream, patience_seconds=0.01))
    for _ in range(3):
        assert len(await winners(hasty)) == 1


async def test_parallel_runs_of_one_agent_do_not_compete(core: Core) -> None:
    """Each is its latest for a moment, which is part of its claim and no condition of it: none is tried twice."""
    agent_id = new_agent_id()
    records = [record_of(agent_id=agent_id, conversation_id=new_conversation_id()) for _ in range(20)]
    counting = FaultyJetStream(core.jetstream)
    claims = await asyncio.gather(*(Index(counting).claim(record, request_of(record)) for record in records))
    assert all(claim.is_new for claim in claims)
    assert counting.writes == len(records)
    latest = await core.index.latest_run_of_agent("default", agent_id)
    assert latest is not None
    assert latest.value.id in {record.id for record in records}
    for record in records:
        await core.index.forget(record.id)  # Another test's broker is not to find them lapsed, all at once.


async def test_of_many_who_write_a_key_at_once_one_does_and_the_others_know_it(core: Core) -> None:
    """While a cluster stores one, it cannot say yet who was first: that is waited for, and is no outage."""
    run = await submit(core)
    for _ in range(10):
        lease = await core.index.lease(run.id)
        assert lease is not None
        renewals = [core.index.renew_lease(run.tenant, run.id, lease.revision) for _ in range(8)]
        found = await asyncio.gather(*renewals, return_exceptions=True)
        overtaken = [outcome for outcome in found if isinstance(outcome, WrongLastSequence)]
        written = [outcome for outcome in found if isinstance(outcome, int)]
        assert (len(written), len(overtaken)) == (1, 7), found


async def test_a_feed_has_what_was_stored_before(core: Core, nats_cluster: NatsCluster) -> None:
    """Wherever its consumer is, and however far that replica lags behind the leader."""
    async with contextlib.AsyncExitStack() as stack:
        feeds = []
        for url in nats_cluster.urls:
            other = await stack.enter_async_context(core_running(url, replicas=3))
            feeds.append(await stack.enter_async_context(applying(other)))
        for number in range(100):
            key = f"run.{nats_cluster.names[0]}.{number % 10}"
            await core.jetstream.publish(subject_of(key), str(number).encode(), {})
            for feed, applied in feeds:
                async with asyncio.timeout(10):
                    await feed.caught_up("run.*.*")
                assert applied[key] == str(number).encode()


async def test_a_feed_outlives_the_leader_of_the_index(core: Core, nats_cluster: NatsCluster) -> None:
    """And whichever node its consumer is on: what is stored when there is a leader again is applied."""
    async with applying(core) as (feed, applied):
        async with leader_killed(core, nats_cluster, INDEX_STREAM) as dead:
            await another_leads(core, INDEX_STREAM, dead)
            expected = {f"run.killed.{number}": b"%d" % number for number in range(50)}
            for key, value in expected.items():
                await core.index.persist(partial(put, core, key, value))
            async with asyncio.timeout(20):
                await feed.caught_up("run.*.*")
            assert {key: value for key, value in applied.items() if key.startswith("run.killed.")} == expected
        assert feed.resets == 1


async def put(core: Core, key: str, value: bytes) -> None:
    await core.jetstream.publish(subject_of(key), value, {})


@contextlib.asynccontextmanager
async def applying(core: Core) -> AsyncIterator[tuple[Feed, dict[str, bytes]]]:
    """A feed of the runs in the index, and what it has applied."""
    applied: dict[str, bytes] = {}

    def apply(write: KeyWrite) -> None:
        applied[write.key] = write.value or b""

    async with Feed(core.jetstream, ["run.*.*"], apply=apply, reset=applied.clear, marks_seconds=3600) as feed:
        yield feed, applied


async def test_simultaneous_claims_have_one_winner(core: Core) -> None:
    """Of 20 identical requests at once exactly one starts a run, and the others find it."""
    for _ in range(10):
        assert len(await winners(core)) == 1


async def test_a_conversation_is_claimed_once(core: Core) -> None:
    """Of 20 different requests for one conversation exactly one starts a run; the others are told which."""
    conversation = new_conversation_id()
    records = [record_of(conversation_id=conversation, otids=[f"{conversation}-{number}"]) for number in range(20)]
    claims = await asyncio.gather(
        *(core.index.claim(record, request_of(record)) for record in records), return_exceptions=True
    )
    (won,) = [claim for claim in claims if not isinstance(claim, BaseException)]
    refusals = [claim for claim in claims if isinstance(claim, Conflict)]
    assert [refusal.run_id for refusal in refusals] == [won.record.id] * 19


async def test_a_whole_run(core: Core) -> None:
    """A broker executes a run from its ping to its end."""
    async with Broker(core.settings, agent=scripted(*answer(5))):
        run = await submit(core)
        async with following(core, run) as follower:
            record = await over(core, run)
            await wait_until(lambda: follower.ended)
        await request_done(core, run)
    assert record.status == "completed"
    assert follower.kinds() == ["ping", "attempt", *["data"] * 5, "plain", "plain", "end"]


# -- the leader dies ----------------------------------------------------------------------------------------------


async def test_the_logs_leader_dies_in_mid_run(core: Core, nats_cluster: NatsCluster) -> None:
    """A writer, a whole run, a tail and a reader go on when the log's leader dies: nothing lost, nothing twice."""
    go = asyncio.Event()

    async def agent(_: RunRequest) -> AsyncGenerator[Chunk, None]:
        number = 0
        while not go.is_set():
            yield said(number)
            number += 1
            await asyncio.sleep(0.01)  # an agent's pace
        yield StopReason(stop_reason="end_turn")

    address = core.address()
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(Broker(core.settings, agent=agent))
        publisher = await stack.enter_async_context(core.publisher(address))
        follower = await stack.enter_async_context(tailing(core, address))
        run = await submit(core)
        run_follower = await stack.enter_async_context(following(core, run))

        async def write() -> list[int]:
            seqs: list[int] = []
            while not go.is_set():
                seqs.append(await publisher.publish(chunk(len(seqs))))
                await asyncio.sleep(0.005)  # its pace
            return [*seqs, await publisher.publish_marked(END)]

        writing = asyncio.create_task(write())
        await wait_until(lambda: follower.said() > 100 and run_follower.said() > 50)
        async with leader_killed(core, nats_cluster, address.stream) as dead:
            before = publisher.next_index
            await another_leads(core, address.stream, dead)
            await wait_until(lambda: publisher.next_index > before + 100, ELECTION_SECONDS)
            caught_up = await read(core, address, publisher.last_seq)
            await wait_until(lambda: follower.said() > before + 100, ELECTION_SECONDS)
        before = publisher.next_index
        await wait_until(lambda: publisher.next_index > before + 100)
        go.set()
        seqs = await writing
        record = await over(core, run)
        await wait_until(lambda: follower.ended and run_follower.ended)
        await request_done(core, run)
    assert [entry.seq for entry in follower.entries] == seqs
    assert [entry.body for entry in follower.entries] == [*(chunk(number) for number in range(len(seqs) - 1)), b""]
    assert caught_up == follower.entries[: len(caught_up)]
    assert await read(core, address, seqs[-1]) == follower.entries
    assert [entry_of(message) for message in await core.stored(address)] == follower.entries
    stored = await core.stored(LogAddress(run.id, run.shard))
    assert [entry_of(message) for message in stored] == run_follower.entries
    count = run_follower.said()
    assert kinds(stored) == ["ping", "attempt", *["data"] * count, "plain", "plain", "end"]
    assert texts(stored) == [str(number) for number in range(count)]
    assert record.status == "completed"
    assert not follower.failures
    assert not run_follower.failures


async def test_the_indexs_leader_dies_during_claims(core: Core, nats_cluster: NatsCluster) -> None:
    """Claims that are made while the index has no leader are settled when it has one: there is one winner."""
    assert len(await winners(core)) == 1
    async with leader_killed(core, nats_cluster, INDEX_STREAM) as dead:
        claiming = asyncio.create_task(persistent_winners(core))
        await another_leads(core, INDEX_STREAM, dead)
        assert len(await claiming) == 1
        assert len(await winners(core)) == 1
    assert len(await winners(core)) == 1


async def persistent_winners(core: Core, count: int = 20) -> set[str]:
    """Make as many identical claims at once, each until it is answered; returns the runs that answered them."""
    tenant, conversation = new_run_id(), new_conversation_id()

    async def insist() -> str:
        while True:
            # A client that tries again is a new request to a gateway, with a run id of its own.
            record = record_of(tenant=tenant, conversation_id=conversation, otids=["one"])
            with contextlib.suppress(Unavailable):
                return (await core.index.claim(record, request_of(record))).record.id

    async with asyncio.timeout(ELECTION_SECONDS):
        return set(await asyncio.gather(*(insist() for _ in range(count))))


async def read(core: Core, address: LogAddress, upto: int) -> list[Entry]:
    """The log up to a sequence, as a reader that catches up reads it."""
    async with contextlib.aclosing(core.reader.read(address, 0, upto)) as batches:
        return [entry async for batch in batches for entry in batch]
