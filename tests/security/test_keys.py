"""What the keys are: a set at a URL that rotates, fails and lies; files that are written while they are in use."""

import asyncio
import base64
import hmac
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from structlog.testing import capture_logs

from runstream.broker.auth import files, jwks
from runstream.broker.auth.authenticator import Authenticator, authenticating
from runstream.broker.auth.settings import AuthSettings
from runstream.broker.auth.static import keys_in
from runstream.broker.auth.tokens import secret_in
from runstream.broker.errors import InvalidSettings, KeysUnavailable, Unauthenticated
from tests.support.auth import Issuer, KeyFile, jwk
from tests.support.nats import free_ports
from tests.support.processes import running, runstream
from tests.support.waiting import wait_until


async def is_taken(authenticator: Authenticator, credential: str) -> bool:
    try:
        await authenticator.principal(credential)
    except Unauthenticated:
        return False
    return True


# -- at a URL ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_a_new_key_is_fetched_when_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    """Its first token is taken at once, and those of the key before it no more."""
    monkeypatch.setattr(jwks, "REFETCH_SECONDS", 0)
    issuer = Issuer()
    async with issuer.serving() as url, authenticating(issuer.settings(tmp_path, url)) as authenticator:
        before = issuer.token(algorithm)
        assert await is_taken(authenticator, before)
        issuer.rotate(algorithm)
        assert await is_taken(authenticator, issuer.token(algorithm))
        assert not await is_taken(authenticator, before)


async def test_made_up_key_ids_make_no_load(tmp_path: Path) -> None:
    """However many there are, and at one time, the URL is asked once within ten seconds."""
    issuer = Issuer()
    async with issuer.serving() as url, authenticating(issuer.settings(tmp_path, url)) as authenticator:
        made_up = [issuer.token("ES256", header={"kid": f"kid-{number}"}) for number in range(50)]
        taken = await asyncio.gather(*(is_taken(authenticator, token) for token in made_up))
        assert not any(taken)
        assert issuer.fetches == 1


async def test_a_key_that_was_withdrawn_is_none_any_more(tmp_path: Path) -> None:
    """Nobody has to use another one for that."""
    issuer = Issuer()
    async with issuer.serving() as url:
        settings = issuer.settings(tmp_path, url, auth_jwks_seconds=0.05)
        async with authenticating(settings) as authenticator:
            token = issuer.token("RS256")
            assert await is_taken(authenticator, token)
            issuer.rotate("RS256")

            async def is_over() -> bool:
                return not await is_taken(authenticator, token)

            await wait_until(is_over, 5, "the key is still taken")


async def test_a_url_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys that were fetched are good for as long as there are no others."""
    monkeypatch.setattr(jwks, "REFETCH_SECONDS", 0)
    issuer = Issuer()
    async with issuer.serving() as url, authenticating(issuer.settings(tmp_path, url)) as authenticator:
        token = issuer.token("EdDSA")
        assert await is_taken(authenticator, token)
        issuer.is_down = True
        assert not await is_taken(authenticator, issuer.token("EdDSA", header={"kid": "other"}))
        assert issuer.fetches >= 2
        assert await is_taken(authenticator, token)


async def test_before_there_are_keys_nobody_can_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks meanwhile is told to come back, and not that the credential is bad; a secret needs no URL."""
    monkeypatch.setattr(jwks, "RETRY_SECONDS", 0)
    issuer = Issuer(is_down=True)
    async with issuer.serving() as url, authenticating(issuer.settings(tmp_path, url)) as authenticator:
        with pytest.raises(KeysUnavailable):
            await authenticator.principal(issuer.token("RS256"))
        assert await is_taken(authenticator, issuer.token("HS256"))
        assert authenticator.unready is None
        issuer.is_down = False
        assert await is_taken(authenticator, issuer.token("RS256"))


async def test_whoever_can_let_in_nobody_is_sent_nobody(tmp_path: Path) -> None:
    """A gateway that was never given the keys of tokens is not ready; once it was, it stays so without the URL."""
    issuer = Issuer(is_down=True)
    async with (
        issuer.serving() as url,
        authenticating(issuer.settings(tmp_path, url, auth_secret_file=None)) as authenticator,
    ):
        await wait_until(lambda: issuer.fetches, 5, "nobody asks for the keys")
        assert "jwks_not_fetched" in str(authenticator.unready)
        issuer.is_down = False
        # Nobody with a token is sent here, whose question would have them fetched: it asks by itself, and soon.
        await wait_until(lambda: authenticator.unready is None, 10, "it is still not ready")
        issuer.is_down, before = True, issuer.fetches
        assert not await is_taken(authenticator, issuer.token("RS256", header={"kid": "other"}))
        assert (issuer.fetches, authenticator.unready) == (before, None), "what was fetched is good for a while"


