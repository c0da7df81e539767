"""What is stored and cannot be read: counted by kind, logged once, failed for that run alone."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping

import msgspec
import pytest
import pytest_asyncio

from runstream.broker.ending import first_message
from runstream.broker.errors import Broken
from runstream.broker.keys import LEASE_SECONDS as LEASE_HEADER
from runstream.broker.keys import (
    agent_key,
    approval_key,
    cancel_key,
    claim_key,
    conversation_key,
    digest,
    lease_key,
    otid_key,
    request_key,
    run_key,
    subject_of,
)
from runstream.broker.log import KIND, WRITER
from runstream.broker.metrics import BrokerMetrics
from runstream.broker.publisher import Publisher
from runstream.broker.rebuild import rebuild
from runstream.broker.sweep import sweep
from runstream.broker.topology import LogAddress
from runstream.schemas import DEFAULT_TENANT, RunRecord, new_agent_id, new_otid, new_run_id
from tests.support.http import DONE, Cut, EventStream, fetch
from tests.support.ingest import writer_of
from tests.support.stack import Stack, message, stack_running
from tests.support.waiting import wait_until

LEASE_SECONDS = 1.0
UNREADABLE = "What is stored of this cannot be read: an operator has to look at it."
JUNK = [b"{", b"\xff\xfe", b"[]", b"null", b"", b'{"v":2}']


@pytest_asyncio.fixture(scope="module")
async def stack(nats_url: str) -> AsyncIterator[Stack]:
    """A runstream whose leases last a second."""
    broker = {"lease_seconds": LEASE_SECONDS, "silence_seconds": 0.3}
    async with stack_running(nats_url, broker=broker) as running:
        yield running


async def put(stack: Stack, key: str, value: bytes, headers: Mapping[str, str] | None = None) -> None:
    """Write a key of the index by force."""
    await stack.jetstream.publish(subject_of(key), value, headers or {})


async def broken(stack: Stack, kind: str) -> float:
    """How many the gateway and the broker have counted of a kind."""
    found = 0.0
    for base in (stack.base, stack.broker_base):
        said = (await fetch(base, "GET", "/metrics")).body.decode()
        found += sum(map(float, re.findall(rf'^runstream_broken_total{{kind="{kind}"}} (\S+)', said, re.MULTILINE)))
    return found


async def others_go_on(stack: Stack) -> None:
    """Another run is begun, listed, and comes to its end."""
    agent_id = new_agent_id()
    run_id, events = await stack.finished({"chunks": 2, "interval_ms": 0}, agent_id=agent_id)
    assert events[-1] == DONE
    listed = await stack.fetch("GET", f"/v1/runs/?agent_id={agent_id}")
    assert [run["id"] for run in listed.json] == [run_id]
    assert (await stack.fetch("GET", "/v1/runs/active")).status == 200
    assert (await stack.fetch("GET", "/v1/conversations/")).status == 200
    await sweep(stack.jetstream, BrokerMetrics(), before_ns=0)
    await rebuild(stack.jetstream, stack.index)


def records(record: RunRecord) -> list[bytes]:
    """What may stand where a run's record was: no JSON, other JSON, wrong types, a newer version."""
    known = msgspec.to_builtins(record)
    strange: list[dict[str, object]] = [
        {"status": "asleep"},
        {"shard": "zero"},
        {"created_at": "yesterday"},
        {"created_at": 7},
        {"v": 2},
    ]
    return [*JUNK, *(msgspec.json.encode({**known, **changed}) for changed in strange)]


