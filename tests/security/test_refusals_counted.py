"""Credentials that are refused are counted, by why: on both ports, once each, and nothing else is."""

import re
from collections import Counter
from pathlib import Path

import pytest

from runstream.broker.auth.causes import CAUSES
from runstream.broker.auth.revoking import revoke
from runstream.schemas import new_agent_id, new_run_id
from tests.support.auth import Client, Issuer, KeyFile
from tests.support.http import Cut, fetch
from tests.support.stack import PUPPET, Stack, message, stack_running
from tests.support.waiting import wait_until

METRIC = re.compile(r'^runstream_credentials_refused_total\{cause="(\w+)"\} ([\d.]+)$', re.MULTILINE)
WRONG = {
    "no token": "missing",
    "no word": "malformed",
    "no token at all": "malformed",
    "not ASCII": "malformed",
    "nested without end": "malformed",
    "a header that is none": "malformed",
    "an algorithm that is none": "malformed",
    "bad signature": "bad_signature",
    "another secret": "bad_signature",
    "expired": "expired",
    "no expiry": "claims",
    "an expiry beyond all numbers": "claims",
    "not yet valid": "not_yet_valid",
    "wrong audience": "audience",
    "no audience": "claims",
    "wrong issuer": "issuer",
    "no tenant": "claims",
    "a tenant of two": "claims",
    "narrowed to no id": "claims",
    "narrowed to nothing": "claims",
    "narrowed to null": "claims",
    "alg none": "unknown_key",
    "HS and RS confused": "bad_signature",
    "unknown key id": "unknown_key",
    "another algorithm than its key's": "unknown_key",
    "critical header": "malformed",
    "oversized": "malformed",
}


async def counted(base: str) -> Counter[str]:
    """How often a port has refused whom for what, so far."""
    shown = (await fetch(base, "GET", "/metrics")).body.decode()
    found = {cause: round(float(count)) for cause, count in METRIC.findall(shown)}
    assert found.keys() == {*CAUSES}
    return Counter(found)


def test_every_bad_credential_has_a_cause() -> None:
    """None is left out here."""
    assert WRONG.keys() == Issuer().bad().keys()


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_bad_credential_is_counted(stack: Stack, issuer: Issuer, wrong: str) -> None:
    """Each once, as what it is, at the gateway and at the ingest port; paths that are not there included."""
    for base, path in ((stack.base, "/v1/runs/"), (stack.broker_base, "/ingest/v1/runs"), (stack.base, "/v1/nothing")):
        before = await counted(base)
        credential = issuer.bad()[wrong]
        assert (await Client(base, credential).fetch("POST", path, json={})).status == 401
        assert await counted(base) - before == Counter({WRONG[wrong]: 1})


async def test_a_revoked_one_is_counted(stack: Stack, issuer: Issuer) -> None:
    """With the stream that it had opened, which is cut."""
    client = Client(stack.base, issuer.token(jti="counted"))
    async with client.stream(f"/v1/agents/{new_agent_id()}/messages/stream", message(PUPPET)) as stream:
        (ping,) = await stream.take(1)
        before = await counted(stack.base)
        await revoke(stack.jetstream, "counted")
        with pytest.raises(Cut):
            await stream.rest()
        assert await counted(stack.base) == before
        shown = (await fetch(stack.base, "GET", "/metrics")).body.decode()
        assert re.search(r'^runstream_streams_cut_total\{cause="credential"\} [1-9]', shown, re.MULTILINE)
        assert (await client.fetch("GET", "/v1/runs/")).status == 401
        assert await counted(stack.base) - before == Counter({"revoked": 1})
        stack.puppet.finish(str(ping.json["run_id"]))


async def test_what_is_not_enough_is_counted(stack: Stack, issuer: Issuer) -> None:
    """A scope that is lacking, and a credential for something else."""
    reader = Client(stack.base, issuer.token(scope="runs:read"))
    other = Client(stack.base, issuer.token(run_id=new_run_id()))
    writer = Client(stack.broker_base, issuer.token(scope="runs:read"))
    gateways, brokers = await counted(stack.base), await counted(stack.broker_base)
    assert (await reader.fetch("POST", f"/v1/agents/{new_agent_id()}/messages", json={"input": "hi"})).status == 403
    assert (await other.fetch("GET", "/v1/runs/")).status == 403
    assert (await writer.fetch("POST", "/ingest/v1/runs", json={})).status == 403
    assert await counted(stack.base) - gateways == Counter({"scope": 1, "narrowed": 1})
    assert await counted(stack.broker_base) - brokers == Counter({"scope": 1})


async def test_what_a_browser_sends_is_counted(stack: Stack, issuer: Issuer) -> None:
    """A ticket that is none, a cookie whose token stands for longer than one may, and one of no session."""
    before = await counted(stack.base)
    path = f"/v1/runs/{new_run_id()}/stream"
    long = issuer.token(exp=2**33)
    session = {"Cookie": "runstream_session=none", "Sec-Fetch-Site": "same-origin"}
    for query, headers in (("?ticket=none", {}), ("", {"Cookie": f"runstream_token={long}"}), ("", session)):
        assert (await fetch(stack.base, "GET", f"{path}{query}", headers=headers)).status == 401
    assert await counted(stack.base) - before == Counter({"ticket": 1, "cookie": 1, "session": 1})


async def test_a_ticket_of_a_key_that_has_left_is_counted(nats_url: str, tmp_path: Path) -> None:
    """As the key itself is: it is not known any more, and has not expired."""
    keys = KeyFile(tmp_path / "keys")
    key = keys.add()
    async with stack_running(nats_url, auth=keys.settings) as stack:
        client = Client(stack.base, key)
        run_id = await client.run(new_agent_id())
        ticket = (await client.fetch("POST", f"/v1/runs/{run_id}/tickets")).json["ticket"]
        keys.remove(key)

        async def has_left() -> bool:
            return (await client.fetch("GET", "/v1/runs/")).status == 401

        await wait_until(has_left, 5, "the file is not read again")
        before = await counted(stack.base)
        refused = await fetch(stack.base, "GET", f"/v1/runs/{run_id}/stream?ticket={ticket}")
        assert refused.status == 401
        assert 'error_description="The key is not known."' in refused.headers["www-authenticate"]
        assert await counted(stack.base) - before == Counter({"unknown_key": 1})


async def test_who_may_is_not_counted(stack: Stack, issuer: Issuer) -> None:
    """Nor is who asks for what is open to everybody, or for what is not there."""
    before = await counted(stack.base)
    client = Client(stack.base, issuer.token())
    await client.run(new_agent_id())
    assert (await client.fetch("GET", f"/v1/runs/{new_run_id()}")).status == 404
    assert (await fetch(stack.base, "GET", "/livez")).status == 200
    assert await counted(stack.base) == before
