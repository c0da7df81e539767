"""Which trace a stream belongs to: that of its create, or of whoever comes back, and the run's own."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from runstream.broker.errors import BrokerError
from runstream.broker.log import trace_in
from runstream.broker.topology import LogAddress
from runstream.gateway.services import SERVICES
from runstream.schemas import TRACEPARENT, TRACESTATE, trace_of

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from aiohttp import web

    from runstream.broker.tracing import Span
    from runstream.gateway.fanout import Hub
    from runstream.schemas import RunRecord, Trace

__all__ = ["stream_span", "trace_asked"]


def trace_asked(request: web.Request) -> Trace | None:
    """Read the trace that a request belongs to, as its client says."""
    return trace_of(request.headers.getall(TRACEPARENT, ()), request.headers.getall(TRACESTATE, ()))


async def stream_span(
    request: web.Request, hub: Hub, record: RunRecord, *, kind: str, created: Trace | None
) -> AbstractContextManager[Span]:
    """Make the one span of a stream, to be entered. `created` is the trace of the create that it answers, if one.

    Who comes back without a trace is a part of the run's, and who has one is linked to that. The log's first message
    says which it is: it is read for this, and where it cannot be, there is none.
    """
    tracing = request.app[SERVICES].tracing
    within, link = created, None
    if tracing.is_on and created is None:
        within = trace_asked(request)
        with suppress(BrokerError):
            link = await trace_in(hub.jetstream, LogAddress(record.id, record.shard))
        if within is None:
            within, link = link, None
    facts = {"run_id": record.id, "tenant": record.tenant, "kind": kind}
    return tracing.span("stream", "server", within=within, link=link, **facts)
