"""The NATS that `deploy/nats/` configures: each role does its whole job there, and is refused everything else."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from structlog.testing import capture_logs

import runstream.broker.connection as connections
from runstream.broker.auth.principal import Principal
from runstream.broker.auth.revoking import Revocations, revoke
from runstream.broker.auth.sessions import Sessions
from runstream.broker.auth.tickets import Tickets
from runstream.broker.connection import Connection, Message
from runstream.broker.credentials import credentials_of
from runstream.broker.embedded import find_binary
from runstream.broker.errors import Refused, Unauthenticated, Unavailable
from runstream.broker.index import Index
from runstream.broker.jetstream import JetStream
from runstream.broker.metrics import BrokerMetrics
from runstream.broker.opening import begin, claim_to_write, record_to_write
from runstream.broker.publisher import Publisher
from runstream.broker.readiness import Readiness
from runstream.broker.repair import Repair
from runstream.broker.runs import Runs
from runstream.broker.service import Broker
from runstream.broker.sweep import sweep
from runstream.broker.topology import LogAddress
from runstream.gateway.app import Gateway
from runstream.gateway.credentials import Credentials
from runstream.gateway.natskeys import ROLES
from runstream.gateway.provisioning import provision_once
from runstream.gateway.settings import GatewaySettings
from runstream.schemas import (
    DEFAULT_TENANT,
    AssistantMessage,
    RunRequest,
    new_agent_id,
    new_conversation_id,
    new_run_id,
)
from tests.security.nats import GuardedNats, guarded_nats
from tests.support.eventsource import open_source, source_path
from tests.support.http import fetch
from tests.support.nats import answers, free_ports
from tests.support.processes import running
from tests.support.stack import Puppet, Stack, listener, stack_of, url_of
from tests.support.waiting import wait_until

RUN = "run-123e4567-e89b-42d3-8456-426614174000"

NOBODYS = [
    # What only the server says: a chunk that nobody has stored, a record that nobody has written.
    f"live.0.{RUN}",
    f"index.run.default.{RUN}",
    # The streams are `provision`'s to make, and nobody's to change or to delete.
    "$JS.API.STREAM.DELETE.RUNS_0",
    "$JS.API.STREAM.DELETE.KV_RUNSTREAM",
    "$JS.API.STREAM.UPDATE.RUNS_0",
    "$JS.API.STREAM.UPDATE.KV_RUNSTREAM",
    # What was revoked stays so.
    "$JS.API.STREAM.DELETE.KV_RUNSTREAM_REVOKED",
    "$JS.API.STREAM.UPDATE.KV_RUNSTREAM_REVOKED",
    "$JS.API.STREAM.PURGE.KV_RUNSTREAM_REVOKED",
    "$JS.API.STREAM.MSG.DELETE.KV_RUNSTREAM_REVOKED",
    "$JS.API.STREAM.CREATE.OTHER",
    "$JS.API.STREAM.MSG.DELETE.RUNS_0",
    "$JS.API.STREAM.PURGE.RUNSTREAM_WORK",
    "$JS.API.STREAM.SNAPSHOT.RUNS_0",
    "$JS.API.STREAM.RESTORE.OTHER",
    "$JS.API.STREAM.LEADER.STEPDOWN.RUNS_0",
    "$JS.API.META.LEADER.STEPDOWN",
    "$JS.API.ACCOUNT.PURGE.RUNSTREAM",
    "$JS.API.STREAM.LIST",
    # A consumer that is not known by name cannot be taken.
    "$JS.API.CONSUMER.LIST.RUNS_0",
    "$JS.API.CONSUMER.NAMES.RUNS_0",
    "$JS.API.CONSUMER.DELETE.RUNSTREAM_WORK.workers",
    "$JS.API.CONSUMER.PAUSE.RUNSTREAM_WORK.workers",
    "$JS.API.CONSUMER.CREATE.RUNSTREAM_WORK.other",
    "$JS.API.CONSUMER.CREATE.RUNSTREAM_WORK.other.work.>",
    "$JS.API.CONSUMER.CREATE.RUNS_0.other",
    "$JS.API.CONSUMER.CREATE.RUNS_0",
    "$JS.API.CONSUMER.DURABLE.CREATE.RUNS_0.other",
    "$SYS.REQ.SERVER.PING",
    "$SYS.REQ.ACCOUNT.RUNSTREAM.CONNZ",
    "_INBOX.somebody",
    *(f"_INBOX_{role}.somebody" for role in ROLES),
    "anything",
]
READ_ALL = ["$JS.API.STREAM.PURGE.KV_RUNSTREAM", "$JS.API.STREAM.PURGE.RUNS_0"]
WORK = ["$JS.API.CONSUMER.MSG.NEXT.RUNSTREAM_WORK.workers", "$JS.ACK.RUNSTREAM_WORK.workers.1.1.1.1.0"]
MAKE = ["$JS.API.STREAM.CREATE.RUNS_0", "$JS.API.CONSUMER.DURABLE.CREATE.RUNSTREAM_WORK.workers"]
WATCH = [
    "$JS.API.CONSUMER.CREATE.KV_RUNSTREAM.other",
    "$JS.API.CONSUMER.CREATE.KV_RUNSTREAM.other.$KV.RUNSTREAM.run.*.*",
]
REFUSED_PUBLISHES = {
    "provision": [
        *NOBODYS,
        *READ_ALL,
        *WORK,
        *WATCH,
        f"runs.0.{RUN}",
        "work.default.x",
        "$KV.RUNSTREAM.pulse.x",
        "stuck.x",
    ],
    "broker": [
        *NOBODYS,
        *MAKE,
        *WATCH,
        "$JS.API.STREAM.PURGE.RUNS_0",
        f"$JS.API.CONSUMER.CREATE.RUNS_0.x.runs.0.{RUN}",
    ],
    "gateway": [
        *NOBODYS,
        *MAKE,
        *WORK,
        "$JS.API.STREAM.PURGE.KV_RUNSTREAM",
        "$JS.API.CONSUMER.CREATE.KV_RUNSTREAM.other.$KV.RUNSTREAM.run.*.*",
        "$KV.RUNSTREAM.pulse.x",
        "credentials.x",
        "$KV.RUNSTREAM_REVOKED.x",
        "stuck.x",
    ],
    "writer": [
        *NOBODYS,
        *MAKE,
        *READ_ALL,
        *WORK,
        *WATCH,
        "work.default.x",
        "$KV.RUNSTREAM.pulse.x",
        "$JS.API.CONSUMER.CREATE.RUNS_0.x.runs.0.*",
        "brokers.with-agent",
        "credentials.x",
        "$KV.RUNSTREAM_REVOKED.x",
    ],
}
UNHEARD = [
    ">",
    "_INBOX.>",
    "$JS.>",
    "$JS.API.>",
    "$JS.EVENT.>",
    "$SYS.>",
    "$KV.>",
    "runs.>",
    "work.>",
    "index.>",
    "index.request.>",
    "index.conversation.>",
]
SECRET = ["live.>", "credentials.*", "stuck.*"]
REFUSED_SUBSCRIPTIONS = {
    "provision": [*UNHEARD, *SECRET, "brokers.with-agent"],
    "broker": [*UNHEARD, *SECRET],
    "gateway": [*UNHEARD, "brokers.with-agent", "index.lease.*"],
    "writer": [*UNHEARD, *SECRET, "brokers.with-agent", "index.lease.*"],
}


@pytest_asyncio.fixture(scope="module")
async def stack(guarded: GuardedNats) -> AsyncIterator[Stack]:
    """A broker and a gateway, each let in as what it is; the test looks at what they do as the broker may."""
    async with contextlib.AsyncExitStack() as stack:
        broker_socket, gateway_socket = stack.enter_context(listener()), stack.enter_context(listener())
        agent = Puppet()
        await stack.enter_async_context(Broker(guarded.settings("broker"), agent=agent, listener=broker_socket))
        gateway = Gateway(GatewaySettings(), guarded.settings("gateway"), listener=gateway_socket)
        await stack.enter_async_context(gateway)
        connection = await stack.enter_async_context(guarded.connection("broker"))
        settings = guarded.settings("broker")
        made = stack_of(broker_socket, gateway_socket, gateway, connection, agent=agent, settings=settings)
        stack.push_async_callback(made.jetstream.close)
        yield made


@pytest_asyncio.fixture
async def nothing_refused(guarded: GuardedNats) -> AsyncIterator[None]:
    """While a role does its job, the server refuses it nothing."""
    before = len(await guarded.all_violations())
    yield
    assert (await guarded.all_violations())[before:] == []


@contextlib.asynccontextmanager
async def jetstream_of(guarded: GuardedNats, role: str) -> AsyncIterator[JetStream]:
    async with guarded.connection(role) as connection:
        jetstream = JetStream(connection, timeout_seconds=2)
        try:
            yield jetstream
        finally:
            await jetstream.close()


# -- each does its job ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_refused")
async def test_a_run_from_its_creation_to_its_end(stack: Stack) -> None:
    """A gateway starts it, a broker executes it, and the client sees it all, live and again when it is over."""
    async with stack.live(3, background=True) as (run_id, stream):
        stack.puppet.finish(run_id)
        rest = await stream.rest()
    assert rest[-1].data == "[DONE]"
    async with stack.resume(run_id, 0) as again:
        assert [event.data for event in await again.rest()][-len(rest) :] == [event.data for event in rest]


@pytest.mark.usefixtures("nothing_refused")
async def test_a_long_log_is_caught_up_with(stack: Stack) -> None:
    """More than one answer of a replica's can hold comes through a consumer."""
    run_id, events = await stack.finished({"chunks": 700, "interval_ms": 0})
    async with stack.resume(run_id, 0) as stream:
        assert len(await stream.rest()) == len(events)


