"""A credential that was revoked: what goes on in its name ends within two seconds, at every gateway and broker."""

import asyncio
import contextlib
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from runstream.broker.auth.authenticator import authenticating
from runstream.broker.auth.revoking import revoke
from runstream.broker.auth.tokens import id_of
from runstream.broker.errors import StoreRefused
from runstream.broker.keys import KV_OPERATION, REVOKED, digest, subject_of
from runstream.broker.topology import INDEX_STREAM, REVOKED_STREAM
from runstream.gateway.app import Gateway
from runstream.gateway.keys import revoked_by
from runstream.gateway.provisioning import provision_once
from runstream.gateway.settings import GatewaySettings
from runstream.schemas import new_agent_id
from tests.support.auth import Client, Issuer, KeyFile
from tests.support.http import Connection, Cut, EventStream
from tests.support.ingest import NDJSON, lines, said
from tests.support.nats import NatsServer
from tests.support.processes import runstream
from tests.support.services import SOURCE
from tests.support.stack import PUPPET, Stack, listener, message, stack_running, url_of
from tests.support.waiting import wait_until

SECONDS = 2.0


@contextlib.asynccontextmanager
async def following(stack: Stack, client: Client) -> AsyncIterator[EventStream]:
    """A stream of a run that says nothing."""
    async with client.stream(f"/v1/agents/{new_agent_id()}/messages/stream", message(PUPPET)) as stream:
        (ping,) = await stream.take(1)
        yield stream
        stack.puppet.finish(str(ping.json["run_id"]))


async def is_cut(stream: EventStream) -> None:
    """It ends with the reason, and soon."""
    begun = time.monotonic()
    with pytest.raises(Cut):
        await stream.rest()
    assert time.monotonic() - begun < SECONDS
    last = stream.seen[-1]
    assert (last.event, last.json["error_type"], last.json["seq_id"]) == ("error", "credential_expired", None)


async def test_a_token_that_is_revoked_ends_its_streams(stack: Stack, issuer: Issuer) -> None:
    """Those that were opened with it, and no others; and it opens no further ones."""
    mine, theirs = (Client(stack.base, issuer.token(jti=jti)) for jti in ("revoked", "kept"))
    async with following(stack, mine) as ended, following(stack, theirs) as kept:
        await revoke(stack.jetstream, "revoked")
        await is_cut(ended)
        refused = await mine.fetch("GET", "/v1/runs/")
        assert refused.status == 401
        assert 'error_description="The credential was revoked."' in refused.headers["www-authenticate"]
        assert (
            await Client(stack.broker_base, mine.credential).fetch("POST", "/ingest/v1/runs", json={})
        ).status == 401
        stack.puppet.finish(str(kept.seen[0].json["run_id"]))
        assert (await kept.rest())[-1].is_done
    assert (await theirs.fetch("GET", "/v1/runs/")).status == 200


@pytest.mark.parametrize("algorithm", ["HS256", "ES256"])
async def test_a_token_has_one_name(stack: Stack, issuer: Issuer, algorithm: str) -> None:
    """One that its issuer has not named is revoked in whatever way its signature can be written."""
    token = issuer.token(algorithm, sub=f"known by one name, with {algorithm}")
    ways = [token, f"{token}=", f"{token}=="]
    before = [(await Client(stack.base, each).fetch("GET", "/v1/runs/")).status for each in ways]
    await revoke(stack.jetstream, id_of(token))

    async def is_revoked(each: str) -> bool:
        return (await Client(stack.base, each).fetch("GET", "/v1/runs/")).status == 401

    assert before[0] == 200
    for each in ways:
        await wait_until(lambda each=each: is_revoked(each), SECONDS, f"{each[-3:]!r} is still taken")  # type: ignore[misc]


async def test_a_gateway_that_comes_later_knows(stack: Stack, issuer: Issuer, tmp_path: Path) -> None:
    """It lets nobody in before it has read what was revoked."""
    token = issuer.token(jti="revoked before")
    await revoke(stack.jetstream, "revoked before")
    async with another_gateway(stack, issuer, tmp_path) as later:
        assert {*await statuses(token, *[later] * 5)} <= {401, 503}


