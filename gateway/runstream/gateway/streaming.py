"""One run as one response: position, headers, followers' service, and how the response ends."""

from __future__ import annotations

import time
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog
from aiohttp import ClientConnectionResetError, web

from runstream.broker.errors import Broken, BrokerError, CursorExpired, CursorUnknown, RunStuck
from runstream.gateway.errors import RETRY_SECONDS
from runstream.gateway.expiring import while_admitted
from runstream.gateway.follower import Follower
from runstream.gateway.framing import framing_of
from runstream.gateway.response import EventResponse
from runstream.gateway.spans import stream_span
from runstream.gateway.sse import Style, cut_error, retry_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from runstream.broker.tracing import Span
    from runstream.gateway.fanout import Hub, Position, RunTail, Source
    from runstream.gateway.framing import Framing
    from runstream.gateway.metrics import GatewayMetrics
    from runstream.schemas import RunRecord, Trace

__all__ = ["stream_run"]

log = structlog.get_logger(__name__)


async def stream_run(
    request: web.Request,
    hub: Hub,
    record: RunRecord,
    *,
    starting_after: int,
    include_pings: bool,
    kind: str,
    asked_at: float,
    style: Style | None = None,
    created: Trace | None = None,
) -> web.StreamResponse:
    """Stream a run to its end. Raises `BrokerError` before the headers are out; after them nothing but a disconnect.

    The response ends complete only after the run's own end. Ended for any other reason it is cut, so that no client
    takes it for the run's end. Without a `style` it is Letta's, resumable if the run is. `asked_at` is when the request
    came; `created` the trace of the create that this answers.
    """
    style = style or (Style.BACKGROUND if record.background else Style.FOREGROUND)
    response = EventResponse(request)
    framing = framing_of(style, include_pings=include_pings, is_chunked=response.is_chunked)
    with await stream_span(request, hub, record, kind=kind, created=created) as span:
        async with hub.tail(record) as tail:
            cursor, source, index = await _position(hub, tail, starting_after, framing)
            if style is Style.EVENT_SOURCE:
                if source == "over":
                    hub.metrics.resumed(source)
                    return _nothing_follows()
                # It would come back for ever to a message that cannot be read: only a refusal stops it.
                await hub.reader.check_next(tail.address, cursor)
            span.note(source=source, starting_after=cursor)
            follower = Follower(response, record.id, cursor, framing, index=index)
            follower.on_chunk = _noting(span, _timing(hub.metrics, kind, source, asked_at))
            try:
                await response.open()
                hub.metrics.stream_begun(kind, source, record.tenant)
                if style is Style.EVENT_SOURCE:
                    # At once: of a gateway that is killed nobody hears anything more.
                    response.write_event(retry_line(hub.settings.event_source_retry_seconds))
                with hub.seats.staying(follower), while_admitted(request, follower, hub):
                    await hub.serve(tail, follower)
                if follower.is_done:
                    if hub.seats.is_draining:
                        response.prepared.force_close()  # Its next request leads to a gateway that stays.
                    await response.finish(hub.settings.write_deadline_seconds)
            except BrokerError as error:
                _cut(hub, follower, error)
            except TimeoutError:
                hub.metrics.stream_cut("blocked")
                response.abort()
            except ClientConnectionResetError:
                pass  # The client has left: before the first byte, or with all it wanted, as letta-client at `[DONE]`.
            finally:
                span.note(seq_id=follower.cursor, is_done=follower.is_done)
            return response.prepared


async def _position(hub: Hub, tail: RunTail, starting_after: int, framing: Framing) -> Position:
    """Turn a cursor into where a response begins. Raises as `Hub.position`."""
    position = partial(hub.position, tail, starting_after, framing)
    return await hub.reader.leaders.sure(position, CursorExpired, CursorUnknown)


def _timing(metrics: GatewayMetrics, kind: str, source: Source, asked_at: float) -> Callable[[], None] | None:
    """Make what notes how long a stream's first chunk took; a resume that has missed nothing waits for the agent."""
    if kind != "create" and source in {"live", "over"}:
        return None
    return lambda: metrics.first_chunk(kind, time.monotonic() - asked_at)


def _noting(span: Span, timing: Callable[[], None] | None) -> Callable[[], None] | None:
    """Have the first chunk noted in the span, too, where there is one."""
    if not span.is_recorded:
        return timing

    def first_chunk() -> None:
        span.event("first_chunk")
        if timing is not None:
            timing()

    return first_chunk


def _nothing_follows() -> web.Response:
    """Make the one answer that keeps an EventSource from coming back; a cache must not give it to somebody else."""
    return web.Response(status=HTTPStatus.NO_CONTENT, headers={"Cache-Control": "no-cache"})


def _cut(hub: Hub, follower: Follower, error: BrokerError) -> None:
    """End a response as incomplete, because its run cannot be followed any further."""
    # What NATS said, with its subjects, is for the log; the client gets what it can act on.
    say = log.debug if isinstance(error, Broken) else log.warning
    say("stream_cut", run_id=follower.run_id, error=str(error))
    hub.metrics.stream_cut("broken" if isinstance(error, Broken) else "store")
    follower.response.write_event(_last_words(follower, error))
    follower.response.cut()


def _last_words(follower: Follower, error: BrokerError) -> bytes:
    """Say why the response is cut; to an EventSource, which comes back whatever is said, when."""
    if follower.style is Style.EVENT_SOURCE:
        return retry_line(RETRY_SECONDS)
    match error:
        case CursorExpired():
            return cut_error(follower.run_id, "expired")
        case Broken():
            return cut_error(follower.run_id, "log_broken")
        case RunStuck():
            return cut_error(follower.run_id, "store_full")
        case _:
            return cut_error(follower.run_id, "store_unavailable")
