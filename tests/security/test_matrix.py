"""Every operation of both ports, as declared, with every credential that is none, not enough, or another's."""

import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from runstream.broker.auth.admissions import Admissions
from runstream.broker.auth.authenticator import Anybody
from runstream.broker.auth.principal import SCOPES
from runstream.broker.auth.revoking import revoke
from runstream.broker.connection import Connection
from runstream.broker.ingest.routes import ingest_operations
from runstream.broker.ingest.service import Ingest
from runstream.broker.jetstream import JetStream
from runstream.broker.metrics import BrokerMetrics
from runstream.broker.operations import OPEN, Operation
from runstream.broker.settings import BrokerSettings
from runstream.gateway.mounting import OPERATIONS
from runstream.schemas import new_agent_id, new_conversation_id, new_run_id
from tests.support.auth import Client, Issuer, KeyFile
from tests.support.http import Reply
from tests.support.ingest import NDJSON
from tests.support.nats import NatsServer
from tests.support.stack import Stack, stack_running
from tests.support.waiting import wait_until


def _ingest() -> list[Operation]:
    settings = BrokerSettings()
    jetstream = JetStream(Connection(settings.nats_url, name="test"), timeout_seconds=1)
    return ingest_operations(Ingest(jetstream, settings, BrokerMetrics()), Admissions(Anybody(), None))


ALL = [*OPERATIONS, *_ingest()]
GUARDED = [each for each in ALL if each.scope != OPEN]
NAMED = [each for each in GUARDED if each.parameters]


def fields_of(operation: Operation) -> set[str]:
    """What may stand in its query."""
    return set() if operation.query is None else {*operation.query.model_fields}


CURSORS = [
    (each, name) for each in GUARDED for name in ("after", "before") if not each.parameters and name in fields_of(each)
]
BAD = sorted(Issuer().bad())
BODIES: Mapping[str, Any] = {
    "AgentMessagesRequest": {"input": "hello", "run_ids": None},
    "AgentStreamRequest": {"input": "hello"},
    "ConversationMessagesRequest": {"input": "hello", "agent_id": None},
    "UpdateConversationRequest": {"summary": "mine"},
    "EndRunRequest": {"stop_reason": "end_turn"},
    "FailRunRequest": {"error_type": "llm_error"},
}
"""Bodies that get as far as the thing that the path names; of all others an empty one does."""


class Things(NamedTuple):
    """Ids for the parameters of paths."""

    run_id: str
    conversation_id: str
    agent_id: str

    @classmethod
    def nobodys(cls) -> "Things":
        """Of things that there are not."""
        return cls(new_run_id(), new_conversation_id(), new_agent_id())


def by_name(operation: Operation) -> str:
    return operation.name


async def ask(stack: Stack, operation: Operation, credential: str | None, things: Things) -> Reply:
    """Send a request that would be served to somebody."""
    is_ingest = operation.path.startswith("/ingest/")
    client = Client(stack.broker_base if is_ingest else stack.base, credential)
    path = operation.path.format(**things._asdict())
    if not operation.bodies:
        return await client.fetch(operation.method, path)
    shape = operation.bodies[0].shapes[0]
    body = BODIES.get(getattr(shape, "__name__", ""), {})
    if is_ingest and path.endswith("/chunks"):
        return await client.fetch("POST", path, body=b"{}\n", headers=NDJSON)
    return await client.fetch(operation.method, path, json=body)


OWN_HEADERS = {"content-length", "date", "x-request-id"}
"""They say nothing of what was asked for."""


def told(reply: Reply, things: Things) -> tuple[int, dict[str, str], str]:
    """All that a client is told, but for the ids it has sent itself, and how long the body is."""
    body = reply.body.decode()
    for name, value in things._asdict().items():
        body = body.replace(value, name)
    headers = {name: value for name, value in reply.headers.items() if name not in OWN_HEADERS}
    return reply.status, headers, body


@pytest_asyncio.fixture(scope="module")
async def things(stack: Stack, issuer: Issuer) -> Things:
    """What the tenant `acme` has."""
    client = Client(stack.base, issuer.token())
    agent_id = new_agent_id()
    conversation_id = await client.conversation(agent_id)
    return Things(await client.run(agent_id, conversation_id=conversation_id), conversation_id, agent_id)


