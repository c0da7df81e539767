"""Starts a run for a client: claim, first message, queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog

from runstream.broker.ending import first_message
from runstream.broker.errors import BrokerError
from runstream.broker.publisher import Publisher
from runstream.broker.topology import LogAddress, shard_of
from runstream.gateway.errors import TryLater
from runstream.schemas import DEFAULT_TENANT, RunRecord, RunRequest, new_run_id

if TYPE_CHECKING:
    from runstream.broker.index import Claimed, Index
    from runstream.broker.jetstream import JetStream
    from runstream.broker.queue import WorkQueue
    from runstream.broker.settings import BrokerSettings
    from runstream.schemas import CreateMessagesRequest

__all__ = ["Starter"]

FIRST_MESSAGE_PATIENCE_SECONDS = 10.0
"""A client waits for its headers meanwhile."""

log = structlog.get_logger(__name__)


class Starter:
    """Turns a request for an answer into a run that a worker will execute."""

    def __init__(self, jetstream: JetStream, index: Index, queue: WorkQueue, settings: BrokerSettings) -> None:
        self._jetstream = jetstream
        self._index = index
        self._queue = queue
        self._settings = settings

    async def start(
        self,
        wanted: CreateMessagesRequest,
        body: dict[str, Any],
        *,
        agent_id: str,
        conversation_id: str | None,
        run_type: str,
    ) -> Claimed:
        """Start a run, or find the one this same request started before. Raises `Conflict`, `Unavailable`, `TryLater`.

        Once the claim is made a failure asks the client not to repeat the request: it would start a second run.
        """
        run_id = new_run_id()
        record = RunRecord(
            tenant=DEFAULT_TENANT,
            id=run_id,
            agent_id=agent_id,
            conversation_id=conversation_id,
            background=wanted.background,
            run_type=run_type,
            request_config=wanted.request_config,
            shard=shard_of(run_id, self._settings.shards),
            otids=wanted.client_otids,
        )
        request = RunRequest(
            tenant=record.tenant,
            run_id=run_id,
            agent_id=agent_id,
            conversation_id=conversation_id,
            background=wanted.background,
            include_return_message_types=record.request_config.include_return_message_types,
            body=body,
        )
        claimed = await self._index.claim(record, request)
        if claimed.is_new:
            try:
                await self._hand_over(record)
            except BrokerError as error:
                log.warning("run_not_enqueued", run_id=run_id, error=str(error))
                raise TryLater(
                    f"Run {run_id} was claimed, but the store went away before it could be handed to a worker.",
                    run_id=run_id,
                ) from error
        return claimed

    async def _hand_over(self, record: RunRecord) -> None:
        """Store the log's first message, then enqueue: a worker that takes the run finds its log begun."""
        address = LogAddress(record.id, record.shard)
        publisher = Publisher(self._jetstream, address, self._settings, patience_seconds=FIRST_MESSAGE_PATIENCE_SECONDS)
        async with publisher:
            await publisher.publish_marked(first_message(record))
        await self._queue.put(record.tenant, record.id)