@contextlib.asynccontextmanager
async def another_gateway(stack: Stack, issuer: Issuer, directory: Path) -> AsyncIterator[str]:
    """A gateway that begins now; gives its URL."""
    async with authenticating(issuer.settings(directory, None)) as authenticator:
        with listener() as bound:
            gateway = Gateway(GatewaySettings(), stack.settings, listener=bound, authenticator=authenticator)
            async with gateway:
                yield url_of(bound)


async def statuses(token: str, *bases: str) -> list[int]:
    """What a list of runs is answered with."""
    return [(await Client(base, token).fetch("GET", "/v1/runs/")).status for base in bases]


async def test_the_index_is_lost_and_what_was_revoked_is_not(stack: Stack, issuer: Issuer, tmp_path: Path) -> None:
    """The index is deleted in mid-run and made again from the logs: who was refused is, at whichever gateway."""
    token = issuer.token(jti="outlasts the index")
    client = Client(stack.base, issuer.token())
    async with following(stack, client) as stream:
        await revoke(stack.jetstream, "outlasts the index")
        await wait_until(lambda: refused(stack.base, token), SECONDS)
        await stack.api(f"STREAM.DELETE.{INDEX_STREAM}")
        assert await statuses(token, stack.base) == [401]
        await provision_once(stack.settings, rebuild_index=True, tell=lambda _: None)
        stack.puppet.finish(str(stream.seen[0].json["run_id"]))
        assert (await stream.rest())[-1].is_done
    async with another_gateway(stack, issuer, tmp_path) as later:
        assert await statuses(token, stack.base, later) == [401, 401]
        assert await statuses(issuer.token(), stack.base, later) == [200, 200]


async def refused(base: str, token: str) -> bool:
    return await statuses(token, base) == [401]


async def test_what_was_revoked_is_lost_and_written_again(stack: Stack, issuer: Issuer, tmp_path: Path) -> None:
    """Its bucket is deleted: who had heard of it goes on refusing, who begins lets nobody in, a broker restores it."""
    await Client(stack.base, issuer.token()).run(new_agent_id())  # Where there are runs, there may have been more.
    token = issuer.token(jti="outlasts its bucket")
    await revoke(stack.jetstream, "outlasts its bucket")
    await wait_until(lambda: refused(stack.base, token), SECONDS)
    writer = Client(stack.broker_base, token)

    async def is_refused_there() -> bool:
        return (await writer.fetch("POST", "/ingest/v1/runs", json={})).status == 401

    await wait_until(is_refused_there, SECONDS)
    await stack.api(f"STREAM.DELETE.{REVOKED_STREAM}")
    async with another_gateway(stack, issuer, tmp_path) as meanwhile:
        assert await statuses(token, stack.base, meanwhile) == [401, 503]
        assert await statuses(issuer.token(), stack.base, meanwhile) == [200, 503]
        with capture_logs() as lines:
            await provision_once(stack.settings, rebuild_index=False, tell=lambda _: None)
            await wait_until(lambda: any(line["event"] == "revocations_restored" for line in lines), 10)
        await wait_until(lambda: refused(meanwhile, token), 10)
    events = [line["event"] for line in lines]
    assert "revocations_lost" in events
    assert "revocations_begin_anew" in events
    stored = await stack.jetstream.last_message(REVOKED_STREAM, subject_of(digest("outlasts its bucket"), REVOKED))
    assert stored is not None
    assert json.loads(stored.body) == {"v": 1, "key_id": "outlasts its bucket"}
    async with another_gateway(stack, issuer, tmp_path) as later:
        assert await statuses(token, stack.base, later) == [401, 401]


