"""One run as one response: position, headers, followers' service, and how the response ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from aiohttp import ClientConnectionResetError, web

from runstream.broker.errors import BrokerError
from runstream.gateway.errors import TryLater
from runstream.gateway.follower import Follower
from runstream.gateway.response import EventResponse
from runstream.gateway.sse import Style, cut_error

if TYPE_CHECKING:
    from runstream.gateway.fanout import Hub
    from runstream.schemas import RunRecord

__all__ = ["check_room", "stream_run"]

log = structlog.get_logger(__name__)


def check_room(hub: Hub) -> None:
    """Refuse a stream while the gateway has all the followers it may have. Raises `TryLater`."""
    if hub.is_full:
        raise TryLater("This gateway serves as many streams as it may. Try again.")


async def stream_run(
    request: web.Request, hub: Hub, record: RunRecord, *, starting_after: int, include_pings: bool, kind: str
) -> web.StreamResponse:
    """Stream a run to its end. Raises `BrokerError` before the headers are out; after them nothing but a disconnect.

    The response ends complete only after the run's own end. Ended for any other reason it says so in one
    `event: error` and is cut, so that no client takes it for the run's end.
    """
    async with hub.tail(record) as tail:
        cursor = await hub.position(tail, starting_after)
        response = EventResponse(request)
        await response.open()
        hub.metrics.stream_begun(kind)
        follower = Follower(
            response,
            run_id=record.id,
            cursor=cursor,
            style=Style.BACKGROUND if record.background else Style.FOREGROUND,
            include_pings=include_pings,
        )
        try:
            await hub.serve(tail, follower)
            if follower.is_done:
                await response.finish()
        except BrokerError as error:
            log.warning("stream_cut", run_id=record.id, error=str(error))
            hub.metrics.stream_cut("store")
            response.write_event(cut_error(record.id, "store_unavailable", str(error)))
            response.cut()
        except TimeoutError:
            hub.metrics.stream_cut("blocked")
            response.cut()
        except ClientConnectionResetError:
            pass  # The client has what it wanted and left, as letta-client does at `[DONE]`.
        return response.prepared
