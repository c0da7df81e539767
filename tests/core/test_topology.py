"""Provisioning: everything is made once, whoever makes it, and what differs is said."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from runstream.broker.connection import Connection
from runstream.broker.errors import NotStored, ServerTooOld, StoreRefused, TopologyError, Unavailable
from runstream.broker.jetstream import JetStream
from runstream.broker.log import KIND, WRITER
from runstream.broker.readiness import Readiness
from runstream.broker.settings import BrokerSettings
from runstream.broker.topology import (
    NO_PEERS,
    SEQUENCES_PER_SHARD,
    Difference,
    LogAddress,
    check_server,
    provision,
    shard_of,
    shard_of_cursor,
)
from runstream.schemas import new_run_id
from tests.support.nats import NatsServer, nats_cluster_running
from tests.support.outages import stopped

STREAMS = {"RUNS_0", "KV_RUNSTREAM", "RUNSTREAM_WORK", "KV_RUNSTREAM_REVOKED"}
HEADERS = {KIND: "data", WRITER: "test:0"}


@pytest_asyncio.fixture
async def jetstream(nats_server: NatsServer) -> AsyncIterator[JetStream]:
    """A connection to a server without any stream."""
    await nats_server.wait_ready()
    async with Connection(nats_server.url, name="test") as connection:
        made = JetStream(connection, timeout_seconds=2)
        for name in await names(made):
            await made.api(f"STREAM.DELETE.{name}", None)
        yield made


async def names(jetstream: JetStream) -> set[str]:
    return set((await jetstream.api("STREAM.NAMES", None))["streams"] or [])


async def info(jetstream: JetStream, stream: str = "RUNS_0") -> dict[str, Any]:
    return await jetstream.api(f"STREAM.INFO.{stream}", None)


async def remade(jetstream: JetStream, stream: str, changes: Mapping[str, Any]) -> None:
    """Put a stream in the place of one, the same but for `changes`."""
    config = (await info(jetstream, stream))["config"]
    await jetstream.api(f"STREAM.DELETE.{stream}", None)
    await jetstream.api(f"STREAM.CREATE.{stream}", {**config, **changes})


async def test_everything_is_made(jetstream: JetStream) -> None:
    """On an empty server provisioning makes the log, the index, the work queue and its one consumer."""
    assert (await provision(jetstream, BrokerSettings())).differing == []
    assert await names(jetstream) == STREAMS
    workers = await jetstream.api("CONSUMER.INFO.RUNSTREAM_WORK.workers", None)
    assert workers["config"]["ack_policy"] == "explicit"
    log = (await info(jetstream))["config"]
    assert log["republish"] == {"src": "runs.0.>", "dest": "live.0.>"}
    assert log["allow_atomic"]
    assert (await info(jetstream, "KV_RUNSTREAM"))["config"]["allow_atomic"]


async def test_a_second_time_changes_nothing(jetstream: JetStream) -> None:
    """What is there stays as it is, with its messages and its sequences, and nothing is reported."""
    await provision(jetstream, BrokerSettings())
    seq = await jetstream.publish("runs.0.one", b"1", HEADERS)
    before = [await info(jetstream, name) for name in STREAMS]
    assert (await provision(jetstream, BrokerSettings())).differing == []
    after = [await info(jetstream, name) for name in STREAMS]
    assert [each["created"] for each in after] == [each["created"] for each in before]
    assert [each["config"] for each in after] == [each["config"] for each in before]
    assert await jetstream.publish("runs.0.one", b"2", HEADERS) == seq + 1


@pytest.mark.parametrize("processes", [2, 10])
async def test_many_at_once(jetstream: JetStream, nats_url: str, processes: int) -> None:
    """Brokers that start at the same moment all succeed, and there is one of everything."""
    settings = BrokerSettings(shards=2)

    async def start() -> list[Difference]:
        async with Connection(nats_url, name="broker") as connection:
            return (await provision(JetStream(connection, timeout_seconds=2), settings)).differing

    assert await asyncio.gather(*(start() for _ in range(processes))) == [[]] * processes
    assert await names(jetstream) == STREAMS | {"RUNS_1"}
    assert (await info(jetstream, "RUNSTREAM_WORK"))["state"]["consumer_count"] == 1


@pytest.mark.parametrize("shard", [0, 1])
async def test_revocations_that_are_lost_beside_runs_are_told_of(jetstream: JetStream, shard: int) -> None:
    """Whichever shard the runs are in: where there are any, there may have been credentials that were revoked."""
    settings = BrokerSettings(shards=2)

    async def told() -> bool:
        with capture_logs() as lines:
            await provision(jetstream, settings)
        return "revocations_begin_anew" in {line["event"] for line in lines}

    assert not await told()
    await jetstream.publish(f"runs.{shard}.one", b"1", HEADERS)
    assert not await told()
    await jetstream.api("STREAM.DELETE.KV_RUNSTREAM_REVOKED", None)
    assert await told()


async def test_what_differs_is_reported_and_left(jetstream: JetStream) -> None:
    """Other settings are no reason to change a stream: each difference is said with both values."""
    await provision(jetstream, BrokerSettings(retention=3600, max_run_messages=1000, lease_seconds=10))
    before = (await info(jetstream))["config"]
    changed = BrokerSettings(retention=7200, max_run_messages=2000, lease_seconds=5)
    assert [*map(str, (await provision(jetstream, changed)).differing)] == [
        "RUNS_0.max_age is 1h, this configuration says 2h",
        "RUNS_0.max_msgs_per_subject is 1000, this configuration says 2000",
        "RUNSTREAM_WORK.max_age is 1h, this configuration says 2h",
        "RUNSTREAM_WORK consumer workers.ack_wait is 10s, this configuration says 5s",
    ]
    assert (await info(jetstream))["config"] == before


async def test_who_owns_the_server_has_changes_applied(jetstream: JetStream) -> None:
    """An embedded server's streams follow the settings; what they hold and where they number from stays."""
    await provision(jetstream, BrokerSettings(retention=3600, max_run_messages=1000, lease_seconds=10))
    seq = await jetstream.publish("runs.0.run", b"kept", HEADERS)
    changed = BrokerSettings(retention=7200, max_run_messages=2000, lease_seconds=5)
    assert len((await provision(jetstream, changed, apply=True)).differing) == 4
    assert (await provision(jetstream, changed)).differing == []
    assert await jetstream.publish("runs.0.run", b"next", HEADERS) == seq + 1
    kept = await jetstream.message_at("RUNS_0", seq)
    assert kept is not None
    assert kept.body == b"kept"


