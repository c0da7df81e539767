"""Sweeping the index: what is left of runs whose log is gone is removed, and nothing that anybody still needs."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from runstream.broker.auth.principal import Principal
from runstream.broker.auth.sessions import Sessions
from runstream.broker.auth.tickets import Tickets
from runstream.broker.bucket import Stored
from runstream.broker.ending import Outcome, end_run, first_message
from runstream.broker.errors import Conflict, Unauthenticated, Unavailable
from runstream.broker.jetstream import JetStream
from runstream.broker.keys import agent_key, cancel_key, key_of, otid_key, run_key, subject_of
from runstream.broker.metrics import BrokerMetrics
from runstream.broker.service import Broker
from runstream.broker.sweep import MARGIN, Sweeper, Swept, oldest_kept, sweep
from runstream.broker.topology import INDEX_STREAM, LogAddress, provision
from runstream.schemas import RunRecord, new_conversation_id, new_otid, new_run_id
from tests.support.core import Core, core_running, record_of, request_of
from tests.support.nats import NatsServer, nats_server_running
from tests.support.runs import answer, scripted, submit
from tests.support.waiting import wait_until


@pytest_asyncio.fixture(autouse=True)
async def _empty(core: Core) -> AsyncIterator[None]:
    """Each test begins without a log or a key."""
    await core.jetstream.api("STREAM.PURGE.RUNS_0", {})
    await core.jetstream.api(f"STREAM.PURGE.{INDEX_STREAM}", {})
    yield


async def now(core: Core) -> int:
    """The time on the index's clock, in nanoseconds: what was written before is old."""
    info = await core.jetstream.api(f"STREAM.INFO.{INDEX_STREAM}", None)
    return int(datetime.fromisoformat(info["ts"]).timestamp() * 1e6) * 1000


async def swept(core: Core, before_ns: int | None = None, *, jetstream: JetStream | None = None) -> Swept:
    """Sweep; everything is old unless told otherwise."""
    metrics = BrokerMetrics()
    done = await sweep(jetstream or core.jetstream, metrics, before_ns=before_ns or await now(core))
    assert count(metrics, "runstream_index_keys_swept") == done.removed
    assert count(metrics, "runstream_runs_abandoned") == done.abandoned
    return done


def count(metrics: BrokerMetrics, name: str) -> float:
    """What a counter has counted, all labels together."""
    (family,) = (family for family in metrics.registry.collect() if family.name == name)
    return sum(sample.value for sample in family.samples if sample.name.endswith("_total"))


async def keys(core: Core) -> set[str]:
    """Every key there is, with those that are deleted and leave a mark."""
    info = await core.jetstream.api(f"STREAM.INFO.{INDEX_STREAM}", {"subjects_filter": ">"})
    return {key_of(subject) for subject in info["state"].get("subjects", {})}


async def live_run(core: Core, **facts: Any) -> RunRecord:
    """A run that goes on: claimed, and with one message in its log."""
    record = record_of(**{"conversation_id": new_conversation_id(), "otids": [new_otid()], **facts})
    assert (await core.index.claim(record, request_of(record))).is_new
    async with core.publisher(LogAddress(record.id, record.shard)) as publisher:
        first_seq = await publisher.publish_marked(first_message(record))
    return await core.index.begin(record, first_seq=first_seq)


async def ended_run(core: Core, *, log: bool = False, **facts: Any) -> RunRecord:
    """A run that has come to its end, with its log or without it; there was a wish to cancel it."""
    record = await live_run(core, **facts)
    await core.jetstream.publish(subject_of(cancel_key(record.id)), b"default", {})
    async with core.publisher(
        LogAddress(record.id, record.shard), last_seq=record.first_seq, next_index=1
    ) as publisher:
        await end_run(publisher, core.index, record, Outcome("cancelled"))
    if not log:
        await core.purge(LogAddress(record.id, record.shard))
    return await core.record(record)


def same_request(record: RunRecord) -> RunRecord:
    """The record of the run that would answer the same request again."""
    return record_of(agent_id=record.agent_id, conversation_id=record.conversation_id, otids=record.otids)


# -- what goes and what stays -------------------------------------------------------------------------------------


