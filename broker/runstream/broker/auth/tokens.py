"""JSON Web Tokens: who signed one, whom it is for, until when, and what it says of its bearer.

The algorithm is decided by the key: a secret is for HS256, a public key for what its type is good for. A token only
says which of them it asks for.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from base64 import b64decode
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any, Final, Self

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_public_key

from runstream.broker.auth.files import WatchedFile
from runstream.broker.auth.jwks import ASYMMETRIC
from runstream.broker.auth.principal import SCOPES, Principal, is_tenant
from runstream.broker.errors import InvalidSettings, Unauthenticated
from runstream.schemas import is_agent_id, is_conversation_id, is_run_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from runstream.broker.auth.causes import Cause
    from runstream.broker.auth.jwks import FileKeys, RemoteKeys
    from runstream.broker.auth.settings import AuthSettings

__all__ = ["Tokens", "id_of", "is_signed_with", "names_itself", "new_token", "secret_in"]

MOST_BYTES: Final = 4096
"""As long as a token may be: a header has twice as much, and none of ours a quarter."""
LEAST_SECRET_BYTES: Final = 32
"""As many as the hash has: a shorter one is guessed sooner than the signature."""
SYMMETRIC: Final = "HS256"
REQUIRED: Final = ("exp", "iss", "aud")

UNREADABLE: Final = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
"""What a library may come to with a token that is none."""

NARROWED: Final[Mapping[str, Callable[[str], bool]]] = {
    "agent_id": is_agent_id,
    "conversation_id": is_conversation_id,
    "run_id": is_run_id,
}
NOT_VALID: Final = "The token is not valid."
TOLD: Final[Mapping[type[BaseException], tuple[str, Cause]]] = {
    jwt.ExpiredSignatureError: ("The token has expired.", "expired"),
    jwt.ImmatureSignatureError: ("The token is not valid yet.", "not_yet_valid"),
    jwt.InvalidIssuedAtError: ("The token is not valid yet.", "not_yet_valid"),
    jwt.InvalidAudienceError: ("The token is for another audience.", "audience"),
    jwt.InvalidIssuerError: ("The token is another issuer's.", "issuer"),
    jwt.MissingRequiredClaimError: ("The token lacks a claim: exp, iss and aud are needed.", "claims"),
    jwt.InvalidSignatureError: (NOT_VALID, "bad_signature"),
}
"""What the bearer of a token is told whose signature is good (it stands in the token anyway), and what is counted."""


def secret_in(path: Path) -> WatchedFile[bytes]:
    """Read the secret that tokens are signed with; white space around it is none of it. Raises `InvalidSettings`."""
    return WatchedFile(path, _secret, setting="RUNSTREAM_AUTH_SECRET_FILE")


def _secret(said: bytes) -> bytes:
    secret = said.strip()
    if _is_of_a_pair(secret):
        raise ValueError(
            "this is a key of a pair, and others may have its public half: a secret is nobody else's. `openssl rand "
            "-hex 32` makes one; public keys are for RUNSTREAM_AUTH_JWKS"
        )
    if len(secret) < LEAST_SECRET_BYTES:
        raise ValueError(f"a secret has {LEAST_SECRET_BYTES} bytes at least: `openssl rand -hex 32` makes one")
    return secret


def _is_of_a_pair(said: bytes) -> bool:
    """Tell whether this is a public key, or a private one, in any form in which they are handed round."""
    if said.startswith((b"-----BEGIN ", b"ssh-", b"ecdsa-")):
        return True
    with suppress(msgspec.MsgspecError, RecursionError):
        found = msgspec.json.decode(said)
        return isinstance(found, dict) and not found.keys().isdisjoint({"kty", "keys"})
    plain = [said]
    with suppress(ValueError):
        plain.append(b64decode(b"".join(said.split()), validate=True))
    return any(map(_is_spki, plain))


def _is_spki(said: bytes) -> bool:
    try:
        load_der_public_key(said)
    except (ValueError, UnsupportedAlgorithm):
        return False
    return True


class Tokens:
    """The authenticator of tokens. Use as an async context manager: entered, it keeps its keys up to date."""

    changes = 0
    """What signs tokens may change: those that were taken stand until they expire."""

    def __init__(
        self,
        *,
        issuer: str,
        audience: str,
        leeway_seconds: float,
        tenant_claim: str,
        secret: WatchedFile[bytes] | None,
        keys: FileKeys | RemoteKeys | None,
    ) -> None:
        self._issuer = issuer
        self._audience = audience
        self._leeway_seconds = leeway_seconds
        self._tenant_claim = tenant_claim
        self._secret = secret
        self._keys = keys
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for each in (self._secret, self._keys):
                if each is not None:
                    await stack.enter_async_context(each)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def unready(self) -> str | None:
        """Why no token can be checked yet, None once some can."""
        return None if self._secret is not None or self._keys is None else self._keys.unready

    async def principal(self, credential: str | None) -> Principal:
        """Return a token's bearer. Raises `Unauthenticated`, and `KeysUnavailable` when nobody can say."""
        if credential is None:
            raise Unauthenticated
        if len(credential) > MOST_BYTES:
            raise Unauthenticated(reason="The token is too long.", cause="malformed")
        algorithm, key = await self._key_for(credential)
        return self._bearer(credential, self._claims(credential, algorithm, key))

    def stands(self, _: Principal) -> bool:
        """Whether a token that was taken is still good, its expiry aside."""
        return True

    async def _key_for(self, token: str) -> tuple[str, Any]:
        """Return the key that a token asks to be checked with, and the algorithm that the key is for."""
        try:
            header = jwt.get_unverified_header(token)
            algorithm, kid = header.get("alg"), header.get("kid")
        except (jwt.PyJWTError, *UNREADABLE):
            raise Unauthenticated(reason="This is no token.", cause="malformed") from None
        if "crit" in header or not isinstance(algorithm, str) or not isinstance(kid, str | None):
            raise Unauthenticated(reason="The token asks for what is not done here.", cause="malformed")
        if algorithm == SYMMETRIC and self._secret is not None:
            return SYMMETRIC, self._secret.value
        found = None
        if algorithm in ASYMMETRIC and self._keys is not None:
            found = await self._keys.key(algorithm, kid)
        if found is None:
            raise Unauthenticated(reason="The token's key is not known.", cause="unknown_key")
        return found.algorithm, found.key

    def _claims(self, token: str, algorithm: str, key: Any) -> dict[str, Any]:
        try:
            return jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway_seconds,
                options={"require": [*REQUIRED]},
            )
        except (jwt.PyJWTError, *UNREADABLE) as error:
            reason, cause = TOLD.get(type(error), (NOT_VALID, "malformed"))
            raise Unauthenticated(reason=reason, cause=cause) from None

    def _bearer(self, token: str, claims: Mapping[str, Any]) -> Principal:
        """Read what a token says of its bearer. What is not understood is refused: it might have narrowed it."""
        tenant = claims.get(self._tenant_claim)
        if not is_tenant(tenant):
            raise Unauthenticated(reason=f"The token's claim {self._tenant_claim} names no tenant.", cause="claims")
        narrowed = {name: claims[name] for name in NARROWED if name in claims}
        for name, value in narrowed.items():
            if not isinstance(value, str) or not NARROWED[name](value):
                raise Unauthenticated(reason=f"The token's claim {name} is no such id.", cause="claims")
        try:
            expires_at = int(claims["exp"]) + self._leeway_seconds
        except UNREADABLE:  # There is no number whose like PyJWT would not compare.
            raise Unauthenticated(reason=NOT_VALID, cause="claims") from None
        return Principal(
            tenant=str(tenant),
            scopes=_scopes_in(claims.get("scope", "")),
            expires_at=expires_at,
            leeway_seconds=self._leeway_seconds,
            key_id=_id_of(token, claims),
            subject=str(claims.get("sub") or ""),
            **narrowed,
        )