@pytest.mark.parametrize("operation", GUARDED, ids=by_name)
@pytest.mark.parametrize("wrong", BAD)
async def test_who_is_nobody_gets_nothing(
    stack: Stack, issuer: Issuer, things: Things, operation: Operation, wrong: str
) -> None:
    """401, in the same words whatever is wrong, and whatever is there."""
    reply = await ask(stack, operation, issuer.bad()[wrong], things)
    assert reply.status == 401, reply
    if operation in OPERATIONS:
        assert reply.json == {"detail": "Unauthorized"}
    else:
        assert reply.json["error_type"] == "unauthorized"
    asks = reply.headers["www-authenticate"]
    assert asks.startswith('Bearer realm="runstream"')
    assert ("error=" in asks) == (wrong != "no token")


@pytest_asyncio.fixture(scope="module")
async def revoked(stack: Stack, issuer: Issuer) -> str:
    """A token that would be good for longer than all of this takes, and that both ports have heard is revoked."""
    token = issuer.token(jti="revoked", exp=int(time.time()) + 3600)
    await revoke(stack.jetstream, "revoked")

    async def is_known() -> bool:
        read = await Client(stack.base, token).fetch("GET", "/v1/runs/")
        opened = await Client(stack.broker_base, token).fetch("POST", "/ingest/v1/runs", json={})
        return (read.status, opened.status) == (401, 401)

    await wait_until(is_known, 5, "it is still taken")
    return token


@pytest.mark.parametrize("operation", GUARDED, ids=by_name)
async def test_who_was_revoked_gets_nothing(stack: Stack, things: Things, revoked: str, operation: Operation) -> None:
    """401, and the reason, which its bearer may know."""
    reply = await ask(stack, operation, revoked, things)
    assert reply.status == 401, reply
    assert 'error_description="The credential was revoked."' in reply.headers["www-authenticate"]


@pytest.mark.parametrize("operation", GUARDED, ids=by_name)
async def test_who_lacks_the_scope_is_refused(
    stack: Stack, issuer: Issuer, things: Things, operation: Operation
) -> None:
    """403, with the scope that would do; all the others do not."""
    others = " ".join(scope for scope in SCOPES if scope not in {operation.scope, "admin"})
    for scope in (others, "", "openid profile"):
        reply = await ask(stack, operation, issuer.token(scope=scope), things)
        assert reply.status == 403, reply
        assert reply.json["detail"].endswith(f"The scope {operation.scope} is needed.")
        assert reply.headers["www-authenticate"].endswith(f'error="insufficient_scope", scope="{operation.scope}"')


@pytest.mark.parametrize("operation", GUARDED, ids=by_name)
async def test_its_scope_alone_or_admin_is_enough(stack: Stack, issuer: Issuer, operation: Operation) -> None:
    """Nothing else is asked for."""
    for scope in (operation.scope, "admin"):
        reply = await ask(stack, operation, issuer.token(scope=scope), Things.nobodys())
        assert reply.status not in {401, 403}, reply


@pytest.mark.parametrize("operation", NAMED, ids=by_name)
async def test_what_is_another_tenants_is_not_there(
    stack: Stack, issuer: Issuer, things: Things, operation: Operation
) -> None:
    """Nobody can tell it from what does not exist, by a single header or word."""
    stranger = issuer.token(tenant=f"other-{operation.name}")
    nobodys = Things.nobodys()
    foreign = told(await ask(stack, operation, stranger, things), things)
    missing = told(await ask(stack, operation, stranger, nobodys), nobodys)
    if foreign[0] == 200:  # An agent answers whoever may ask: with a run of their own.
        assert operation.name in {"agents_create_message", "agents_create_message_stream"}
        foreign, missing = (*foreign[:2], ""), (*missing[:2], "")
    else:
        assert foreign[0] in {400, 404, 409}, foreign
    assert foreign == missing


@pytest.mark.parametrize("operation", NAMED, ids=by_name)
async def test_what_is_outside_of_a_narrow_credential_is_not_there(
    stack: Stack, issuer: Issuer, things: Things, operation: Operation
) -> None:
    """Whoever was given one run, conversation or agent cannot tell the others from what does not exist."""
    nobodys = Things.nobodys()
    for narrowed in nobodys._asdict().items():
        token = issuer.token(**dict([narrowed]))
        outside = told(await ask(stack, operation, token, things), things)
        elsewhere = Things.nobodys()
        assert outside == told(await ask(stack, operation, token, elsewhere), elsewhere), narrowed
        assert outside[0] in {400, 403, 404, 409}, (narrowed, outside)


async def test_health_is_about_more_than_is_narrowly_reached(stack: Stack, issuer: Issuer) -> None:
    """Whoever may do anything with one run, conversation or agent is not told how the gateway is, and is set."""
    for narrowed in Things.nobodys()._asdict().items():
        narrow = Client(stack.base, issuer.token(scope="admin", **dict([narrowed])))
        assert (await narrow.fetch("GET", "/v1/runstream/health")).status == 403, narrowed
    assert (await Client(stack.base, issuer.token(scope="admin")).fetch("GET", "/v1/runstream/health")).status == 200


