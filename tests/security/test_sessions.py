"""Sessions of the console: a credential is exchanged for a cookie, which the gateway's own pages alone can use."""

import time
from pathlib import Path
from urllib.parse import quote

import pytest

from runstream.broker.auth import sessions
from runstream.broker.auth.revoking import revoke
from runstream.broker.keys import subject_of
from runstream.schemas import new_agent_id, new_run_id
from tests.support.auth import Client, Issuer, KeyFile
from tests.support.http import Reply
from tests.support.stack import Stack, stack_running
from tests.support.waiting import wait_until

PATH = "/v1/runstream/session"
OWN = {"Sec-Fetch-Site": "same-origin"}


async def opened(stack: Stack, credential: str) -> str:
    """Open a session; returns its cookie as a browser sends it."""
    reply = await Client(stack.base, credential).fetch("POST", PATH)
    assert reply.status == 200, reply
    return reply.headers["set-cookie"].partition(";")[0]


async def ask(stack: Stack, cookie: str, path: str = PATH, method: str = "GET", **headers: str) -> Reply:
    """Ask as a page of the gateway's own does, unless told otherwise."""
    return await Client(stack.base, None).fetch(method, path, headers={"Cookie": cookie, **OWN, **headers})


async def test_a_session_is_known_by_a_cookie_that_no_page_can_read(stack: Stack, issuer: Issuer) -> None:
    """It says all that keeps it from others, and the index has its hash alone."""
    token = issuer.token(scope="runs:read runs:cancel", exp=int(time.time()) + 30)
    reply = await Client(stack.base, token).fetch("POST", PATH)
    given = {part.strip().lower() for part in reply.headers["set-cookie"].split(";")[1:]}
    assert {"httponly", "secure", "samesite=strict", "path=/v1/", "max-age=3600"} <= given
    secret = reply.headers["set-cookie"].partition("=")[2].partition(";")[0]
    assert len(secret) == 43
    assert secret not in reply.body.decode()
    found = await ask(stack, f"runstream_session={secret}")
    assert found.json["scopes"] == ["runs:cancel", "runs:read"]
    assert (found.json["tenant"], found.json["is_asked"]) == ("acme", True)
    names = await stack.jetstream.last_messages("KV_RUNSTREAM", subject_of("ticket.*"))
    assert names
    assert not any(secret in message.subject for message in names)


@pytest.mark.parametrize("said", ["cross-site", "same-site", "none", ""])
async def test_no_other_page_can_use_it(stack: Stack, issuer: Issuer, said: str) -> None:
    """Not of another site, not of the same site, not by an address that somebody opens; nor who does not say."""
    cookie = await opened(stack, issuer.token())
    run_id = await Client(stack.base, issuer.token()).run(new_agent_id())
    for method, path in (("GET", PATH), ("GET", f"/v1/runs/{run_id}/stream"), ("DELETE", f"/v1/runs/{run_id}")):
        assert (await ask(stack, cookie, path, method, **{"Sec-Fetch-Site": said})).status == 401
    assert (await ask(stack, cookie, f"/v1/runs/{run_id}")).status == 200


async def test_it_reaches_what_its_credential_reaches(stack: Stack, issuer: Issuer) -> None:
    """Every operation, an EventSource included; its scopes, its tenant and what it is narrowed to stay."""
    client = Client(stack.base, issuer.token())
    mine, other = await client.run(new_agent_id()), await client.run(new_agent_id())
    cookie = await opened(stack, issuer.token(scope="runs:read", run_id=mine))
    assert (await ask(stack, cookie, f"/v1/runs/{mine}/stream")).body.count(b"[DONE]") == 1
    assert (await ask(stack, cookie, f"/v1/runs/{other}/stream")).status == 404
    assert (await ask(stack, cookie, f"/v1/runs/{mine}", "DELETE")).status == 403
    stranger = await opened(stack, issuer.token(tenant="other"))
    assert (await ask(stack, stranger, f"/v1/runs/{mine}")).status == 404
    assert (await ask(stack, stranger, f"/v1/runstream/figures?run_ids={mine}")).json == []


