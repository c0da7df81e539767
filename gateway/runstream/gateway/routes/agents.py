"""Agents addressed directly: a message to one, its answer whole or streamed, its runs cancelled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from runstream.broker.http_auth import PRINCIPAL
from runstream.broker.operations import Body, Operation
from runstream.gateway.cancelling import cancel_run
from runstream.gateway.creating import OF_ANSWERS, OF_STREAMS, create_and_answer
from runstream.gateway.described import CANCELLED, EVENTS, WHOLE_OR_EVENTS
from runstream.gateway.errors import (
    NOT_AGAIN,
    Busy,
    TryLater,
    refusals,
)
from runstream.gateway.services import SERVICES, json_response
from runstream.gateway.validation import OF_BODIES, agent_path, body_of
from runstream.schemas import AgentMessagesRequest, AgentStreamRequest, CancelRequest

if TYPE_CHECKING:
    from aiohttp import web

    from runstream.schemas import CreateMessagesRequest, RunRecord

__all__ = ["operations"]


async def create_message(request: web.Request) -> web.StreamResponse:
    """`POST /v1/agents/{agent_id}/messages`: the whole answer, or a stream of it if the body asks for that."""
    return await _create_message(request, AgentMessagesRequest)


async def create_message_stream(request: web.Request) -> web.StreamResponse:
    """`POST /v1/agents/{agent_id}/messages/stream`: a message, its answer streamed. An agent is never busy here."""
    return await _create_message(request, AgentStreamRequest)


async def _create_message(request: web.Request, kind: type[CreateMessagesRequest]) -> web.StreamResponse:
    agent_id = agent_path(request)
    wanted, body = await body_of(kind, request, required=True)
    answering = create_and_answer(
        request,
        request.app[SERVICES],
        wanted,
        body,
        agent_id=agent_id,
        run_type="send_message_streaming" if wanted.streaming else "send_message",
    )
    del wanted, body  # What is held here is held as long as the stream.
    return await answering


async def cancel(request: web.Request) -> web.Response:
    """`POST /v1/agents/{agent_id}/messages/cancel`: end the runs that are named, else the agent's latest.

    One that has ended counts as cancelled, as in the reference; one that is not this agent's as failed.
    """
    services = request.app[SERVICES]
    agent_id = agent_path(request)
    wanted, _ = await body_of(CancelRequest, request, required=False)
    lookup = services.lookup(request[PRINCIPAL])
    if wanted.run_ids is None:
        latest = await lookup.to_cancel_of_agent(agent_id) or await lookup.latest_of_agent(agent_id)
        if latest is None:
            raise Busy(f"CONFLICT: No active runs to cancel for agent {agent_id}", headers=NOT_AGAIN)
        found: dict[str, RunRecord | None] = {latest.id: latest}
    else:
        found = {run_id: await lookup.of_agent(agent_id, run_id) for run_id in wanted.run_ids}
    cancels = [cancel_run(request, run) for run in found.values() if run is not None]
    for failure in await asyncio.gather(*cancels, return_exceptions=True):
        if isinstance(failure, BaseException):
            raise failure
    return json_response({run_id: "failed" if run is None else "cancelled" for run_id, run in found.items()})


operations = [
    Operation(
        method="POST",
        path="/v1/agents/{agent_id}/messages",
        handler=create_message,
        scope="runs:write",
        bodies=[Body([AgentMessagesRequest])],
        is_body_required=True,
        answers={
            200: WHOLE_OR_EVENTS,
            **refusals(*OF_ANSWERS),
        },
    ),
    Operation(
        method="POST",
        path="/v1/agents/{agent_id}/messages/stream",
        handler=create_message_stream,
        scope="runs:write",
        bodies=[Body([AgentStreamRequest])],
        is_body_required=True,
        answers={200: EVENTS, **refusals(*OF_STREAMS)},
        is_deprecated=True,
    ),
    Operation(
        method="POST",
        path="/v1/agents/{agent_id}/messages/cancel",
        handler=cancel,
        scope="runs:cancel",
        bodies=[Body([CancelRequest])],
        answers={200: CANCELLED, **refusals(*OF_BODIES, Busy, TryLater)},
    ),
]
