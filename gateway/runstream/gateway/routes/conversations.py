"""Conversations: made, listed, read, written to, and their active run resumed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runstream.broker.http_auth import PRINCIPAL
from runstream.broker.operations import Body, Operation
from runstream.gateway.admission import said_to_platform
from runstream.gateway.cancelling import cancel_run
from runstream.gateway.creating import OF_ANSWERS, create_and_answer
from runstream.gateway.described import CANCELLED, CONVERSATION, CONVERSATIONS, EVENTS, NULL, WHOLE_OR_EVENTS
from runstream.gateway.errors import (
    NOT_AGAIN,
    BadRequest,
    Busy,
    Gone,
    Invalid,
    NotFound,
    TryLater,
    refusals,
)
from runstream.gateway.resuming import resume_and_stream
from runstream.gateway.services import SERVICES, json_response, raw_json_response
from runstream.gateway.validation import OF_BODIES, body_of, conversation_path, query_of, strict_conversation_path
from runstream.schemas import (
    AGENT_PATH,
    CONVERSATION_PATH,
    DEFAULT_CONVERSATION,
    ConversationMessagesRequest,
    CreateConversationRequest,
    ListConversationsRequest,
    OfAgent,
    RetrieveStreamRequest,
    UpdateConversationRequest,
    is_agent_id,
    is_conversation_id,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from aiohttp import web

    from runstream.schemas import RunRecord

__all__ = ["operations"]


async def create(request: web.Request) -> web.Response:
    """`POST /v1/conversations/?agent_id=…`: make a conversation of an agent's. Every well-formed agent exists."""
    services = request.app[SERVICES]
    wanted, _ = await body_of(CreateConversationRequest, request, required=False)
    agent_id = request.query.get("agent_id") or wanted.agent_id
    if agent_id is None:
        raise Invalid([{"type": "missing", "loc": ("query", "agent_id"), "msg": "Field required", "input": None}])
    if not AGENT_PATH.matches(agent_id):
        raise BadRequest(f"Invalid agent ID format: {agent_id}. Expected format: 'agent-<uuid4>'")
    record = await services.conversations(request[PRINCIPAL]).create(agent_id, wanted)
    return json_response(record.to_wire())


async def list_conversations(request: web.Request) -> web.Response:
    """`GET /v1/conversations/`: a page of conversations, in the order of one of their times."""
    wanted = query_of(ListConversationsRequest, request)
    return raw_json_response(await request.app[SERVICES].lists(request[PRINCIPAL]).conversations(wanted))


async def retrieve(request: web.Request) -> web.Response:
    """`GET /v1/conversations/{conversation_id}`: read a conversation."""
    conversation_id = strict_conversation_path(request)
    conversations = request.app[SERVICES].conversations(request[PRINCIPAL])
    record = await conversations.existing(conversation_id, said_to_platform(request))
    return json_response(record.to_wire())


async def update(request: web.Request) -> web.Response:
    """`PATCH /v1/conversations/{conversation_id}`: change the fields that are sent, and no others."""
    conversation_id = strict_conversation_path(request)
    wanted, _ = await body_of(UpdateConversationRequest, request, required=True)
    record = await request.app[SERVICES].conversations(request[PRINCIPAL]).update(conversation_id, wanted)
    return json_response(record.to_wire())


async def delete(request: web.Request) -> web.Response:
    """`DELETE /v1/conversations/{conversation_id}`: it is found no more; its runs are, and one that goes on goes on."""
    await request.app[SERVICES].conversations(request[PRINCIPAL]).delete(strict_conversation_path(request))
    return json_response(None)


def stream(request: web.Request) -> Awaitable[web.StreamResponse]:
    """`POST /v1/conversations/{conversation_id}/stream`: resume. The conversation's existence is not checked."""
    conversation_id = conversation_path(request)
    lookup = request.app[SERVICES].lookup(request[PRINCIPAL])
    return resume_and_stream(request, lambda wanted: lookup.of_stream(conversation_id, wanted))


