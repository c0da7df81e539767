"""Conversations: the record the index keeps of one, and how a client sees it."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from runstream.schemas.errors import InvalidRecord
from runstream.schemas.ids import DEFAULT_TENANT, DEFAULT_USER_ID
from runstream.schemas.runs import timestamp

__all__ = ["ConversationRecord", "decode_conversation", "encode_conversation"]


class ConversationRecord(msgspec.Struct, kw_only=True):
    """One conversation, as the index keeps it: what clients read and set, and the runs that go on in it."""

    v: int = 1
    tenant: str = DEFAULT_TENANT
    id: str
    agent_id: str
    created_at: str = msgspec.field(default_factory=timestamp)
    updated_at: str = msgspec.field(default_factory=timestamp)
    summary: str | None = None
    description: str | None = None
    model: str | None = None
    model_settings: Any = None
    in_context_message_ids: list[str] | None = msgspec.field(default_factory=list)
    isolated_block_ids: list[str] = msgspec.field(default_factory=list)
    archived: bool | None = None
    archived_at: str | None = None
    context_window_limit: int | None = None
    last_message_at: str | None = None
    created_by_id: str | None = DEFAULT_USER_ID
    last_updated_by_id: str | None = DEFAULT_USER_ID
    extra: dict[str, Any] = msgspec.field(default_factory=dict)
    """What a client sent that runstream has no use for, kept for it."""
    deleted: bool = False
    """Deleted conversations answer 404; the record stays, so that the id is not taken for a new one."""
    active_run: str | None = None
    """The run that holds the conversation: while there is one, another is refused."""
    latest_run: str | None = None
    """The run that held it last, for clients that come back just after its end."""
    last_run_completion: str | None = None
    """When that, or an earlier one, came to its end: what lists may be ordered by."""

    def to_wire(self) -> dict[str, Any]:
        """The Conversation object clients get, ready to be encoded as JSON.

        The open-source server's keys in its order, then the ones the hosted service added, then what the
        client sent beyond both; an extra key never hides a known one.
        """
        wire = {
            "created_by_id": self.created_by_id,
            "last_updated_by_id": self.last_updated_by_id,
            "created_at": self.created_at,
            "updated_at": self.updated_at,
            "id": self.id,
            "agent_id": self.agent_id,
            "summary": self.summary,
            "in_context_message_ids": self.in_context_message_ids,
            "isolated_block_ids": self.isolated_block_ids,
            "model": self.model,
            "model_settings": self.model_settings,
            "last_message_at": self.last_message_at,
            "archived": self.archived,
            "archived_at": self.archived_at,
            "context_window_limit": self.context_window_limit,
            "description": self.description,
        }
        return wire | {key: value for key, value in self.extra.items() if key not in wire}


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(ConversationRecord)


def encode_conversation(record: ConversationRecord) -> bytes:
    """The record as the index stores it."""
    return _encoder.encode(record)


def decode_conversation(value: bytes) -> ConversationRecord:
    """Read a record back; keys of a newer writer are passed over. Raises InvalidRecord for anything else."""
    try:
        return _decoder.decode(value)
    except (ValueError, RecursionError) as error:
        raise InvalidRecord(f"This is not the record of a conversation: {error}") from error
