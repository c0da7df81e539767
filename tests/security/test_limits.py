"""Limits of tenants, keys and addresses, as whoever reaches them is told, and what is left of what was refused."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from runstream.broker.auth.tickets import Tickets
from runstream.schemas import new_agent_id
from tests.support.auth import Client, Issuer
from tests.support.eventsource import open_source
from tests.support.http import Connection, Reply
from tests.support.ingest import NDJSON, lines, said
from tests.support.stack import Stack, message, stack_running
from tests.support.waiting import wait_until


@contextlib.asynccontextmanager
async def limited(nats_url: str, issuer: Issuer, directory: Path, **limits: Any) -> AsyncIterator[Stack]:
    """A runstream that takes the issuer's tokens, with these limits."""
    auth = issuer.settings(directory, None)
    async with stack_running(nats_url, auth=auth, limits=limits) as running:
        yield running


def client_of(issuer: Issuer, base: str, name: str = "ann", *, tenant: str = "acme") -> Client:
    """Somebody, each time with another token."""
    return Client(base, issuer.token(sub=name, tenant=tenant))


def check(reply: Reply, *words: str) -> int:
    """A refusal, in whose detail these words are; returns when to come back."""
    assert reply.status == 429, reply
    for word in words:
        assert word in reply.detail
    seconds = int(reply.headers["retry-after"])
    assert seconds >= 1
    return seconds


async def counted(base: str, limit: str) -> float:
    """How often a limit was reached, as the metrics have it."""
    text = (await Client(base, None).fetch("GET", "/metrics")).body.decode()
    (line,) = [
        line for line in text.splitlines() if line.startswith(f'runstream_limits_reached_total{{limit="{limit}"')
    ]
    return float(line.split()[-1])


def path_of() -> str:
    return f"/v1/agents/{new_agent_id()}/messages/stream"


# -- streams ----------------------------------------------------------------------------------------------------------


async def test_open_streams(nats_url: str, issuer: Issuer, tmp_path: Path) -> None:
    """A key's, and a tenant's; what is open stays open, and whoever leaves makes room. Nothing was started."""
    async with contextlib.AsyncExitStack() as opened:
        stack = await opened.enter_async_context(limited(nats_url, issuer, tmp_path, key_streams=1, tenant_streams=2))
        ann, bob, eve = (client_of(issuer, stack.base, name) for name in ("ann", "bob", "eve"))
        stream = await opened.enter_async_context(ann.stream(path_of(), message("puppet")))
        run_id = str((await stream.take(1))[0].json["run_id"])
        refused = {"background": True, "messages": [{"role": "user", "content": "hello", "otid": "refused"}]}
        assert check(await ann.fetch("POST", path_of(), json=refused), "This key", "streams open") <= 6
        async with bob.stream(f"/v1/runs/{run_id}/stream"):
            check(await eve.fetch("POST", f"/v1/runs/{run_id}/stream", json={}), "This tenant", "streams open")
            check(await eve.fetch("GET", f"/v1/runs/{run_id}/messages"), "This tenant", "streams open")
            other = client_of(issuer, stack.base, tenant="other")
            await other.run(new_agent_id())
        stack.puppet.say(run_id)
        await stream.take(1)
        assert await stack.index.run_with_otid("acme", "refused") is None

        async def has_room() -> bool:
            return (await eve.fetch("GET", f"/v1/runs/{run_id}/messages")).status == 200

        await wait_until(has_room, 5, "no place was given up")
        stack.puppet.finish(run_id)
        assert (await stream.rest())[-1].is_done
        assert await counted(stack.base, "key_streams") == 1