async def test_no_cache_keeps_what_it_is_answered(stack: Stack, issuer: Issuer) -> None:
    """One that many share may keep what was asked with a cookie, unless it is told not to; refusals, too."""
    run_id = await Client(stack.base, issuer.token()).run(new_agent_id())
    cookie = await opened(stack, issuer.token())
    for path in (PATH, "/v1/runs/", f"/v1/runs/{run_id}", f"/v1/runs/{run_id}/messages", f"/v1/runs/{new_run_id()}"):
        assert (await ask(stack, cookie, path)).headers["cache-control"] == "no-store"
    assert (await ask(stack, cookie, f"/v1/runs/{run_id}/stream")).headers["cache-control"] == "no-cache"
    assert (await ask(stack, "runstream_session=none", "/v1/runs/")).headers["cache-control"] == "no-store"


async def test_a_header_wins(stack: Stack, issuer: Issuer) -> None:
    """Who sends a credential is that one, be it bad."""
    cookie = await opened(stack, issuer.token())
    assert (await ask(stack, cookie, Authorization="Bearer nobody")).status == 401
    named = await ask(stack, cookie, Authorization=f"Bearer {issuer.token(tenant='other')}")
    assert named.json["tenant"] == "other"


@pytest.mark.parametrize("secret", ["", "x", "A" * 43, "x" * 2000, "*", ">"])
async def test_what_is_no_session_lets_nobody_in(stack: Stack, secret: str) -> None:
    """Whatever it is."""
    assert (await ask(stack, f"runstream_session={secret}")).status == 401


async def test_no_ticket_stands_for_a_session(stack: Stack, issuer: Issuer) -> None:
    """Nor a session for a ticket."""
    client = Client(stack.base, issuer.token())
    run_id = await client.run(new_agent_id())
    ticket = (await client.fetch("POST", f"/v1/runs/{run_id}/tickets")).json["ticket"]
    assert (await ask(stack, f"runstream_session={ticket}")).status == 401
    secret = (await opened(stack, issuer.token(run_id=run_id))).partition("=")[2]
    for said in (secret, f"a session, which is known by its cookie: {secret}"):
        reply = await Client(stack.base, None).fetch("GET", f"/v1/runs/{run_id}/stream?ticket={quote(said)}")
        assert reply.status == 401


async def test_signing_out_ends_it_everywhere(stack: Stack, issuer: Issuer) -> None:
    """The cookie is taken back, and is none any more, wherever it was kept."""
    cookie = await opened(stack, issuer.token())
    reply = await ask(stack, cookie, method="DELETE")
    assert reply.status == 200
    assert "max-age=0" in reply.headers["set-cookie"].lower()
    assert (await ask(stack, cookie)).status == 401


async def test_it_ends_with_its_credential(stack: Stack, issuer: Issuer) -> None:
    """One that expires, and one that is revoked, take it along; none lasts for longer than an hour."""
    lasting = await opened(stack, issuer.token(exp=int(time.time()) + 86400))
    until = (await ask(stack, lasting)).json["expires_at"]
    assert until == pytest.approx(time.time() + sessions.SESSION_SECONDS, abs=30)
    brief = await opened(stack, issuer.token(exp=int(time.time()) + 2))
    revoked = await opened(stack, issuer.token(jti="of a session"))
    assert (await ask(stack, revoked)).status == 200
    await revoke(stack.jetstream, "of a session")
    for cookie in (revoked, brief):

        async def is_over(cookie: str = cookie) -> bool:
            return (await ask(stack, cookie)).status == 401

        await wait_until(is_over, 10, "it goes on")
    assert (await ask(stack, lasting)).status == 200


async def test_a_keys_session_ends_when_its_line_leaves_the_file(nats_url: str, tmp_path: Path) -> None:
    """A key has no end of its own; its session has."""
    keys = KeyFile(tmp_path / "keys")
    key = keys.add()
    async with stack_running(nats_url, auth=keys.settings) as stack:
        cookie = await opened(stack, key)
        assert (await ask(stack, cookie)).json["expires_at"] is not None
        keys.remove(key)

        async def is_over() -> bool:
            return (await ask(stack, cookie)).status == 401

        await wait_until(is_over, 5, "it goes on")


async def test_pages_are_open_and_say_nothing(stack: Stack) -> None:
    """What the console is made of is the same for everybody; all that it shows is asked for with a credential."""
    nobody = Client(stack.base, None)
    for path in ("/console", "/console/health", f"/console/runs/{new_run_id()}"):
        assert (await nobody.fetch("GET", path)).status == 200
    assert (await nobody.fetch("GET", PATH)).status == 401
