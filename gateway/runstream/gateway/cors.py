"""Which web pages may use the API: Cross-Origin Resource Sharing, for the origins that are listed and no others.

A browser asks before it lets a page of another origin read an answer. Nothing here keeps a request from being served:
who may ask for what is the credential's to say.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web

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

REQUEST_HEADERS = "Authorization, Content-Type, Last-Event-ID, *"
"""What a page may send. The star is for what client libraries add of their own, and does not cover `Authorization`."""

READABLE_HEADERS = f"{DEPRECATION}, Retry-After, {hdrs.WWW_AUTHENTICATE}, x-should-retry"
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

    async def _preflight_answer(self, request: web.Request) -> web.Response | None:
        """Tell a browser what a page may send to a path that there is; None if that is not what was asked."""
        is_preflight = request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        if not is_preflight or not is_api(request) or self._granted(request) is None:
            return None
        methods = await allowed_methods(request)
        if request.app[SERVICES].passthrough is not None:
            methods |= PASSED_METHODS
        if not methods:
            return None
        headers = {
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: ", ".join(sorted(methods)),
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: REQUEST_HEADERS,
            hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_SECONDS),
        }
        return web.Response(status=HTTPStatus.NO_CONTENT, headers=headers)


def _with_origin(vary: list[str]) -> str:
    """Add the origin to what an answer of the platform's varies with anyway."""
    said = [name.strip() for value in vary for name in value.split(",")]
    return ", ".join(said if hdrs.ORIGIN.lower() in map(str.lower, said) else [*said, hdrs.ORIGIN])