@pytest.mark.parametrize("undoing", [{}, {KV_OPERATION: "DEL"}, {KV_OPERATION: "PURGE"}])
async def test_what_is_written_there_undoes_nothing(
    stack: Stack, issuer: Issuer, tmp_path: Path, undoing: dict[str, str]
) -> None:
    """Who may write to the bucket may revoke more, and that is all: the mark of a deleted key revokes, too."""
    jti = f"undone by {undoing}"
    await revoke(stack.jetstream, jti)
    subject = subject_of(digest(jti), REVOKED)
    await stack.jetstream.publish(subject, b"", undoing)
    for header in ({"Nats-Rollup": "sub"}, {"Nats-TTL": "1s"}):
        with pytest.raises(StoreRefused):
            await stack.jetstream.publish(subject, b"", header)
    for call, body in (("PURGE", {}), ("MSG.DELETE", {"seq": 1})):
        with pytest.raises(StoreRefused):
            await stack.api(f"STREAM.{call}.{REVOKED_STREAM}", body)
    async with another_gateway(stack, issuer, tmp_path) as later:
        assert await statuses(issuer.token(jti=jti), later) == [401]


async def test_an_upload_ends_when_its_token_is_revoked(stack: Stack, issuer: Issuer) -> None:
    """It is answered how far it came, and the run goes on."""
    writer = Client(stack.broker_base, issuer.token(jti="writer"))
    run_id = (await writer.fetch("POST", "/ingest/v1/runs", json={"agent_id": new_agent_id()})).json["run_id"]
    path = f"/ingest/v1/runs/{run_id}"
    async with Connection.open(stack.broker_base) as connection:
        headers = {**writer.headers, **NDJSON, "Transfer-Encoding": "chunked"}
        await connection.send("POST", f"{path}/chunks", headers=headers)
        data = lines(said(0))
        await connection.send_raw(b"%x\r\n%b\r\n" % (len(data), data))
        await revoke(stack.jetstream, "writer")
        reply = await connection.reply()
    assert (reply.status, reply.json["error_type"]) == (401, "unauthorized"), reply
    assert reply.headers["www-authenticate"].startswith("Bearer")
    again = Client(stack.broker_base, issuer.token())
    assert (await again.fetch("POST", f"{path}/end", json={"stop_reason": "end_turn"})).status == 200


@pytest_asyncio.fixture
async def keyed(nats_url: str, tmp_path: Path) -> AsyncIterator[tuple[Stack, KeyFile]]:
    """A runstream that takes keys."""
    keys = KeyFile(tmp_path / "keys")
    keys.add()
    async with stack_running(nats_url, auth=keys.settings) as running:
        yield running, keys


async def test_a_key_that_is_taken_out_of_its_file_ends_its_streams(keyed: tuple[Stack, KeyFile]) -> None:
    """As one that is revoked, which need not be there at all."""
    stack, keys = keyed
    (key,) = keys.lines
    async with following(stack, Client(stack.base, key)) as ended:
        keys.add()
        keys.remove(key)
        await is_cut(ended)
    assert (await Client(stack.base, key).fetch("GET", "/v1/runs/")).status == 401