async def test_a_file_without_a_key_is_told_about(tmp_path: Path) -> None:
    """It may get one later; until then nobody is let in, which looks like a mistake."""
    path = tmp_path / "keys"
    path.write_text("# none yet\n")
    with capture_logs() as logged:
        async with authenticating(AuthSettings(auth="static", auth_keys_file=path)):
            pass
    assert [line["event"] for line in logged] == ["auth_no_keys"]


def test_keys_are_not_fetched_over_the_open_net(tmp_path: Path) -> None:
    """Whoever answers in the place of the issuer would decide who gets in."""
    with pytest.raises(InvalidSettings, match="https"):
        authenticating(Issuer({}).settings(tmp_path, "http://issuer.test/jwks.json"))


EC = ec.generate_private_key(ec.SECP256R1())
RSA_SMALL = rsa.generate_private_key(65537, 1024)  # noqa: S505  # which is the point


@pytest.mark.parametrize(
    "key",
    [
        {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "alg": "HS256"},
        jwk(EC, "ES256", use="enc"),
        jwk(EC, "ES256", key_ops=["encrypt"]),
        jwk(EC, "ES256", alg="HS256"),
        jwk(ec.generate_private_key(ec.SECP384R1()), "ES384"),
        jwk(RSA_SMALL, "RS256"),
        {"kty": "RSA", "n": "!", "e": "AQAB"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": ["RSA"]},
        {},
    ],
    ids=lambda key: f"{key.get('kty')}-{len(str(key))}",
)
def test_a_key_for_something_else_is_none(key: dict[str, Any]) -> None:
    """A set with nothing else in it is refused, and one with good ones beside it is used without it."""
    with pytest.raises(ValueError, match="key"):
        jwks.keys_in(json.dumps({"keys": [key]}).encode())
    good = jwk(EC, "ES256", kid="good")
    assert [each.kid for each in jwks.keys_in(json.dumps({"keys": [key, good]}).encode())] == ["good"]


@pytest.mark.parametrize("said", [b"", b"[]", b"{}", b'{"keys":1}', b'{"keys":[1]}', b"[" * 5000])
def test_what_is_no_set_of_keys_is_refused(said: bytes) -> None:
    """Whatever the URL answers."""
    with pytest.raises(ValueError, match=r"JSON Web Key Set|no key"):
        jwks.keys_in(said)


async def test_a_set_that_is_empty_ends_what_was_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All keys were withdrawn: that is no failure to fetch them. In a file it is taken for a mistake."""
    monkeypatch.setattr(jwks, "REFETCH_SECONDS", 0)
    issuer = Issuer()
    path = tmp_path / "jwks.json"
    path.write_text('{"keys":[]}')
    with pytest.raises(InvalidSettings, match="no key"):
        authenticating(issuer.settings(tmp_path, str(path)))
    async with issuer.serving() as url, authenticating(issuer.settings(tmp_path, url)) as authenticator:
        token = issuer.token("RS256")
        assert await is_taken(authenticator, token)
        issuer.keys.clear()
        assert not await is_taken(authenticator, issuer_token_of_nobody())

        async def is_ended() -> bool:
            return not await is_taken(authenticator, token)

        await wait_until(is_ended, 5, "a key that is withdrawn is still good")


def issuer_token_of_nobody() -> str:
    """One whose key has to be looked for."""
    return Issuer().token("RS256", header={"kid": "nobody's"})


async def test_an_algorithm_that_nobody_has_waits_for_no_keys(tmp_path: Path) -> None:
    """It could never become good: while keys cannot be fetched whoever sends it is refused like a guesser."""
    issuer = Issuer()
    issuer.is_down = True
    async with issuer.serving() as url, authenticating(issuer.settings(tmp_path, url)) as authenticator:
        for algorithm in ("none", "HS384", "RS512"):
            head = base64.urlsafe_b64encode(json.dumps({"alg": algorithm}).encode()).decode().rstrip("=")
            with pytest.raises(Unauthenticated):
                await authenticator.principal(f"{head}.e30.AA")
        with pytest.raises(KeysUnavailable):
            await authenticator.principal(issuer.token("RS256"))


PAIR = rsa.generate_private_key(65537, 2048)
SPKI = PAIR.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    "said",
    [
        PAIR.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        PAIR.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        PAIR.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
        SPKI,
        base64.b64encode(SPKI),
        base64.encodebytes(SPKI),
        json.dumps({"keys": [jwk(PAIR, "RS256")]}).encode(),
        json.dumps(jwk(PAIR, "RS256")).encode(),
    ],
    ids=["PEM", "private", "ssh", "DER", "base64", "lines", "set", "JWK"],
)
def test_a_key_of_a_pair_is_no_secret(tmp_path: Path, said: bytes) -> None:
    """Whoever has its public half, which is anybody, could sign as anybody."""
    path = tmp_path / "secret"
    path.write_bytes(said)
    with pytest.raises(InvalidSettings, match="key of a pair"):
        secret_in(path)


async def test_a_token_without_a_key_id_has_the_only_key_there_is(tmp_path: Path) -> None:
    """Of two it might be either: then it is neither's."""
    issuer = Issuer()
    token = jwt.encode(issuer.claims(), issuer.keys["ES256"], "ES256")
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(issuer.key_set()))
    async with authenticating(issuer.settings(tmp_path, str(path))) as authenticator:
        assert await is_taken(authenticator, token)
    two = issuer.key_set()["keys"] + [jwk(EC, "ES256", kid="second")]
    path.write_text(json.dumps({"keys": two}))
    async with authenticating(issuer.settings(tmp_path, str(path))) as authenticator:
        assert not await is_taken(authenticator, token)
        assert await is_taken(authenticator, issuer.token("ES256"))


