"""How a run is opened: the claim, and what a writer that is there already does before its first chunk.

A gateway claims for a worker. Who writes a run itself, the library's process or a writer at the ingest API, claims
without a request, so that no worker executes it, and begins it at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runstream.broker.ending import first_message
from runstream.broker.errors import Conflict
from runstream.broker.topology import shard_of
from runstream.schemas import RunRecord, check_otids, is_agent_id, is_conversation_id, new_run_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runstream.broker.index import Claimed, Index
    from runstream.broker.jetstream import JetStream
    from runstream.broker.publisher import Publisher
    from runstream.broker.repair import Repair
    from runstream.schemas import (
        RunRequest,
        Trace,
    )

__all__ = ["begin", "claim", "claim_to_write", "record_to_write"]


def record_to_write(
    *,
    tenant: str,
    agent_id: str,
    conversation_id: str | None,
    otids: Sequence[str],
    background: bool,
    run_type: str,
    shards: int,
) -> RunRecord:
    """Make the record of a run that its opener writes. Raises `ValueError` for ids and otids that are none."""
    if not is_agent_id(agent_id):
        raise ValueError(f"An agent's id is agent-<uuid4>, in lower case, and not {agent_id!r}.")
    if conversation_id is not None and not is_conversation_id(conversation_id):
        raise ValueError(
            f"A conversation's id is conv-<uuid4>, in lower case, or None for none, and not {conversation_id!r}."
        )
    sent = [otid for otid in otids if otid]
    check_otids(sent)
    run_id = new_run_id()
    return RunRecord(
        tenant=tenant,
        id=run_id,
        agent_id=agent_id,
        conversation_id=conversation_id,
        background=background,
        run_type=run_type,
        shard=shard_of(run_id, shards),
        otids=sent,
    )


async def claim(index: Index, repair: Repair, record: RunRecord, request: RunRequest | None) -> Claimed:
    """Claim a run, or find the one that this same request started. Raises as `Index.claim`."""
    try:
        return await index.claim(record, request)
    except Conflict as conflict:
        # Refused for a run that has ended, if its log is to be believed: then it is in nobody's way.
        if conflict.shares_otid or not await repair.ended(record.tenant, conflict.run_id):
            raise
    return await index.claim(record, request)


async def claim_to_write(index: Index, repair: Repair, record: RunRecord) -> None:
    """Claim a run for who writes it itself. Raises `Conflict` for a repeated request, too: a run has one writer."""
    claimed = await claim(index, repair, record, None)
    if not claimed.is_new:
        raise Conflict(run_id=claimed.record.id, otid=record.otids[0], shares_otid=True, is_repeated=True)


async def begin(
    jetstream: JetStream, index: Index, publisher: Publisher, record: RunRecord, *, trace: Trace | None = None
) -> RunRecord:
    """Begin a run that was claimed: its log's first message, unless it is there, and its record set to running."""
    address = publisher.address
    if publisher.next_index == 0:
        first_seq = await publisher.publish_marked(first_message(record, trace))
    else:
        first = await jetstream.first_message(address.stream, address.subject)
        first_seq = publisher.last_seq if first is None else first.seq
    # Whether this run answers a request for approval, or passes over it, is its platform's affair.
    answers = await index.waiting_for_approval(record.tenant, record.scope)
    return await index.begin(record, first_seq=first_seq, answers=answers)
