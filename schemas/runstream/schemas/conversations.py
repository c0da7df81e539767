"""Conversations: the record the index keeps of one, and how a client sees it."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from runstream.schemas.ids import DEFAULT_TENANT, DEFAULT_USER_ID
from runstream.schemas.runs import check_version, timestamp, unreadable

__all__ = ["Conversation", "ConversationRecord", "decode_conversation", "encode_conversation"]


class Conversation(msgspec.Struct, kw_only=True):
    """One conversation, as clients get it: the open-source server's keys in its order, then the hosted service's.

    What a client put into it beyond these stands behind them.
    """

    created_by_id: str | None
    last_updated_by_id: str | None
    created_at: str
    updated_at: str
    id: str
    agent_id: str
    summary: str | None
    in_context_message_ids: list[str] | None
    isolated_block_ids: list[str]
    model: str | None
    model_settings: dict[str, Any] | None
    last_message_at: str | None
    archived: bool | None
    archived_at: str | None
    context_window_limit: int | None
    description: str | None


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
        """The `Conversation` that clients get, ready to be encoded; an extra key never hides a known one."""
        known = {name: getattr(self, name) for name in Conversation.__struct_fields__}
        return known | {key: value for key, value in self.extra.items() if key not in known}


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(ConversationRecord)


def encode_conversation(record: ConversationRecord) -> bytes:
    """The record as the index stores it."""
    return _encoder.encode(record)


def decode_conversation(value: bytes) -> ConversationRecord:
    """Read a record back; keys of a newer writer are passed over. Raises as `decode_run`."""
    try:
        record = _decoder.decode(value)
        check_version(record.v)
    except (ValueError, RecursionError) as error:
        raise unreadable(value, "the record of a conversation", error) from error
    return record
