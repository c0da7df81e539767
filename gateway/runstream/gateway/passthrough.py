"""What runstream does not serve itself goes to the platform, and its answer comes back: streams in both directions.

Nothing is collected: what has come goes on at once, and no more is read than the other side takes. An answer that the
platform does not finish is not finished here, so that nobody takes a part of it for the whole.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urlsplit

import structlog
from aiohttp import ClientConnectionResetError, ClientError, HttpVersion11, hdrs, web
from multidict import CIMultiDict

from runstream.broker.errors import Unauthenticated
from runstream.broker.http_auth import PRINCIPAL
from runstream.broker.http_body import BodyNotFramed, raw_pieces_of
from runstream.broker.http_guard import REQUEST_ID, request_id_of
from runstream.gateway.admission import said_to_platform
from runstream.gateway.errors import (
    ApiError,
    BadRequest,
    Loop,
    Misframed,
    NotPassedOn,
    PlatformFailed,
    PlatformSilent,
    TooSlow,
    TryLater,
)
from runstream.gateway.paths import as_read, stays_below
from runstream.gateway.response import cut, reset
from runstream.gateway.seats import Places

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping

    from aiohttp import ClientResponse

    from runstream.broker.auth.admissions import Admissions
    from runstream.broker.auth.causes import Cause
    from runstream.broker.auth.principal import Principal
    from runstream.gateway.metrics import GatewayMetrics
    from runstream.gateway.settings import GatewaySettings
    from runstream.gateway.upstream import Upstream

__all__ = ["NOT_PASSED_ON", "PASSED_METHODS", "PassThrough"]

log = structlog.get_logger(__name__)

NOT_PASSED_ON: Final = (BadRequest, TooSlow, NotPassedOn, PlatformFailed, TryLater, PlatformSilent, Loop)
"""Why something is not passed on, or not answered by the platform."""

PASSED_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
"""All but `CONNECT` and `TRACE`, which are for proxies, and what nobody has heard of."""

PREFIXES: Final = ("/latest/v1/", "/latest/", "/v1/")
"""What a client's path may begin with; the platform's begins with `/v1/`."""

HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers of one connection, which mean nothing on the next one."""

NOT_ASKED: Final = HOP_BY_HOP | {
    # Of the request as it is made anew; a client that waits to be asked for its body has been asked here.
    "expect",
    "host",
    # Who asks is for RUNSTREAM_UPSTREAM_AUTH to say; `_` and `-` are the same, as they are to many platforms.
    "authorization",
    "cookie",
    "user-id",
    "x-bare-password",
    # Said anew below.
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
}
NOT_ANSWERED: Final = HOP_BY_HOP | {
    # Of the platform's own address, which clients are not at.
    "alt-svc",
    "server",
    "set-cookie",
}

ABSOLUTE: Final = re.compile(r"(https?:)?(//[^/?#\\]*)(.*)", re.IGNORECASE | re.DOTALL)
"""A URL in three parts: the scheme, which may be left to be the same, the host, and where it leads there."""

DEFAULT_PORTS: Final = {"http": 80, "https": 443}

UNSOUND: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
"""What a header's value cannot be written with: control characters, and bytes that are not UTF-8."""


class _BrokenOff(Exception):
    """The platform's answer has ended before it was whole."""


class _UntilClosed(web.StreamResponse):
    """A response that ends with its connection, as the platform's does: neither says whether that was all."""

    _length_check = False  # Private to aiohttp, as it is for web sockets: tests/unit/test_private_parts.py.


