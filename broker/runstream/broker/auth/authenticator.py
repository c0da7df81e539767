"""Turns what was sent into a principal; and the one place where it is chosen how."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from runstream.broker.auth.jwks import FileKeys, RemoteKeys
from runstream.broker.auth.principal import ANYBODY
from runstream.broker.auth.static import StaticKeys
from runstream.broker.auth.tokens import Tokens, secret_in
from runstream.broker.errors import InvalidSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runstream.broker.auth.principal import Principal
    from runstream.broker.auth.settings import AuthSettings

__all__ = ["Anybody", "Authenticator", "authenticating"]


class Authenticator(Protocol):
    """Knows who is who."""

    @property
    def changes(self) -> int:
        """How often what it knows has become another."""
        ...

    @property
    def unready(self) -> str | None:
        """Why it can let in nobody yet, in words; None once it can."""
        ...

    async def principal(self, credential: str | None) -> Principal:
        """Return whoever has this bearer credential; None: none was sent. Raises `Unauthenticated`, `Unavailable`."""
        ...

    def stands(self, who: Principal) -> bool:
        """Whether somebody who was let in still would be, as far as that can be told without the credential."""
        ...


class Anybody:
    """Authentication is off: whoever asks may do everything, whatever they send."""

    changes = 0
    unready = None

    async def principal(self, _: str | None) -> Principal:
        """Return whoever asks."""
        return ANYBODY

    def stands(self, _: Principal) -> bool:
        """Whether whoever asks is anybody."""
        return True


def authenticating(settings: AuthSettings) -> AbstractAsyncContextManager[Authenticator]:
    """Give an authenticator as it is set, ready while the block lasts. Raises `InvalidSettings`, at once."""
    match settings.auth:
        case "none":
            return _anybody()
        case "static":
            if settings.auth_keys_file is None:
                raise InvalidSettings(
                    "auth: static needs RUNSTREAM_AUTH_KEYS_FILE, the file of the keys: `runstream keys new` makes one"
                )
            return StaticKeys(settings.auth_keys_file)
        case "jwt":
            return _tokens(settings)


@asynccontextmanager
async def _anybody() -> AsyncIterator[Authenticator]:
    yield Anybody()


def _tokens(settings: AuthSettings) -> Tokens:
    if settings.auth_issuer is None or settings.auth_audience is None:
        raise InvalidSettings(
            "auth: jwt needs RUNSTREAM_AUTH_ISSUER and RUNSTREAM_AUTH_AUDIENCE: whose tokens are taken, and for whom"
        )
    if settings.auth_secret_file is None and settings.auth_jwks is None:
        raise InvalidSettings(
            "auth: jwt needs RUNSTREAM_AUTH_JWKS, public keys, or RUNSTREAM_AUTH_SECRET_FILE, a secret, or both"
        )
    secret = None if settings.auth_secret_file is None else secret_in(settings.auth_secret_file)
    where = settings.auth_jwks
    keys: FileKeys | RemoteKeys | None = None
    if where is not None:
        is_url = where.partition("://")[0].lower() in {"http", "https"}
        keys = RemoteKeys(where, seconds=settings.auth_jwks_seconds) if is_url else FileKeys(where)
    return Tokens(
        issuer=settings.auth_issuer,
        audience=settings.auth_audience,
        leeway_seconds=settings.auth_leeway_seconds,
        tenant_claim=settings.auth_tenant_claim,
        secret=secret,
        keys=keys,
    )
