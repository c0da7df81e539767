"""Who is let in: every operation asks for its scope before it looks at anything, and says whom it serves.

What a client is admitted by is this gateway's own affair, and goes no further: the platform is told of it neither by
what is passed on nor by a run (docs/adr/0015-what-admits-goes-no-further.md).
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING

from aiohttp import hdrs
from multidict import CIMultiDict

from runstream.broker.auth.principal import ANYBODY
from runstream.broker.http_auth import PRINCIPAL, admit
from runstream.broker.operations import OPEN
from runstream.gateway.services import SERVICES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from aiohttp import web

    from runstream.broker.auth.principal import Principal, Scope
    from runstream.broker.operations import Operation

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

__all__ = ["admitted", "guarded", "said_to_platform"]


async def admitted(request: web.Request, scope: Scope | None = None) -> Principal:
    """Find out who asks, for what no operation takes. Raises `Unauthenticated`, `Forbidden`, `Unavailable`."""
    return await admit(request, request.app[SERVICES].admissions, scope)


def guarded(operation: Operation) -> Handler:
    """Make what serves an operation: to those who may, unless it is open to everybody."""
    scope = operation.scope
    if scope == OPEN:
        return operation.handler

    @wraps(operation.handler)
    async def handler(request: web.Request) -> web.StreamResponse:
        await admitted(request, scope)
        answer: web.StreamResponse = await operation.handler(request)
        return answer

    return handler


def said_to_platform(request: web.Request) -> Mapping[str, str]:
    """Return a request's headers as what the platform is told may be made of them: without what admitted it here."""
    if request[PRINCIPAL] is ANYBODY:
        return request.headers
    headers = CIMultiDict(request.headers)
    headers.popall(hdrs.AUTHORIZATION, None)
    return headers
