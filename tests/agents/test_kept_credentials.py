"""Which credentials a gateway keeps, for how long, and how a worker gets them, whoever of the two is away meanwhile."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from runstream.broker.auth.principal import ANYBODY
from runstream.broker.connection import Connection
from runstream.broker.credentials import NONE_SENT, credentials_of
from runstream.broker.embedded import EmbeddedServer
from runstream.broker.errors import AgentFailed, BrokerError, Conflict, Unavailable, Unsettled
from runstream.broker.presence import Presence
from runstream.broker.queue import WorkQueue
from runstream.broker.repair import Repair
from runstream.gateway.credentials import Credentials
from runstream.gateway.presence import AgentPresence
from runstream.gateway.start import Starter
from runstream.schemas import (
    ERROR_TYPES,
    AgentStreamRequest,
    RunRequest,
    new_agent_id,
    new_run_id,
)
from tests.support.core import Core, core_running
from tests.support.faults import replaced, turns
from tests.support.nats import free_ports
from tests.support.waiting import wait_until

SENT = {"Authorization": "Bearer the-clients-own", "user_id": "me", "Cookie": "a=b"}
KEPT = {"Authorization": "Bearer the-clients-own", "user_id": "me"}


@pytest_asyncio.fixture
async def worker(nats_url: str) -> AsyncIterator[Connection]:
    async with Connection(nats_url, name="worker") as made:
        yield made


@pytest_asyncio.fixture
async def gateway(nats_url: str) -> AsyncIterator[Connection]:
    async with Connection(nats_url, name="gateway") as made:
        yield made


@pytest_asyncio.fixture
async def credentials(gateway: Connection) -> AsyncIterator[Credentials]:
    made = Credentials(gateway)
    yield made
    made.close()


def run_that_asks(at: str | None) -> RunRequest:
    return RunRequest(run_id=new_run_id(), agent_id=new_agent_id(), body={}, credentials_from=at)


async def kept_run(credentials: Credentials) -> RunRequest:
    """A run whose credentials are kept."""
    run = run_that_asks(None)
    run.credentials_from = await credentials.keep(run.run_id, SENT)
    return run


async def lost(run: RunRequest, connection: Connection) -> AgentFailed:
    with pytest.raises(AgentFailed) as caught:
        await credentials_of(run, connection)
    assert caught.value.error_type == "credential_lost"
    return caught.value


# -- how a worker gets them -------------------------------------------------------------------------------------------


async def test_a_credential_that_went_with_its_gateway_is_said_to_be_lost(
    worker: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that waited for a worker longer than its gateway lived fails in words that say what to do, and no more."""
    monkeypatch.setattr("runstream.broker.credentials.PATIENCE_SECONDS", 0.5)
    assert (await lost(run_that_asks("credentials.secret"), worker)).detail == ""
    assert "Send the request again" in ERROR_TYPES["credential_lost"].message


async def test_a_gateway_that_is_back_later_than_its_worker_is_waited_for(
    worker: Connection, gateway: Connection, credentials: Credentials
) -> None:
    """After an outage of NATS nobody answers until the gateway has NATS again: that is no reason to fail a run."""
    run = await kept_run(credentials)
    (subscription,) = gateway._subscriptions
    assert subscription._inner is not None
    await subscription._inner.unsubscribe()
    await gateway.request("$JS.API.INFO", b"", seconds=2)  # The server knows of it by then.
    asked: list[bytes] = []
    really = worker.request

    async def request(subject: str, body: bytes, **options: Any) -> Any:
        asked.append(body)
        return await really(subject, body, **options)

    replaced(worker, "request", request)
    asking = asyncio.create_task(credentials_of(run, worker))
    await wait_until(lambda: len(asked) > 1)
    await subscription.attach(gateway._client)
    assert await asking == KEPT


async def test_a_worker_that_has_no_nats_yet_waits_for_it(tmp_path: Path) -> None:
    """The connection it asks on may be there later than the one that brought the run."""
    (port,) = free_ports(1)
    async with contextlib.AsyncExitStack() as stack:
        late = await stack.enter_async_context(Connection(f"nats://127.0.0.1:{port}", name="late", patient=True))
        unreached = asyncio.create_task(credentials_of(run_that_asks("credentials.any"), late))
        await turns()
        assert not unreached.done()
        unreached.cancel()
        server = await stack.enter_async_context(EmbeddedServer(tmp_path, port=port))
        there = await stack.enter_async_context(Connection(server.url, name="gateway"))
        credentials = Credentials(there)
        stack.callback(credentials.close)
        assert await credentials_of(await kept_run(credentials), late) == KEPT


