"""Runs and conversations that are only records, as lists show them: nobody writes them, and nobody looks after them."""

from typing import Any

from runstream.broker.jetstream import JetStream
from runstream.broker.keys import conversation_key, run_key, subject_of
from runstream.schemas import (
    ConversationRecord,
    RunRecord,
    completion_timestamp,
    encode_conversation,
    encode_run,
    new_agent_id,
    new_conversation_id,
    new_run_id,
)


async def put_run(jetstream: JetStream, record: RunRecord | None = None, **facts: Any) -> RunRecord:
    """Store a run's record; one that has ended has done so well, unless told otherwise."""
    known: dict[str, Any] = {"id": new_run_id(), "agent_id": new_agent_id(), "shard": 0, "status": "completed"}
    if facts.get("status", "completed") == "completed":
        known |= {"stop_reason": "end_turn", "completed_at": completion_timestamp(), "total_duration_ns": 1}
    found = record or RunRecord(**{**known, **facts})
    await jetstream.publish(subject_of(run_key(found.tenant, found.id)), encode_run(found), {})
    return found


async def put_conversation(
    jetstream: JetStream, record: ConversationRecord | None = None, **facts: Any
) -> ConversationRecord:
    """Store a conversation's record."""
    known: dict[str, Any] = {"id": new_conversation_id(), "agent_id": new_agent_id()}
    found = record or ConversationRecord(**{**known, **facts})
    await jetstream.publish(subject_of(conversation_key(found.tenant, found.id)), encode_conversation(found), {})
    return found