@pytest.mark.parametrize("paged", CURSORS, ids=lambda each: f"{each[0].name}-{each[1]}")
@pytest.mark.parametrize("narrowed", [*Things._fields, "tenant"])
async def test_a_cursor_tells_nothing_of_what_is_not_reached(
    stack: Stack, issuer: Issuer, things: Things, paged: tuple[Operation, str], narrowed: str
) -> None:
    """A page after what is another's is no page, as one after what does not exist; one after one's own is."""
    operation, cursor = paged
    nobodys = Things.nobodys()
    kind = "conversation_id" if "conversations" in operation.path else "run_id"

    async def page(credential: str, where: Things) -> Reply:
        path = f"{operation.path}?{cursor}={getattr(where, kind)}"
        return await Client(stack.base, credential).fetch(operation.method, path)

    others = issuer.token(**({"tenant": "other"} if narrowed == "tenant" else {narrowed: getattr(nobodys, narrowed)}))
    outside = told(await page(others, things), things)
    assert outside == told(await page(others, nobodys), nobodys)
    assert outside[0] in {403, 404}, outside
    if narrowed == "agent_id":
        assert (await page(issuer.token(agent_id=things.agent_id), things)).status == 200


async def test_who_is_open_to_everybody_is_few() -> None:
    """What can be asked without a credential is written down here, too."""
    assert [each.name for each in ALL if each.scope == OPEN] == ["health_health"]


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/openapi.json"])
async def test_probes_need_no_credential(stack: Stack, path: str) -> None:
    """On both ports: they tell of no tenant."""
    for base in (stack.base, stack.broker_base):
        assert (await Client(base, None).fetch("GET", path)).status == 200


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/runs", "/latest/runs/", "/v1/agents/", "/ingest/v1/nothing"])
async def test_a_stranger_is_not_told_what_there_is(stack: Stack, issuer: Issuer, path: str) -> None:
    """What is not there is 404, or 307, to those who may ask at all."""
    base = stack.broker_base if path.startswith("/ingest") else stack.base
    assert (await Client(base, None).fetch("PUT", path)).status == 401
    assert (await Client(base, issuer.token()).fetch("PUT", path)).status in {307, 404, 405}


@pytest.mark.parametrize("header", ["Basic YTpi", "Bearer", "bearer  ", "Token abc"])
async def test_only_bearers_are_heard(stack: Stack, header: str) -> None:
    """Other schemes are none of ours."""
    reply = await Client(stack.base, None).fetch("GET", "/v1/runs/", headers={"Authorization": header})
    assert reply.status == 401


async def test_a_credential_in_the_query_is_none(stack: Stack, issuer: Issuer) -> None:
    """It would stand in logs, histories and referrers."""
    for name in ("token", "access_token", "authorization", "key"):
        reply = await Client(stack.base, None).fetch("GET", f"/v1/runs/?{name}={issuer.token()}")
        assert reply.status == 401


@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "ES256", "EdDSA"])
async def test_each_algorithm(stack: Stack, issuer: Issuer, algorithm: str) -> None:
    """A good token is taken, whichever way it is signed."""
    assert (await Client(stack.base, issuer.token(algorithm)).fetch("GET", "/v1/runs/")).status == 200


# -- keys -------------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module")
async def keyed(
    nats_server: NatsServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Stack, KeyFile]]:
    """A runstream that takes keys."""
    keys = KeyFile(Path(tmp_path_factory.mktemp("keys")) / "keys")
    keys.add(scopes=" ".join(SCOPES))
    async with stack_running(nats_server.url, auth=keys.settings) as running:
        yield running, keys


@pytest.mark.parametrize("operation", GUARDED, ids=by_name)
async def test_keys_admit_as_tokens_do(keyed: tuple[Stack, KeyFile], operation: Operation) -> None:
    """None, a wrong one and one that is almost right: 401. One without the scope: 403. One with it is enough."""
    stack, keys = keyed
    nobodys = Things.nobodys()
    (good,) = keys.lines
    last = "A" if good[-1] != "A" else "B"
    wrong = [None, "", "abc", good[:-1] + last, good + "A", good.upper(), f"rsk_{'0' * 12}_{'A' * 43}", "x" * 5000]
    for credential in wrong:
        assert (await ask(stack, operation, credential, nobodys)).status == 401, credential
    assert (await ask(stack, operation, good, nobodys)).status not in {401, 403}
