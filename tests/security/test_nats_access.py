"""How a process is let in by NATS: keys, credentials files, certificates; and what it says when it is not."""

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import resource
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nkeys  # type: ignore[import-untyped]
import pytest
import pytest_asyncio
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from runstream.broker.access import NatsAccess, new_key
from runstream.broker.connection import Connection
from runstream.broker.embedded import EmbeddedServer
from runstream.broker.errors import InvalidSettings, Refused, Unavailable
from runstream.broker.settings import BrokerSettings, resolved
from runstream.gateway.natskeys import ROLES, make_keys
from runstream.gateway.process import CannotStart
from tests.security.nats import GuardedNats, write_certificates
from tests.support.http import fetch
from tests.support.nats import free_ports
from tests.support.processes import running, runstream
from tests.support.stack import message
from tests.support.waiting import wait_until

AGENT = "agent-123e4567-e89b-42d3-8456-426614174000"


# -- settings ---------------------------------------------------------------------------------------------------------


def key_of(prefix: int) -> tuple[str, str]:
    """An nkey of some kind: its seed, its public key."""
    seed: bytes = nkeys.encode_seed(os.urandom(32), prefix)
    return seed.decode(), bytes(nkeys.from_seed(bytearray(seed)).public_key).decode()


def slipped(seed: str) -> str:
    """The same with one letter wrong."""
    return seed[:20] + ("A" if seed[20] != "A" else "B") + seed[21:]


SEED, PUBLIC = new_key()
CREDENTIALS = f"-----BEGIN NATS USER JWT-----\na.b.c\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{SEED}\n------END USER NKEY SEED------\n"  # noqa: E501
WRONG_KEYS = {
    "empty": "",
    "public": PUBLIC,
    "an account's": key_of(nkeys.PREFIX_BYTE_ACCOUNT)[0],
    "with a slip": slipped(SEED),
    "cut": SEED[:-3],
    "credentials": CREDENTIALS,
    "text": "secret words",
}
WRONG_CREDENTIALS = {
    "empty": "",
    "a key": SEED,
    "no seed": CREDENTIALS[: CREDENTIALS.index("-----BEGIN USER")],
    "no jwt": CREDENTIALS[CREDENTIALS.index("-----BEGIN USER") :],
    "with a slip": CREDENTIALS.replace(SEED, slipped(SEED)),
}


def complaint(**given: Any) -> str:
    """What is said of settings that are refused."""
    with pytest.raises(InvalidSettings) as caught:
        resolved(BrokerSettings, given)
    return str(caught.value)


@pytest.mark.parametrize("content", WRONG_KEYS.values(), ids=WRONG_KEYS)
def test_a_file_without_a_users_key_is_refused(tmp_path: Path, content: str) -> None:
    """The file is named, and nothing of what is in it is shown."""
    file = tmp_path / "key"
    file.write_text(content)
    said = complaint(nats_nkey=file)
    assert f"nats_nkey: the file '{file}' does not hold the seed of a user's nkey" in said
    assert not content or content not in said


@pytest.mark.parametrize("content", WRONG_CREDENTIALS.values(), ids=WRONG_CREDENTIALS)
def test_a_file_without_credentials_is_refused(tmp_path: Path, content: str) -> None:
    """The same of a `.creds` file."""
    file = tmp_path / "creds"
    file.write_text(content)
    said = complaint(nats_credentials=file)
    assert f"nats_credentials: the file '{file}' does not hold credentials of NATS" in said
    assert SEED not in said


@pytest.mark.parametrize("setting", ["nats_nkey", "nats_credentials", "nats_ca"])
def test_a_file_that_cannot_be_read_is_told_at_start(tmp_path: Path, setting: str) -> None:
    """Who waits for NATS would wait for ever, and say that NATS is away."""
    assert "No such file or directory" in complaint(**{setting: tmp_path / "absent"})
    assert "Is a directory" in complaint(**{setting: tmp_path})
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "is no ASCII text" in complaint(**{setting: tmp_path / "binary"})


