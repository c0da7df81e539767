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


async def test_a_ticket_that_cannot_be_used_now_is_not_spent(nats_url: str, issuer: Issuer, tmp_path: Path) -> None:
    """A full gateway, or one that stops, tells its browser to come back; it is let in then, here or elsewhere."""
    auth = issuer.settings(tmp_path, None)
    async with (
        stack_running(nats_url, auth=auth, gateway={"max_followers": 1}) as small,
        stack_running(nats_url, auth=auth) as other,
    ):
        client = Client(small.base, issuer.token())
        slow = message({"chunks": 20, "interval_ms": 100})  # Either broker may have it executed.
        async with client.stream(f"/v1/agents/{new_agent_id()}/messages/stream", slow) as stream:
            (ping,) = await stream.take(1)
            run_id = str(ping.json["run_id"])
            ticket = await ticket_for(client, run_id)
            turned_away = await asked(small, run_id, ticket)
            assert (turned_away.status, turned_away.body[:7]) == (200, b"retry: ")
            await stream.rest()
        await small.nobody_follows()
        assert b"data: [DONE]" in (await asked(small, run_id, ticket)).body
        ticket = await ticket_for(client, run_id)
        small.hub.seats.drain(0)
        turned_away = await asked(small, run_id, ticket)
        assert (turned_away.status, turned_away.body[:7]) == (200, b"retry: ")
        assert b"data: [DONE]" in (await asked(other, run_id, ticket)).body


async def test_tickets_for_the_last_seat_are_not_spent_in_vain(nats_url: str, issuer: Issuer, tmp_path: Path) -> None:
    """One of those that come at once is let in, and the others are as good as before."""
    auth = issuer.settings(tmp_path, None)
    async with stack_running(nats_url, auth=auth, gateway={"max_followers": 1}) as stack:
        client = Client(stack.base, issuer.token())
        run_id = await client.run(new_agent_id())
        unused = [await ticket_for(client, run_id) for _ in range(10)]
        for _ in range(len(unused)):
            replies = await asyncio.gather(*(asked(stack, run_id, ticket) for ticket in unused))
            assert {reply.status for reply in replies} <= {200}
            unused = [
                ticket for ticket, reply in zip(unused, replies, strict=True) if b"data: [DONE]" not in reply.body
            ]
        assert not unused


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


@pytest.mark.parametrize("leeway", [{}, {"auth_leeway_seconds": 0}, {"auth_leeway_seconds": 300}], ids=str)
async def test_a_cookie_may_stand_for_an_hour(
    nats_url: str, issuer: Issuer, tmp_path: Path, leeway: dict[str, int]
) -> None:
    """Also by an issuer's clock that is ahead by as much as clocks may differ; and for no longer."""
    auth = issuer.settings(tmp_path, None, **leeway)
    async with stack_running(nats_url, auth=auth) as stack:
        run_id = await Client(stack.base, issuer.token()).run(new_agent_id())

        async def status(seconds: float) -> int:
            token = issuer.token(scope="runs:read", exp=int(time.time() + seconds))
            headers = {"Cookie": f"runstream_token={token}"}
            path = f"/v1/runs/{run_id}/stream"
            return (await Client(stack.base, None).fetch("GET", path, headers=headers)).status

        assert [await status(3600), await status(3600 + auth.auth_leeway_seconds)] == [200, 200]
        assert await status(3660 + auth.auth_leeway_seconds) == 401


async def test_without_authentication_tickets_are_made_and_passed_over(nats_url: str) -> None:
    """A page works the same with and without."""
    async with stack_running(nats_url) as stack:
        client = Client(stack.base, None)
        run_id = await client.run(new_agent_id())
        ticket = await ticket_for(client, run_id)
        for _ in range(2):
            assert (await asked(stack, run_id, ticket)).status == 200


async def test_of_two_cookies_the_narrower_counts(stack: Stack, issuer: Issuer) -> None:
    """A browser sends it first, and behind it what a page beside this one was given for another run."""
    client = Client(stack.base, issuer.token(scope="runs:read runs:write"))
    one, other = await client.run(new_agent_id()), await client.run(new_agent_id())
    tokens = {run_id: issuer.token(scope="runs:read", run_id=run_id) for run_id in (one, other)}
    for mine, others in ((one, other), (other, one)):
        cookie = f"a=b; runstream_token={tokens[mine]}; runstream_token={tokens[others]}"
        reply = await Client(stack.base, None).fetch("GET", source_path(mine), headers={"Cookie": cookie})
        assert reply.status == 200


@pytest.mark.parametrize("path", ["/v1/x", "/v1/x%0ay", "/v1/agents/a%0Ab", "/v1/%0d%0a"])
async def test_what_no_operation_takes_is_told_to_nobody(stack: Stack, issuer: Issuer, path: str) -> None:
    """Whatever stands in its path: a stranger is not told what there is."""
    assert (await Client(stack.base, None).fetch("GET", path)).status == 401
    assert (await Client(stack.base, issuer.token()).fetch("GET", path)).status == 404
    assert (await Client(stack.broker_base, None).fetch("GET", f"/ingest{path}")).status == 401