def new_token(
    settings: AuthSettings, tenant: str, scopes: Sequence[str], *, seconds: int, narrowed: Mapping[str, str | None]
) -> str:
    """Sign a token that these settings let in. Raises `InvalidSettings`, and `ValueError` for what none may say."""
    if settings.auth_secret_file is None or settings.auth_issuer is None or settings.auth_audience is None:
        raise InvalidSettings(
            "auth: to sign a token, set RUNSTREAM_AUTH_SECRET_FILE, RUNSTREAM_AUTH_ISSUER and RUNSTREAM_AUTH_AUDIENCE"
        )
    if not is_tenant(tenant):
        raise ValueError(f"a tenant has up to 64 letters, digits, -, _ and =, and is not {tenant!r}")
    if unknown := [*filter(lambda scope: scope not in SCOPES, scopes)]:
        raise ValueError(f"{unknown[0]!r} is no scope: there are {', '.join(SCOPES)}")
    said = {name: value for name, value in narrowed.items() if value is not None}
    for name, value in said.items():
        if not NARROWED[name](value):
            raise ValueError(f"{value!r} is not such an id")
    now = int(time.time())
    claims = {
        "iss": settings.auth_issuer,
        "aud": settings.auth_audience,
        "iat": now,
        "exp": now + seconds,
        "jti": secrets.token_hex(16),
        settings.auth_tenant_claim: tenant,
        "scope": " ".join(scopes),
        **said,
    }
    return jwt.encode(claims, secret_in(settings.auth_secret_file).value, SYMMETRIC)


def _scopes_in(said: object) -> frozenset[str]:
    """Read the scopes among those of a token: words in a string, or a list; others are other services'."""
    words = said.split() if isinstance(said, str) else said
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise Unauthenticated(reason="The token's claim scope is no list of words.", cause="claims")
    return frozenset(words) & frozenset(SCOPES)


def _id_of(token: str, claims: Mapping[str, Any]) -> str:
    """Name a token: as its issuer does, else by the hash of what is signed.

    Not of all of it: a signature can be written in several ways, each of which would be another token's name.
    """
    named = claims.get("jti")
    signed = token.rpartition(".")[0]
    return named if isinstance(named, str) and named else hashlib.sha256(signed.encode()).hexdigest()[:32]


def is_signed_with(token: str, secret: bytes) -> bool | None:
    """Tell whether a token, expired or not, was signed with a secret; None for one that does not say that it was."""
    try:
        if jwt.get_unverified_header(token).get("alg") != SYMMETRIC:
            return None
        jwt.PyJWS().decode(token, secret, algorithms=[SYMMETRIC])
    except (jwt.PyJWTError, *UNREADABLE):
        return False
    return True


def names_itself(token: str) -> bool:
    """Tell whether a token has a `jti`, which it may have from another one; of any other the id is a hash of it."""
    try:
        return bool(jwt.decode(token, options={"verify_signature": False}).get("jti"))
    except (jwt.PyJWTError, *UNREADABLE):
        return False


def id_of(said: str) -> str:
    """Return the id of a token that somebody has, or what they said, if that is none."""
    try:
        return _id_of(said, jwt.decode(said, options={"verify_signature": False}))
    except (jwt.PyJWTError, *UNREADABLE):
        return said