def test_files_that_are_no_certificates_are_refused(tmp_path: Path) -> None:
    """A CA without certificates trusts nobody; a certificate without its own key proves nothing."""
    write_certificates(tmp_path)
    ca, certificate, key = (tmp_path / name for name in ("ca.pem", "server.pem", "server.key"))
    other, locked, words = (tmp_path / name for name in ("other.key", "locked.key", "words"))
    trustme.CA().issue_cert("other").private_key_pem.write_to_path(other)
    loaded = load_pem_private_key(key.read_bytes(), None)
    locked.write_bytes(loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    words.write_text("words")
    assert "does not hold certificates in PEM" in complaint(nats_ca=words)
    assert "set both or none" in complaint(nats_certificate=certificate)
    assert "set both or none" in complaint(nats_certificate_key=key)
    for wrong in (other, locked, words, ca):
        assert "do not hold a certificate and its key" in complaint(
            nats_certificate=certificate, nats_certificate_key=wrong
        )
    resolved(BrokerSettings, {"nats_ca": ca, "nats_certificate": certificate, "nats_certificate_key": key})


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    """One user signs in one way, and who asks for TLS gets it."""
    (tmp_path / "key").write_text(SEED)
    (tmp_path / "creds").write_text(CREDENTIALS)
    one = {"nats_nkey": tmp_path / "key"}
    assert "set one of them" in complaint(**one, nats_credentials=tmp_path / "creds")
    assert "set one of them" in complaint(**one, nats_url="nats://user:secret@nats:4222")
    assert "secret" not in complaint(**one, nats_url="nats://user:secret@nats:4222")
    assert "ws:// is without TLS" in complaint(nats_url="ws://nats", nats_server_name="nats")
    assert "nats_inbox_prefix" in complaint(nats_inbox_prefix="_INBOX.>")


def test_each_role_has_answers_of_its_own() -> None:
    """Unless told otherwise."""
    assert BrokerSettings().nats_access("gateway").inbox_prefix == "_INBOX_gateway"
    assert BrokerSettings(nats_inbox_prefix="mine").nats_access("gateway").inbox_prefix == "mine"


# -- TLS --------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def tls_server(directory: Path, more: str = "") -> AsyncIterator[EmbeddedServer]:
    """A nats-server with TLS, which is known by the name of nats.example."""
    authority = write_certificates(directory, name="nats.example")
    client = authority.issue_cert("client")
    client.private_key_pem.write_to_path(directory / "client.key")
    client.cert_chain_pems[0].write_to_path(directory / "client.pem")
    files = f'cert_file: "{directory}/server.pem", key_file: "{directory}/server.key", ca_file: "{directory}/ca.pem"'
    config = f"tls {{ {files}, {more} }}"
    async with EmbeddedServer(directory / "store", start_timeout=20, extra_config=config) as server:
        yield server


@pytest_asyncio.fixture(scope="module")
async def with_tls(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[EmbeddedServer, Path]]:
    directory = tmp_path_factory.mktemp("tls")
    async with tls_server(directory) as server:
        yield server, directory


async def refusal(url: str, access: NatsAccess) -> str:
    """What is said when a connection does not come about."""
    with pytest.raises(Unavailable) as caught:
        await Connection(url, name="test", access=access, connect_seconds=0.7).__aenter__()
    return str(caught.value)


async def test_nats_is_known_by_its_certificate(with_tls: tuple[EmbeddedServer, Path], tmp_path: Path) -> None:
    """Signed by whom we believe, and for the name that we asked for; the reason is told otherwise."""
    server, directory = with_tls
    url = server.url.replace("nats://", "tls://")
    right = NatsAccess(authorities=directory / "ca.pem", server_name="nats.example")
    async with Connection(url, name="test", access=right) as connection:
        assert (await connection.request("$JS.API.INFO", b"", seconds=2)).data
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    wrong = NatsAccess(authorities=tmp_path / "other.pem", server_name="nats.example")
    assert "its certificate cannot be trusted, unable to get local issuer" in await refusal(url, wrong)
    nameless = NatsAccess(authorities=directory / "ca.pem")
    assert "IP address mismatch, certificate is not valid for '127.0.0.1'" in await refusal(url, nameless)
    assert "its certificate cannot be trusted" in await refusal(url, NatsAccess())


async def test_a_wrong_authority_is_told_at_start(with_tls: tuple[EmbeddedServer, Path], tmp_path: Path) -> None:
    """`runstream provision` ends with what is wrong."""
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    environment = {"RUNSTREAM_NATS_URL": with_tls[0].url, "RUNSTREAM_NATS_CA": str(tmp_path / "other.pem")}
    async with running(*runstream("provision"), env=environment) as process:
        assert await process.wait(20) == 3
    assert any("its certificate cannot be trusted" in line and "RUNSTREAM_NATS_CA" in line for line in process.errors)


async def test_nats_knows_a_process_by_its_certificate(tmp_path: Path) -> None:
    """Where NATS lets in who has a certificate only."""
    async with tls_server(tmp_path, "verify: true") as server:
        nobody = NatsAccess(authorities=tmp_path / "ca.pem", server_name="nats.example")
        assert "Cannot reach NATS" in await refusal(server.url, nobody)
        known = NatsAccess(
            authorities=tmp_path / "ca.pem",
            server_name="nats.example",
            certificate=tmp_path / "client.pem",
            certificate_key=tmp_path / "client.key",
        )
        async with Connection(server.url, name="test", access=known) as connection:
            assert connection.is_connected


async def test_a_login_that_is_refused_over_tls_is_told_and_nothing_else(
    guarded: GuardedNats, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried again and again: what asyncio has to say of each connection's end would fill the log."""
    url = guarded.url.replace("tls://", "tls://nobody:wrong@")
    assert "does not let this user in" in await refusal(url, NatsAccess(authorities=guarded.ca))
    assert "eof_received" not in caplog.text


async def test_a_user_that_nats_refuses_is_exit_code_4(guarded: GuardedNats) -> None:
    """A NATS that is not there is another matter."""
    url = guarded.url.replace("tls://", "tls://nobody:wrong@")
    environment = {"RUNSTREAM_NATS_URL": url, "RUNSTREAM_NATS_CA": str(guarded.ca)}
    async with running(*runstream("provision", "--plan"), env=environment) as process:
        assert await process.wait(20) == 4
    (line,) = process.errors
    assert "check RUNSTREAM_NATS_CREDENTIALS" in line
    assert "wrong" not in line


@pytest.mark.parametrize("wanted_by", ["the scheme", "a setting"])
async def test_nothing_is_told_without_tls(wanted_by: str) -> None:
    """Whoever is in between leaves TLS out of what the server says: the password stays where it is."""
    heard = bytearray()

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.12.0","auth_required":true,"max_payload":1048576}\r\n')
        with contextlib.suppress(OSError):
            heard.extend(await reader.read(1000))
            writer.close()
            await writer.wait_closed()

    async with await asyncio.start_server(pretend, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        is_setting = wanted_by == "a setting"
        url = f"{'nats' if is_setting else 'tls'}://user:secret@127.0.0.1:{port}"
        said = await refusal(url, NatsAccess(server_name="nats" if is_setting else None))
    assert "it offers no TLS, without which it is told nothing" in said
    assert heard == b""


# -- keys and credentials ---------------------------------------------------------------------------------------------


async def test_a_key_that_is_replaced_is_used_from_the_next_connection_on(guarded: GuardedNats, tmp_path: Path) -> None:
    """Keys are rotated while processes run."""
    file = tmp_path / "key"
    file.write_text(guarded.key("provision").read_text())
    access = NatsAccess(authorities=guarded.ca, key=file, inbox_prefix="_INBOX_broker")
    async with Connection(guarded.url, name="test", access=access) as connection:
        with pytest.raises(Refused):
            await connection.request("$JS.API.STREAM.INFO.RUNS_0", b"", seconds=5)
        file.write_text(guarded.key("broker").read_text())
        await connection._client.give_up()
        await wait_until(lambda: connection.reconnects, 10, "it does not come back")
        assert (await connection.request("$JS.API.STREAM.INFO.RUNS_0", b"", seconds=5)).data


def jwt(issuer: tuple[str, str], subject: str, name: str, nats: dict[str, Any]) -> str:
    """Sign what somebody may do, as `nsc` does."""

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    seed, public = issuer
    claims = {"iss": public, "sub": subject, "name": name, "iat": int(time.time()), "nats": {"version": 2, **nats}}
    claims["jti"] = base64.b32encode(hashlib.sha256(json.dumps(claims).encode()).digest()).decode().rstrip("=")
    header = json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode()
    signed = f"{part(header)}.{part(json.dumps(claims).encode())}"
    return f"{signed}.{part(nkeys.from_seed(bytearray(seed.encode())).sign(signed.encode()))}"


async def test_a_credentials_file_lets_in(tmp_path: Path) -> None:
    """A NATS with an operator's accounts knows users by what their account has signed."""
    operator, system, account = (
        key_of(prefix) for prefix in (nkeys.PREFIX_BYTE_OPERATOR, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_ACCOUNT)
    )
    limits = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf", "mem_storage"), -1)
    limits |= dict.fromkeys(("disk_storage", "streams", "consumer"), -1)
    accounts = {
        key[1]: jwt(operator, key[1], name, {"type": "account", "limits": {**limits, "wildcards": True, **jetstream}})
        for key, name, jetstream in (
            (system, "SYS", dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), 0)),
            (account, "RUNSTREAM", {}),
        )
    }
    preload = "\n".join(f"{key}: {signed}" for key, signed in accounts.items())
    signed = jwt(operator, operator[1], "test", {"type": "operator", "system_account": system[1]})
    (tmp_path / "operator.jwt").write_text(signed)
    config = f"operator: {signed}\nsystem_account: {system[1]}\nresolver: MEMORY\nresolver_preload: {{\n{preload}\n}}"
    user = {"type": "user", "subs": -1, "data": -1, "payload": -1, "pub": {"allow": ["$JS.API.INFO"]}, "sub": {}}
    (tmp_path / "creds").write_text(CREDENTIALS.replace("a.b.c", jwt(account, PUBLIC, "writer", user)))
    access = BrokerSettings(nats_credentials=tmp_path / "creds").nats_access("writer")
    async with (
        EmbeddedServer(tmp_path / "store", start_timeout=20, extra_config=config) as server,
        Connection(server.url, name="test", access=access) as connection,
    ):
        assert b"account_info" in (await connection.request("$JS.API.INFO", b"", seconds=2)).data
        with pytest.raises(Refused):
            await connection.request("anything", b"", seconds=5)


# -- the commands -----------------------------------------------------------------------------------------------------


async def test_keys_are_made_once(tmp_path: Path) -> None:
    """`runstream nats-keys` writes what only its owner may read, and replaces nothing."""
    directory = tmp_path / "keys"
    async with running(*runstream("nats-keys", directory)) as process:
        assert await process.wait(20) == 0, process.report()
    seeds = {role: (directory / f"{role}.nk").read_text() for role in ROLES}
    assert len(set(seeds.values())) == len(ROLES)
    assert {stat.S_IMODE((directory / f"{role}.nk").stat().st_mode) for role in ROLES} == {0o600}
    said = "\n".join([*process.lines, *process.errors, (directory / "nats.env").read_text()])
    assert not any(seed.strip() in said for seed in seeds.values())
    async with running(*runstream("nats-keys", directory)) as process:
        assert await process.wait(20) == 1
    assert "provision.nk, broker.nk, gateway.nk, writer.nk, nats.env already" in process.report()
    assert seeds == {role: (directory / f"{role}.nk").read_text() for role in ROLES}


def test_keys_are_all_made_or_none(tmp_path: Path) -> None:
    """What could be written is gone again when the last file cannot be, and the next call makes them all."""
    told: list[str] = []
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # Each key is shorter, and the list of them longer.
    try:
        with pytest.raises(CannotStart, match="cannot be written"):
            make_keys(tmp_path, tell=told.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (told, [*tmp_path.iterdir()]) == ([], [])
    make_keys(tmp_path, tell=told.append)
    assert len(told) == len([*tmp_path.iterdir()]) == len(ROLES) + 1


async def test_the_embedded_nats_is_told_nothing(guarded: GuardedNats, tmp_path: Path) -> None:
    """What another NATS wants to know does not keep `runstream up` from using its own."""
    ports = free_ports(2)
    argv = runstream("up", "--port", str(ports[0]), "--broker-port", str(ports[1]), "--data-dir", tmp_path / "data")
    environment = {name: value for name, value in guarded.environment("broker").items() if name != "RUNSTREAM_NATS_URL"}
    async with running(*argv, env=environment) as process:
        await process.wait_for_line("^ready", 30)


async def test_services_are_let_in(guarded: GuardedNats) -> None:
    """The commands, as they are started in production, each with its own key."""
    before = len(await guarded.all_violations())
    gateway_port, broker_port = free_ports(2)
    broker_argv = runstream("broker", "--port", str(broker_port), "--agent", "demo")
    gateway_argv = runstream("gateway", "--port", str(gateway_port))
    async with (
        running(*broker_argv, env=guarded.environment("broker")) as broker,
        running(*gateway_argv, env=guarded.environment("gateway")) as gateway,
    ):
        await asyncio.gather(broker.wait_for_line("^ready", 30), gateway.wait_for_line("^ready", 30))
        body = message({"chunks": 2}, streaming=False)
        answer = await fetch(f"http://127.0.0.1:{gateway_port}", "POST", f"/v1/agents/{AGENT}/messages", json=body)
        assert answer.status == 200, answer
        said = broker.report() + gateway.report()
    assert not any(guarded.key(role).read_text().strip() in said for role in ROLES)
    assert (await guarded.all_violations())[before:] == []
