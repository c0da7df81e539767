"""An EventSource that can send no header: let in by a ticket, once, or by a short-lived token in a cookie."""

import asyncio
import time
from pathlib import Path

import msgspec
import pytest

from runstream.broker.auth import tickets
from runstream.broker.auth.revoking import revoke
from runstream.broker.keys import digest, ticket_key
from runstream.schemas import new_agent_id, new_run_id
from tests.support.auth import Client, Issuer, KeyFile
from tests.support.eventsource import open_source, source_path
from tests.support.http import Cut, Reply
from tests.support.stack import PUPPET, Stack, message, stack_running
from tests.support.waiting import wait_until


async def ticket_for(client: Client, run_id: str) -> str:
    made = await client.fetch("POST", f"/v1/runs/{run_id}/tickets")
    assert (made.status, made.json["expires_in"]) == (200, 30), made
    return str(made.json["ticket"])


async def asked(stack: Stack, run_id: str, ticket: str) -> Reply:
    return await Client(stack.base, None).fetch("GET", source_path(run_id, ticket=ticket))


async def test_a_ticket_lets_in_once(stack: Stack, issuer: Issuer) -> None:
    """At whichever moment, however many try: one is let in, to the run it was made for."""
    client = Client(stack.base, issuer.token(scope="runs:read runs:write"))
    run_id, other = await client.run(new_agent_id()), await client.run(new_agent_id())
    ticket = await ticket_for(client, run_id)
    assert (await asked(stack, other, ticket)).status == 401
    statuses = await asyncio.gather(*(asked(stack, run_id, ticket) for _ in range(10)))
    assert sorted(reply.status for reply in statuses) == [200] + [401] * 9
    (seen,) = [reply for reply in statuses if reply.status == 200]
    assert seen.body.rstrip().split(b"\n")[-2] == b"data: [DONE]"
    assert (await asked(stack, run_id, ticket)).status == 401


async def test_a_ticket_is_for_nothing_else(stack: Stack, issuer: Issuer) -> None:
    """Neither as a token, nor on any other path."""
    client = Client(stack.base, issuer.token())
    run_id = await client.run(new_agent_id())
    ticket = await ticket_for(client, run_id)
    assert (await Client(stack.base, ticket).fetch("GET", f"/v1/runs/{run_id}")).status == 401
    for method, path in (("GET", ""), ("GET", "/messages"), ("POST", "/stream"), ("POST", "/tickets")):
        reply = await Client(stack.base, None).fetch(method, f"/v1/runs/{run_id}{path}?ticket={ticket}")
        assert reply.status == 401
    assert (await asked(stack, run_id, ticket)).status == 200