async def test_nothing_is_left_of_old_runs_but_their_conversation(core: Core) -> None:
    """Record, claim, otids, agent and the marks of lease, request and cancel go with the log, in one sweep.

    What is left is a mark of each record, for those who list runs; it goes when it is old itself.
    """
    runs = [await ended_run(core, otids=["one", "two"]), await ended_run(core, conversation_id=None)]
    assert len(await keys(core)) == 7 + 1 + 1 + 7
    assert await swept(core) == Swept(read=13, removed=15)
    conversation = f"conversation.default.{runs[0].conversation_id}"
    assert await keys(core) == {conversation, *(run_key("default", run.id) for run in runs)}
    assert not any([await core.holds(run_key("default", run.id)) for run in runs])
    assert await swept(core) == Swept(read=2, removed=2)
    assert await keys(core) == {conversation}
    assert (await core.index.claim(same_request(runs[0]), request_of(runs[0]))).is_new


async def test_a_run_whose_log_is_there_stays(core: Core) -> None:
    """Whatever its age: it can be read, and the same request is answered by it; only marks of deleted keys go."""
    run = await ended_run(core, log=True)
    assert await swept(core) == Swept(read=7, removed=3)
    assert await core.record(run) == run
    assert not (await core.index.claim(same_request(run), request_of(run))).is_new
    found = await core.index.latest_run_of_agent("default", run.agent_id)
    assert found is not None
    assert found.value == run


async def test_what_is_young_is_not_even_read(core: Core) -> None:
    """A sweep stops at the first key that is young, also if its log is gone."""
    await ended_run(core)
    before = await now(core)
    await ended_run(core)
    left = await keys(core)
    assert await swept(core, before) == Swept(read=6, removed=7)
    assert len(await keys(core)) == len(left) - 6
    assert (await swept(core, before)).read == 0


async def test_a_session_stays_until_it_is_over(core: Core) -> None:
    """However short retention is: whoever has signed in is known for an hour. A ticket is none by then."""
    sessions, who = Sessions(core.jetstream), Principal(tenant="default", scopes=frozenset({"runs:read"}))
    stays = await sessions.open(who)
    over = await sessions.open(msgspec.structs.replace(who, expires_at=time.time() - 1))
    await Tickets(core.jetstream).make(who, new_run_id())
    assert await swept(core) == Swept(read=3, removed=2)
    assert (await sessions.principal(stays)).scopes == who.scopes
    with pytest.raises(Unauthenticated):
        await sessions.principal(over)


async def test_conversations_are_never_read(core: Core) -> None:
    """They are their users' for ever, and cost a sweep nothing."""
    for number in range(50):
        await core.jetstream.publish(subject_of(f"conversation.default.{number}"), b"{}", {})
    assert await swept(core) == Swept()
    assert len(await keys(core)) == 50


@pytest.mark.parametrize("log", [True, False])
async def test_a_run_that_goes_on_for_longer_than_retention_stays(core: Core, log: bool) -> None:
    """Its record and what leads to it are old; it has a log, or is silent and its writer lives: nothing is removed."""
    run = await live_run(core)
    if not log:
        await core.purge(LogAddress(run.id, run.shard))
    before = await now(core)
    left = await keys(core)
    await core.index.renew_lease(run.tenant, run.id, await core.index.restore_lease(run.tenant, run.id))
    assert (await swept(core, before)).removed == 0
    assert await keys(core) == left
    assert not (await core.index.claim(same_request(run), request_of(run))).is_new


async def test_a_run_that_nobody_ended_is_removed_and_counted(core: Core) -> None:
    """Neither its log nor its lease is younger than retention: it goes with lease and request, and is told of."""
    run = await live_run(core)
    await core.purge(LogAddress(run.id, run.shard))
    done = await swept(core)
    assert done.abandoned == 1
    assert await core.index.run("default", run.id) is None
    assert await keys(core) == {f"conversation.default.{run.conversation_id}", run_key("default", run.id)}
    following = record_of(conversation_id=run.conversation_id, agent_id=run.agent_id)
    assert (await core.index.claim(following, request_of(following))).is_new