class _Upload:
    """A request's body on its way to the platform. `failure` says what was wrong with it, if something was."""

    def __init__(self, request: web.Request, settings: GatewaySettings) -> None:
        self._request = request
        self._silence_seconds = settings.upload_silence_seconds
        self._bytes_per_second = settings.upload_bytes_per_second
        self.failure: ApiError | None = None

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield what has come. Raises `ApiError` when nothing more comes, or too little, or what comes is no body.

        What counts is waiting for the client: while the platform takes what there is, nobody listens.
        """
        clock = asyncio.get_running_loop().time
        left = self._silence_seconds
        try:
            async with aclosing(raw_pieces_of(self._request)) as pieces:
                while True:
                    began = clock()
                    async with asyncio.timeout(self._silence_seconds):
                        part = await anext(pieces, None)
                    if part is None:
                        return
                    left += len(part) / self._bytes_per_second - (clock() - began)
                    if left < 0:
                        raise self._failed(
                            TooSlow(f"The request body brings less than {self._bytes_per_second} bytes a second.")
                        )
                    yield part
        except TimeoutError as error:
            raise self._failed(
                TooSlow(f"Nothing has come of the request body for {self._silence_seconds:g} s.")
            ) from error
        except BodyNotFramed as error:
            raise self._failed(Misframed()) from error

    def _failed(self, failure: ApiError) -> ApiError:
        self.failure = failure
        return failure


class PassThrough:
    """Passes requests on to the platform, as many at one time as it may, and for as long as who asks is admitted.

    `is_ours` says of a method and a path, as they are read, whether they are served here; `heard` is told of every
    answer of the platform's before its client is: who asked, method, path as it is read, status.
    """

    def __init__(
        self,
        upstream: Upstream,
        settings: GatewaySettings,
        metrics: GatewayMetrics,
        admissions: Admissions,
        *,
        is_ours: Callable[[str, str], bool],
        heard: Callable[[Principal, str, str, int], Awaitable[None]],
    ) -> None:
        self._upstream = upstream
        self._settings = settings
        self._metrics = metrics
        self._admissions = admissions
        self._is_ours = is_ours
        self._heard = heard
        self.places = Places(
            settings.max_passed_on, lambda: TryLater("This gateway passes on as many requests as it may. Try again.")
        )
        self._name = f"runstream-{secrets.token_hex(8)}"
        """This gateway's own, so that it knows what it has passed on itself."""

    async def pass_on(self, request: web.Request) -> web.StreamResponse:
        """Answer as the platform does.

        The platform knows of no tenants: who may speak to it may speak of everything, so none is narrowed. Raises
        `Forbidden`, `Unauthenticated` and `ApiError` before the headers are out; after them a failure cuts the
        response.
        """
        who = request[PRINCIPAL]
        who.check("platform")
        who.check_whole()
        path = self._path(request)
        upload = _Upload(request, self._settings)
        with self.places.take():
            outcome = "left"
            try:
                async with AsyncExitStack() as stack:
                    async with self._while_admitted(who):
                        asking = self._upstream.ask(
                            request.method,
                            path,
                            query=request.rel_url.raw_query_string,
                            headers=self._asked(request),
                            who=said_to_platform(request),
                            data=upload.parts() if request.body_exists else None,
                        )
                        answer = await stack.enter_async_context(asking)
                    if answer.status == HTTPStatus.SWITCHING_PROTOCOLS:
                        raise PlatformFailed("The platform has switched protocols unasked.", should_retry=False)
                    await self._heard(who, request.method, as_read(path), answer.status)
                    outcome, response = await self._hand_over(request, answer)
            except (ApiError, Unauthenticated) as error:
                outcome = "failed"
                raise upload.failure or error from error
            finally:
                self._metrics.passed_on(outcome)
        return response

    def _path(self, request: web.Request) -> str:
        """Return the platform's path of a request. Raises `ApiError` for what is not passed on."""
        if request.method not in PASSED_METHODS:
            raise web.HTTPMethodNotAllowed(request.method, sorted(PASSED_METHODS))
        if "websocket" in request.headers.get(hdrs.UPGRADE, "").lower():
            raise NotPassedOn("Web sockets are not passed on: connect to the platform at its own address.")
        if self._name in request.headers.get(hdrs.VIA, ""):
            raise Loop("The platform's address leads back to this gateway: an operator has to correct it.")
        path = request.rel_url.raw_path
        prefix = next((prefix for prefix in PREFIXES if path.startswith(prefix)), None)
        if prefix is None:
            raise web.HTTPNotFound  # `/v1` only when it is decoded: routes here would not know it either.
        if not stays_below(path):
            raise BadRequest("A path with an empty segment, or one of dots, is not passed on.")
        path = f"/v1/{path.removeprefix(prefix)}"
        if self._is_ours(request.method, as_read(path)):
            raise BadRequest("A path that is served here only once it is decoded is not passed on: write it plainly.")
        return path

    def _asked(self, request: web.Request) -> CIMultiDict[str]:
        """Return the headers of the request as the platform gets them, but for who asks. Raises `BadRequest`."""
        headers = _end_to_end(request.headers, NOT_ASKED)
        for name, value in headers.items():
            if UNSOUND.search(value):
                raise BadRequest(f"The header {name} has to be text in UTF-8.")
        said = request.headers
        # A proxy in front of this gateway knows better than it what the client has asked for.
        headers["X-Forwarded-For"] = _listed(said, hdrs.X_FORWARDED_FOR, request.remote or "unknown")
        headers["X-Forwarded-Host"] = said.get(hdrs.X_FORWARDED_HOST, request.host)
        headers["X-Forwarded-Proto"] = said.get(hdrs.X_FORWARDED_PROTO, request.scheme)
        headers["Via"] = _listed(said, hdrs.VIA, f"1.1 {self._name}")
        headers[REQUEST_ID] = request_id_of(request)
        return headers

    async def _hand_over(self, request: web.Request, answer: ClientResponse) -> tuple[str, web.StreamResponse]:
        """Answer what the platform answers; says how that ended."""
        response = self._response(request, answer)
        try:
            async with self._while_admitted(request[PRINCIPAL]):
                await response.prepare(request)
                async with aclosing(_parts(answer)) as parts:
                    async for part in parts:
                        async with asyncio.timeout(self._settings.write_deadline_seconds):
                            await response.write(part)
                async with asyncio.timeout(self._settings.write_deadline_seconds):
                    await response.write_eof()
            return "answered", response
        except ClientConnectionResetError:
            return "left", response
        except Unauthenticated:
            self._break_off(request, response, at_once=False)
            return "broken", response
        except _BrokenOff as error:
            log.warning("upstream_broken", method=request.method, path=request.path, error=repr(error.__cause__))
            self._break_off(request, response, at_once=False)
            return "broken", response
        except TimeoutError:
            log.warning("upstream_answer_not_taken", method=request.method, path=request.path)  # By the client.
            self._break_off(request, response, at_once=True)
            return "broken", response

    @asynccontextmanager
    async def _while_admitted(self, who: Principal) -> AsyncGenerator[None, None]:
        """Break off what goes on in the block, by `Unauthenticated`, when `who` is admitted no longer."""
        admitted = asyncio.timeout(None)
        try:
            async with admitted:
                with self._admissions.over(who, partial(admitted.reschedule, 0.0)):
                    yield
        except TimeoutError:
            if not admitted.expired():
                raise
            cause: Cause = "expired" if who.has_expired else "revoked"
            raise Unauthenticated(reason="The credential has expired, or was revoked.", cause=cause) from None

    def _response(self, request: web.Request, answer: ClientResponse) -> web.StreamResponse:
        has_end = hdrs.CONTENT_LENGTH in answer.headers or answer.headers.get(hdrs.TRANSFER_ENCODING) is not None
        kind = web.StreamResponse if has_end or _is_empty(request, answer) else _UntilClosed
        reason = answer.reason or ""
        response = kind(
            status=answer.status,
            reason=reason if reason.isascii() and reason.isprintable() else "",
            headers=self._answered(answer.headers),
        )
        if kind is _UntilClosed:
            response.force_close()
        return response

    def _answered(self, said: Mapping[str, str]) -> CIMultiDict[str]:
        """Return the headers of the platform's answer as the client gets them."""
        headers = _end_to_end(said, NOT_ANSWERED)
        for name in [*headers]:
            if name.lower().startswith("access-control-") or any(map(UNSOUND.search, headers.getall(name, ()))):
                headers.popall(name, None)
        if hdrs.LOCATION in headers:
            headers[hdrs.LOCATION] = here(headers[hdrs.LOCATION], self._upstream.root)
        return headers

    @staticmethod
    def _break_off(request: web.Request, response: web.StreamResponse, *, at_once: bool) -> None:
        """End a response visibly unfinished; `at_once` that of a client that takes nothing."""
        if request.transport is None:
            return
        is_framed = hdrs.CONTENT_LENGTH in response.headers or request.version >= HttpVersion11
        if is_framed and not isinstance(response, _UntilClosed) and not at_once:
            cut(request.transport)
        else:
            reset(request.transport)


