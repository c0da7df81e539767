"""The one way a client's message becomes an answer, streamed or whole, whichever path it came by."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from runstream.broker.errors import Unavailable
from runstream.broker.http_auth import PRINCIPAL
from runstream.gateway.admission import said_to_platform
from runstream.gateway.answering import PendingApproval, RunFailed
from runstream.gateway.errors import Busy, EmptyMessages, Gone, Loop, TryLater
from runstream.gateway.spans import trace_asked
from runstream.gateway.streaming import stream_run
from runstream.gateway.transcripts import TooLong
from runstream.gateway.validation import OF_BODIES

if TYPE_CHECKING:
    from aiohttp import web

    from runstream.gateway.services import Services
    from runstream.schemas import CreateMessagesRequest

__all__ = ["OF_ANSWERS", "OF_STREAMS", "create_and_answer"]

OF_STREAMS: Final = (*OF_BODIES, EmptyMessages, Busy, Gone, TryLater, Loop)
"""What a message whose answer is streamed is refused with."""
OF_ANSWERS: Final = (*OF_STREAMS, PendingApproval, TooLong, RunFailed)
"""What a message may be refused with, or answered in place of a whole answer."""


async def create_and_answer(
    request: web.Request,
    services: Services,
    wanted: CreateMessagesRequest,
    body: dict[str, Any],
    *,
    agent_id: str,
    conversation_id: str | None = None,
    in_default: bool = False,
    run_type: str,
) -> web.StreamResponse:
    """Start a run, and stream it from its beginning, or answer when it has ended.

    A client that leaves does not end the run.
    """
    if wanted.messages_are_empty:
        raise EmptyMessages
    asked_at = time.monotonic()
    with services.seat(request[PRINCIPAL]):
        with services.tracing.span("create", "server", within=trace_asked(request)) as span:
            claimed = await services.starter.start(
                wanted,
                body,
                who=request[PRINCIPAL],
                headers=said_to_platform(request),
                trace=span.trace,
                agent_id=agent_id,
                conversation_id=conversation_id,
                in_default=in_default,
                run_type=run_type,
            )
            span.note(run_id=claimed.record.id, tenant=claimed.record.tenant, is_new=claimed.is_new)
        streaming, include_pings = wanted.streaming, wanted.include_pings
        del wanted, body  # What is held here is held as long as the stream.
        if not claimed.is_new:
            await services.repair.watch_over(claimed.record)
        if not streaming:
            run_id, tenant = claimed.record.id, claimed.record.tenant
            with services.tracing.span("answer", "server", within=span.trace, run_id=run_id, tenant=tenant):
                return await services.answers.answer(request, claimed.record)
        try:
            return await stream_run(
                request,
                services.hub,
                claimed.record,
                starting_after=0,
                include_pings=include_pings,
                kind="create",
                asked_at=asked_at,
                created=span.trace if claimed.is_new else None,
            )
        except Unavailable as error:
            # The run is there and will be executed: a request that is repeated now would start another.
            raise TryLater(
                f"Run {claimed.record.id} was started, but cannot be read at the moment. Resume it.",
                run_id=claimed.record.id,
            ) from error