async def test_keys_that_lead_nowhere_are_removed(core: Core) -> None:
    """Claims, otids, agents, requests, leases and wishes of runs without a record go, when they are old."""
    run = record_of()
    for key in (
        "claim.default.a.b",
        otid_key("default", "a"),
        agent_key("default", run.agent_id),
    ):
        await core.jetstream.publish(subject_of(key), run.id.encode(), {})
    for key in (f"lease.{run.id}", f"cancel.{run.id}"):
        await core.jetstream.publish(subject_of(key), b"default", {})
    await core.jetstream.publish(subject_of(f"request.default.{run.id}"), b"{}", {})
    before = await now(core)
    await core.jetstream.publish(subject_of(otid_key("default", "young")), run.id.encode(), {})
    assert await swept(core, before) == Swept(read=6, removed=6)
    assert await keys(core) == {otid_key("default", "young")}


async def test_pulses_of_brokers_that_are_gone_are_removed(core: Core) -> None:
    """A broker that writes its pulse keeps it."""
    await core.jetstream.publish(subject_of("pulse.gone"), b"", {})
    before = await now(core)
    await core.jetstream.publish(subject_of("pulse.alive"), b"", {})
    assert await swept(core, before) == Swept(read=1, removed=1)
    assert await keys(core) == {"pulse.alive"}


async def test_an_agent_or_an_otid_that_went_to_a_newer_run_stays_with_it(core: Core) -> None:
    """The old run goes, and what leads to the new one is young."""
    old = await ended_run(core, otids=["shared"])
    before = await now(core)
    await sweep_run_record(core, old)
    new = await live_run(core, agent_id=old.agent_id, otids=["shared"])
    await swept(core, before)
    for found in (
        await core.index.latest_run_of_agent("default", old.agent_id),
        await core.index.run_with_otid("default", "shared"),
    ):
        assert found is not None
        assert found.value == new


async def sweep_run_record(core: Core, run: RunRecord) -> None:
    await core.jetstream.purge(INDEX_STREAM, subject_of(run_key("default", run.id)), through=2**62)


async def test_what_cannot_be_judged_stays(core: Core, nats_server: NatsServer) -> None:
    """A record that cannot be read, or whose stream of logs is gone, is left to people."""
    await core.jetstream.publish(subject_of("run.default.strange"), b"what", {})
    async with core_running(nats_server.url, shards=2) as other:
        run = await live_run(other, shard=1)
        await core.jetstream.api("STREAM.DELETE.RUNS_1", None)
    left = await keys(core)
    assert (await swept(core)).removed == 0
    assert await keys(core) == left
    assert await core.record(run) == run


