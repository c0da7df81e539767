"""What every request and answer of every port has: an id, and headers that have browsers make no more of an answer."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web, web_response

from runstream.broker.logs import get_logger, logged_with

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

__all__ = ["REQUEST_ID", "guard", "request_id_of"]

log = get_logger(__name__)

SERVER: Final = "runstream"
REQUEST_ID: Final = "X-Request-ID"

GIVEN_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
"""What UUIDs, base64 and the load balancers' own are made of. It comes back in a header and stands in logs."""

HARDENED: Final = {
    # An answer is what its type says, whatever is in it.
    "X-Content-Type-Options": "nosniff",
    # Opened as a page it loads and runs nothing, and stands in nobody's frame.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
"""On every answer that does not say otherwise itself."""

FOUND: Final = web.RequestKey("request_id", str)

# What is no HTTP is answered before anything of ours sees it, and aiohttp would tell its version, and Python's.
web_response.SERVER_SOFTWARE = SERVER  # type: ignore[attr-defined]


def guard(app: web.Application) -> None:
    """Give every request an id, also in the log, and sign every answer. To be called last: nothing may come before."""
    app.middlewares.insert(0, _identify)
    app.on_response_prepare.append(_sign)


def request_id_of(request: web.Request) -> str:
    """Return the id of a request: the client's, if it gave one that can be taken, or the one made for it."""
    found = request.get(FOUND)
    if found is None:
        given = request.headers.get(REQUEST_ID, "")
        request[FOUND] = found = given if GIVEN_ID.fullmatch(given) else uuid.uuid4().hex
    return found


@web.middleware
async def _identify(request: web.Request, handler: Handler) -> web.StreamResponse:
    with logged_with(request_id=request_id_of(request)):
        try:
            return await handler(request)
        except (web.HTTPException, ConnectionError):
            raise
        except Exception:
            # aiohttp would answer with a page of its own.
            log.exception("request_crashed", method=request.method, path=request.path)
            return web.json_response({"detail": "An unknown error occurred"}, status=500)


async def _sign(request: web.Request, response: web.StreamResponse) -> None:
    headers = response.headers
    headers[hdrs.SERVER] = SERVER
    headers[REQUEST_ID] = request_id_of(request)  # Nobody has asked for it before where an expectation is refused.
    for name, value in HARDENED.items():
        headers.setdefault(name, value)