async def test_the_command(keyed: tuple[Stack, KeyFile], nats_server: NatsServer) -> None:
    """`runstream keys revoke` takes a key, or its id with and without `rsk_`, and says which it was."""
    stack, keys = keyed
    for parts in (slice(None), slice(0, 2), slice(1, 2)):
        key = keys.add()
        said_as = "_".join(key.split("_", 2)[parts])
        client = Client(stack.base, key)

        async def is_taken(client: Client = client) -> bool:
            return (await client.fetch("GET", "/v1/runs/")).status == 200

        await wait_until(is_taken, 5, "the key is not taken")
        made = await asyncio.to_thread(
            subprocess.run,
            runstream("keys", "revoke", f"{said_as}\n", "--nats-url", nats_server.url),
            env={**os.environ, **SOURCE},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (made.returncode, made.stdout) == (0, f"revoked the key {key.split('_')[1]}\n"), made

        async def is_refused(client: Client = client) -> bool:
            return (await client.fetch("GET", "/v1/runs/")).status == 401

        await wait_until(is_refused, SECONDS, "the key is still taken")


KEY_ID = "0123456789ab"
KEY = f"rsk_{KEY_ID}_{'A' * 43}"
JTI = "123e4567-e89b-42d3-8456-426614174000"


@pytest.mark.parametrize("named", [KEY, f"rsk_{KEY_ID}", KEY_ID, f"  {KEY}\n"])
def test_a_key_is_revoked_by_its_id(named: str) -> None:
    """However much of it is said."""
    assert revoked_by(named) == ("key", KEY_ID)


def test_a_token_is_revoked_by_its_id(issuer: Issuer) -> None:
    """Its `jti`, whether that is said or the token is; one that has none is known by a hash, when it is said whole."""
    for each in (JTI, f"{JTI}\n", issuer.token(jti=JTI)):
        assert revoked_by(each) == ("token", JTI)
    nameless = issuer.token()
    assert revoked_by(nameless) == ("token", id_of(nameless))
    assert id_of(nameless) != nameless


@pytest.mark.parametrize(
    "named", [KEY[:-1], f"{KEY}A", KEY.upper(), KEY_ID.upper(), f"rsk_{KEY_ID}_", "rsk_", "", " \n"]
)
def test_what_is_a_damaged_key_is_not_revoked(named: str) -> None:
    """Nor taken for the id of something that nobody has, while the key that was meant goes on."""
    with pytest.raises(ValueError, match="this is no "):
        revoked_by(named)


def test_what_is_a_damaged_token_is_not_revoked(issuer: Issuer) -> None:
    """The same of a token, and of one that was copied with what stands before it."""
    token = issuer.token(jti=JTI)
    header, claims, signature = token.split(".")
    cut = [token[:length] for length in (20, len(header), 100, len(token) - len(signature) - 1)]
    other = [f"{header}.{claims[:-2]}.{signature}", f"{header[1:]}.{claims}.{signature}", f"Bearer {token}", "x" * 200]
    for each in (*cut, *other, claims, "a\x1b[31mb"):
        with pytest.raises(ValueError, match="this is no token"):
            revoked_by(each)


def test_the_command_refuses_what_it_cannot_revoke() -> None:
    """In one line, before NATS is asked."""
    made = subprocess.run(
        runstream("keys", "revoke", KEY[:-1], "--nats-url", "nats://127.0.0.1:1"),
        env={**os.environ, **SOURCE},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (made.returncode, made.stdout) == (2, "")
    assert made.stderr.startswith("runstream: this is no key")
    assert KEY[:-1] not in made.stderr


def revoke_command(said: str, *, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """The command, where no NATS is."""
    return subprocess.run(
        runstream("keys", "revoke", said, "--nats-url", "nats://127.0.0.1:1"),
        env={**os.environ, **SOURCE, **env},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("algorithm", "claims", "is_refused"),
    [("HS256", {"jti": JTI}, True), ("HS256", {}, False), ("RS256", {"jti": JTI}, False)],
    ids=["named", "nameless", "another key's"],
)
def test_a_token_of_somebodys_own_making_revokes_nobodys(
    issuer: Issuer, tmp_path: Path, algorithm: str, claims: dict[str, Any], is_refused: bool
) -> None:  # a parameter of the test
    """It may have the id of another one. One without a `jti` is known by a hash of itself, and harms nobody."""
    secret = tmp_path / "secret"
    secret.write_text("s" * 40)
    made = revoke_command(issuer.token(algorithm, **claims), RUNSTREAM_AUTH_SECRET_FILE=str(secret))
    assert made.returncode == (2 if is_refused else 3), "no NATS is there"
    assert ("not signed with the secret" in made.stderr) is is_refused
    assert ("NATS" in made.stderr) is not is_refused


def test_what_is_to_be_revoked_is_read_from_stdin() -> None:
    """Others can read what stands on a command line."""
    made = revoke_command("-", stdin=f"{KEY[:-1]}\n")
    assert made.stderr.startswith("runstream: this is no key")