async def test_a_record_of_a_run_that_has_ended(stack: Stack) -> None:
    """Whatever stands there: all that needs it is 500 and not to be repeated, lists are without it, others go on."""
    agent_id = new_agent_id()
    kept_id, _ = await stack.finished({"chunks": 1, "interval_ms": 0}, agent_id=agent_id)
    run_id, _ = await stack.finished({"chunks": 1, "interval_ms": 0}, agent_id=agent_id)
    truth = await stack.record(run_id)
    before = await broken(stack, "run")
    spoilt = records(truth)
    for value in spoilt:
        await put(stack, run_key(truth.tenant, run_id), value)
        for method, path in [
            ("GET", f"/v1/runs/{run_id}"),
            ("GET", f"/v1/runs/{run_id}"),
            ("GET", f"/v1/runs/{run_id}/messages"),
            ("GET", f"/v1/runs/{run_id}/stream"),
            ("POST", f"/v1/runs/{run_id}/stream"),
            ("DELETE", f"/v1/runs/{run_id}"),
        ]:
            reply = await stack.fetch(method, path)
            assert (reply.status, reply.detail, reply.headers["x-should-retry"]) == (500, UNREADABLE, "false"), value
        listed = await stack.fetch("GET", f"/v1/runs/?agent_id={agent_id}")
        assert [run["id"] for run in listed.json] == [kept_id]
    await others_go_on(stack)
    # The view's copy and the request's are one place: each is counted once, and said once.
    assert await broken(stack, "run") == before + len(spoilt)


async def test_a_record_of_a_run_that_goes_on(stack: Stack) -> None:
    """Its stream goes on, and its writer's end takes the place of what cannot be read."""
    async with stack.live(2) as (run_id, stream):
        record = await stack.record(run_id)
        await put(stack, run_key(record.tenant, run_id), b"{")
        stack.puppet.say(run_id, 2)
        await stream.take(2)
        stack.puppet.finish(run_id)
        assert (await stream.rest())[-1] == DONE
    assert (await stack.record(run_id)).status == "completed"
    await others_go_on(stack)


async def spoilt_claim(stack: Stack, value: bytes, conversation_id: str) -> RunRecord:
    """A run that was claimed and whose writer is dead, with a record that cannot be read."""
    conversation = await stack.index.conversation(DEFAULT_TENANT, conversation_id)
    assert conversation is not None
    agent_id = conversation.value.agent_id
    record = RunRecord(id=new_run_id(), agent_id=agent_id, conversation_id=conversation_id, shard=0, background=True)
    await stack.index.claim(record, None)
    await begin_log(stack, record)
    await put(stack, run_key(record.tenant, record.id), value)
    return record


async def begin_log(stack: Stack, record: RunRecord) -> None:
    """Store a log's first message and one chunk, as its writer did before it died."""
    async with Publisher(stack.jetstream, LogAddress(record.id, record.shard), stack.settings) as publisher:
        await publisher.publish_marked(first_message(record))
        await publisher.publish(b'{"message_type":"assistant_message","content":"said"}')


async def test_a_record_of_a_run_whose_writer_is_dead(stack: Stack) -> None:
    """A watchdog ends it by what its log says, a lease later, and its conversation is free."""
    conversation_id = await stack.conversation()
    record = await spoilt_claim(stack, b'{"id":', conversation_id)

    async def is_over() -> bool:
        reply = await stack.fetch("GET", f"/v1/runs/{record.id}")
        return reply.status == 200 and reply.json["status"] == "failed"

    await wait_until(is_over, 10 * LEASE_SECONDS, "the run was not ended")
    async with stack.resume(record.id) as stream:
        events = await stream.rest()
    assert [event.message_type for event in events[1:-1]] == ["assistant_message", "stop_reason", "error_message"]
    async with stack.say_in(conversation_id, {"chunks": 1, "interval_ms": 0}) as stream:
        assert (await stream.rest())[-1] == DONE


