"""Sessions of the gateway's own pages: a key is exchanged for a cookie, once, and no page can read it from then on."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import msgspec

from runstream.broker.auth.sessions import SESSION_SECONDS
from runstream.broker.http_auth import PRINCIPAL
from runstream.broker.operations import Answer, Body, Header, Operation
from runstream.gateway.admission import SESSION, session_in
from runstream.gateway.errors import NotFound, TryLater, refusals
from runstream.gateway.services import SERVICES, json_response

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["operations"]

PATH = "/v1/"
"""Where the cookie is sent: to the API, and to no page."""
SET_COOKIE = Header("Set-Cookie", "The session's cookie: `HttpOnly`, `Secure`, `SameSite=Strict`.")


class Session(msgspec.Struct, kw_only=True):
    """Who asks, and whom."""

    gateway: str
    """The name of the gateway that answers."""
    version: str
    is_asked: bool
    """Whether anybody is asked who they are; if not, whoever reaches the gateway may do everything."""
    tenant: str
    scopes: list[str]
    expires_at: float | None
    """Seconds since 1970; null: it does not expire by itself."""
    has_demo_agent: bool
    """Whether messages are answered by the demo agent."""


async def read(request: web.Request) -> web.Response:
    """`GET /v1/runstream/session`: who asks, what they may do, and which gateway answers."""
    return json_response(await _session(request))


async def open_session(request: web.Request) -> web.Response:
    """`POST /v1/runstream/session`: have the gateway's own pages known by a cookie, for an hour at most."""
    services, who = request.app[SERVICES], request[PRINCIPAL]
    if not services.has_console:
        raise NotFound("This gateway has no console, and so no sessions.")
    response = json_response(await _session(request))
    if not services.admissions.asks_nobody and session_in(request) is None:
        secret = await services.sessions.open(who)
        response.set_cookie(
            SESSION, secret, path=PATH, max_age=SESSION_SECONDS, httponly=True, secure=True, samesite="Strict"
        )
    return response


async def close(request: web.Request) -> web.Response:
    """`DELETE /v1/runstream/session`: end the session that asks, and have the browser forget its cookie."""
    session = session_in(request)
    if session is not None:
        await request.app[SERVICES].sessions.close(session)
    response = json_response(None)
    response.del_cookie(SESSION, path=PATH, httponly=True, secure=True, samesite="Strict")
    return response


async def _session(request: web.Request) -> Session:
    services, who = request.app[SERVICES], request[PRINCIPAL]
    agent = await services.checkup.agent()
    return Session(
        gateway=services.hub.name,
        version=version("runstream"),
        is_asked=not services.admissions.asks_nobody,
        tenant=who.tenant,
        scopes=sorted(who.scopes),
        expires_at=who.expires_at,
        has_demo_agent=agent is not None and agent.is_demo,
    )


operations = [
    Operation(
        method="GET",
        path="/v1/runstream/session",
        handler=read,
        scope="runs:read",
        answers={200: Answer("Who asks.", [Body([Session])]), **refusals(TryLater)},
    ),
    Operation(
        method="POST",
        path="/v1/runstream/session",
        handler=open_session,
        scope="runs:read",
        answers={200: Answer("Who asks.", [Body([Session])], [SET_COOKIE]), **refusals(NotFound, TryLater)},
    ),
    Operation(
        method="DELETE",
        path="/v1/runstream/session",
        handler=close,
        scope="runs:read",
        answers={200: Answer("It is over.", [Body([type(None)])], [SET_COOKIE]), **refusals(TryLater)},
    ),
]
