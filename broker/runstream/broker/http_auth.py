"""Who asks over HTTP: the header it stands in, and what whoever may not is told beside the refusal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from aiohttp import hdrs, web

from runstream.broker.auth.principal import Principal, Scope
from runstream.broker.errors import Forbidden, Unauthenticated

if TYPE_CHECKING:
    from runstream.broker.auth.admissions import Admissions
    from runstream.broker.auth.causes import Cause

__all__ = ["PRINCIPAL", "Access", "admit", "cause_of", "challenge"]

PRINCIPAL: Final = web.RequestKey("principal", Principal)
"""Whoever asks, of each request that was admitted."""

Access: TypeAlias = Scope | Literal["open"]

REALM: Final = 'Bearer realm="runstream"'


async def admit(request: web.Request, admissions: Admissions, scope: Scope | None = None) -> Principal:
    """Find out who asks, and whether they have a scope. Raises `Unauthenticated`, `Forbidden`, `Unavailable`."""
    principal = await admissions.principal(_bearer_in(request))
    if scope is not None:
        principal.check(scope)
    request[PRINCIPAL] = principal
    return principal


def _bearer_in(request: web.Request) -> str | None:
    """Return the credential that was sent, None for none. What is in the query is none: it stands in logs."""
    values = request.headers.getall(hdrs.AUTHORIZATION, [])
    if not values:
        return None
    scheme, _, credential = values[0].strip().partition(" ")
    if len(values) > 1 or scheme.lower() != "bearer" or not credential.strip():
        raise Unauthenticated(reason="One header Authorization: Bearer is needed.", cause="malformed")
    return credential.strip()


def cause_of(error: Unauthenticated | Forbidden) -> Cause:
    """Say why somebody was refused, as it is counted."""
    match error:
        case Unauthenticated(cause=cause):
            return cause
        case Forbidden(scope=scope):
            return "narrowed" if scope is None else "scope"


def challenge(error: Unauthenticated | Forbidden) -> dict[str, str]:
    """Say how to be admitted, as RFC 6750 has it."""
    match error:
        case Unauthenticated(reason=None):
            said = REALM
        case Unauthenticated(reason=reason):
            said = f'{REALM}, error="invalid_token", error_description="{reason}"'
        case Forbidden(scope=None):
            said = f'{REALM}, error="insufficient_scope"'
        case Forbidden(scope=scope):
            said = f'{REALM}, error="insufficient_scope", scope="{scope}"'
    return {hdrs.WWW_AUTHENTICATE: said}
