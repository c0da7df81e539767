"""One run as a browser's EventSource follows it: resumed by `Last-Event-ID`, stopped by 204, told when to come back.

An EventSource comes back by itself to whatever response of status 200 has ended, and to a connection that broke. Any
other status stops it for good. So what is permanent is refused as it is to everybody, and what will pass is not: its
answer is a stream that ends at once, and says when to come back.
"""

from __future__ import annotations

import re
import time
from functools import wraps
from typing import TYPE_CHECKING

import structlog
from aiohttp import ClientConnectionResetError

from runstream.broker.errors import BrokerError
from runstream.broker.http_auth import PRINCIPAL
from runstream.gateway.errors import RETRY_SECONDS, ApiError, TooMany, TryLater, translated
from runstream.gateway.response import EventResponse
from runstream.gateway.services import SERVICES
from runstream.gateway.sse import Style, retry_line
from runstream.gateway.streaming import stream_run
from runstream.gateway.validation import query_of
from runstream.schemas import MAX_SEQ_ID, RetrieveStreamRequest

if TYPE_CHECKING:
    from aiohttp import web

    from runstream.broker.operations import Handler
    from runstream.gateway.fanout import Hub

__all__ = ["comes_back", "follow", "last_event_id"]

log = structlog.get_logger(__name__)

ISSUED = re.compile(r"[0-9]{1,16}")
"""What an id that came from here looks like; sixteen digits are as many as `MAX_SEQ_ID` has."""


async def follow(request: web.Request, run_id: str) -> web.StreamResponse:
    """Stream a run from where the browser is: `Last-Event-ID`, else the query's `starting_after`, else everything.

    Raises what a resume raises; what of it will pass is for `comes_back`.
    """
    services, asked_at = request.app[SERVICES], time.monotonic()
    metrics = services.hub.metrics
    with metrics.resuming():
        wanted = query_of(RetrieveStreamRequest, request, "starting_after", "include_pings")
    seen, include_pings = last_event_id(request.headers.get("Last-Event-ID", "")), wanted.include_pings
    starting_after = wanted.cursor if seen is None else seen
    del wanted  # What is held here is held as long as the stream.
    with metrics.resuming(), services.seat(request[PRINCIPAL]):
        record = await services.lookup(request[PRINCIPAL]).to_resume(run_id)
        await services.repair.watch_over(record)
        record = services.hub.one_of(record)
        return await stream_run(
            request,
            services.hub,
            record,
            starting_after=starting_after,
            include_pings=include_pings,
            kind="event_source",
            asked_at=asked_at,
            style=Style.EVENT_SOURCE,
        )


def comes_back(handler: Handler) -> Handler:
    """Make a browser come back where `handler` raises what will pass."""

    @wraps(handler)
    async def turning_away(request: web.Request) -> web.StreamResponse:
        try:
            answer: web.StreamResponse = await handler(request)
        except (ApiError, BrokerError) as error:
            refusal = translated(error) if isinstance(error, BrokerError) else error
            if not isinstance(refusal, TryLater | TooMany):
                raise
            log.warning("event_source_turned_away", path=request.path, error=str(error))
            # Twice what is needed, as it may come to half of it.
            seconds = 2 * refusal.seconds if isinstance(refusal, TooMany) else RETRY_SECONDS
            return await _turn_away(request, request.app[SERVICES].hub, seconds)
        return answer

    return turning_away


def last_event_id(value: str) -> int | None:
    """Read the id of the last event that a browser has seen, None if it is none that was ever issued here.

    Such a value is as if it were absent. The page cannot change it, and to refuse it would stop the browser for good;
    so it skips nothing, as the cursor of another run skips nothing.
    """
    return int(value) if ISSUED.fullmatch(value) and int(value) <= MAX_SEQ_ID else None


async def _turn_away(request: web.Request, hub: Hub, seconds: float) -> web.StreamResponse:
    """Answer with nothing but when to come back."""
    hub.metrics.turned_away()
    response = EventResponse(request)
    try:
        await response.open()
        response.write_event(retry_line(seconds))
        await response.finish(hub.settings.write_deadline_seconds)
    except TimeoutError:
        response.abort()
    except ClientConnectionResetError:
        pass  # The client has left, and will be back all the same.
    return response.prepared