@pytest.mark.parametrize(
    ("stream", "changes"),
    [
        ("RUNS_0", {"republish": None}),
        ("RUNS_0", {"republish": {"src": "runs.0.>", "dest": "elsewhere.>"}}),
        ("RUNS_0", {"allow_atomic": False}),
        ("RUNS_0", {"subjects": ["runs.0.>", "more.>"]}),
        ("RUNS_0", {"storage": "memory"}),
        ("RUNS_0", {"discard_new_per_subject": False}),
        ("KV_RUNSTREAM", {"allow_atomic": False}),
        ("RUNSTREAM_WORK", {"retention": "limits"}),
    ],
)
async def test_a_stream_that_cannot_serve_is_refused(
    jetstream: JetStream, stream: str, changes: Mapping[str, Any]
) -> None:
    """Without republishing, atomic batches and the like nothing would work: the error names stream and field."""
    await provision(jetstream, BrokerSettings())
    await remade(jetstream, stream, changes)
    with pytest.raises(TopologyError) as refused:
        await provision(jetstream, BrokerSettings())
    assert f"{stream}.{next(iter(changes))} is " in str(refused.value)


@pytest.mark.parametrize("changes", [{"republish": None}, {"allow_atomic": False}, {"subjects": ["$KV.RUNSTREAM.a"]}])
async def test_who_owns_the_server_brings_a_stream_of_before_up_to_date(
    jetstream: JetStream, changes: Mapping[str, Any]
) -> None:
    """A stream that an earlier release made is changed so that it can serve."""
    await provision(jetstream, BrokerSettings())
    await remade(jetstream, "KV_RUNSTREAM", changes)
    assert (await provision(jetstream, BrokerSettings(), apply=True)).differing
    assert not (await provision(jetstream, BrokerSettings())).differing


async def test_what_cannot_be_changed_is_said_to_who_owns_the_server(jetstream: JetStream) -> None:
    """A stream that is stored in another way stays as it is, and the error names it and says what to do."""
    await provision(jetstream, BrokerSettings())
    await remade(jetstream, "RUNS_0", {"storage": "memory"})
    with pytest.raises(TopologyError, match=r"Stream RUNS_0 cannot be changed: .*Repair or remove the stream"):
        await provision(jetstream, BrokerSettings(), apply=True)


async def test_a_stream_that_cannot_be_made_is_named(jetstream: JetStream) -> None:
    """Three replicas on a single server are refused by it, and the error says which stream and why."""
    with pytest.raises(TopologyError, match=r"Stream RUNS_0 cannot be created: replicas > 1 not supported"):
        await provision(jetstream, BrokerSettings(replicas=3))
    with pytest.raises(NotStored):
        await info(jetstream)