async def test_a_record_of_a_newer_version_is_nobodys_here(stack: Stack) -> None:
    """It is not overwritten, its run is not ended, and its conversation stays busy: a newer runstream can read it."""
    conversation_id = await stack.conversation()
    newer = b'{"v":2,"of":"tomorrow"}'
    record = await spoilt_claim(stack, newer, conversation_id)
    lapsed = asyncio.get_running_loop().time() + 3 * LEASE_SECONDS
    await wait_until(lambda: asyncio.get_running_loop().time() > lapsed, 10)  # what must not happen has no condition
    stored = await stack.index.stored(run_key(record.tenant, record.id))
    assert stored.value == newer
    reply = await stack.fetch("POST", f"/v1/conversations/{conversation_id}/messages", json=message("hello"))
    assert (reply.status, reply.json["run_id"]) == (409, record.id)
    await others_go_on(stack)


@pytest.mark.parametrize("value", [*JUNK, b"not an id", b"run.default.>"])
async def test_keys_that_lead_to_runs(stack: Stack, value: bytes) -> None:
    """A claim and an otid refuse the request; an agent's and an approval's are as if they were not there."""
    agent_id, otid = new_agent_id(), new_otid()
    body = {"background": True, "messages": [{"role": "user", "content": "{}", "otid": otid}]}
    path = f"/v1/agents/{agent_id}/messages/stream"
    for key in (claim_key(DEFAULT_TENANT, agent_id, [digest(otid)]), otid_key(DEFAULT_TENANT, digest(otid))):
        await put(stack, key, value)
        reply = await stack.fetch("POST", path, json=body)
        assert (reply.status, reply.detail) == (500, UNREADABLE), key
        await put(stack, key, b"", {"KV-Operation": "DEL"})
    await put(stack, agent_key(DEFAULT_TENANT, agent_id), value)
    await put(stack, approval_key(DEFAULT_TENANT, agent_id), value)
    reply = await stack.fetch("POST", "/v1/conversations/default/stream", json={"agent_id": agent_id})
    assert reply.status == 400
    async with stack.create({"chunks": 1, "interval_ms": 0}, agent_id=agent_id) as stream:
        assert (await stream.rest())[-1] == DONE
    await others_go_on(stack)


@pytest.mark.parametrize("value", JUNK)
async def test_a_conversation(stack: Stack, value: bytes) -> None:
    """All that needs it is 500, lists are without it, and a run that goes on in it ends as it would."""
    conversation_id = await stack.conversation()
    async with stack.say_in(conversation_id) as stream:
        (ping,) = await stream.take(1)
        run_id = str(ping.json["run_id"])
        await put(stack, conversation_key(DEFAULT_TENANT, conversation_id), value)
        path = f"/v1/conversations/{conversation_id}"
        said = message("hello")
        for method, where, body in [
            ("GET", path, {}),
            ("PATCH", path, {"summary": "x"}),
            ("DELETE", path, {}),
            ("POST", f"{path}/messages", said),
            ("POST", f"{path}/stream", {}),
            ("POST", f"{path}/cancel", {}),
        ]:
            options = {} if method in {"GET", "DELETE"} else {"json": body}
            reply = await stack.fetch(method, where, **options)
            assert (reply.status, reply.detail) == (500, UNREADABLE), (method, where)
        listed = await stack.fetch("GET", "/v1/conversations/?limit=1000")
        assert conversation_id not in [found["id"] for found in listed.json]
        stack.puppet.finish(run_id)
        assert (await stream.rest())[-1] == DONE
    await others_go_on(stack)


@pytest.mark.parametrize("value", [b"no tenant", b""])
async def test_a_writer_over_http_whose_keys_cannot_be_read(stack: Stack, value: bytes) -> None:
    """Its lease is renewed over what stands there; a wish to cancel is one, whoever's it is."""
    run = await writer_of(stack.broker_base)
    await put(stack, lease_key(run.run_id), value)
    kept = await run.post("lease")
    assert kept.status == 200, kept
    lease = await stack.index.lease(run.run_id)
    assert lease is not None
    assert lease.value == DEFAULT_TENANT
    await put(stack, cancel_key(run.run_id), value)
    refused = await run.append(0)
    assert (refused.status, refused.json["error_type"]) == (409, "run_cancelled"), refused


