"""Credentials for tests, good and bad: an issuer with keys of every kind, its key set over HTTP, files of keys."""

import base64
import contextlib
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from runstream.broker.auth.principal import SCOPES
from runstream.broker.auth.settings import AuthSettings
from runstream.broker.auth.static import new_key
from tests.support.http import Reply, fetch, open_stream
from tests.support.stack import listener, message, url_of

ISSUER = "https://issuer.test/"
AUDIENCE = "runstream"
EVERYTHING = " ".join(scope for scope in SCOPES if scope != "admin")
SECRET = b"a secret of thirty-two bytes, and more"
MAKERS: Mapping[str, Any] = {
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


def encoded(value: bytes | Mapping[str, Any]) -> str:
    """One part of a token."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def jwk(key: Any, algorithm: str, **facts: Any) -> dict[str, Any]:
    """A private key's public half as a JSON Web Key."""
    made: dict[str, Any] = json.loads(jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key()))
    return {**{name: value for name, value in made.items() if name != "key_ops"}, **facts}


@dataclass
class Issuer:
    """Who signs tokens: with a secret, and with a key of each kind, by the name of its algorithm."""

    keys: dict[str, Any] = field(default_factory=lambda: {name: make() for name, make in MAKERS.items()})
    fetches: int = 0
    is_down: bool = False

    def rotate(self, algorithm: str) -> None:
        """Have another key from now on, and no more the one that there was."""
        self.keys[algorithm] = MAKERS[algorithm]()

    def kid(self, algorithm: str) -> str:
        """What a key is called: another key has another name."""
        pem = self.keys[algorithm].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return f"{algorithm}-{hashlib.sha256(pem).hexdigest()[:8]}"

    def key_set(self) -> dict[str, Any]:
        """The public keys, as their URL answers them."""
        return {"keys": [jwk(key, name, kid=self.kid(name), use="sig") for name, key in self.keys.items()]}

    def claims(self, **claims: Any) -> dict[str, Any]:
        """What a token says: everything, in the tenant `acme`, for a minute, unless told otherwise; None: absent."""
        now = int(time.time())
        said = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "exp": now + 60,
            "nbf": now - 1,
            "tenant": "acme",
            "scope": EVERYTHING,
            **claims,
        }
        return {name: value for name, value in said.items() if value is not None}

    def token(self, algorithm: str = "HS256", *, header: Mapping[str, Any] | None = None, **claims: Any) -> str:
        """A token, good unless told otherwise."""
        kid = {} if algorithm == "HS256" else {"kid": self.kid(algorithm)}
        key = SECRET if algorithm == "HS256" else self.keys[algorithm]
        return jwt.encode(self.claims(**claims), key, algorithm, headers={**kid, **(header or {})})

    def unsigned(self) -> str:
        """A token that says that it needs no signature."""
        return f"{encoded({'alg': 'none', 'typ': 'JWT'})}.{encoded(self.claims())}."

    def confused(self) -> str:
        """A token whose secret is what everybody knows: the public key, as text."""
        pem = self.keys["RS256"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        said = f"{encoded({'alg': 'HS256', 'kid': self.kid('RS256')})}.{encoded(self.claims())}"
        return f"{said}.{encoded(hmac.digest(pem, said.encode(), 'sha256'))}"

    def bad(self) -> dict[str, str | None]:
        """What is no credential, by what is wrong with it."""
        now = int(time.time())
        good = self.token("RS256")
        return {
            "no token": None,
            "no word": "",
            "no token at all": "abc",
            "not ASCII": "é",
            "nested without end": f"{encoded(b'[' * 2900)}.e30.AAAA",
            "a header that is none": f"{encoded(b'[1]')}.e30.AAAA",
            "an algorithm that is none": f"{encoded({'alg': 1, 'kid': []})}.e30.AAAA",
            "bad signature": good[:-8] + ("AAAAAAAA" if not good.endswith("AAAAAAAA") else "BBBBBBBB"),
            "another secret": jwt.encode(self.claims(), b"x" * 32, "HS256"),
            "expired": self.token(exp=now - 3600),
            "no expiry": self.token(exp=None),
            "not yet valid": self.token(nbf=now + 3600),
            "wrong audience": self.token(aud="another"),
            "no audience": self.token(aud=None),
            "wrong issuer": self.token(iss="https://other.test/"),
            "no tenant": self.token(tenant=None),
            "a tenant of two": self.token(tenant="acme.other"),
            "narrowed to no id": self.token(run_id="run-*"),
            "narrowed to nothing": self.token(run_id=""),
            "alg none": self.unsigned(),
            "HS and RS confused": self.confused(),
            "unknown key id": self.token("RS256", header={"kid": "nobody"}),
            "another algorithm than its key's": jwt.encode(
                self.claims(), self.keys["RS256"], "RS512", headers={"kid": self.kid("RS256")}
            ),
            "critical header": self.token(header={"crit": ["exp"]}),
            "oversized": self.token(padding="x" * 5000),
        }

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Answer the key set over HTTP; gives its URL."""

        async def answer(_: web.Request) -> web.Response:
            self.fetches += 1
            return web.Response(status=503) if self.is_down else web.json_response(self.key_set())

        app = web.Application()
        app.router.add_get("/jwks.json", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        with listener() as bound:
            await web.SockSite(runner, bound).start()
            try:
                yield f"{url_of(bound)}/jwks.json"
            finally:
                await runner.cleanup()

    def settings(self, directory: Path, jwks: str | None, **settings: Any) -> AuthSettings:
        """Settings with which this issuer's tokens are taken."""
        secret = directory / "secret"
        secret.write_bytes(SECRET)
        given = {"auth_issuer": ISSUER, "auth_audience": AUDIENCE, "auth_secret_file": secret, "auth_jwks": jwks}
        return AuthSettings(auth="jwt", **{**given, **settings})


class KeyFile:
    """A file of keys."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[str, bytes] = {}

    def add(self, tenant: str = "acme", scopes: str = EVERYTHING, **narrowed: Any) -> str:
        """Add a key; returns it."""
        key, line = new_key(tenant, scopes.split(), **narrowed)
        self.lines[key] = line
        self.write()
        return key

    def remove(self, key: str) -> None:
        """Take a key out."""
        del self.lines[key]
        self.write()

    def write(self) -> None:
        """Write the file as a whole, in place."""
        self.path.write_bytes(b"# keys\n\n" + b"\n".join(self.lines.values()) + b"\n")

    @property
    def settings(self) -> AuthSettings:
        return AuthSettings(auth="static", auth_keys_file=self.path)


@dataclass(frozen=True)
class Client:
    """Somebody with a credential, at a gateway or a broker."""

    base: str
    credential: str | None

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.credential is None else {"Authorization": f"Bearer {self.credential}"}

    async def fetch(self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **options: Any) -> Reply:
        """Send one request."""
        return await fetch(self.base, method, path, headers={**self.headers, **(headers or {})}, **options)

    def stream(self, path: str, body: Mapping[str, Any] | None = None) -> open_stream:
        """Open a stream."""
        return open_stream(self.base, path, body or {}, headers=self.headers)

    async def run(self, agent_id: str, *, conversation_id: str | None = None, **body: Any) -> str:
        """Have the demo agent answer; returns the run's id once it has ended."""
        path = f"/v1/agents/{agent_id}/messages/stream"
        if conversation_id is not None:
            path = f"/v1/conversations/{conversation_id}/messages"
        async with self.stream(path, message({"chunks": 1}, **body)) as stream:
            events = await stream.rest()
        return str(events[0].json["run_id"])

    async def conversation(self, agent_id: str) -> str:
        """Make a conversation; returns its id."""
        made = await self.fetch("POST", f"/v1/conversations/?agent_id={agent_id}", json={})
        assert made.status == 200, made
        return str(made.json["id"])