@pytest.mark.usefixtures("nothing_refused")
async def test_an_event_source_resumes(stack: Stack) -> None:
    """A browser comes back with the last id that it saw."""
    run_id, _ = await stack.finished({"chunks": 3})
    async with open_source(stack.base, source_path(run_id)) as source:
        events = await source.rest()
    async with open_source(stack.base, source_path(run_id), last_event_id=events[1].seq_id) as source:
        assert len(await source.rest()) < len(events)


@pytest.mark.usefixtures("nothing_refused")
async def test_a_run_is_watched(stack: Stack) -> None:
    """Figures, with the lease, the outline of a log, and a gateway's health."""
    async with stack.live(3) as (run_id, _):
        (figures,) = (await stack.fetch("GET", f"/v1/runstream/figures?run_ids={run_id}")).json
        assert figures["lease"] is not None
        assert len((await stack.fetch("GET", f"/v1/runstream/runs/{run_id}/outline")).json["seq_ids"]) == 5
        health = (await stack.fetch("GET", "/v1/runstream/health")).json
        assert {each["problem"] for each in health["streams"]} == {None}


@pytest.mark.usefixtures("nothing_refused")
async def test_a_run_is_cancelled(stack: Stack) -> None:
    """The gateway wishes, the broker hears, the client is told."""
    conversation_id = await stack.conversation()
    async with stack.say_in(conversation_id) as stream:
        await stream.take(1)
        answer = await stack.fetch("POST", f"/v1/conversations/{conversation_id}/cancel")
        assert answer.status == 200, answer
        assert (await stream.rest())[-1].data == "[DONE]"