async def test_what_no_gateway_has_looked_at_is_not_taken_for_nothing(
    worker: Connection, credentials: Credentials
) -> None:
    """In a rollout a gateway may have kept nothing, as no broker wanted it: such a run is not asked for as nobody."""
    assert "before there was a broker that forwards" in (await lost(run_that_asks(None), worker)).detail
    nothing = await credentials.keep("run", {"Cookie": "a=b"})
    assert nothing == NONE_SENT
    assert await credentials_of(run_that_asks(nothing), worker) == {}


# -- for how long -----------------------------------------------------------------------------------------------------


async def test_they_are_kept_for_so_long_and_no_longer(
    worker: Connection, credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without another request, too: then the gateway says that it no longer knows."""
    monkeypatch.setattr("runstream.gateway.credentials.KEPT_SECONDS", 0.5)
    run = await kept_run(credentials)
    assert await credentials_of(run, worker) == KEPT
    await wait_until(lambda: not credentials._kept)
    await lost(run, worker)


async def test_the_oldest_go_first(
    worker: Connection, credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound a new one takes the oldest one's place."""
    monkeypatch.setattr("runstream.gateway.credentials.MOST_KEPT", 2)
    oldest, *newer = [await kept_run(credentials) for _ in range(3)]
    await lost(oldest, worker)
    assert [await credentials_of(run, worker) for run in newer] == [KEPT, KEPT]


# -- of which runs ----------------------------------------------------------------------------------------------------


class SaysYes(AgentPresence):
    """There is a broker that forwards, always."""

    async def find(self) -> Presence | None:
        return Presence(forwards_credentials=True)


@pytest_asyncio.fixture
async def core(nats_url: str) -> AsyncIterator[Core]:
    async with core_running(nats_url) as made:
        yield made


@pytest_asyncio.fixture
async def starter(core: Core) -> AsyncIterator[Starter]:
    made = Starter(
        core.jetstream,
        core.settings,
        index=core.index,
        queue=WorkQueue(core.jetstream),
        patience_seconds=5,
        presence=SaysYes(core.connection, grace_seconds=15),
        repair=Repair(core.jetstream, core.settings, core.index, observe=lambda _: None),
    )
    yield made
    await made.close()


async def start(starter: Starter, *otids: str, agent_id: str) -> str:
    """Start a run as a client that sends its credentials; returns its id."""
    body = {"messages": [{"role": "user", "content": "hello", "otid": otid} for otid in otids]}
    claimed = await starter.start(
        AgentStreamRequest.model_validate(body),
        body,
        who=ANYBODY,
        headers=SENT,
        agent_id=agent_id,
        conversation_id=None,
        run_type="send_message_streaming",
    )
    return claimed.record.id


async def test_a_request_that_is_repeated_keeps_one(starter: Starter) -> None:
    """Those who are answered by a run that is there leave nothing: they would push out what runs are waiting for."""
    agent_id = new_agent_id()
    (run_id,) = {await start(starter, "same", agent_id=agent_id) for _ in range(10)}
    assert list(starter._credentials._kept) == [run_id]


async def test_a_request_that_is_refused_keeps_none(starter: Starter) -> None:
    """What is kept is the credential of the run that is in its way."""
    agent_id = new_agent_id()
    run_id = await start(starter, "one", agent_id=agent_id)
    with pytest.raises(Conflict):
        await start(starter, "one", "two", agent_id=agent_id)
    assert list(starter._credentials._kept) == [run_id]


@pytest.mark.parametrize(("error", "kept"), [(Unavailable(), 0), (Unsettled(), 1)])
async def test_what_a_run_may_ask_for_is_kept(starter: Starter, core: Core, error: BrokerError, kept: int) -> None:
    """When NATS is away there is no run; when its answer was lost there may be one."""

    async def claim(*_: object) -> None:
        raise error

    replaced(core.index, "claim", claim)
    with pytest.raises(type(error)):
        await start(starter, "lost", agent_id=new_agent_id())
    assert len(starter._credentials._kept) == kept
