"""The HTTP agent: asks a platform's own endpoint to answer a run, and records the events that it streams.

A URL without a path, or one that ends in `/v1`, is a Letta-compatible platform: it is asked on Letta's paths, and a
stream of its that ends without a stop reason has failed. Any other URL is asked as it is, and what it streams may
be any JSON objects: its end is a good one if the response ended in good order.

A request that may have been sent is never sent again: the platform may have begun to act on it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Final, TypeAlias

import httpx

from runstream.broker.agents.http_answer import broken, check, chunks_of, keep_location, silent
from runstream.broker.agents.http_events import run_in
from runstream.broker.errors import AgentFailed
from runstream.broker.hops import VIA, via
from runstream.broker.logs import get_logger
from runstream.schemas import RunRequest, StopReason

if TYPE_CHECKING:
    from runstream.broker.agents import Agent
    from runstream.broker.agents.http_platform import Platform
    from runstream.broker.agents.settings import UpstreamSettings
    from runstream.schemas import Chunk

__all__ = ["HeadersFor", "http_agent"]

log = get_logger(__name__)

HeadersFor: TypeAlias = Callable[[RunRequest], Awaitable[Mapping[str, str]]]
"""Gives the headers that tell the platform who asks. May raise `AgentFailed`."""

FIRST_DELAY_SECONDS: Final = 0.1
LONGEST_DELAY_SECONDS: Final = 1.0
CANCEL_SECONDS: Final = 3.0
"""How long a platform may take to answer a cancel: the run here has ended by then."""
CONNECTED: Final = "http11.send_request_headers.started"
"""What httpx calls the step after connecting, its name lookup and TLS included."""
ENDINGS: Final = ("stop_reason", "error_message")
BREAKS: Final = frozenset({"stream_incomplete", "upstream_timeout"})
"""Errors that leave what was said before them as it is: a run that had its ending has ended."""
RUN_ID: Final = "X-Runstream-Run-Id"
AGENT_ID: Final = "X-Runstream-Agent-Id"
CONVERSATION_ID: Final = "X-Runstream-Conversation-Id"
HEADERS: Final = {
    "Accept": "text/event-stream",
    "Accept-Encoding": "identity",  # A compressor holds events back to make more of them.
    "Content-Type": "application/json",
}


@asynccontextmanager
async def http_agent(
    platform: Platform, settings: UpstreamSettings, headers_for: HeadersFor | None = None
) -> AsyncIterator[Agent]:
    """Give an agent that asks `platform`, with what `headers_for` says of who asks.

    Leaving the block closes its connections.
    """
    headers = httpx.Headers({"User-Agent": "runstream"})
    headers.update(settings.headers)
    headers.update(HEADERS)
    async with httpx.AsyncClient(
        headers=headers,
        # A proxy that the environment names is for the outside; a certificate that it names (SSL_CERT_FILE) is heeded.
        trust_env=False,
        verify=ssl.create_default_context(),
        timeout=httpx.Timeout(None, connect=settings.connect_seconds),
        event_hooks={"response": [keep_location]},
        # A connection for each run. A platform may close an idle one in the moment in which it is used again, and
        # the run would be lost, as its request may have been read: too much for a millisecond saved in minutes.
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        # No run is told what the platform told another.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
    ) as client:
        yield _HttpAgent(client, platform, settings, headers_for or _nobody)


class _HttpAgent:
    """The agent: called with a run, it asks the platform and yields what that streams."""

    def __init__(
        self, client: httpx.AsyncClient, platform: Platform, settings: UpstreamSettings, headers_for: HeadersFor
    ) -> None:
        self._client = client
        self._platform = platform
        self._settings = settings
        self._headers_for = headers_for

    async def __call__(self, run: RunRequest) -> AsyncGenerator[Chunk | Mapping[str, object], None]:
        """Answer one run. Raises `AgentFailed`.

        Closing or cancelling it closes the connection to the platform. A Letta platform goes on with a run that nobody
        reads, and with its lock of the conversation: it is asked to cancel.
        """
        has_ended = False
        their_run: str | None = None
        headers = dict(await self._headers_for(run))
        try:
            async with aclosing(await self._ask(run, headers)) as response:
                await check(response)
                async with aclosing(chunks_of(response, self._settings)) as chunks:
                    async for chunk in chunks:
                        has_ended = has_ended or chunk.get("message_type") in ENDINGS
                        their_run = their_run or run_in(chunk)
                        yield chunk
        except (asyncio.CancelledError, GeneratorExit):
            if self._platform.is_letta and their_run is not None and not has_ended:
                await self._cancel(run, their_run, headers)
            raise
        except AgentFailed as error:
            # Not its detail: what the platform said may be private.
            log.warning("upstream_failed", error_type=error.error_type, had_ended=has_ended)
            if not has_ended or error.error_type not in BREAKS:
                raise
        if not has_ended and not self._platform.is_letta:
            yield StopReason(stop_reason="end_turn")

    async def _cancel(self, run: RunRequest, their_run: str, headers: Mapping[str, str]) -> None:
        """Ask a Letta platform to end its run; whether it does is its own affair."""
        try:
            async with asyncio.timeout(CANCEL_SECONDS):
                url = self._platform.cancel_url_for(run)
                answer = await self._client.post(url, json={"run_ids": [their_run]}, headers=headers)
                log.info("upstream_cancelled", status=answer.status_code)
        except (httpx.HTTPError, TimeoutError) as error:
            log.warning("upstream_not_cancelled", error=type(error).__name__)

    async def _ask(self, run: RunRequest, headers: Mapping[str, str]) -> httpx.Response:
        """Send the request, once; returns the response, of which the headers have come. Raises `AgentFailed`."""
        request = self._request(run, headers)
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._settings.patience_seconds
        delay = FIRST_DELAY_SECONDS
        while True:
            try:
                return await self._send(request)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                why = str(error) or "it took too long"
                if loop.time() + delay > give_up_at:
                    tried = f"Connecting was tried for {self._settings.patience_seconds:g} s"
                    raise AgentFailed("upstream_unreachable", detail=f"{tried}: {why}") from error
                log.info("upstream_not_connected", error=why)
            except httpx.LocalProtocolError:
                # Not its text, which has the header in it.
                raise AgentFailed("internal_error", detail="A header for the platform is not valid.") from None
            except httpx.TransportError as error:
                raise broken(error) from error
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY_SECONDS)

    async def _send(self, request: httpx.Request) -> httpx.Response:
        """Connect, and send the request; silence counts from then on.

        Raises `httpx.ConnectError` and `httpx.ConnectTimeout` when surely nothing was sent; other errors of httpx and
        `AgentFailed` when it may have been.
        """
        waiting = asyncio.timeout(None)

        async def trace(step: str, _: Mapping[str, object]) -> None:
            if step == CONNECTED:
                waiting.reschedule(asyncio.get_running_loop().time() + self._settings.silence_seconds)

        request.extensions = {**request.extensions, "trace": trace}
        try:
            async with waiting:
                return await self._client.send(request, stream=True)
        except TimeoutError as error:
            raise silent(self._settings.silence_seconds) from error

    def _request(self, run: RunRequest, headers: Mapping[str, str]) -> httpx.Request:
        headers = {**headers, **_about(run), VIA: via([*(run.hops or ()), run.run_id])}
        if run.trace is not None:
            headers = {**headers, **run.trace.headers}
        try:
            return self._client.build_request(
                "POST", self._platform.url_for(run), content=self._platform.body_for(run), headers=headers
            )
        except UnicodeEncodeError:
            raise AgentFailed("internal_error", detail="A header for the platform is not ASCII.") from None


def _about(run: RunRequest) -> dict[str, str]:
    """Say which run it is, and whose: of a platform that is asked by its URL nothing else does."""
    said = {RUN_ID: run.run_id, AGENT_ID: run.agent_id}
    return said if run.conversation_id is None else {**said, CONVERSATION_ID: run.conversation_id}


async def _nobody(_: RunRequest) -> Mapping[str, str]:
    return {}