@pytest.mark.usefixtures("nothing_refused")
async def test_a_whole_answer_lists_and_removal(stack: Stack) -> None:
    """What is answered when a run has ended, what lists show, and what a client removes."""
    agent_id = new_agent_id()
    body = {"input": '{"chunks": 2}', "streaming": False}
    answer = await stack.fetch("POST", f"/v1/agents/{agent_id}/messages", json=body)
    assert answer.status == 200, answer
    (run,) = (await stack.fetch("GET", f"/v1/runs/?agent_id={agent_id}")).json
    assert run["status"] == "completed"
    assert (await stack.fetch("GET", f"/v1/runs/{run['id']}/messages")).status == 200
    assert (await stack.fetch("GET", "/v1/conversations/")).status == 200
    assert (await stack.fetch("DELETE", f"/v1/runs/{run['id']}")).status == 200
    assert (await stack.fetch("GET", f"/v1/runs/{run['id']}")).status == 404


@pytest.mark.usefixtures("nothing_refused")
async def test_a_writer_over_http(stack: Stack) -> None:
    """A broker takes a run over HTTP."""
    opened = await fetch(stack.broker_base, "POST", "/ingest/v1/runs", json={"agent_id": new_agent_id()})
    assert opened.status == 201, opened
    path = f"/ingest/v1/runs/{opened.json['run_id']}"
    said = {"message_type": "assistant_message", "id": "message-1", "content": "said"}
    assert (await fetch(stack.broker_base, "POST", f"{path}/chunks", json=said)).status == 200
    ended = await fetch(stack.broker_base, "POST", f"{path}/end", json={"stop_reason": "end_turn"})
    assert ended.json["status"] == "completed"