# -- in files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOOK_SECONDS", 0.02)


@pytest.mark.usefixtures("_soon")
async def test_a_key_counts_from_its_line_on(tmp_path: Path) -> None:
    """One that is added is taken, one that is removed is not, and nothing was started anew."""
    keys = KeyFile(tmp_path / "keys")
    first = keys.add()
    async with authenticating(keys.settings) as authenticator:
        second = keys.add("other")

        async def is_second() -> bool:
            return await is_taken(authenticator, second)

        await wait_until(is_second, 5, "the new key is not taken")
        assert (await authenticator.principal(second)).tenant == "other"
        keys.remove(first)

        async def is_gone() -> bool:
            return not await is_taken(authenticator, first)

        await wait_until(is_gone, 5, "the old key is still taken")
        assert await is_taken(authenticator, second)


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize(
    ("change", "stands"),
    [
        ({}, True),
        ({"scopes": ["runs:read", "runs:write", "admin"]}, True),
        ({"expires_at": "2999-01-01T00:00:00Z"}, True),
        ({"sha256": "0" * 64}, False),
        ({"expires_at": "2026-01-01T00:00:00Z"}, False),
        ({"expires_at": "2998-12-31T00:00:00Z"}, False),
        ({"tenant": "other"}, False),
        ({"scopes": ["runs:write"]}, False),
    ],
    ids=["as it was", "more", "as long", "another key", "expired", "shorter", "another tenant", "less"],
)
async def test_what_was_let_in_by_a_line_that_changes(tmp_path: Path, change: dict[str, Any], *, stands: bool) -> None:
    """It goes on while the line lets in the same key, to do as much, for as long."""
    keys = KeyFile(tmp_path / "keys")
    key = keys.add(scopes="runs:read runs:write", expires_at="2999-01-01T00:00:00Z")
    async with authenticating(keys.settings) as authenticator:
        who = await authenticator.principal(key)
        assert authenticator.stands(who)
        keys.lines[key] = json.dumps({**json.loads(keys.lines[key]), **change}).encode()
        keys.add()
        await wait_until(lambda: authenticator.changes, 5, "the file is not read again")
        assert authenticator.stands(who) is stands


SECRET = "rsk_0123456789ab_what-nobody-may-see"
LINE: dict[str, Any] = {"id": "0123456789ab", "sha256": "0" * 64, "tenant": "acme", "scopes": ["runs:read"]}


