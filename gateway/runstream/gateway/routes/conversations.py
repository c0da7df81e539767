"""Conversations: made, listed, read, written to, and their active run resumed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from runstream.broker.operations import Body, Operation
from runstream.gateway.answering import PendingApproval, RunFailed
from runstream.gateway.cancelling import cancel_run
from runstream.gateway.creating import create_and_answer
from runstream.gateway.described import CANCELLED, CONVERSATION, CONVERSATIONS, EVENTS, NULL, WHOLE_OR_EVENTS
from runstream.gateway.errors import (
    NOT_AGAIN,
    BadRequest,
    Busy,
    Gone,
    Invalid,
    NotFound,
    Packed,
    PlatformFailed,
    PlatformRefused,
    PlatformSilent,
    TooLarge,
    TooSlow,
    TryLater,
    refusals,
)
from runstream.gateway.resuming import resume_and_stream
from runstream.gateway.services import SERVICES, json_response, raw_json_response
from runstream.gateway.transcripts import TooLong
from runstream.gateway.validation import body_of, conversation_path, query_of, strict_conversation_path
from runstream.schemas import (
    AGENT_PATH,
    CONVERSATION_PATH,
    DEFAULT_CONVERSATION,
    DEFAULT_TENANT,
    ConversationMessagesRequest,
    ConversationRecord,
    CreateConversationRequest,
    ListConversationsRequest,
    OfAgent,
    RetrieveStreamRequest,
    UpdateConversationRequest,
    is_agent_id,
    is_conversation_id,
    new_conversation_id,
    timestamp,
)

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["operations"]

UPDATABLE = frozenset(UpdateConversationRequest.model_fields)


async def create(request: web.Request) -> web.Response:
    """`POST /v1/conversations/?agent_id=…`: make a conversation of an agent's. Every well-formed agent exists."""
    services = request.app[SERVICES]
    wanted, _ = await body_of(CreateConversationRequest, request, required=False)
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
    """`GET /v1/conversations/{conversation_id}`: read a conversation."""
    conversation_id = strict_conversation_path(request)
    record = await request.app[SERVICES].conversations.existing(conversation_id, request.headers)
    return json_response(record.to_wire())


async def update(request: web.Request) -> web.Response:
    """`PATCH /v1/conversations/{conversation_id}`: change the fields that are sent, and no others."""
    services = request.app[SERVICES]
    conversation_id = strict_conversation_path(request)
    wanted, _ = await body_of(UpdateConversationRequest, request, required=True)
    record = await services.index.update_conversation(
        DEFAULT_TENANT, conversation_id, lambda found: _changed(found, wanted)
    )
    if record is None:
        raise _no_conversation(conversation_id)
    return json_response(record.to_wire())


async def delete(request: web.Request) -> web.Response:
    """`DELETE /v1/conversations/{conversation_id}`: it is found no more; its runs are, and one that goes on goes on."""
    conversation_id = strict_conversation_path(request)
    record = await request.app[SERVICES].index.update_conversation(
        DEFAULT_TENANT,
        conversation_id,
        lambda found: msgspec.structs.replace(found, deleted=True, updated_at=timestamp()),
    )
    if record is None:
        raise _no_conversation(conversation_id)
    return json_response(None)


async def stream(request: web.Request) -> web.StreamResponse:
    """`POST /v1/conversations/{conversation_id}/stream`: resume. The conversation's existence is not checked."""
    conversation_id = conversation_path(request)
    lookup = request.app[SERVICES].lookup
    return await resume_and_stream(request, lambda wanted: lookup.of_stream(conversation_id, wanted))