@pytest.mark.usefixtures("nothing_refused")
async def test_a_writer_with_the_library(guarded: GuardedNats, stack: Stack) -> None:
    """A platform's own process writes a run, also in a conversation, and hears that one is cancelled."""
    settings = guarded.settings("writer")
    async with Runs(settings.nats_url, settings=settings, drain_seconds=None) as runs:
        async with runs.open(agent_id=new_agent_id(), conversation_id=new_conversation_id(), otids=["one"]) as run:
            await run.publish(AssistantMessage(content="said"))
        async with stack.resume(run.run_id, 0) as stream:
            assert (await stream.rest())[-1].data == "[DONE]"


@pytest.mark.usefixtures("nothing_refused")
async def test_a_lost_run_is_taken_over(guarded: GuardedNats, stack: Stack) -> None:
    """A writer that dies leaves a lease that lapses, and a broker ends its run."""
    settings = guarded.settings("writer")
    record = record_to_write(
        agent_id=new_agent_id(),
        conversation_id=None,
        otids=(),
        background=True,
        run_type="library",
        shards=2,
        tenant=DEFAULT_TENANT,
    )
    async with jetstream_of(guarded, "writer") as jetstream:
        index = Index(jetstream)
        await claim_to_write(index, Repair(jetstream, settings, index, observe=lambda _: None), record)
        async with Publisher(jetstream, LogAddress(record.id, record.shard), settings) as publisher:
            await begin(jetstream, index, publisher, record)

    async def is_lost() -> bool:
        found = await stack.record(record.id)
        return found.error is not None and found.error["error_type"] == "run_lost"

    await wait_until(is_lost, 15, "nobody has ended it")


@pytest.mark.usefixtures("nothing_refused")
async def test_the_index_is_swept(guarded: GuardedNats, stack: Stack) -> None:
    """A broker removes what no log needs any more."""
    await stack.finished({"chunks": 1})
    async with jetstream_of(guarded, "broker") as jetstream:
        swept = await sweep(jetstream, BrokerMetrics(), before_ns=time.time_ns() + 10**12)
    assert swept.removed > 0


@pytest.mark.usefixtures("nothing_refused")
async def test_the_index_is_rebuilt(guarded: GuardedNats, stack: Stack) -> None:
    """`provision` finds everything there, and can write what the index lacks."""
    await stack.finished({"chunks": 1}, messages=[{"role": "user", "content": '{"chunks": 1}', "otid": "two"}])
    told: list[str] = []
    await provision_once(guarded.settings("provision"), rebuild_index=True, tell=told.append)
    assert told[0] == "everything is there"
    assert told[1].startswith("rebuilt from")


@pytest.mark.usefixtures("nothing_refused")
async def test_a_broker_asks_a_gateway_for_a_credential(guarded: GuardedNats) -> None:
    """What a client signed in with goes from the gateway that has it to the broker that needs it."""
    async with guarded.connection("gateway") as gateway, guarded.connection("broker") as broker:
        kept = Credentials(gateway)
        run_id = new_run_id()
        asked_at = await kept.keep(run_id, {"Authorization": "Bearer secret"})
        request = RunRequest(
            run_id=run_id,
            agent_id=new_agent_id(),
            conversation_id=None,
            background=True,
            body={},
            credentials_from=asked_at,
        )
        assert await credentials_of(request, broker) == {"Authorization": "Bearer secret"}
        kept.close()