@pytest.mark.parametrize(
    "line",
    [
        SECRET,
        json.dumps({SECRET: 1}),
        *(json.dumps({**LINE, name: SECRET}) for name in ("id", "sha256", "run_id", "expires_at", "more")),
        json.dumps({**LINE, "tenant": f"{SECRET}."}),
        json.dumps({**LINE, "scopes": [SECRET]}),
        json.dumps(LINE) + "\n" + json.dumps(LINE),
    ],
    ids=["key", "name", "id", "sha256", "run_id", "expires_at", "more", "tenant", "scopes", "twice"],
)
def test_what_is_told_of_a_file_that_cannot_be_used(line: str) -> None:
    """Which line it is, and what is wrong there; nothing of what stands there, which may be a key."""
    with pytest.raises(ValueError, match=r"^line [12]: ") as told:
        keys_in(line.encode())
    assert SECRET not in str(told.value)
    assert LINE["id"] not in str(told.value)


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize("broken", [b'{"id":"x"', b"{}\n", b"\xff\n", b'{"tenant":"acme","scopes":[]}', None])
async def test_a_broken_file_leaves_the_keys_that_were(tmp_path: Path, broken: bytes | None) -> None:
    """It is logged, without a word of what is in it, and put right by the next good one."""
    keys = KeyFile(tmp_path / "keys")
    key = keys.add()
    with capture_logs() as lines:
        await _outlived(keys, key, broken, lines)


async def _outlived(keys: KeyFile, key: str, broken: bytes | None, lines: Sequence[Any]) -> None:
    async with authenticating(keys.settings) as authenticator:
        if broken is None:
            keys.path.unlink()
        else:
            keys.path.write_bytes(keys.path.read_bytes() + broken)
        await wait_until(
            lambda: [line for line in lines if line["event"] == "auth_file_unusable"], 5, "nobody was told"
        )
        assert await is_taken(authenticator, key)
        added = keys.add()

        async def is_added() -> bool:
            return await is_taken(authenticator, added)

        await wait_until(is_added, 5, "the good file is not read")


@pytest.mark.usefixtures("_soon")
async def test_a_secret_and_a_set_of_keys_are_read_again(tmp_path: Path) -> None:
    """Whichever file is replaced."""
    issuer = Issuer()
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(issuer.key_set()))
    async with authenticating(issuer.settings(tmp_path, str(path))) as authenticator:
        before = [issuer.token("HS256"), issuer.token("ES256")]
        assert [await is_taken(authenticator, token) for token in before] == [True, True]
        issuer.rotate("ES256")
        path.write_text(json.dumps(issuer.key_set()))
        (tmp_path / "secret").write_bytes(b"another secret, as long as the first one")

        async def are_over() -> bool:
            return [await is_taken(authenticator, token) for token in before] == [False, False]

        await wait_until(are_over, 5, "what was replaced is still taken")
        assert await is_taken(authenticator, issuer.token("ES256"))


def test_a_file_that_is_half_written_is_not_read(tmp_path: Path) -> None:
    """It counts once it has stood still for a while."""
    path = tmp_path / "keys"
    path.write_bytes(b"whole")
    watched = files.WatchedFile(path, bytes.decode, setting="test")
    path.write_bytes(b"")
    watched.look()
    path.write_bytes(b"whole again")
    watched.look()
    assert watched.value == "whole"
    watched.look()
    assert watched.value == "whole again"


@pytest.mark.parametrize(
    ("facts", "complaint"),
    [
        ({"tenant": "a b"}, "tenant"),
        ({"tenant": ""}, "tenant"),
        ({"scopes": ["runs:all"]}, "scopes are a list of runs:read, "),
        ({"sha256": "00"}, "sha256"),
        ({"run_id": "run-1"}, "run_id is not such an id"),
        ({"expires_at": "2027-01-01T00:00:00"}, "time zone"),
        ({"extra": 1}, "fields of a key: id, sha256"),
    ],
    ids=str,
)
def test_a_line_that_says_what_none_may_is_refused(tmp_path: Path, facts: dict[str, Any], complaint: str) -> None:
    """At start, with the line's number, and with nothing of its hash."""
    keys = KeyFile(tmp_path / "keys")
    key = keys.add()
    line = json.loads(keys.lines[key])
    keys.lines[key] = json.dumps({**line, **facts}).encode()
    keys.write()
    with pytest.raises(InvalidSettings, match=rf"line 3: .*{complaint}") as refused:
        authenticating(keys.settings)
    assert line["sha256"] not in str(refused.value)


