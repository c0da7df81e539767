"""HTTP as the commands speak it: one session, errors that are exit codes, and one line for each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import ssl
import time
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias
from urllib.parse import urlsplit

import aiohttp
from aiohttp import hdrs

from runstream.gateway.commands.exits import Failed, Missing, Refused, Unreachable, Usage
from runstream.gateway.commands.settings import key_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from runstream.gateway.commands.exits import CommandError

    Query: TypeAlias = Mapping[str, str] | Sequence[tuple[str, str]] | None

__all__ = ["AWAY", "PASSING", "Client", "NotAGateway", "reason_of", "refusal"]

CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 30.0
RETRY_SECONDS: Final = 0.5
SILENCE_SECONDS: Final = 120.0
"""How long a stream may be silent: six of the keep-alive pings that a gateway sends. Beyond, its other end is gone."""
SHOWN_CHARACTERS: Final = 300
TRY_AGAIN: Final = "Try again."
EXPIRED: Final = "EXPIRED: "
"""How an answer to programs begins, also of what has not been yet."""

AWAY: Final = (aiohttp.ClientError, TimeoutError, OSError)
"""What it raises when nobody is there, or nobody any more."""
NO_HEADERS: Final[Mapping[str, str]] = {}
DESCRIPTION: Final = re.compile(r'error_description="([^"]+)"')
"""Why a key was refused, as RFC 6750 has it; the answer itself says that it was."""
PASSING: Final = frozenset({408, 429, 502, 503, 504})
"""What a server, or one in front of it, answers when it would be another matter a moment later."""


class Client:
    """Asks one server, whose URL is in `option`. Use as an async context manager.

    Raises `Usage` on entry for what is no URL, or no key.
    """

    def __init__(self, url: str, key_file: Path | None = None, *, option: str = "--url") -> None:
        self.url = url
        self.option = option
        self._key_file = key_file
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self.url = _base(self.url)
        key = key_for(self._key_file)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=ANSWER_SECONDS)
        # aiohttp would keep the 101st stream waiting for the end of another, for ever.
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    @contextlib.asynccontextmanager
    async def answer(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        query: Query = None,
        headers: Mapping[str, str] | None = None,
        silence: float = ANSWER_SECONDS,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request; gives its answer, whatever it is. Raises what is in `AWAY`."""
        data = None if body is None else _encoded(body)
        given = {**(headers or {}), **({} if body is None else {"Content-Type": "application/json"})}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=silence)
        # A redirect would lead the key to wherever it says.
        async with self._session.request(
            method,
            self.url + path,
            params=query,
            data=data,
            headers=given,
            timeout=timeout,
            allow_redirects=False,
        ) as answer:
            yield answer

    async def ask(
        self, method: str, path: str, *, body: object = None, query: Query = None, patience_seconds: float = 0
    ) -> Any:
        """Send one request, and again while nobody answers; returns what its answer's JSON says.

        `patience_seconds` is for what may be sent again. Raises `CommandError` for anything but a success.
        """
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                return await self._ask(method, path, body, query)
            except Unreachable:
                if time.monotonic() + RETRY_SECONDS > deadline:
                    raise
            await asyncio.sleep(RETRY_SECONDS)

    async def _ask(self, method: str, path: str, body: object, query: Query) -> Any:
        try:
            async with self.answer(method, path, body=body, query=query) as answer:
                text = await answer.text(errors="replace")
        except AWAY as error:
            raise self.away(error) from error
        if answer.status >= 300:  # noqa: PLR2004  # redirects are none here
            raise refusal(answer.status, text, self.url, answer.headers)
        try:
            return json.loads(text)
        except ValueError as error:
            raise Failed(f"{self.url} answers with what is no JSON: is it a runstream gateway?") from error

    def away(self, error: BaseException) -> Unreachable:
        """Say that nobody answers."""
        return Unreachable(f"{self.url} cannot be reached: {reason_of(error)}. Is it up, and is {self.option} right?")


class NotAGateway(Usage):
    """Whoever answers is a broker."""


def reason_of(error: BaseException) -> str:
    """Say in plain words why there was no answer, of what is in `AWAY`."""
    match error:
        case TimeoutError():
            return "it did not answer in time"
        case aiohttp.ClientConnectorDNSError():
            return "its name cannot be resolved"
        case aiohttp.ClientSSLError():
            return f"TLS failed, {_tls(error)}"
        case aiohttp.ClientResponseError():
            return "what answers there speaks no HTTP"
        case OSError(errno=int(number)):
            return os.strerror(number).lower()
    return (str(error) or type(error).__name__).rstrip(".")


def _tls(error: aiohttp.ClientSSLError) -> str:
    cause = error.certificate_error if isinstance(error, aiohttp.ClientConnectorCertificateError) else error.os_error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate cannot be trusted: {cause.verify_message}"
    reason = cause.reason if isinstance(cause, ssl.SSLError) else None
    return (reason or str(cause)).replace("_", " ").lower()


def refusal(  # noqa: PLR0911  # a table
    status: int, text: str, url: str, headers: Mapping[str, str] = NO_HEADERS
) -> CommandError:
    """Make the error that an answer's status stands for, with the answer's own words."""
    said = _detail(text)
    match status:
        case 401:
            described = DESCRIPTION.search(headers.get(hdrs.WWW_AUTHENTICATE, ""))
            why = said if described is None else described[1]
            return Refused(f"{why} (401) Set RUNSTREAM_KEY, or --key-file, to a key that is good at {url}.")
        case 403:
            return Refused(f"{said} (403)")
        case 404 if _is_of_a_broker(text):
            return NotAGateway(f"{url} is a broker, and the gateway's URL is wanted: --url, or RUNSTREAM_URL.")
        case 404 | 410:
            return Missing(f"{said.removeprefix(EXPIRED)} ({status})")
        case 400 | 422:
            return Usage(f"{said} ({status})")
        case _ if status in PASSING:
            again = "" if said.endswith(TRY_AGAIN) else f" {TRY_AGAIN}"
            return Unreachable(f"{url} does not serve now: {said} ({status}){again}")
    return Failed(f"{url} answered {status}: {said}")


def _is_of_a_broker(text: str) -> bool:
    """Whether this is how a broker answers for what is not below `/ingest/v1`."""
    try:
        said = json.loads(text)
    except ValueError:
        return False
    return isinstance(said, dict) and said.get("error_type") == "not_found" and "PROTOCOL.md" in str(said.get("detail"))


def _detail(text: str) -> str:
    try:
        detail = json.loads(text)["detail"]
    except (ValueError, KeyError, TypeError):
        detail = " ".join(text.split()) or "nothing was said."
    said = detail if isinstance(detail, str) else json.dumps(detail)
    return said if len(said) <= SHOWN_CHARACTERS else f"{said[:SHOWN_CHARACTERS]}…"


def _base(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one or "@" in parts.netloc or parts.query or parts.fragment:
        raise Usage(f"Write the server's URL as http://host:8283, without a password: {url!r} is none.")
    return url.rstrip("/")


def _encoded(body: object) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