async def test_a_ticket_is_used_soon(stack: Stack, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a minute after it was made it is none."""
    client = Client(stack.base, issuer.token())
    run_id = await client.run(new_agent_id())
    monkeypatch.setattr(tickets, "TICKET_SECONDS", -1)
    late = str((await client.fetch("POST", f"/v1/runs/{run_id}/tickets")).json["ticket"])
    assert (await asked(stack, run_id, late)).status == 401


@pytest.mark.parametrize("ticket", ["", "x", "A" * 43, "x" * 2000, "%00", "é"])
async def test_what_is_no_ticket_lets_nobody_in(stack: Stack, ticket: str) -> None:
    """Whatever it is."""
    assert (await asked(stack, new_run_id(), ticket)).status == 401


async def test_who_reaches_a_run_makes_its_tickets(stack: Stack, issuer: Issuer) -> None:
    """For others the run is not there; and what is stored is no ticket."""
    client = Client(stack.base, issuer.token())
    run_id = await client.run(new_agent_id())
    for credential, status in (
        (issuer.token(tenant="other"), 404),
        (issuer.token(run_id=new_run_id()), 404),
        (issuer.token(scope="runs:write"), 403),
        (None, 401),
    ):
        refused = await Client(stack.base, credential).fetch("POST", f"/v1/runs/{run_id}/tickets")
        assert refused.status == status
    ticket = await ticket_for(client, run_id)
    stored = await stack.index.stored(ticket_key(digest(ticket)))
    assert stored.value is not None
    assert ticket not in stored.value.decode()
    principal = msgspec.json.decode(stored.value)["principal"]
    assert (principal["run_id"], principal["scopes"]) == (run_id, ["runs:read"])


async def test_what_a_ticket_has_opened_ends_with_its_credential(stack: Stack, issuer: Issuer) -> None:
    """One that is revoked, or expires, takes it along."""
    for token in (issuer.token(jti="of a ticket"), issuer.token(exp=int(time.time()) + 2)):
        client = Client(stack.base, token)
        async with client.stream(f"/v1/agents/{new_agent_id()}/messages/stream", message(PUPPET)) as stream:
            (ping,) = await stream.take(1)
            run_id = str(ping.json["run_id"])
            ticket = await ticket_for(client, run_id)
            async with open_source(stack.base, source_path(run_id, ticket=ticket)) as source:
                await revoke(stack.jetstream, "of a ticket")
                with pytest.raises(Cut):
                    await source.rest()
            stack.puppet.finish(run_id)


async def test_a_keys_ticket_stands_with_the_key(nats_url: str, tmp_path: Path) -> None:
    """A change of the file that leaves the key in it ends nothing."""
    keys = KeyFile(tmp_path / "keys")
    key = keys.add()
    async with stack_running(nats_url, auth=keys.settings) as stack:
        client = Client(stack.base, key)
        slow = message({"chunks": 20, "interval_ms": 100})  # Any broker of this NATS may have it executed.
        async with client.stream(f"/v1/agents/{new_agent_id()}/messages/stream", slow) as stream:
            (ping,) = await stream.take(1)
            run_id = str(ping.json["run_id"])
            ticket = await ticket_for(client, run_id)
            async with open_source(stack.base, source_path(run_id, ticket=ticket)) as source:
                other = Client(stack.base, keys.add())

                async def is_read() -> bool:
                    return (await other.fetch("GET", "/v1/runs/")).status == 200

                await wait_until(is_read, 5, "the file is not read again")
                assert (await source.rest())[-1].is_done


async def test_a_cookie_follows_and_does_nothing_else(stack: Stack, issuer: Issuer) -> None:
    """It is heard on the one path that changes nothing, and only if what is in it expires soon."""
    client = Client(stack.base, issuer.token())
    run_id = await client.run(new_agent_id())
    nobody = Client(stack.base, None)
    token = issuer.token(scope="runs:read", run_id=run_id)
    cookie = {"Cookie": f"a=b; runstream_token={token}"}
    for _ in range(2):
        assert (await nobody.fetch("GET", f"/v1/runs/{run_id}/stream", headers=cookie)).status == 200
    assert (await nobody.fetch("GET", f"/v1/runs/{run_id}", headers=cookie)).status == 401
    assert (await nobody.fetch("POST", f"/v1/runs/{run_id}/stream", headers=cookie)).status == 401
    assert (await nobody.fetch("POST", f"/v1/runs/{run_id}/tickets", headers=cookie)).status == 401
    for wrong in (issuer.token(exp=int(time.time()) + 7200), issuer.token(tenant="other"), "x"):
        headers = {"Cookie": f"runstream_token={wrong}"}
        assert (await nobody.fetch("GET", f"/v1/runs/{run_id}/stream", headers=headers)).status in {401, 404}


async def test_without_authentication_tickets_are_made_and_passed_over(nats_url: str) -> None:
    """A page works the same with and without."""
    async with stack_running(nats_url) as stack:
        client = Client(stack.base, None)
        run_id = await client.run(new_agent_id())
        ticket = await ticket_for(client, run_id)
        for _ in range(2):
            assert (await asked(stack, run_id, ticket)).status == 200