async def test_a_key_is_compared_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One comparison of two hashes decides, however much of the key is right, and is made if there is none like it."""
    keys = KeyFile(tmp_path / "keys")
    good = keys.add()
    damaged = good[:-1] + ("B" if good[-1] == "A" else "A")
    compared: list[tuple[int, int]] = []

    def says_no(one: str, other: str) -> bool:
        compared.append((len(one), len(other)))
        return False

    async with authenticating(keys.settings) as authenticator:
        assert await is_taken(authenticator, good)
        monkeypatch.setattr(hmac, "compare_digest", says_no)
        for credential in (good, damaged, f"rsk_{'0' * 12}_{'A' * 43}"):
            assert not await is_taken(authenticator, credential)
    assert compared == [(64, 64)] * 3


async def test_a_key_expires(tmp_path: Path) -> None:
    """If its line says so."""
    keys = KeyFile(tmp_path / "keys")
    past, future = (time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds)) for seconds in (-60, 3600))
    expired, good = keys.add(expires_at=past), keys.add(expires_at=future)
    async with authenticating(keys.settings) as authenticator:
        assert not await is_taken(authenticator, expired)
        assert await is_taken(authenticator, good)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"auth": "static"}, "RUNSTREAM_AUTH_KEYS_FILE"),
        ({"auth": "static", "auth_keys_file": "/nowhere/keys"}, "/nowhere/keys"),
        ({"auth": "jwt"}, "RUNSTREAM_AUTH_ISSUER"),
        ({"auth": "jwt", "auth_issuer": "a", "auth_audience": "b"}, "RUNSTREAM_AUTH_JWKS"),
        ({"auth": "jwt", "auth_issuer": "a", "auth_audience": "b", "auth_jwks": "/nowhere"}, "/nowhere"),
        ({"auth": "jwt", "auth_issuer": "a", "auth_audience": "b", "auth_secret_file": "/dev/null"}, "32 bytes"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused_at_start(given: dict[str, Any], complaint: str) -> None:
    """In words that say what to do."""
    with pytest.raises(InvalidSettings, match=complaint):
        authenticating(AuthSettings(**given))


@pytest.mark.parametrize("command", ["new", "token"])
async def test_a_flag_that_is_no_id_is_named(command: str) -> None:
    """With the form that it has to have: nothing would be reached by what is made."""
    async with running(*runstream("keys", command, "--run-id", "")) as process:
        assert await process.wait(20) == 2
    assert process.errors[-1] == "runstream: --run-id is run-<uuid4>, in lower case, and not ''."


async def test_who_cannot_reach_nats_is_told_where_it_may_be() -> None:
    """Of a `runstream up` the address stands in a file."""
    (port,) = free_ports(1)
    async with running(*runstream("keys", "revoke", "0" * 12, "--nats-url", f"nats://127.0.0.1:{port}")) as process:
        assert await process.wait(30) == 3
    assert "--nats-url" in process.errors[-1]
    assert "endpoints.json" in process.errors[-1]


async def test_a_defect_in_reading_a_file_is_not_the_end_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read before it stays in force, and the next change counts."""
    monkeypatch.setattr(files, "LOOK_SECONDS", 0.02)
    path = tmp_path / "keys"

    def read(said: bytes) -> str:
        if said == b"a defect":
            raise ZeroDivisionError
        return said.decode()

    path.write_bytes(b"before")
    async with files.WatchedFile(path, read, setting="test") as watched:
        with capture_logs() as lines:
            path.write_bytes(b"a defect")
            await wait_until(lambda: [line for line in lines if line["event"] == "auth_file_crashed"], 5)
        assert watched.value == "before"
        path.write_bytes(b"after")
        await wait_until(lambda: watched.value == "after", 5)


@pytest.mark.parametrize("command", ["new", "token"])
@pytest.mark.parametrize(("scope", "told"), [("", "--scope is empty"), ("runs:read x", "'x' is no scope")])
async def test_a_scope_that_there_is_not_is_named(command: str, scope: str, told: str) -> None:
    """With those that there are; a key without any would be good for nothing."""
    async with running(*runstream("keys", command, "--scope", scope)) as process:
        assert await process.wait(20) == 2
    assert process.lines == []
    assert told in process.errors[-1]
    assert "runs:write" in process.errors[-1]
