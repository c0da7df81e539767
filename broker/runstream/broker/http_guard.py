"""What every request and answer of every port has: an id, and headers that have browsers make no more of an answer."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web, web_response
from multidict import istr

from runstream.broker.logs import get_logger, logged_with

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

__all__ = ["REQUEST_ID", "guard", "request_id_of", "sign"]

log = get_logger(__name__)

SERVER: Final = "runstream"
REQUEST_ID: Final = istr("X-Request-ID")
"""An `istr`, as all names of headers here: of any other an answer has one of its own, for as long as it is open."""

GIVEN_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
"""What UUIDs, base64 and the load balancers' own are made of. It comes back in a header and stands in logs."""

HARDENED: Final = {
    # An answer is what its type says, whatever is in it.
    istr("X-Content-Type-Options"): "nosniff",
    # Opened as a page it loads and runs nothing, and stands in nobody's frame.
    istr("Content-Security-Policy"): "default-src 'none'; frame-ancestors 'none'",
}
"""On every answer that does not say otherwise itself."""

FOUND: Final = web.RequestKey("request_id", str)
BEGUN: Final = web.RequestKey("begun", web.StreamResponse)
"""The answer whose head is out, or is about to be."""

# What fails before anything of ours sees it is answered by aiohttp, which would tell its version, and Python's.
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
            answer = await handler(request)
        except ConnectionError:
            raise
        except web.HTTPException as refused:
            if BEGUN not in request:
                raise
            answer = refused
        except Exception:
            # aiohttp would answer with a page of its own.
            log.exception("request_crashed", method=request.method, path=request.path)
            answer = web.json_response({"detail": "An unknown error occurred"}, status=500)
        begun: web.StreamResponse = request.get(BEGUN, answer)
        if answer is not begun and request.transport is not None:
            # Within an answer that has begun another one is part of it, and ends it as if it were whole.
            request.transport.abort()
        return begun


async def _sign(request: web.Request, response: web.StreamResponse) -> None:
    request.setdefault(BEGUN, response)
    # Nobody has asked for the id before where an expectation is refused.
    sign(response.headers, request_id_of(request))


def sign(headers: MutableMapping[str, str], request_id: str) -> None:
    """Give an answer what every answer has."""
    headers[hdrs.SERVER] = SERVER
    headers[REQUEST_ID] = request_id
    for name, value in HARDENED.items():
        headers.setdefault(name, value)