async def create_message(request: web.Request) -> web.StreamResponse:
    """`POST /v1/conversations/{conversation_id}/messages`: say something, stream the answer or have it whole."""
    services = request.app[SERVICES]
    conversation_id = conversation_path(request)
    wanted, body = await body_of(ConversationMessagesRequest, request, required=True)
    agent_id, conversation = await _addressee(request, conversation_id, wanted)
    answering = create_and_answer(
        request,
        services,
        wanted,
        body,
        agent_id=agent_id,
        conversation_id=conversation,
        in_default=conversation is None,
        run_type="send_conversation_message",
    )
    del wanted, body  # What is held here is held as long as the stream.
    return await answering


async def cancel(request: web.Request) -> web.Response:
    """`POST /v1/conversations/{conversation_id}/cancel`: end what goes on in it. `?agent_id=` says whose default."""
    conversation_id = conversation_path(request)
    run = await _to_cancel(request, conversation_id)
    if run is None:
        raise Busy(f"CONFLICT: No active runs to cancel for conversation {conversation_id}", headers=NOT_AGAIN)
    await cancel_run(request, run)
    return json_response({run.id: "cancelled"})


async def _to_cancel(request: web.Request, conversation_id: str) -> RunRecord | None:
    services = request.app[SERVICES]
    if is_conversation_id(conversation_id):
        found = await services.conversations(request[PRINCIPAL]).existing(conversation_id, said_to_platform(request))
        return await services.lookup(request[PRINCIPAL]).to_cancel_in(found)
    agent_id = request.query.get("agent_id") if conversation_id == DEFAULT_CONVERSATION else conversation_id
    if agent_id is None or not is_agent_id(agent_id):
        raise NotFound("Conversation not found with id='default': agent_id in the query says whose, as agent-<uuid4>.")
    return await services.lookup(request[PRINCIPAL]).to_cancel_of_agent(agent_id)


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
    conversations = request.app[SERVICES].conversations(request[PRINCIPAL])
    found = await conversations.existing(conversation_id, said_to_platform(request))
    return found.agent_id, conversation_id


ANY_CONVERSATION = {"conversation_id": CONVERSATION_PATH}

operations = [
    Operation(
        method="POST",
        path="/v1/conversations/",
        handler=create,
        scope="runs:write",
        query=OfAgent,
        bodies=[Body([CreateConversationRequest])],
        answers={200: CONVERSATION, **refusals(*OF_BODIES, TryLater)},
    ),
    Operation(
        method="GET",
        path="/v1/conversations/",
        handler=list_conversations,
        scope="runs:read",
        query=ListConversationsRequest,
        answers={200: CONVERSATIONS, **refusals(Invalid, NotFound, TryLater)},
    ),
    Operation(
        method="GET",
        path="/v1/conversations/{conversation_id}",
        handler=retrieve,
        scope="runs:read",
        answers={200: CONVERSATION, **refusals(Invalid, NotFound, TryLater)},
    ),
    Operation(
        method="PATCH",
        path="/v1/conversations/{conversation_id}",
        handler=update,
        scope="runs:write",
        bodies=[Body([UpdateConversationRequest])],
        is_body_required=True,
        answers={200: CONVERSATION, **refusals(*OF_BODIES, NotFound, TryLater)},
    ),
    Operation(
        method="DELETE",
        path="/v1/conversations/{conversation_id}",
        handler=delete,
        scope="runs:write",
        answers={200: NULL, **refusals(Invalid, NotFound, TryLater)},
    ),
    Operation(
        method="POST",
        path="/v1/conversations/{conversation_id}/stream",
        handler=stream,
        scope="runs:read",
        path_patterns=ANY_CONVERSATION,
        bodies=[Body([RetrieveStreamRequest])],
        answers={200: EVENTS, **refusals(*OF_BODIES, NotFound, Gone, TryLater)},
    ),
    Operation(
        method="POST",
        path="/v1/conversations/{conversation_id}/messages",
        handler=create_message,
        scope="runs:write",
        path_patterns=ANY_CONVERSATION,
        bodies=[Body([ConversationMessagesRequest])],
        is_body_required=True,
        answers={
            200: WHOLE_OR_EVENTS,
            **refusals(*OF_ANSWERS, NotFound),
        },
    ),
    Operation(
        method="POST",
        path="/v1/conversations/{conversation_id}/cancel",
        handler=cancel,
        scope="runs:cancel",
        path_patterns=ANY_CONVERSATION,
        query=OfAgent,
        answers={
            200: CANCELLED,
            **refusals(Invalid, NotFound, Busy, TryLater),
        },
    ),
]