@pytest.mark.usefixtures("nothing_refused")
@pytest.mark.parametrize("role", ["broker", "gateway"])
async def test_a_revoked_credential_is_heard_of(guarded: GuardedNats, role: str) -> None:
    """`provision` revokes it; whoever lets clients in hears so, at once or when it begins."""
    before, after = f"{role}-before", f"{role}-after"
    async with jetstream_of(guarded, "provision") as provision, jetstream_of(guarded, role) as jetstream:
        await revoke(provision, before)
        async with Revocations(jetstream, restores=role == "broker") as revocations:
            await revocations.known()
            assert revocations.has(before)
            await revoke(provision, after)
            await wait_until(lambda: revocations.has(after))


@pytest.mark.usefixtures("nothing_refused")
async def test_a_gateway_makes_tickets_and_takes_them(guarded: GuardedNats) -> None:
    """Once each."""
    run_id = new_run_id()
    async with jetstream_of(guarded, "gateway") as jetstream:
        tickets = Tickets(jetstream)
        ticket = await tickets.make(Principal(tenant=DEFAULT_TENANT, scopes=frozenset({"runs:read"})), run_id)
        found = await tickets.find(ticket, run_id)
        assert found.principal.run_id == run_id
        await tickets.spend(found)
        with pytest.raises(Unauthenticated):
            await tickets.find(ticket, run_id)


@pytest.mark.usefixtures("nothing_refused")
async def test_a_gateway_opens_sessions_and_closes_them(guarded: GuardedNats) -> None:
    """They are kept where tickets are."""
    async with jetstream_of(guarded, "gateway") as jetstream:
        sessions = Sessions(jetstream)
        session = await sessions.open(Principal(tenant=DEFAULT_TENANT, scopes=frozenset({"runs:read"})))
        assert (await sessions.principal(session)).scopes == {"runs:read"}
        await sessions.close(session)
        with pytest.raises(Unauthenticated):
            await sessions.principal(session)


# -- and is refused everything else -----------------------------------------------------------------------------------


async def ignored(_: Message) -> None:
    pass


@pytest.mark.parametrize("role", ROLES)
async def test_what_a_role_may_not_say(guarded: GuardedNats, role: str) -> None:
    """Whatever its work does not take, a role is refused, and its process knows which subject it was."""
    own = f"_INBOX_{role}.somebody"
    assert own in REFUSED_PUBLISHES[role]
    async with guarded.connection(role) as connection:
        for subject in REFUSED_PUBLISHES[role]:
            with pytest.raises(Refused, match=r"its user lacks a permission"):
                await connection.request(subject, b"{}", seconds=5)


@pytest.mark.parametrize("role", ROLES)
async def test_what_a_role_may_not_hear(guarded: GuardedNats, role: str) -> None:
    """No role hears what is not for it, least of all the answers that another gets."""
    others = [f"_INBOX_{other}.>" for other in ROLES if other != role]
    for subject in [*REFUSED_SUBSCRIPTIONS[role], *others]:
        async with guarded.connection(role) as connection:
            await connection.subscribe(subject, ignored)
            await wait_until(lambda connection=connection: connection.is_deaf, 5, f"{role} may hear {subject}")  # type: ignore[misc]


async def test_the_streams_are_as_they_were(guarded: GuardedNats) -> None:
    """After all of that, nothing was changed."""
    told: list[str] = []
    await provision_once(guarded.settings("provision"), rebuild_index=False, tell=told.append)
    assert told == ["everything is there"]


async def test_nobody_is_let_in_without_a_key(guarded: GuardedNats) -> None:
    """There is no user without one."""
    nobody = msgspec.structs.replace(guarded.access("broker"), key=None)
    with pytest.raises(Unavailable, match="it does not let this user in: check RUNSTREAM_NATS_CREDENTIALS"):
        await Connection(guarded.url, name="test", access=nobody).__aenter__()


