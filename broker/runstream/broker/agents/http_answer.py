"""A platform's answer: refused, or read event by event, with an eye on its silence and on how it ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, cast

import httpx
from httpx_sse import EventSource

from runstream.broker.agents.http_events import DONE, WholeEvents, chunk_in, error_in
from runstream.broker.errors import AgentFailed

if TYPE_CHECKING:
    from runstream.broker.agents.settings import UpstreamSettings

__all__ = ["broken", "check", "chunks_of", "keep_location", "silent"]

REFUSAL_BYTES: Final = 8 * 2**10
REFUSAL_SECONDS: Final = 5.0
"""How much of a refusal's body is read, and for how long: it explains, and nothing waits for it."""
EVENT_STREAM: Final = {"Content-Type": "text/event-stream; charset=utf-8"}
LOCATION: Final = "location"


async def keep_location(response: httpx.Response) -> None:
    """Keep a `Location` from httpx, which fails over one that is no URL though it is not to follow it."""
    if LOCATION in response.headers:
        response.extensions[LOCATION] = response.headers.pop(LOCATION)


async def check(response: httpx.Response) -> None:
    """Raise `AgentFailed` unless the platform answers with an event stream."""
    status = f"HTTP {response.status_code} {response.reason_phrase}".rstrip()
    content_type = response.headers.get("content-type", "")
    location: str | None = response.extensions.get(LOCATION)
    if response.is_redirect and location is not None:
        refusal = f"{status}, {_leads(location)}, and redirects are not followed"
    elif response.status_code != httpx.codes.OK:
        refusal = status
    elif content_type.partition(";")[0].strip().lower() != "text/event-stream":
        refusal = f"{status}, but not with text/event-stream: its content type is {content_type or 'not named'}"
    elif (encoding := _encoding(response)) is not None:
        # Events would come late. A small event could be a large one, and the end of a compressed stream that was cut
        # in good order cannot be told from a good one.
        refusal = f"{status}, but encoded with {encoding}, and not with identity, as it was asked to be"
    else:
        return
    body = await _beginning(response)
    raise AgentFailed("upstream_rejected", detail=f"{refusal}: {body}" if body else f"{refusal}.")


async def chunks_of(response: httpx.Response, settings: UpstreamSettings) -> AsyncGenerator[dict[str, object], None]:
    """Yield the chunks of an event stream, up to `[DONE]`, an `event: error` or the response's end in good order.

    Raises `AgentFailed`: `stream_incomplete` when the connection breaks, or the response ends within an event;
    `upstream_timeout`, `upstream_invalid`, `chunk_too_large`; `internal_error` for an error that is no error_message.
    """
    async with aclosing(_whole_events(response, settings)) as whole:
        # Always UTF-8, whatever the response says of itself: this is the specification's rule for event streams.
        source = EventSource(httpx.Response(httpx.codes.OK, headers=EVENT_STREAM, content=whole))
        async with aclosing(source.aiter_sse()) as events:
            async for event in events:
                if event.data.strip() == DONE:
                    return
                if event.event == "error":
                    yield error_in(event.data)
                    return
                if event.data:  # An `id:` alone is an event to the decoder.
                    yield chunk_in(event.data)


def silent(seconds: float) -> AgentFailed:
    """Make the error of a platform that has not said anything for so long."""
    return AgentFailed("upstream_timeout", detail=f"Nothing was heard from the platform for {seconds:g} s.")


async def _whole_events(response: httpx.Response, settings: UpstreamSettings) -> AsyncGenerator[bytes, None]:
    """Yield the body as it comes, cut between events. Raises `AgentFailed` as `chunks_of`."""
    events = WholeEvents()
    async with aclosing(_heard(response, settings.silence_seconds)) as pieces:
        async for piece in pieces:
            if whole := events.feed(piece):
                yield whole
            if events.held_bytes > settings.event_bytes:
                limit = f"RUNSTREAM_UPSTREAM_EVENT_BYTES ({settings.event_bytes})"
                raise AgentFailed("chunk_too_large", detail=f"An event of the platform's is longer than {limit}.")
    if half := events.half:
        if half.replace(" ", "") != f"data:{DONE}":
            raise AgentFailed("stream_incomplete", detail="The platform's response ended within an event.")
        yield b"data: %b\n\n" % DONE.encode()
    elif not _is_framed(response):
        detail = (
            "The platform's response has neither Content-Length nor chunked encoding, so that its end cannot be told"
            " from a broken connection: it has to end with a stop_reason or [DONE]."
        )
        raise AgentFailed("stream_incomplete", detail=detail)


async def _heard(response: httpx.Response, patience: float) -> AsyncGenerator[bytes, None]:
    """Yield the body as it comes, unless it is awaited for `patience` seconds without a line's end in it.

    What counts is waiting: while its events are being stored, nobody listens, and the platform may well be talking.
    """
    clock = asyncio.get_running_loop().time
    left = patience
    async with aclosing(cast("AsyncGenerator[bytes, None]", response.aiter_raw())) as pieces:
        while True:
            asked_at = clock()
            try:
                async with asyncio.timeout(left):
                    piece = await anext(pieces, None)
            except TimeoutError as error:
                raise silent(patience) from error
            except httpx.TransportError as error:
                raise broken(error) from error
            if piece is None:
                return
            left = patience if b"\n" in piece or b"\r" in piece else left - (clock() - asked_at)
            yield piece


def broken(error: httpx.TransportError) -> AgentFailed:
    """Make the error of a connection that broke once the request was on its way."""
    why = str(error) or type(error).__name__
    return AgentFailed("stream_incomplete", detail=f"The connection to the platform broke: {why}")


def _is_framed(response: httpx.Response) -> bool:
    """Tell whether the end of the body is more than the end of the connection."""
    return "content-length" in response.headers or "transfer-encoding" in response.headers


async def _beginning(response: httpx.Response) -> str:
    """Read the beginning of a refusal's body; what cannot be read is left out."""
    if _encoding(response) is not None:
        return ""
    body = b""
    with contextlib.suppress(httpx.HTTPError, TimeoutError):
        async with asyncio.timeout(REFUSAL_SECONDS):
            async for piece in response.aiter_raw():
                body += piece
                if len(body) >= REFUSAL_BYTES:
                    break
    return body[:REFUSAL_BYTES].decode(errors="replace").strip()


def _encoding(response: httpx.Response) -> str | None:
    """Name what the body is encoded with, None if it is as it is."""
    encoding: str = response.headers.get("content-encoding", "").strip().lower()
    return None if encoding in {"", "identity"} else encoding


def _leads(location: str) -> str:
    """Show where a redirect leads, without what may be secret in it; not at all where that cannot be told."""
    with contextlib.suppress(httpx.InvalidURL):
        shown = str(httpx.URL(location).copy_with(userinfo=b"", query=None, fragment=None))
        if "@" not in shown:
            return f"to {shown}"
    return "to what is no URL"