async def test_servers_of_a_cluster_that_are_still_to_come_are_waited_for(
    jetstream: JetStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as the server says that there are too few; it is said once, and then all is made.

    When a server takes another one for gone is its own secret, so that its words are put into its mouth here.
    """
    ask, refusals = jetstream.api, iter(range(2))

    async def api(call: str, body: Any, **options: Any) -> dict[str, Any]:
        if call == "STREAM.CREATE.RUNS_0" and next(refusals, None) is not None:
            raise StoreRefused("no suitable peers for placement, peer offline", code=NO_PEERS)
        return await ask(call, body, **options)

    monkeypatch.setattr(jetstream, "api", api)
    with capture_logs() as logs:
        assert set((await provision(jetstream, BrokerSettings())).made) == STREAMS
    assert [line["stream"] for line in logs if line["event"] == "nats_servers_awaited"] == ["RUNS_0"]


async def test_servers_that_do_not_come_are_said_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while: a cluster of two never has three copies of anything."""
    monkeypatch.setattr("runstream.broker.topology.PEERS_SECONDS", 1.0)
    async with nats_cluster_running(tmp_path, 2) as cluster, Connection(cluster.urls[0], name="test") as connection:
        with pytest.raises(TopologyError, match=r"Stream RUNS_0 cannot be created: no suitable peers"):
            await provision(JetStream(connection, timeout_seconds=5), BrokerSettings(replicas=3))


async def test_shards_number_their_messages_apart(jetstream: JetStream) -> None:
    """Eight shards have eight ranges of sequences, all below 2^53, and a sequence names its shard."""
    await provision(jetstream, BrokerSettings(shards=8))
    firsts = [(await info(jetstream, f"RUNS_{shard}"))["config"]["first_seq"] for shard in range(8)]
    for shard, (first, after) in enumerate(itertools.pairwise([*firsts, 2**53])):
        seq = await jetstream.publish(f"runs.{shard}.one", b"1", HEADERS)
        assert seq == first
        assert shard_of_cursor(seq) == shard
        # There is room for a century of a thousand messages a second, before the next shard's first.
        assert shard * SEQUENCES_PER_SHARD < seq < after - 10**12


async def test_a_stream_made_again_goes_on_above(jetstream: JetStream) -> None:
    """A log that was deleted never issues a sequence again that a client may still hold."""
    await provision(jetstream, BrokerSettings())
    issued = [await jetstream.publish("runs.0.one", b"1", HEADERS) for _ in range(20)]
    for _ in range(5):
        await jetstream.api("STREAM.DELETE.RUNS_0", None)
        await provision(jetstream, BrokerSettings())
        issued += [await jetstream.publish("runs.0.one", b"1", HEADERS) for _ in range(20)]
    assert issued == sorted(set(issued))


async def test_without_a_server_it_says_so(jetstream: JetStream, nats_server: NatsServer) -> None:
    """Provisioning while NATS is away is `Unavailable`, not a drift."""
    impatient = JetStream(jetstream.connection, timeout_seconds=0.2)
    async with stopped(nats_server):
        with pytest.raises(Unavailable):
            await provision(impatient, BrokerSettings())


@pytest.mark.parametrize("version", [(2, 11, 9), (2, 10, 0), (1, 99, 99)])
def test_an_old_server_is_refused(version: tuple[int, int, int]) -> None:
    """A nats-server before 2.12 has no atomic batches: the error names both versions."""
    words = rf"This is nats-server {'.'.join(map(str, version))}; runstream needs 2\.12\.0 or newer\."
    with pytest.raises(ServerTooOld, match=words):
        check_server(version)


@pytest.mark.parametrize("version", [(2, 12, 0), (2, 15, 1), (3, 0, 0)])
def test_a_new_server_is_taken(version: tuple[int, int, int]) -> None:
    """From 2.12 on every server will do."""
    check_server(version)


async def test_this_server_is_taken(jetstream: JetStream) -> None:
    """The version is read from the connection."""
    assert jetstream.connection.server_version >= (2, 12, 0)
    check_server(jetstream.connection.server_version)


def test_runs_are_spread_over_the_shards() -> None:
    """Each run has one of the shards there are, and each shard gets its part of them."""
    ids = [new_run_id() for _ in range(800)]
    counts = [sum(shard_of(run_id, 4) == shard for run_id in ids) for shard in range(4)]
    assert sum(counts) == 800
    assert min(counts) > 100


def test_an_address_names_its_stream_and_subjects() -> None:
    """What is stored under runs.<shard>.<run> is republished as live.<shard>.<run>."""
    address = LogAddress("run-1", 3)
    assert (address.stream, address.subject, address.live_subject) == ("RUNS_3", "runs.3.run-1", "live.3.run-1")


async def test_many_who_ask_whether_it_is_ready_ask_nats_once(
    jetstream: JetStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probes of many at the same moment, as while NATS is slow, are no more to it than one."""
    settings = BrokerSettings()
    await provision(jetstream, settings)
    asked: Counter[str] = Counter()
    really = jetstream.api

    async def counted(call: str, body: Mapping[str, object] | None) -> dict[str, Any]:
        asked[call] += 1
        return await really(call, body)

    monkeypatch.setattr(jetstream, "api", counted)
    readiness = Readiness(jetstream, settings)
    assert await asyncio.gather(*(readiness.unready() for _ in range(20))) == [None] * 20
    assert asked == Counter(f"STREAM.INFO.{name}" for name in STREAMS)