async def create_message(request: web.Request) -> web.StreamResponse:
    """`POST /v1/conversations/{conversation_id}/messages`: say something, stream the answer or have it whole."""
    services = request.app[SERVICES]
    conversation_id = conversation_path(request)
    wanted, body = await body_of(ConversationMessagesRequest, request, required=True)
    agent_id, conversation = await _addressee(request, conversation_id, wanted)
    return await create_and_answer(
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
    if is_conversation_id(conversation_id):
        await services.conversations.existing(conversation_id, request.headers)
    run = await services.lookup.to_cancel(conversation_id, request.query.get("agent_id"))
    if run is None:
        raise Busy(f"CONFLICT: No active runs to cancel for conversation {conversation_id}", headers=NOT_AGAIN)
    await cancel_run(request, run)
    return json_response({run.id: "cancelled"})


async def _addressee(
    request: web.Request, conversation_id: str, wanted: ConversationMessagesRequest
) -> tuple[str, str | None]:
    """Return the agent that is to answer, and the conversation, None for the agent's default one."""
    if is_agent_id(conversation_id):
        return conversation_id, None
    if conversation_id == DEFAULT_CONVERSATION:
        if wanted.agent_id is None or not is_agent_id(wanted.agent_id):
            raise BadRequest("The conversation 'default' needs an agent_id.")
        return wanted.agent_id, None
    found = await request.app[SERVICES].conversations.existing(conversation_id, request.headers)
    return found.agent_id, conversation_id


def _no_conversation(conversation_id: str) -> NotFound:
    return NotFound(f"Conversation not found with id='{conversation_id}'")


def _changed(found: ConversationRecord, wanted: UpdateConversationRequest) -> ConversationRecord:
    """Change what the client sent, known fields and others; what it did not send stays."""
    now = timestamp()
    sent: dict[str, Any] = {name: getattr(wanted, name) for name in wanted.model_fields_set & UPDATABLE}
    if "last_message_at" in sent and wanted.last_message_at is not None:
        sent["last_message_at"] = timestamp(wanted.last_message_at)
    if "archived" in sent:
        sent["archived_at"] = (found.archived_at or now) if wanted.archived else None
    return msgspec.structs.replace(found, **sent, extra={**found.extra, **wanted.unknown}, updated_at=now)


def _object(body: Any) -> dict[str, Any]:
    """Return the body as sent; the model has made sure that it is an object."""
    parsed: dict[str, Any] = body
    return parsed


ANY_CONVERSATION = {"conversation_id": CONVERSATION_PATH}

operations = [
    Operation(
        method="POST",
        path="/v1/conversations/",
        handler=create,
        query=OfAgent,
        bodies=[Body([CreateConversationRequest])],
        answers={200: CONVERSATION, **refusals(Invalid, TooSlow, TooLarge, Packed, TryLater)},
    ),
    Operation(
        method="GET",
        path="/v1/conversations/",
        handler=list_conversations,
        query=ListConversationsRequest,
        answers={200: CONVERSATIONS, **refusals(Invalid, NotFound, TryLater)},
    ),
    Operation(
        method="GET",
        path="/v1/conversations/{conversation_id}",
        handler=retrieve,
        answers={200: CONVERSATION, **refusals(Invalid, NotFound, TryLater)},
    ),
    Operation(
        method="PATCH",
        path="/v1/conversations/{conversation_id}",
        handler=update,
        bodies=[Body([UpdateConversationRequest])],
        is_body_required=True,
        answers={200: CONVERSATION, **refusals(Invalid, NotFound, TooSlow, TooLarge, Packed, TryLater)},
    ),
    Operation(
        method="DELETE",
        path="/v1/conversations/{conversation_id}",
        handler=delete,
        answers={200: NULL, **refusals(Invalid, NotFound, TryLater)},
    ),
    Operation(
        method="POST",
        path="/v1/conversations/{conversation_id}/stream",
        handler=stream,
        path_patterns=ANY_CONVERSATION,
        bodies=[Body([RetrieveStreamRequest])],
        answers={200: EVENTS, **refusals(Invalid, NotFound, Gone, TooSlow, TooLarge, Packed, TryLater)},
    ),
    Operation(
        method="POST",
        path="/v1/conversations/{conversation_id}/messages",
        handler=create_message,
        path_patterns=ANY_CONVERSATION,
        bodies=[Body([ConversationMessagesRequest])],
        is_body_required=True,
        answers={
            200: WHOLE_OR_EVENTS,
            **refusals(
                Invalid,
                NotFound,
                Busy,
                PendingApproval,
                Gone,
                TooSlow,
                Packed,
                TooLarge,
                TooLong,
                TryLater,
                RunFailed,
                PlatformRefused,
                PlatformFailed,
                PlatformSilent,
            ),
        },
    ),
    Operation(
        method="POST",
        path="/v1/conversations/{conversation_id}/cancel",
        handler=cancel,
        path_patterns=ANY_CONVERSATION,
        query=OfAgent,
        answers={
            200: CANCELLED,
            **refusals(Invalid, NotFound, Busy, TryLater, PlatformRefused, PlatformFailed, PlatformSilent),
        },
    ),
]
