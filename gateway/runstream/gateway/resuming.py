"""The one way a client comes back to a run, whichever path it names it by."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from runstream.broker.http_auth import PRINCIPAL
from runstream.gateway.services import SERVICES
from runstream.gateway.streaming import stream_run
from runstream.gateway.validation import body_of
from runstream.schemas import RetrieveStreamRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp import web

    from runstream.schemas import RunRecord

__all__ = ["resume_and_stream"]


async def resume_and_stream(
    request: web.Request, find: Callable[[RetrieveStreamRequest], Awaitable[RunRecord]]
) -> web.StreamResponse:
    """Stream the run that `find` makes of the body, from the body's cursor. An absent body asks for everything."""
    services, asked_at = request.app[SERVICES], time.monotonic()
    metrics = services.hub.metrics
    with metrics.resuming():
        wanted, said = await body_of(RetrieveStreamRequest, request, required=False)
    with metrics.resuming(), services.seat(request[PRINCIPAL]):
        record = await find(wanted)
        await services.repair.watch_over(record)
        record = services.hub.one_of(record)
        cursor, include_pings = wanted.cursor, wanted.include_pings
        del wanted, said, find  # What is held here is held as long as the stream.
        return await stream_run(
            request,
            services.hub,
            record,
            starting_after=cursor,
            include_pings=include_pings,
            kind="resume",
            asked_at=asked_at,
        )