async def test_live_delivery_cannot_be_forged(guarded: GuardedNats, stack: Stack) -> None:
    """A gateway may make consumers, which deliver wherever somebody listens: what comes so is shown to nobody."""
    async with stack.live(1) as (run_id, stream), jetstream_of(guarded, "gateway") as jetstream:
        shard = (await stack.record(run_id)).shard
        tip = await stack.tip(await stack.record(run_id))
        other = f"runs.{shard}.{new_run_id()}"
        headers = {
            "Rs-Kind": "data",
            "Rs-Writer": "forger:2",
            "Nats-Sequence": f"{tip + 1}",
            "Nats-Last-Sequence": f"{tip}",
        }
        await jetstream.publish(other, b'{"content":"forged"}', headers)
        name = "forger"
        config = {
            "name": name,
            "deliver_subject": f"live.{shard}.{run_id}",
            "ack_policy": "none",
            "filter_subject": other,
            "inactive_threshold": 10**10,
        }
        create = f"CONSUMER.CREATE.RUNS_{shard}.{name}.{other}"
        made = await jetstream.api(create, {"stream_name": f"RUNS_{shard}", "config": config})
        assert made["push_bound"], "nobody listens there"
        stack.puppet.finish(run_id)
        assert "forged" not in "".join(event.data for event in await stream.rest())


# -- what a refusal looks like ----------------------------------------------------------------------------------------


async def test_a_refused_subscription_is_noticed(guarded: GuardedNats) -> None:
    """Who would hear nothing, and take it for silence, is not ready; the log says of which subject, once."""
    async with jetstream_of(guarded, "writer") as jetstream:
        readiness = Readiness(jetstream, guarded.settings("writer"))
        assert await readiness.unready() is None
        with capture_logs() as logs:
            subscription = await jetstream.connection.subscribe(f"live.0.{RUN}", ignored)
            await wait_until(lambda: jetstream.connection.is_deaf, 5)
        (said,) = [line for line in logs if line["event"] == "nats_refused"]
        assert (said["action"], said["subject"], said["log_level"]) == ("subscribe", f"live.0.{RUN}", "error")
        reason = await readiness.unready()
        assert reason is not None
        assert "refuses what this process has to hear" in reason
        assert RUN not in reason
        await subscription.close()
        assert await readiness.unready() is None


@contextlib.asynccontextmanager
async def changing_nats(directory: Path, denied: str) -> AsyncIterator[tuple[str, Callable[[str], None]]]:
    """A nats-server with one user, who may not use a subject; gives its URL, and what denies another one instead."""
    (port,) = free_ports(1)
    path = directory / "nats.conf"

    def write(subject: str) -> None:
        deny = f'{{ deny: ["{subject}"] }}'
        permissions = f"permissions: {{ publish: {deny}, subscribe: {deny} }}"
        users = f'authorization {{ users: [ {{ user: "a", password: "b", {permissions} }} ] }}'
        path.write_text(f"listen: 127.0.0.1:{port}\njetstream {{ store_dir: '{directory}' }}\n{users}\n")

    write(denied)
    async with running(str(find_binary()), "-c", str(path)) as process:

        def change(subject: str) -> None:
            write(subject)
            process.send_signal(signal.SIGHUP)

        await wait_until(lambda: answers(f"nats://127.0.0.1:{port}"), 20, "nats-server does not start")
        yield f"nats://a:b@127.0.0.1:{port}", change


