"""Which web pages may use the API: Cross-Origin Resource Sharing, for the origins that are listed and no others.

A browser asks before it lets a page of another origin read an answer. Nothing here keeps a request from being served:
who may ask for what is the credential's to say. A page of a listed origin may send the cookies that it has here; where
all origins are listed, none may.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web

from runstream.broker.http_guard import REQUEST_ID
from runstream.gateway.deprecation import DEPRECATION
from runstream.gateway.middleware import allowed_methods, is_api
from runstream.gateway.passthrough import PASSED_METHODS
from runstream.gateway.services import SERVICES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

__all__ = ["Cors"]

ANY: Final = "*"

PREFLIGHT_SECONDS = 600
"""How long a browser need not ask again; as long as a change of the list may take to reach everybody."""

REQUEST_HEADERS = "Authorization, Content-Type, Last-Event-ID, traceparent, tracestate, X-Request-ID"
"""What a page may send; and also what client libraries add of their own, whatever that is called. For that a star would
do, but that it means nothing where cookies may be sent: pages of listed origins are told what they have asked for."""
HEADER_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
MOST_HEADERS = 64

READABLE_HEADERS = f"{DEPRECATION}, Retry-After, {hdrs.WWW_AUTHENTICATE}, {REQUEST_ID}, x-should-retry"
"""What a page may read beside the headers that it may read anyway."""


class Cors:
    """Answers browsers that ask for pages of these `origins`; `*` among them stands for all."""

    def __init__(self, origins: frozenset[str]) -> None:
        self._origins = origins

    def add_to(self, app: web.Application) -> None:
        """Sign every answer, streams and refusals included, and answer preflights before anything else is asked."""

        @web.middleware
        async def preflights(request: web.Request, handler: Handler) -> web.StreamResponse:
            answer = await self._preflight_answer(request)
            return await handler(request) if answer is None else answer

        app.middlewares.insert(0, preflights)
        app.on_response_prepare.append(self._sign)

    def _granted(self, request: web.Request) -> str | None:
        """Return the value that grants the request's origin access, None if it has none."""
        if ANY in self._origins:
            return ANY
        origin = request.headers.get(hdrs.ORIGIN)
        return origin if origin in self._origins else None

    async def _sign(self, request: web.Request, response: web.StreamResponse) -> None:
        if not is_api(request):
            return
        granted = self._granted(request)
        if granted != ANY:
            # Said to everybody: a cache must not give one origin's answer to another, nor the answer to none.
            response.headers[hdrs.VARY] = _with_origin(response.headers.getall(hdrs.VARY, []))
        if granted is not None:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = granted
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = READABLE_HEADERS
            if granted != ANY:
                response.headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"

    async def _preflight_answer(self, request: web.Request) -> web.Response | None:
        """Tell a browser what a page may send to a path that there is; None if that is not what was asked."""
        is_preflight = request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        granted = self._granted(request)
        if not is_preflight or not is_api(request) or granted is None:
            return None
        methods = await allowed_methods(request)
        if request.app[SERVICES].passthrough is not None:
            methods |= PASSED_METHODS
        if not methods:
            return None
        headers = {
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: ", ".join(sorted(methods)),
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: ", ".join([REQUEST_HEADERS, *_further(request, granted)]),
            hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_SECONDS),
        }
        return web.Response(status=HTTPStatus.NO_CONTENT, headers=headers)


def _further(request: web.Request, granted: str) -> list[str]:
    """Name what a page may send beside what every page may."""
    if granted == ANY:
        return [ANY]
    asked = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "").split(",")
    known = {name.lower() for name in REQUEST_HEADERS.split(", ")}
    names = [name for each in asked[:MOST_HEADERS] if HEADER_NAME.fullmatch(name := each.strip())]
    return [name for name in names if name.lower() not in known]


def _with_origin(vary: list[str]) -> str:
    """Add the origin to what an answer of the platform's varies with anyway."""
    said = [name.strip() for value in vary for name in value.split(",")]
    return ", ".join(said if hdrs.ORIGIN.lower() in map(str.lower, said) else [*said, hdrs.ORIGIN])