async def test_an_event_source_comes_back(nats_url: str, issuer: Issuer, tmp_path: Path) -> None:
    """What passes does not stop a browser: it is told when to come back, and nothing else."""
    async with limited(nats_url, issuer, tmp_path, key_streams=1) as stack:
        ann = client_of(issuer, stack.base)
        async with ann.stream(path_of(), message("puppet")) as stream:
            run_id = str((await stream.take(1))[0].json["run_id"])
            reply = await ann.fetch("GET", f"/v1/runs/{run_id}/stream")
            assert (reply.status, reply.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
            assert reply.body.startswith(b"retry: ")
            assert reply.body.count(b"\n") == 1
            assert 2000 <= int(reply.body.split()[1]) <= 18_000
            stack.puppet.finish(run_id)
            await stream.rest()
        async with open_source(stack.base, f"/v1/runs/{run_id}/stream", headers=ann.headers) as source:
            assert (await source.rest())[-1].is_done


async def test_open_uploads(nats_url: str, issuer: Issuer, tmp_path: Path) -> None:
    """A key's uploads count at the broker, and its other requests are served; none that is open gives way."""
    async with limited(nats_url, issuer, tmp_path, key_streams=1) as stack:
        ann = client_of(issuer, stack.broker_base)
        one, two = [await opened(ann) for _ in range(2)]
        async with Connection.open(stack.broker_base) as upload:
            await upload.send("POST", one, headers={**ann.headers, **NDJSON, "Transfer-Encoding": "chunked"})
            line = lines(said(0))
            await upload.send_raw(b"%x\r\n%b\r\n" % (len(line), line))

            async def is_stored() -> bool:
                return bool((await ann.fetch("POST", one, json=[])).json["index"])

            await wait_until(is_stored)
            refused = await ann.fetch("POST", two, body=lines(said(0)), headers=NDJSON)
            check(refused, "This key", "streams open")
            assert refused.json["error_type"] == "limit_reached"
            assert (await ann.fetch("POST", two, json=said(0))).status == 200
            await upload.send_raw(b"%x\r\n%b\r\n0\r\n\r\n" % (len(line), line))
            assert (await upload.reply()).json["stored"] == 2
        for path in (one, two):
            await ended(ann, path)


# -- runs -------------------------------------------------------------------------------------------------------------


async def test_runs_that_are_started(nats_url: str, issuer: Issuer, tmp_path: Path) -> None:
    """So many a minute; one that is refused leaves nothing: no claim, no otid, and its conversation is free."""
    async with limited(nats_url, issuer, tmp_path, key_runs_per_minute=2) as stack:
        ann, bob = client_of(issuer, stack.base), client_of(issuer, stack.base, "bob")
        agent_id = new_agent_id()
        conversation_id = await ann.conversation(agent_id)
        path = f"/v1/conversations/{conversation_id}/messages"

        def asked(otid: str) -> dict[str, Any]:
            content = '{"chunks": 1, "interval_ms": 0}'
            return {"background": True, "messages": [{"role": "user", "content": content, "otid": otid}]}

        firsts = []
        for otid in ("first", "second"):
            async with ann.stream(path, asked(otid)) as stream:
                firsts.append((await stream.rest())[0].json["run_id"])
        for whole in ({}, {"streaming": False}):
            refused = await ann.fetch("POST", path, json={**asked("third"), **whole})
            assert 20 < check(refused, "This key", "started as many runs") <= 31
        assert await stack.index.run_with_otid("acme", "third") is None
        # The same request again starts nothing, and is answered.
        async with ann.stream(path, asked("second")) as stream:
            assert (await stream.rest())[0].json["run_id"] == firsts[1]
        async with bob.stream(path, asked("fourth")) as stream:
            assert (await stream.rest())[-1].is_done
        assert await counted(stack.base, "key_runs") == 2 + 1


async def test_what_starts_no_run_is_none(nats_url: str, issuer: Issuer, tmp_path: Path) -> None:
    """A busy conversation, however often it is asked for, takes nothing of the minute; nor does the same request."""
    async with limited(nats_url, issuer, tmp_path, key_runs_per_minute=2) as stack:
        ann = client_of(issuer, stack.base)
        conversation_id = await ann.conversation(new_agent_id())
        path = f"/v1/conversations/{conversation_id}/messages"
        first = {"background": True, "messages": [{"role": "user", "content": "puppet", "otid": "one"}]}
        async with ann.stream(path, first) as stream:
            run_id = str((await stream.take(1))[0].json["run_id"])
            for _ in range(4):
                assert (await ann.fetch("POST", path, json=message("hello"))).status == 409
                async with ann.stream(path, first) as again:
                    assert (await again.take(1))[0].json["run_id"] == run_id
            stack.puppet.finish(run_id)
            await stream.rest()
        await ann.run(new_agent_id())
        check(await ann.fetch("POST", path, json=message("hello")), "started as many runs")


async def opened(client: Client, **body: Any) -> str:
    """Open a run at a broker; returns the path of its chunks."""
    reply = await client.fetch("POST", "/ingest/v1/runs", json={"agent_id": new_agent_id(), **body})
    assert reply.status == 201, reply
    return f"/ingest/v1/runs/{reply.json['run_id']}/chunks"


async def ended(client: Client, path: str) -> None:
    """End a run."""
    reply = await client.fetch("POST", path.replace("/chunks", "/end"), json={"stop_reason": "end_turn"})
    assert reply.status == 200, reply


async def test_runs_that_are_opened(nats_url: str, issuer: Issuer, tmp_path: Path) -> None:
    """At a broker as at a gateway: what is refused was not opened, and what is open can be written and ended."""
    async with limited(nats_url, issuer, tmp_path, tenant_runs_per_minute=2) as stack:
        ann = client_of(issuer, stack.broker_base)
        body = {"agent_id": new_agent_id(), "otids": ["twice"]}
        paths = [await opened(ann, **body)]
        assert (await ann.fetch("POST", "/ingest/v1/runs", json=body)).status == 409  # And is none of the two.
        paths.append(await opened(ann))
        refused = await ann.fetch("POST", "/ingest/v1/runs", json={"agent_id": new_agent_id(), "otids": ["never"]})
        check(refused, "This tenant", "started as many runs")
        assert refused.json["error_type"] == "limit_reached"
        assert await stack.index.run_with_otid("acme", "never") is None
        for path in paths:
            assert (await ann.fetch("POST", path, json=said(0))).status == 200
            await ended(ann, path)


# -- bytes ------------------------------------------------------------------------------------------------------------


async def test_bytes_of_json(nats_url: str, issuer: Issuer, tmp_path: Path) -> None:
    """One body may pass what is left; the next is refused, nothing of it stored, and the run lives and can be ended."""
    async with limited(nats_url, issuer, tmp_path, key_ingest_bytes_per_minute=1000) as stack:
        ann = client_of(issuer, stack.broker_base)
        path = await opened(ann)
        assert (await ann.fetch("POST", path, json=[said(0, size=1200), said(1)])).json["index"] == 2
        refused = await ann.fetch("POST", path, json=said(2), headers={"Expected-Index": "2"})
        assert 10 < check(refused, "This key", "bytes") < 60
        assert (await ann.fetch("POST", path.replace("/chunks", "/lease"))).status == 200
        bob = client_of(issuer, stack.broker_base, "bob")
        assert (await bob.fetch("POST", path, json=said(2), headers={"Expected-Index": "2"})).json["index"] == 3
        await ended(ann, path)
        assert await counted(stack.broker_base, "key_ingest_bytes") == 1


async def test_bytes_of_an_upload(nats_url: str, issuer: Issuer, tmp_path: Path) -> None:
    """It is told how much of it was taken, which is what is stored: from there on it goes on later."""
    async with limited(nats_url, issuer, tmp_path, tenant_ingest_bytes_per_minute=1000) as stack:
        ann = client_of(issuer, stack.broker_base)
        path = await opened(ann)
        body = lines(*(said(number, size=100) for number in range(20)))
        refused = await ann.fetch("POST", path, body=body, headers={**NDJSON, "Expected-Index": "0"})
        check(refused, "This tenant", "bytes")
        taken = refused.json["stored"]
        assert (refused.json["error_type"], refused.json["index"]) == ("limit_reached", taken)
        assert 0 < taken < 20
        # Nothing of what comes next is read.
        again = await ann.fetch("POST", path, body=body, headers={**NDJSON, "Expected-Index": "0"})
        check(again, "This tenant", "bytes")
        await ended(ann, path)
        reader = client_of(issuer, stack.base)
        async with reader.stream(path.replace("/ingest", "").replace("/chunks", "/stream")) as stream:
            chunks = [event.json for event in await stream.rest() if event.message_type == "assistant_message"]
        assert [int(chunk["content"].split()[0]) for chunk in chunks] == [*range(taken)]


# -- addresses --------------------------------------------------------------------------------------------------------

PORTS = pytest.mark.parametrize("port", ["gateway", "broker"])


async def asked(stack: Stack, port: str, credential: str | None, source: str) -> Reply:
    """Ask for what is not there, through a proxy."""
    base, path = (stack.base, "/v1/nothing") if port == "gateway" else (stack.broker_base, "/ingest/v1/nothing")
    return await Client(base, credential).fetch("GET", path, headers={"X-Forwarded-For": source})


@PORTS
async def test_bad_credentials_of_an_address(nats_url: str, issuer: Issuer, tmp_path: Path, port: str) -> None:
    """So many guesses a minute, then whatever comes from there is refused before it is looked at; others are not."""
    limits = {"address_failures_per_minute": 3, "trusted_proxies": "127.0.0.0/8"}
    async with limited(nats_url, issuer, tmp_path, **limits) as stack:
        good = issuer.token()
        for _ in range(5):
            assert (await asked(stack, port, None, "9.9.9.9")).status == 401  # Nothing was guessed.
        for number in range(3):
            assert (await asked(stack, port, f"guess {number}", f"6.6.6.{number}, 9.9.9.9")).status == 401
        refused = await asked(stack, port, good, "9.9.9.9")
        assert check(refused, "This address", "bad credentials") <= 20
        assert "www-authenticate" not in refused.headers
        assert (await asked(stack, port, good, "9.9.9.8")).status == 404
        base = stack.base if port == "gateway" else stack.broker_base
        assert (await Client(base, None).fetch("GET", "/livez")).status == 200
        assert await counted(base, "address_failures") == 1


async def test_made_up_sessions_of_an_address(nats_url: str, issuer: Issuer, tmp_path: Path) -> None:
    """A cookie is a guess as well, and each costs a look at the index: soon none is looked at any more."""
    async with limited(nats_url, issuer, tmp_path, address_failures_per_minute=3) as stack:
        made_up = {"Cookie": "runstream_session=made-up", "Sec-Fetch-Site": "same-origin"}
        nobody = Client(stack.base, None)
        for _ in range(3):
            assert (await nobody.fetch("GET", "/v1/runs/", headers=made_up)).status == 401
        check(await nobody.fetch("GET", "/v1/runs/", headers=made_up), "This address", "bad credentials")


@PORTS
async def test_requests_of_an_address(nats_url: str, issuer: Issuer, tmp_path: Path, port: str) -> None:
    """So many a minute, whoever sends them; nobody believes a stranger who says that he asks for others."""
    async with limited(nats_url, issuer, tmp_path, address_requests_per_minute=3) as stack:
        for number in range(3):
            assert (await asked(stack, port, issuer.token(), f"9.9.9.{number}")).status == 404
        refused = await asked(stack, port, issuer.token(), "9.9.9.9")
        assert check(refused, "This address", "requests") <= 20
        base = stack.base if port == "gateway" else stack.broker_base
        async with Connection.open(base) as connection:
            # Nobody reads a body that was refused unseen.
            path = path_of() if port == "gateway" else "/ingest/v1/runs"
            await connection.send("POST", path, headers={"Content-Length": "1000000"})
            refused = await connection.reply()
        check(refused, "This address")
        assert refused.headers["connection"] == "close"


async def test_an_event_source_of_such_an_address_comes_back(nats_url: str, issuer: Issuer, tmp_path: Path) -> None:
    """Refused before anybody knows who it is, it is told when to come back; its ticket is not used."""
    async with limited(nats_url, issuer, tmp_path, address_requests_per_minute=3) as stack:
        ann = client_of(issuer, stack.base)
        run_id = await ann.run(new_agent_id())
        made = await ann.fetch("POST", f"/v1/runs/{run_id}/tickets")
        path = f"/v1/runs/{run_id}/stream?ticket={made.json['ticket']}"
        assert (await ann.fetch("GET", f"/v1/runs/{run_id}")).status == 200
        reply = await Client(stack.base, None).fetch("GET", path)
        assert (reply.status, reply.body[:7]) == (200, b"retry: ")
        assert (await Tickets(stack.jetstream).find(made.json["ticket"], run_id)).principal.run_id == run_id


async def test_without_authentication_all_are_one(nats_url: str) -> None:
    """Whoever asks is the same tenant, and the same key: a limit of either is the process's."""
    async with stack_running(nats_url, limits={"key_runs_per_minute": 1}) as stack:
        await stack.finished({"chunks": 1})
        check(await stack.fetch("POST", path_of(), json=message("hello")), "This key")
