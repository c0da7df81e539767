"""What happens to every request: checks before, and an answer in JSON whatever goes wrong."""

from __future__ import annotations

import uuid
from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog
from aiohttp import hdrs, web

from runstream.broker.errors import Broken, BrokerError, Forbidden, Unauthenticated
from runstream.broker.http_auth import cause_of
from runstream.gateway.admission import admitted
from runstream.gateway.console import no_such_page
from runstream.gateway.errors import ApiError, Defect, Misframed, TooMany, Unauthorized, translated
from runstream.gateway.services import SERVICES, json_response
from runstream.gateway.validation import check_user

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

__all__ = ["allowed_methods", "answer_errors", "fallback", "is_api"]

log = structlog.get_logger(__name__)


def is_api(request: web.Request) -> bool:
    """Tell whether the request is a client's, and no probe's."""
    return request.path.startswith(("/v1/", "/latest/"))


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn errors into the JSON that clients know. A disconnect is none: it cancels the handler."""
    try:
        if is_api(request):
            check_user(request)
        return await handler(request)
    except ApiError as error:
        return _answer(error)
    except BrokerError as error:
        if isinstance(error, Unauthenticated | Forbidden):
            request.app[SERVICES].hub.metrics.credential_refused(cause_of(error))
        answer = translated(error)
        # What is stored and cannot be read was logged where it was found, once and not for every request.
        if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(error, Broken):
            log.warning("request_failed", method=request.method, path=request.path, error=str(error))
        return _answer(answer)
    except web.HTTPException as refused:
        return _http_answer(refused)
    except Exception:
        reference = uuid.uuid4().hex
        log.exception("request_crashed", method=request.method, path=request.path, reference=reference)
        return _answer(Defect(reference))


def _answer(error: ApiError) -> web.Response:
    response = json_response(error.body, status=error.status)
    response.headers.update(error.headers)
    closes = {HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_TIMEOUT}
    if error.status in closes or isinstance(error, Misframed | TooMany | Unauthorized):
        # Nobody wants to read the rest of it, and the next request comes after it.
        response.force_close()
    return response


def _http_answer(refused: web.HTTPException) -> web.Response:
    response = json_response({"detail": refused.reason}, status=refused.status)
    if "Allow" in refused.headers:
        response.headers["Allow"] = refused.headers["Allow"]
    return response


async def fallback(request: web.Request) -> web.StreamResponse:
    """Answer what no route took: 405 for a method it does not know, 307 to the path with or without a last slash.

    What is a platform's, if there is one, is answered by it: whatever no route takes with this method. Strangers are
    not told what there is.
    """
    passthrough = None
    if is_api(request):
        await admitted(request)
        passthrough = request.app[SERVICES].passthrough
    allowed = await allowed_methods(request)
    # A run that is served here is not the platform's, whether its content is asked for or not.
    method = hdrs.METH_GET if request.method == hdrs.METH_HEAD else request.method
    if allowed and (passthrough is None or method in allowed):
        raise web.HTTPMethodNotAllowed(request.method, sorted(allowed))
    path = request.rel_url.raw_path
    other = path[:-1] if path.endswith("/") else path + "/"
    elsewhere = request.clone(rel_url=request.rel_url.with_path(other, encoded=True)) if other else None
    there = set() if elsewhere is None else await allowed_methods(elsewhere)
    if method in there or (there and passthrough is None):
        query = f"?{request.rel_url.raw_query_string}" if request.rel_url.raw_query_string else ""
        return web.Response(status=307, headers={"Location": other + query})
    if passthrough is None:
        page = no_such_page(request) if request.app[SERVICES].has_console else None
        if page is None:
            raise web.HTTPNotFound
        return page
    return await passthrough.pass_on(request)


async def allowed_methods(request: web.Request) -> set[str]:
    """Return the methods that the routes, this fallback aside, know for the request's path."""
    allowed: set[str] = set()
    for resource in request.app.router.resources():
        if resource is not request.match_info.route.resource:
            allowed |= (await resource.resolve(request))[1]
    return allowed
