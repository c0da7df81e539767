"""The Letta platform behind this gateway: asked once for each request, on a connection of its own.

Nothing that may have been sent is ever sent again, whatever its method: aiohttp would repeat an idempotent request on a
connection that broke. Nobody's request meets a connection that the platform was about to close, as none is kept.
"""

from __future__ import annotations

import ssl
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import structlog
from aiohttp import (
    ClientConnectorError,
    ClientError,
    ClientOSError,
    ClientResponseError,
    ClientSession,
    ClientTimeout,
    ConnectionTimeoutError,
    DummyCookieJar,
    ServerDisconnectedError,
    TCPConnector,
)
from multidict import CIMultiDict
from yarl import URL

from runstream.broker.agents.http_platform import Platform
from runstream.broker.credentials import bearer_in
from runstream.broker.errors import InvalidAgent, InvalidSettings
from runstream.gateway.credentials import credentials_in
from runstream.gateway.errors import PlatformFailed, PlatformSilent

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Mapping

    from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

    from runstream.broker.agents.settings import UpstreamSettings

__all__ = ["NOBODY", "Upstream", "platform_at", "whole"]

log = structlog.get_logger(__name__)

NOBODY: Final = "none"
"""In place of an upstream's URL: there is to be none."""

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing: whoever got no answer may ask again."""

MAX_HEADER_BYTES: Final = 64 * 2**10
"""One header of the platform's: eight times what aiohttp takes, as long as what browsers do."""

# What aiohttp would say of itself, where a client has said nothing.
NOT_ADDED: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


class _Lost(Exception):
    """The connection to the platform broke before there was an answer."""


async def _once(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    """Hide from aiohttp that a connection broke: it would send the request again."""
    try:
        return await handler(request)
    except (ClientConnectorError, ConnectionTimeoutError):
        raise
    except (ClientOSError, ServerDisconnectedError) as error:
        raise _Lost from error


def platform_at(url: str | None, default: Platform | None = None) -> Platform | None:
    """Return the platform that an upstream's URL names; the default if there is no URL. Raises `InvalidSettings`."""
    if url is None:
        return default
    if url == NOBODY:
        return None
    try:
        return Platform(url)
    except InvalidAgent as error:
        raise InvalidSettings(f"upstream: {error.detail}") from None


class Upstream:
    """Asks the platform. Use as an async context manager: leaving it closes what is open.

    Raises `InvalidSettings` when it is made with a credential that cannot be read, or with a query: platforms repeat it
    in redirects, links and bodies, which clients get, and it may be secret.
    """

    def __init__(self, platform: Platform, settings: UpstreamSettings) -> None:
        if platform.query:
            raise InvalidSettings(
                "upstream: Its URL has a query, which clients would get to see: put a key into"
                " RUNSTREAM_UPSTREAM_HEADERS, or into a file that RUNSTREAM_UPSTREAM_AUTH names; or pass nothing on,"
                " with --upstream none."
            )
        self.root: Final = platform.root
        self._settings = settings
        self._secret = None if settings.auth in {None, "forward"} else Path(str(settings.auth))
        if self._secret is not None:
            bearer_in(self._secret)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._session = await self._stack.enter_async_context(
            ClientSession(
                connector=TCPConnector(
                    limit=0,  # Who asks counts: here a request would wait in a queue that nobody sees.
                    force_close=True,
                    ssl=ssl.create_default_context(),
                ),
                timeout=ClientTimeout(
                    total=None, connect=self._settings.connect_seconds, sock_read=self._settings.silence_seconds
                ),
                cookie_jar=DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=NOT_ADDED,
                max_line_size=MAX_HEADER_BYTES,
                max_field_size=MAX_HEADER_BYTES,
                middlewares=(_once,),
            )
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @asynccontextmanager
    async def ask(
        self,
        method: str,
        path: str,
        *,
        query: str = "",
        headers: Mapping[str, str],
        who: Mapping[str, str],
        data: AsyncIterable[bytes] | bytes | None = None,
    ) -> AsyncIterator[ClientResponse]:
        """Ask once; gives the answer when its headers have come. Leaving the block closes the connection.

        `path`, from `/v1` on, and `query` go as they are; of `who`, a client's headers, what this platform is told of
        who asks. Raises `PlatformFailed`, `PlatformSilent`, `BadRequest`.
        """
        url = URL(f"{self.root}{path}{f'?{query}' if query else ''}", encoded=True)
        sent: CIMultiDict[str] = CIMultiDict(headers)
        sent.update(self._settings.headers)
        sent.update(self._identity(who))
        sent["Connection"] = "close"
        answer = await self._answer(method, url, sent, data)
        try:
            yield answer
        finally:
            answer.close()

    async def _answer(self, method: str, url: URL, headers: Mapping[str, str], data: Any) -> ClientResponse:
        harmless = method in SAFE
        try:
            return await self._session.request(method, url, headers=headers, data=data, allow_redirects=False)
        except (ClientConnectorError, ConnectionTimeoutError) as error:
            log.warning("upstream_unreachable", error=str(error) or type(error).__name__)
            raise PlatformFailed("The platform cannot be reached. Try again.", should_retry=True) from error
        except TimeoutError as error:
            seconds = self._settings.silence_seconds
            raise PlatformSilent(
                f"The platform has not answered within {seconds:g} s.", should_retry=harmless
            ) from error
        except ClientResponseError as error:
            log.warning("upstream_invalid", error=error.message)
            raise PlatformFailed("The platform's answer is no HTTP.", should_retry=harmless) from error
        except (_Lost, ClientError, OSError) as error:
            detail = "The platform has ended the connection without an answer."
            raise PlatformFailed(detail, should_retry=harmless) from error

    def _identity(self, who: Mapping[str, str]) -> Mapping[str, str]:
        """Return the headers that tell the platform who asks."""
        if self._settings.auth is None:
            return {}
        if self._secret is None:
            return credentials_in(who)
        try:
            return bearer_in(self._secret)  # Read anew for each request: secrets are rotated.
        except InvalidSettings as error:
            log.error("upstream_auth_unreadable", error=str(error))  # noqa: TRY400  # No defect: no traceback.
            raise PlatformFailed("The platform's credential cannot be read.", should_retry=False) from error


async def whole(answer: ClientResponse, limit: int) -> bytes:
    """Read all of an answer that is to be short. Raises `PlatformFailed` if it is not, or breaks off."""
    body = b""
    try:
        async for part in answer.content.iter_any():
            body += part
            if len(body) > limit:
                raise PlatformFailed("The platform's answer is too long.", should_retry=False)
    except (ClientError, OSError) as error:
        raise PlatformFailed("The platform's answer has broken off.", should_retry=True) from error
    return body
