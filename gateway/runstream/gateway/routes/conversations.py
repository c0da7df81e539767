"""Conversations: made, listed, read, written to, and their active run resumed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import web

from runstream.gateway.creating import create_and_stream
from runstream.gateway.errors import NOT_AGAIN, BadRequest, Busy, Invalid, NotFound
from runstream.gateway.resuming import resume_and_stream
from runstream.gateway.services import SERVICES, json_response, raw_json_response
from runstream.gateway.validation import body_of, conversation_path, model_of, query_of, strict_conversation_path
from runstream.schemas import (
    AGENT_PATH,
    DEFAULT_CONVERSATION,
    DEFAULT_TENANT,
    ConversationMessagesRequest,
    ConversationRecord,
    CreateConversationRequest,
    ListConversationsRequest,
    is_agent_id,
    new_conversation_id,
)

if TYPE_CHECKING:
    from runstream.gateway.services import Services

__all__ = ["routes"]


async def create(request: web.Request) -> web.Response:
    """`POST /v1/conversations/?agent_id=…`: make a conversation of an agent's. Every well-formed agent exists."""
    services = request.app[SERVICES]
    body = await body_of(request, limit=services.body_limit(), seconds=services.body_seconds)
    wanted = model_of(CreateConversationRequest, body, required=False)
    agent_id = request.query.get("agent_id") or wanted.agent_id
    if agent_id is None:
        raise Invalid([{"type": "missing", "loc": ("query", "agent_id"), "msg": "Field required", "input": None}])
    if not AGENT_PATH.matches(agent_id):
        raise BadRequest(f"Invalid agent ID format: {agent_id}. Expected format: 'agent-<uuid4>'")
    record = ConversationRecord(
        tenant=DEFAULT_TENANT,
        id=new_conversation_id(),
        agent_id=agent_id,
        summary=wanted.summary,
        description=wanted.description,
        model=wanted.model,
        model_settings=wanted.model_settings,
        context_window_limit=wanted.context_window_limit,
        extra=wanted.unknown,
    )
    await services.index.create_conversation(record)
    return json_response(record.to_wire())


async def list_conversations(request: web.Request) -> web.Response:
    """`GET /v1/conversations/`: a page of conversations, in the order of one of their times."""
    wanted = query_of(ListConversationsRequest, request)
    return raw_json_response(await request.app[SERVICES].lists.conversations(wanted))


async def retrieve(request: web.Request) -> web.Response:
    """`GET /v1/conversations/{conversation_id}`."""
    record = await _existing(request.app[SERVICES], strict_conversation_path(request))
    return json_response(record.to_wire())


async def stream(request: web.Request) -> web.StreamResponse:
    """`POST /v1/conversations/{conversation_id}/stream`: resume. The conversation's existence is not checked."""
    conversation_id = conversation_path(request)
    lookup = request.app[SERVICES].lookup
    return await resume_and_stream(request, lambda wanted: lookup.of_stream(conversation_id, wanted))


async def create_message(request: web.Request) -> web.StreamResponse:
    """`POST /v1/conversations/{conversation_id}/messages`: say something, stream the answer."""
    services = request.app[SERVICES]
    conversation_id = conversation_path(request)
    body = await body_of(request, limit=services.body_limit(), seconds=services.body_seconds)
    wanted = model_of(ConversationMessagesRequest, body, required=True)
    agent_id, conversation = await _addressee(services, conversation_id, wanted)
    return await create_and_stream(
        request,
        services,
        wanted,
        _object(body),
        agent_id=agent_id,
        conversation_id=conversation,
        in_default=conversation is None,
        run_type="send_conversation_message",
    )


async def cancel(request: web.Request) -> web.Response:
    """`POST /v1/conversations/{conversation_id}/cancel`: end what goes on in it. `?agent_id=` says whose default."""
    services = request.app[SERVICES]
    conversation_id = conversation_path(request)
    run = await services.lookup.to_cancel(conversation_id, request.query.get("agent_id"))
    if run is None:
        raise Busy(f"CONFLICT: No active runs to cancel for conversation {conversation_id}", headers=NOT_AGAIN)
    await services.canceller.cancel(run)
    return json_response({run.id: "cancelled"})


async def _addressee(
    services: Services, conversation_id: str, wanted: ConversationMessagesRequest
) -> tuple[str, str | None]:
    """Return the agent that is to answer, and the conversation, None for the agent's default one."""
    if is_agent_id(conversation_id):
        return conversation_id, None
    if conversation_id == DEFAULT_CONVERSATION:
        if wanted.agent_id is None or not is_agent_id(wanted.agent_id):
            raise BadRequest("The conversation 'default' needs an agent_id.")
        return wanted.agent_id, None
    return (await _existing(services, conversation_id)).agent_id, conversation_id


async def _existing(services: Services, conversation_id: str) -> ConversationRecord:
    stored = await services.index.conversation(DEFAULT_TENANT, conversation_id)
    if stored is None or stored.value.deleted:
        raise NotFound(f"Conversation not found with id='{conversation_id}'")
    return stored.value


def _object(body: Any) -> dict[str, Any]:
    """Return the body as sent; the model has made sure that it is an object."""
    parsed: dict[str, Any] = body
    return parsed


routes = [
    web.post("/v1/conversations/", create),
    web.get("/v1/conversations/", list_conversations, allow_head=False),
    web.get("/v1/conversations/{conversation_id}", retrieve, allow_head=False),
    web.post("/v1/conversations/{conversation_id}/stream", stream),
    web.post("/v1/conversations/{conversation_id}/messages", create_message),
    web.post("/v1/conversations/{conversation_id}/cancel", cancel),
]
