"""Agents addressed directly: a message to one, its answer streamed."""

from __future__ import annotations

from aiohttp import web

from runstream.gateway.creating import create_and_stream
from runstream.gateway.services import SERVICES
from runstream.gateway.validation import agent_path, body_of, model_of
from runstream.schemas import AgentStreamRequest

__all__ = ["routes"]


async def create_message_stream(request: web.Request) -> web.StreamResponse:
    """`POST /v1/agents/{agent_id}/messages/stream`. Never 409 for being busy: the reference does not lock here."""
    services = request.app[SERVICES]
    agent_id = agent_path(request)
    body = await body_of(request, limit=services.body_limit(), seconds=services.body_seconds)
    wanted = model_of(AgentStreamRequest, body, required=True)
    return await create_and_stream(
        request,
        services,
        wanted,
        body,
        agent_id=agent_id,
        conversation_id=None,
        run_type="send_message_streaming",
    )


routes = [web.post("/v1/agents/{agent_id}/messages/stream", create_message_stream)]
