"""Conversations as a client names them: made, found, changed and deleted in the index; those of a platform are its own.

A conversation of the platform's gets a record when it is used. With it, it is like any other: claimed by one run at a
time, found by resumes and cancels, and not asked for again.
"""

from __future__ import annotations

import asyncio
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import msgspec
import structlog
from aiohttp import hdrs

from runstream.broker.errors import BrokerError
from runstream.gateway.errors import ApiError, NotFound, PlatformFailed, PlatformRefused, PlatformSilent
from runstream.gateway.upstream import whole
from runstream.schemas import (
    ConversationRecord,
    UpdateConversationRequest,
    is_agent_id,
    is_conversation_id,
    new_conversation_id,
    timestamp,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from runstream.broker.auth.principal import Principal
    from runstream.broker.bucket import Stored
    from runstream.broker.index import Index
    from runstream.broker.leaders import Leaders
    from runstream.gateway.upstream import Upstream
    from runstream.schemas import CreateConversationRequest, RunRecord

__all__ = ["Conversations"]

log = structlog.get_logger(__name__)

PLATFORM_SECONDS: Final = 10.0
"""How long the platform may take to tell of a conversation: its client waits for headers meanwhile."""
SUCCESS: Final = range(200, 300)
CANCEL_SECONDS: Final = 3.0
"""How long it may take to hear of a cancel: what runstream knows has ended by then."""
ASKED: Final = {"Accept": "application/json", "Accept-Encoding": "identity"}
UPDATABLE: Final = frozenset(UpdateConversationRequest.model_fields)
CONVERSATION_BYTES: Final = 2**20
"""As much as a conversation may have to say of itself."""


class Conversations:
    """All conversations that `who` may reach. `upstream` None: there are no others than those of the index.

    Every call may raise `Unavailable`; then nothing was stored.
    """

    def __init__(self, index: Index, upstream: Upstream | None, leaders: Leaders, who: Principal) -> None:
        self._index = index
        self._leaders = leaders
        self._who = who
        self._upstream = upstream

    async def existing(self, conversation_id: str, said: Mapping[str, str]) -> ConversationRecord:
        """Return a conversation's record; one that the platform alone has gets one, for who may have it so.

        `said`: the headers of the client that asks. Raises `NotFound`, `PlatformRefused`, `PlatformFailed`; then
        nothing was stored.
        """
        tenant, upstream = self._who.tenant, self._upstream
        stored = await self._index.conversation(tenant, conversation_id)
        is_askable = is_conversation_id(conversation_id) and self._who.may_adopt(conversation_id)
        if stored is None and upstream is not None and is_askable:
            agent_id = await self._agent_of(upstream, conversation_id, said)
            found = ConversationRecord(tenant=tenant, id=conversation_id, agent_id=agent_id)
            if not self._who.reaches_conversation(found):
                raise NotFound.conversation(conversation_id)
            await self._index.create_conversation(found)
            stored = await self._index.conversation(tenant, conversation_id)
        try:
            return self._reached(conversation_id, stored)
        except NotFound:
            return await self._leaders.again(partial(self._found, conversation_id), NotFound)

    async def _found(self, conversation_id: str) -> ConversationRecord:
        return self._reached(conversation_id, await self._index.conversation(self._who.tenant, conversation_id))

    def _reached(self, conversation_id: str, stored: Stored[ConversationRecord] | None) -> ConversationRecord:
        if stored is None or stored.value.deleted or not self._who.reaches_conversation(stored.value):
            raise NotFound.conversation(conversation_id)
        return stored.value

    async def create(self, agent_id: str, wanted: CreateConversationRequest) -> ConversationRecord:
        """Make a conversation of an agent's. Raises `Forbidden`."""
        self._who.check_making(agent_id)
        record = ConversationRecord(
            tenant=self._who.tenant,
            id=new_conversation_id(),
            agent_id=agent_id,
            summary=wanted.summary,
            description=wanted.description,
            model=wanted.model,
            model_settings=wanted.model_settings,
            context_window_limit=wanted.context_window_limit,
            extra=wanted.unknown,
        )
        await self._index.create_conversation(record)
        return record

    async def update(self, conversation_id: str, wanted: UpdateConversationRequest) -> ConversationRecord:
        """Change what was sent, and no more; returns the conversation as it is then. Raises `NotFound`."""
        return await self._changed(conversation_id, lambda found: _updated(found, wanted))

    async def delete(self, conversation_id: str) -> None:
        """Mark a conversation as deleted: it is found no more. Raises `NotFound`."""
        await self._changed(conversation_id, _deleted)

    async def platform_answered(self, method: str, path: str, status: int) -> None:
        """Take note of what the platform has answered to what was passed on: what it has deleted is deleted here.

        It has done so whether or not that can be stored here; if not, it refuses the next run itself.
        """
        room, _, conversation_id = path.rpartition("/")
        has_deleted = (method, room) == (hdrs.METH_DELETE, "/v1/conversations") and status in SUCCESS
        if not has_deleted or not is_conversation_id(conversation_id):
            return
        try:
            await self.delete(conversation_id)
        except NotFound:
            return  # It was never used here, or is deleted already.
        except BrokerError as error:
            log.warning("deletion_not_noted", conversation_id=conversation_id, error=str(error))

    async def stop_waiting(self, run: RunRecord, said: Mapping[str, str]) -> None:
        """Tell the platform that nobody will answer what a run of one of its conversations has asked for.

        What it makes of that is its own affair. It is not told of a run outside of conversations: what it could be told
        there would end other runs of the agent.
        """
        if self._upstream is None or run.conversation_id is None:
            return
        path = f"{_path(run.conversation_id)}/cancel"
        try:
            async with (
                asyncio.timeout(CANCEL_SECONDS),
                self._upstream.ask("POST", path, headers={}, who=said) as answer,
            ):
                log.info("upstream_cancelled", run_id=run.id, status=answer.status)
        except (ApiError, TimeoutError) as error:
            log.warning("upstream_not_cancelled", run_id=run.id, error=str(error) or type(error).__name__)

    async def _changed(
        self, conversation_id: str, change: Callable[[ConversationRecord], ConversationRecord]
    ) -> ConversationRecord:
        def changed(found: ConversationRecord) -> ConversationRecord:
            if not self._who.reaches_conversation(found):
                raise NotFound.conversation(conversation_id)
            return change(found)

        async def once() -> ConversationRecord:
            record = await self._index.update_conversation(self._who.tenant, conversation_id, changed)
            if record is None:
                raise NotFound.conversation(conversation_id)
            return record

        return await self._leaders.sure(once, NotFound)

    async def _agent_of(self, upstream: Upstream, conversation_id: str, said: Mapping[str, str]) -> str:
        """Ask the platform whose a conversation is."""
        try:
            async with (
                asyncio.timeout(PLATFORM_SECONDS),
                upstream.ask("GET", _path(conversation_id), headers=ASKED, who=said) as answer,
            ):
                status = answer.status
                told = await whole(answer, CONVERSATION_BYTES)
        except TimeoutError as error:
            detail = f"The platform has not answered within {PLATFORM_SECONDS:g} s."
            raise PlatformSilent(detail, should_retry=True) from error
        if status == HTTPStatus.NOT_FOUND:
            raise NotFound.conversation(conversation_id)
        body = _object(told)
        if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
            raise PlatformRefused(status, body)
        agent_id = body.get("agent_id")
        if status != HTTPStatus.OK or not isinstance(agent_id, str) or not is_agent_id(agent_id):
            raise PlatformFailed(
                f"The platform was asked whose conversation this is, and its answer ({status}) does not say.",
                should_retry=True,
            )
        return agent_id


def _deleted(found: ConversationRecord) -> ConversationRecord:
    return msgspec.structs.replace(found, deleted=True, updated_at=timestamp())


def _updated(found: ConversationRecord, wanted: UpdateConversationRequest) -> ConversationRecord:
    """Change what the client sent, known fields and others; what it did not send stays."""
    now = timestamp()
    sent: dict[str, Any] = {name: getattr(wanted, name) for name in wanted.model_fields_set & UPDATABLE}
    if "last_message_at" in sent and wanted.last_message_at is not None:
        sent["last_message_at"] = timestamp(wanted.last_message_at)
    if "archived" in sent:
        sent["archived_at"] = (found.archived_at or now) if wanted.archived else None
    return msgspec.structs.replace(found, **sent, extra={**found.extra, **wanted.unknown}, updated_at=now)


def _path(conversation_id: str) -> str:
    return f"/v1/conversations/{quote(conversation_id, safe='')}"


def _object(said: bytes) -> dict[str, Any]:
    """Read a JSON object; what is none is its own detail."""
    try:
        body = msgspec.json.decode(said)
    except (msgspec.MsgspecError, RecursionError):
        body = None
    return body if isinstance(body, dict) else {"detail": said.decode(errors="replace")}
