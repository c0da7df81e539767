"""Who is let in: every operation asks for its scope before it looks at anything, and says whom it serves.

What a client is admitted by is this gateway's own affair, and goes no further: the platform is told of it neither by
what is passed on nor by a run (docs/adr/0015-what-admits-goes-no-further.md).
"""

from __future__ import annotations

import time
from functools import partial, wraps
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web
from multidict import CIMultiDict

from runstream.broker.auth.principal import ANYBODY
from runstream.broker.errors import BrokerError, Unauthenticated
from runstream.broker.http_auth import PRINCIPAL, admit, trying
from runstream.broker.operations import OPEN
from runstream.gateway.errors import ApiError, Busy, Gone, NoActiveRun, NotFound, translated
from runstream.gateway.services import SERVICES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from runstream.broker.auth.principal import Principal, Scope
    from runstream.broker.operations import Operation

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

__all__ = ["COOKIE", "SESSION", "admitted", "guarded", "keep_from_caches", "said_to_platform", "session_in"]

COOKIE: Final = "runstream_token"
"""A cookie that an EventSource may send in place of a header. Who sets it keeps pages from reading it: `HttpOnly`."""
SESSION: Final = "runstream_session"
"""The cookie of a session. It is heard from the gateway's own pages only: see `session_in`."""
SHOWN: Final = web.RequestKey("session_shown", bool)
COOKIE_SECONDS: Final = 3600.0
"""How much longer than now what is in it may stand: a browser sends it to everybody who asks in the right way."""


async def admitted(request: web.Request, scope: Scope | None = None) -> Principal:
    """Find out who asks, for what no operation takes.

    Raises `Unauthenticated`, `Forbidden`, `Unavailable`, `LimitReached`.
    """
    services = request.app[SERVICES]
    return await admit(request, services.admissions, services.limits, scope)


def guarded(operation: Operation) -> Handler:
    """Make what serves an operation: to those who may, unless it is open to everybody."""
    scope = operation.scope
    if scope == OPEN:
        return operation.handler

    @wraps(operation.handler)
    async def handler(request: web.Request) -> web.StreamResponse:
        try:
            await _let_in(request, operation, scope)
            answer: web.StreamResponse = await operation.handler(request)
        except (ApiError, BrokerError) as error:
            if _is_for_good(error) and not (isinstance(error, BrokerError) and error.is_sure):
                await request.app[SERVICES].leaders.confirm()
            raise
        return answer

    return handler


async def _let_in(request: web.Request, operation: Operation, scope: Scope) -> None:
    """Find out who asks for an operation. Raises as `admitted`."""
    session = session_in(request)
    if session is not None:
        request[SHOWN] = True
        await _session_admitted(request, session, scope)
    elif operation.is_for_browsers and hdrs.AUTHORIZATION not in request.headers:
        await _browser_admitted(request, scope)
    else:
        await admitted(request, scope)


def _is_for_good(error: ApiError | BrokerError) -> bool:
    """Tell whether a client that is told this gives up what it asked for, because of what is not stored."""
    if isinstance(error, Unauthenticated):
        return error.cause in {"ticket", "session"}
    refusal = translated(error) if isinstance(error, BrokerError) else error
    return isinstance(refusal, NotFound | NoActiveRun | Gone | Busy)


def session_in(request: web.Request) -> str | None:
    """Return the session that a page of the gateway's own shows; None for none, and for one that is not heard.

    A browser says of each request who has it made, and no page can say otherwise. So no page of another origin does
    anything with a person's session, be it of the same site or one that `RUNSTREAM_CORS_ORIGINS` lists.
    """
    services = request.app[SERVICES]
    if not services.has_console or services.admissions.asks_nobody or hdrs.AUTHORIZATION in request.headers:
        return None
    is_own = request.headers.get("Sec-Fetch-Site") == "same-origin" and "ticket" not in request.query
    return request.cookies.get(SESSION) if is_own else None


async def keep_from_caches(request: web.Request, response: web.StreamResponse) -> None:
    """Have no cache keep what a session is answered: `Authorization` sees to that by itself, a cookie does not.

    To be called before an answer goes out.
    """
    if SHOWN in request:
        response.headers.setdefault(hdrs.CACHE_CONTROL, "no-store")


async def _session_admitted(request: web.Request, session: str, scope: Scope) -> None:
    """Find out whose session it is. Raises as `admitted`."""
    services = request.app[SERVICES]
    with trying(request, services.limits):
        who = await services.leaders.sure(partial(services.sessions.principal, session), Unauthenticated)
        await services.admissions.check(who)
    who.check(scope)
    request[PRINCIPAL] = who


async def _browser_admitted(request: web.Request, scope: Scope) -> None:
    """Find out who asks that can send no header: by a ticket in the query, or a token in a cookie."""
    services = request.app[SERVICES]
    ticket, cookie = request.query.get("ticket"), _cookie_in(request)
    if services.admissions.asks_nobody or (ticket is None and cookie is None):
        await admitted(request, scope)
        return
    with trying(request, services.limits):
        if ticket is not None:
            who = await _admitted_by(ticket, request, scope)
        else:
            who = await services.admissions.principal(cookie)
            if who.expires_at is None or _remaining(who) > COOKIE_SECONDS:
                raise Unauthenticated(reason="What is in a cookie has to expire within an hour.", cause="cookie")
    who.check(scope)
    request[PRINCIPAL] = who


def _cookie_in(request: web.Request) -> str | None:
    """Return the token in a cookie. Of several the first: a browser begins with those for the narrowest path."""
    for header in request.headers.getall(hdrs.COOKIE, ()):
        for each in header.split(";"):
            name, _, value = each.strip().partition("=")
            if name == COOKIE:
                return value
    return None


async def _admitted_by(ticket: str, request: web.Request, scope: Scope) -> Principal:
    """Spend a ticket, if it can be used now: a browser that is told to come back has to be able to."""
    services = request.app[SERVICES]
    finding = partial(services.tickets.find, ticket, request.match_info["run_id"])
    found = await services.leaders.sure(finding, Unauthenticated)
    await services.admissions.check(found.principal)
    found.principal.check(scope)
    # Its seat is held meanwhile, and taken anew before anything else is waited for: nobody can have it in between.
    with services.seat(found.principal):
        await services.tickets.spend(found)
    return found.principal


def _remaining(who: Principal) -> float:
    """Return for how many seconds a credential still stands, by a clock that may be ahead as well as behind."""
    return (who.expires_at or 0.0) - time.time() - 2 * who.leeway_seconds


def said_to_platform(request: web.Request) -> Mapping[str, str]:
    """Return a request's headers as what the platform is told may be made of them: without what admitted it here."""
    if request[PRINCIPAL] is ANYBODY:
        return request.headers
    headers = CIMultiDict(request.headers)
    headers.popall(hdrs.AUTHORIZATION, None)
    return headers