@pytest.mark.parametrize("value", [*JUNK, b"no tenant", b"*"])
async def test_leases_wishes_and_requests(stack: Stack, value: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Of runs that nobody knows they are deleted; a living run's lease is renewed over; no watch stands still."""
    unknown = [new_run_id() for _ in range(3)]
    await put(stack, lease_key(unknown[0]), value, {LEASE_HEADER: "soon"})
    await put(stack, lease_key(unknown[1]), value, {LEASE_HEADER: "nan"})
    await put(stack, cancel_key(unknown[2]), value)
    await put(stack, request_key(DEFAULT_TENANT, new_run_id()), value)
    async with stack.live(1) as (run_id, stream):
        await put(stack, lease_key(run_id), value)

        async def are_gone() -> bool:
            keys = [lease_key(unknown[0]), lease_key(unknown[1]), cancel_key(unknown[2])]
            return all([(await stack.index.stored(key)).value is None for key in keys])

        await wait_until(are_gone, 10 * LEASE_SECONDS, "a key stays")
        stack.puppet.say(run_id)
        await stream.take(1)
        stack.puppet.finish(run_id)
        assert (await stream.rest())[-1] == DONE
    assert (await stack.record(run_id)).stop_reason == "end_turn"
    await others_go_on(stack)
    assert not [said for said in caplog.messages if "crashed" in said]


# -- logs -----------------------------------------------------------------------------------------------------------


async def say_as_stranger(stack: Stack, record: RunRecord, body: bytes, headers: Mapping[str, str]) -> int:
    """Publish to a run's subject, past its writer."""
    return await stack.jetstream.publish(f"runs.{record.shard}.{record.id}", body, headers)


STRANGE = [
    (b"", {}),
    (b'{"message_type":"assistant_message"}', {}),
    (b"no JSON", {KIND: "data"}),
    (b"{}", {KIND: "of tomorrow"}),
    (b"{}", {WRITER: "nobody"}),
    (b"{}", {KIND: "data", WRITER: "me:-1"}),
    (b"{}", {KIND: "data", WRITER: f"me:{'9' * 5000}"}),
]


@pytest.mark.parametrize(("body", "headers"), STRANGE)
async def test_a_strangers_message_in_a_log(stack: Stack, body: bytes, headers: Mapping[str, str]) -> None:
    """It is shown to nobody, live or later, and the run's writer goes on behind it, at each place it may have."""
    before = await broken(stack, "message")
    async with stack.live(2) as (run_id, stream), stack.resume(run_id) as other:
        record = await stack.record(run_id)
        seqs = [await say_as_stranger(stack, record, body, headers) for _ in range(2)]
        stack.puppet.say(run_id, 2)
        await stream.take(2)
        seqs.append(await say_as_stranger(stack, record, body, headers))
        async with stack.resume(run_id) as late:
            await late.take(5)
            stack.puppet.finish(run_id)
            events = await stream.rest()
            assert events[-1] == DONE
            await asyncio.gather(late.rest(), other.rest())
    assert stream.seen == late.seen == other.seen
    assert not {event.seq_id for event in stream.seen} & set(seqs)
    contents = [event.json["content"] for event in stream.seen if event.message_type == "assistant_message"]
    assert contents == ["0 ", "1 ", "2 ", "3 "]
    # After the end, too, and asked for again.
    await say_as_stranger(stack, record, body, headers)
    async with stack.resume(run_id) as again:
        assert (await again.rest()) == stream.seen
    said = await stack.fetch("GET", f"/v1/runs/{run_id}/messages")
    assert [found["content"] for found in said.json] == contents
    assert await broken(stack, "message") > before
    assert (await stack.fetch("DELETE", f"/v1/runs/{run_id}")).status == 200


BROKEN = [
    (b"{}", {KIND: "of tomorrow"}),
    (b"no JSON", {KIND: "data"}),
    (b'"text"', {KIND: "data"}),
    (b"", {KIND: "data"}),
    (b"{}", {}),
]


async def cut_of(stream: EventStream) -> str:
    with pytest.raises(Cut):
        await stream.rest()
    assert stream.seen[-1].event == "error"
    return str(stream.seen[-1].json["error_type"])


@pytest.mark.parametrize(("body", "headers"), BROKEN)
async def test_a_message_with_a_place_that_cannot_be_read(
    stack: Stack, body: bytes, headers: Mapping[str, str]
) -> None:
    """Readers get what is before it, an honest error and the cut; the run is ended, and its conversation free."""
    conversation_id = await stack.conversation()
    record = await spoilt_claim(stack, b"{", conversation_id)
    await put(stack, run_key(record.tenant, record.id), msgspec.json.encode(record))
    async with stack.resume(record.id) as live:
        await live.take(2)
        await say_as_stranger(stack, record, body, {WRITER: "other:2", **headers})
        assert await cut_of(live) == "log_broken"

    async def is_over() -> bool:
        return (await stack.record(record.id)).is_terminal

    await wait_until(is_over, 10 * LEASE_SECONDS, "the run was not ended")
    async with stack.resume(record.id) as later:
        assert await cut_of(later) == "log_broken"
    assert later.seen[:-1] == live.seen[:-1]
    assert (await stack.fetch("GET", f"/v1/runs/{record.id}/messages")).detail == UNREADABLE
    # An EventSource comes back whatever it is told: behind what it can have it is stopped.
    cursor = live.seen[-2].seq_id
    refused = await stack.fetch("GET", f"/v1/runs/{record.id}/stream", headers={"Last-Event-ID": str(cursor)})
    assert (refused.status, refused.detail) == (500, UNREADABLE)
    async with stack.say_in(conversation_id, {"chunks": 1, "interval_ms": 0}) as stream:
        assert (await stream.rest())[-1] == DONE
    await others_go_on(stack)


async def test_a_log_whose_first_message_is_a_strangers(stack: Stack) -> None:
    """Where the beginning should be is somebody else's message: readers are told that the log is broken."""
    record = RunRecord(id=new_run_id(), agent_id=new_agent_id(), background=True, shard=0, status="running")
    record = msgspec.structs.replace(record, first_seq=await say_as_stranger(stack, record, b"{}", {}))
    await say_as_stranger(stack, record, b"{}", {KIND: "data", WRITER: "other:1"})
    await put(stack, run_key(record.tenant, record.id), msgspec.json.encode(record))
    async with stack.resume(record.id) as stream:
        assert await cut_of(stream) == "log_broken"
    assert len(stream.seen) == 1
    assert (await stack.fetch("GET", f"/v1/runs/{record.id}/messages")).detail == UNREADABLE
    await others_go_on(stack)


# -- the work queue -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [*JUNK, b'{"tenant":"default","run_id":"a b"}', b'{"tenant":"*","run_id":"run-1"}'])
async def test_a_message_of_the_work_queue(stack: Stack, value: bytes) -> None:
    """It is taken off and counted, and what is behind it is executed."""
    before = await broken(stack, "work")
    await stack.jetstream.publish(f"work.default.{new_run_id()}", value, {})
    await others_go_on(stack)
    assert await broken(stack, "work") == before + 1


async def test_it_is_said_once(stack: Stack) -> None:
    """However often a broken record is asked for, it is counted once."""
    run_id, _ = await stack.finished({"chunks": 1, "interval_ms": 0})
    record = await stack.record(run_id)
    await put(stack, run_key(record.tenant, run_id), b"{")
    before = await broken(stack, "run")
    for _ in range(20):
        assert (await stack.fetch("GET", f"/v1/runs/{run_id}")).status == 500
    assert await broken(stack, "run") <= before + 1
    with pytest.raises(Broken):
        await stack.index.run(record.tenant, run_id)