async def test_a_permission_that_is_granted_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server keeps the connection, and says nothing of it: what was refused is tried again, and then works."""
    monkeypatch.setattr(connections, "PING_INTERVAL_SECONDS", 0.1)
    monkeypatch.setattr(connections, "LISTEN_AGAIN_SECONDS", 0.1)
    heard: list[Message] = []

    async def hear(message: Message) -> None:
        heard.append(message)

    async with changing_nats(tmp_path, "secret") as (url, change), Connection(url, name="test") as connection:
        await connection.subscribe("secret", hear)
        await wait_until(lambda: connection.is_deaf, 5)
        with pytest.raises(Refused):
            await connection.request("secret", b"", seconds=30)
        reconnects = connection.reconnects
        change("other")
        await wait_until(lambda: not connection.is_deaf, 5, "it is not tried again")
        await wait_until(lambda: connection.reconnects > reconnects, 5, "nobody is told that something was missed")
        await connection.publish("secret", b"once")
        await wait_until(lambda: heard, 5, "nothing is heard")
        await connection.publish("secret", b"twice")
        await wait_until(lambda: len(heard) == 2, 5)
        assert [message.data for message in heard] == [b"once", b"twice"]


async def test_a_permission_to_ask_that_is_granted_is_noticed(tmp_path: Path) -> None:
    """With the first answer, so that a later silence is not taken for a refusal."""
    subjects: list[str] = []

    async with (
        changing_nats(tmp_path, "secret.ask") as (url, change),
        Connection(url, name="asks") as asking,
        Connection(url, name="answers") as answering,
    ):

        async def answer(message: Message) -> None:
            subjects.append(message.subject)
            await answering.publish(message.reply, b"")

        await answering.subscribe("secret.*", answer)
        with pytest.raises(Refused):
            await asking.request("secret.ask", b"", seconds=30)
        change("other")

        async def is_answered() -> bool:
            with contextlib.suppress(Unavailable):
                await asking.request("secret.ask", b"", seconds=0.5)
            return bool(subjects)

        await wait_until(is_answered, 10, "it is not let through")
        assert not asking.refuses("secret.ask")
        assert asking.reconnects == 0


async def test_a_wrong_inbox_prefix_is_told(guarded: GuardedNats) -> None:
    """A role that may not hear its own answers is told so with its first question, at once."""
    access = guarded.settings("writer", nats_inbox_prefix="_INBOX_other").nats_access("writer")
    async with Connection(guarded.url, name="test", access=access) as connection:
        began = time.monotonic()
        with pytest.raises(Refused):
            await connection.request("$JS.API.STREAM.INFO.RUNS_0", b"", seconds=30)
        assert time.monotonic() - began < 10


async def test_a_broker_waits_for_the_streams_that_it_may_not_make(tmp_path: Path) -> None:
    """Started first it says what is missing, and goes on once `provision` has made it."""
    async with guarded_nats(tmp_path) as server:
        with contextlib.closing(listener()) as bound, capture_logs() as logs:
            waiting = Broker(server.settings("broker"), agent=Puppet(), listener=bound, patient=True)
            starting = asyncio.create_task(waiting.__aenter__())
            try:
                await wait_until(lambda: [line for line in logs if line["event"] == "nats_awaited"], 10)
                ready = await fetch(url_of(bound), "GET", "/readyz")
                assert (
                    ready.json["detail"] == "Stream RUNS_0 is not there: a broker, or `runstream provision`, makes it."
                )
                (awaited, *_) = (line["error"] for line in logs if line["event"] == "nats_awaited")
                assert "lacks a permission. $JS.API.STREAM.CREATE.RUNS_0" in awaited
                assert "Run `runstream provision` first" in awaited
                await provision_once(server.settings("provision"), rebuild_index=False, tell=lambda _: None)
                await asyncio.wait_for(starting, 10)
                assert (await fetch(url_of(bound), "GET", "/livez")).status == 200
            finally:
                starting.cancel()
                await asyncio.wait([starting])
                if not starting.cancelled():
                    await waiting.__aexit__(None, None, None)


async def test_a_gateway_that_may_do_nothing(guarded: GuardedNats) -> None:
    """A gateway with another role's key is not ready, and tells clients nothing about NATS."""
    settings = guarded.settings("writer")
    with contextlib.ExitStack() as stack:
        bound = stack.enter_context(listener())
        async with Gateway(GatewaySettings(), settings, listener=bound):
            ready = await fetch(url_of(bound), "GET", "/readyz")
            refused = [
                await fetch(url_of(bound), "POST", f"/v1/agents/{new_agent_id()}/messages/stream", json={"input": "x"}),
                await fetch(url_of(bound), "GET", "/v1/runs/"),
            ]
    assert ready.status == 503, ready
    assert [answer.status for answer in refused] == [503, 503]
    for answer in (ready, *refused):
        assert not any(word in answer.body.decode() for word in ("$JS", "_INBOX", "$KV", "ermission", "agent.")), answer