async def test_a_sweep_takes_its_time(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than so many keys a second are looked at, and each of them once."""
    monkeypatch.setattr("runstream.broker.sweep.KEYS_PER_SECOND", 400)
    for number in range(250):
        await core.jetstream.publish(subject_of(f"pulse.{number}"), b"", {})
    began = time.monotonic()
    assert await swept(core) == Swept(read=250, removed=250)
    assert time.monotonic() - began >= 100 / 400
    assert await keys(core) == set()


@pytest.mark.parametrize("first", ["pulse.0", "conversation.default.0"])
async def test_the_first_key_of_all(core: Core, first: str) -> None:
    """It is judged like any other, and what follows it is found also when nothing else is left before that."""
    for key in (first, *(f"pulse.{number}" for number in range(1, 4)), *(f"lease.{number}" for number in range(3))):
        await core.jetstream.publish(subject_of(key), b"default", {})
    await swept(core)
    assert await keys(core) == ({first} if first.startswith("conversation") else set())


# -- meanwhile ----------------------------------------------------------------------------------------------------


class _Between(JetStream):
    """Lets something happen before each key is removed."""

    def __init__(self, core: Core, happen: Callable[[str], Awaitable[None]]) -> None:
        super().__init__(core.connection, timeout_seconds=2)
        self._happen = happen

    async def purge(self, stream: str, subject: str, *, through: int) -> int:
        await self._happen(key_of(subject))
        return await super().purge(stream, subject, through=through)

    async def publish(self, subject: str, body: bytes, headers: Mapping[str, str]) -> int:
        await self._happen(key_of(subject))
        return await super().publish(subject, body, headers)


@pytest.mark.parametrize("kind", ["run", "claim", "otid", "agent", "lease", "request", "cancel"])
async def test_a_key_that_is_written_between_reading_and_removing_stays(core: Core, kind: str) -> None:
    """What is removed is what was read, never what somebody has written since."""
    run = await ended_run(core)
    written: dict[str, bytes] = {}

    async def write(key: str) -> None:
        if key.startswith(f"{kind}.") and key not in written:
            stored = await core.index.stored(key)
            written[key] = b"new" if kind != "run" else stored.value or b""
            await core.index.write({key: Stored(written[key], stored.revision)})

    await swept(core, jetstream=_Between(core, write))
    (key,) = written
    found = await core.index.stored(key)
    assert found.value == written[key]
    others = {"run", "claim", "otid", "agent"} if kind == "run" else {kind, "run"}
    assert {left.partition(".")[0] for left in await keys(core)} == others | {"conversation"}
    assert (await core.index.run("default", run.id) is not None) == (kind == "run")


async def test_claims_while_the_index_is_swept(core: Core, nats_server: NatsServer) -> None:
    """Old requests, repeated while two brokers sweep what is left of them, start one run each, which stays whole."""
    async with core_running(nats_server.url, name="other") as other:
        for _ in range(8):
            old = [await ended_run(core) for _ in range(4)]
            before = await now(core)
            wanted = [same_request(run) for run in old]
            outcomes, *_ = await asyncio.gather(
                asyncio.gather(*(claimed(core, run) for run in wanted)),
                swept(core, before),
                swept(other, before),
            )
            for run, record, is_new in zip(old, wanted, outcomes, strict=True):
                if not is_new:
                    continue
                assert await core.record(record) == record
                assert await core.index.claimed_run(run) == record
                held = await core.index.run_with_otid("default", run.otids[0])
                assert held is not None
                assert held.value == record
                assert await core.index.request("default", record.id) is not None
                assert await core.holds(f"lease.{record.id}")
            await swept(core)
            await core.jetstream.api(f"STREAM.PURGE.{INDEX_STREAM}", {})


async def claimed(core: Core, record: RunRecord) -> bool:
    """Whether a claim starts a run; one that is refused does not."""
    with contextlib.suppress(Conflict):
        return (await core.index.claim(record, request_of(record))).is_new
    return False


# -- by itself ----------------------------------------------------------------------------------------------------


async def test_a_broker_sweeps_by_itself(tmp_path: Path) -> None:
    """When retention has removed a run's log, its keys follow; the conversation stays."""
    async with nats_server_running(tmp_path) as server:
        await server.wait_ready()
        async with core_running(server.url, retention=1.0, sweep_seconds=0.2) as core:
            broker = Broker(core.settings, agent=scripted(*answer(3)))
            async with broker:
                run = await submit(core, otids=[new_otid()])

                async def is_swept() -> bool:
                    left = await keys(core)
                    return {key for key in left if not key.startswith("pulse.")} == {
                        f"conversation.default.{run.conversation_id}"
                    }

                await wait_until(is_swept, 10, "something is left of the run")
                assert count(broker.metrics, "runstream_index_keys_swept") >= 6
                assert count(broker.metrics, "runstream_runs_abandoned") == 0


async def test_an_outage_only_delays_a_sweep(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that NATS leaves halfway is begun again, without anybody's doing."""
    monkeypatch.setattr("runstream.broker.sweep.RETRY_SECONDS", 0.05)
    monkeypatch.setattr("runstream.broker.sweep.MARGIN", 0.0)
    for number in range(10):
        await core.jetstream.publish(subject_of(f"pulse.{number}"), b"", {})
    purges = 0

    async def fail(_: str) -> None:
        nonlocal purges
        purges += 1
        if purges in {3, 5}:
            raise Unavailable("away, by a test")

    settings = core.settings.model_copy(update={"sweep_seconds": 0.1})
    async with Sweeper(_Between(core, fail), settings, BrokerMetrics()):

        async def is_swept() -> bool:
            return not await keys(core)

        await wait_until(is_swept)
    assert purges == 12


async def test_the_longest_retention_there_is_counts(core: Core) -> None:
    """A broker that is told of a shorter one than the streams have removes nothing that a log may still need."""
    await provision(core.jetstream, core.settings)
    day = 24 * 3600
    for retention, kept in ((3600.0, day), (2.0 * day, 2 * day)):
        settings = core.settings.model_copy(update={"retention": retention})
        age = (await now(core) - await oldest_kept(core.jetstream, settings)) / 1e9
        assert age == pytest.approx(kept * MARGIN, abs=5)