def here(location: str, root: str) -> str:
    """Give a redirect to below the platform's root as one to the same path here; any other is left as it is.

    The client need not reach the platform. Of the two schemes either may be named: a platform that believes
    `X-Forwarded-Proto` names the client's.
    """
    found, platform = ABSOLUTE.fullmatch(location), urlsplit(root)
    try:
        if found is not None and _authority(urlsplit(f"{found[1] or 'http:'}{found[2]}")) != _authority(platform):
            return location
    except ValueError:
        return location
    path = location if found is None else found[3]
    below = path.removeprefix(platform.path)
    # With two slashes it would lead to another host.
    return below if path.startswith(f"{platform.path}/") and below[1:2] not in {"/", "\\"} else location


def _authority(url: SplitResult) -> tuple[str | None, int | None]:
    """Return host and port; one that need not be written is None. Raises ValueError for a port that is none."""
    return url.hostname, None if url.port == DEFAULT_PORTS[url.scheme] else url.port


def _end_to_end(headers: Mapping[str, str], dropped: frozenset[str]) -> CIMultiDict[str]:
    """Copy headers, repeated ones in their order, without those of a connection and those to be dropped."""
    of_connection = {
        token.strip().lower()
        for name, value in headers.items()
        if name.lower() == "connection"
        for token in value.split(",")
    }
    return CIMultiDict(
        (name, value)
        for name, value in headers.items()
        if name.lower() not in of_connection and name.lower().replace("_", "-") not in dropped
    )


def _listed(headers: Mapping[str, str], name: str, own: str) -> str:
    """Add to a header that is a list, or begin it."""
    said = [value for key, value in headers.items() if key.lower() == name.lower()]
    return ", ".join([*said, own])


def _is_empty(request: web.Request, answer: ClientResponse) -> bool:
    return request.method == hdrs.METH_HEAD or answer.status in {204, 304}


async def _parts(answer: ClientResponse) -> AsyncGenerator[bytes, None]:
    """Yield the platform's answer as it comes. Raises `_BrokenOff`."""
    try:
        async for part in answer.content.iter_any():
            yield part
    except (ClientError, OSError, TimeoutError) as error:
        raise _BrokenOff from error
