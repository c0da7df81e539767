"""Starts a run for a client: is there a worker, claim, first message, queue."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from runstream.broker.ending import first_message
from runstream.broker.errors import BrokerError, Fenced, LimitReached, StoreFull, Unsettled
from runstream.broker.hops import MOST_HOPS, hops_in
from runstream.broker.index import Claimed
from runstream.broker.opening import claim
from runstream.broker.publisher import Publisher
from runstream.broker.tasks import Shielded
from runstream.broker.topology import LogAddress, shard_of
from runstream.gateway.credentials import Credentials
from runstream.gateway.errors import Loop, TryLater
from runstream.schemas import RunRecord, RunRequest, new_run_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runstream.broker.auth.principal import Principal
    from runstream.broker.index import Index
    from runstream.broker.jetstream import JetStream
    from runstream.broker.limits.limiter import Limits
    from runstream.broker.queue import WorkQueue
    from runstream.broker.repair import Repair
    from runstream.broker.settings import BrokerSettings
    from runstream.gateway.presence import AgentPresence
    from runstream.schemas import CreateMessagesRequest, Trace

__all__ = ["Starter"]

CLOSE_SECONDS = 5.0
"""How long runs that are being started are waited for at the end: what is left of one a watchdog does."""
FIRST_MESSAGE_PATIENCE_SECONDS = 10.0
"""How long it is tried to begin a run's log, whoever has been told meanwhile to resume it: a watchdog does it after."""

log = structlog.get_logger(__name__)


class Starter:
    """Turns a request for an answer into a run that a worker will execute."""

    def __init__(
        self,
        jetstream: JetStream,
        settings: BrokerSettings,
        *,
        index: Index,
        queue: WorkQueue,
        presence: AgentPresence,
        repair: Repair,
        limits: Limits,
        patience_seconds: float,
        always_background: bool = False,
    ) -> None:
        self._jetstream = jetstream
        self._index = index
        self._queue = queue
        self._presence = presence
        self._repair = repair
        self._limits = limits
        self._patience_seconds = patience_seconds
        self._always_background = always_background
        self._credentials = Credentials(jetstream.connection)
        self._settings = settings
        self._starting = Shielded()

    async def close(self) -> None:
        """Wait for the runs that are being started: whoever asked for them may have left."""
        await self._starting.close(CLOSE_SECONDS)
        self._credentials.close()

    async def start(
        self,
        wanted: CreateMessagesRequest,
        body: dict[str, Any],
        *,
        who: Principal,
        headers: Mapping[str, str],
        trace: Trace | None = None,
        agent_id: str,
        conversation_id: str | None,
        in_default: bool = False,
        run_type: str,
    ) -> Claimed:
        """Start a run, or find the one this same request started before.

        Of `headers` are stored the runs that the request came by, and nothing else: an agent that wants the client's
        credentials finds them with this gateway. Raises `Forbidden`, `LimitReached`, `Conflict`, `Unavailable`,
        `TryLater`, `Loop`, and `BadRequest` for credentials that are no text. Once the claim is made a failure asks the
        client not to repeat the request: it would start a second run. A client that leaves meanwhile cancels its
        request and not the start: a run that was claimed and never enqueued would hold its conversation.
        """
        who.check_opening(agent_id, conversation_id)
        run_id = new_run_id()
        record = RunRecord(
            tenant=who.tenant,
            id=run_id,
            agent_id=agent_id,
            conversation_id=conversation_id,
            in_default=in_default,
            background=wanted.background or self._always_background,
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
            background=record.background,
            include_return_message_types=record.request_config.include_return_message_types,
            body=body,
            traceparent=None if trace is None else trace.parent,
            tracestate=None if trace is None else trace.state,
            hops=hops_in(headers) or None,
        )
        return await self._starting.do(self._start(who, record, request, headers), name=f"start-{run_id}")

    async def _start(
        self, who: Principal, record: RunRecord, request: RunRequest, headers: Mapping[str, str]
    ) -> Claimed:
        await self._check_hops(request)
        presence = await self._presence.find()
        if presence is None:
            existing = await self._index.claimed_run(record)
            if existing is None:
                raise TryLater("No agent is configured.")
            return Claimed(existing, is_new=False)
        if presence.forwards_credentials:
            asked_at = await self._credentials.keep(record.id, headers)
            request = msgspec.structs.replace(request, credentials_from=asked_at)
        try:
            claimed = await self._claimed(who, record, request)
        except Unsettled:
            raise  # There may be a run that asks for its credentials.
        except BrokerError:
            self._credentials.drop(record.id)
            raise
        if not claimed.is_new:
            self._credentials.drop(record.id)
            return claimed
        try:
            async with asyncio.timeout(self._patience_seconds):
                await self._starting.do(self._hand_over(record, request.trace), name=f"hand-over-{record.id}")
        except StoreFull as error:
            raise TryLater(
                f"Run {record.id} was claimed, but the store is full: it begins once an operator has made room. Do not "
                "send the message again: resume it.",
                run_id=record.id,
            ) from error
        except (BrokerError, TimeoutError) as error:
            raise TryLater(
                f"Run {record.id} was claimed, but the store went away before it could be handed to a worker.",
                run_id=record.id,
            ) from error
        return claimed

    async def _claimed(self, who: Principal, record: RunRecord, request: RunRequest) -> Claimed:
        """Claim a run: one more of those that `who` may start in a minute, if it is a new one."""
        try:
            self._limits.take_run(who)
        except LimitReached:
            # The same request again starts nothing.
            existing = await self._index.claimed_run(record)
            if existing is None:
                raise
            return Claimed(existing, is_new=False)
        try:
            claimed = await claim(self._index, self._repair, record, request)
        except Unsettled:
            raise  # There may be a run.
        except BrokerError:
            self._limits.put_run_back(who)
            raise
        if not claimed.is_new:
            self._limits.put_run_back(who)
        return claimed

    async def _check_hops(self, request: RunRequest) -> None:
        """Raise `Loop` if the request comes from the agent of a run that is here, by however many others.

        Looked for where its tenant's runs are: of another's nobody is told, and a circle meets its own the next time.
        """
        hops = request.hops or ()
        if len(hops) >= MOST_HOPS:
            raise Loop(f"The request has come by {len(hops)} runs: an operator has to see where the agents lead.")
        for run_id in hops:
            if await self._index.run(request.tenant, run_id) is not None:
                raise Loop("The agent's address leads back to this runstream: an operator has to correct it.")

    async def _hand_over(self, record: RunRecord, trace: Trace | None) -> None:
        """Store the log's first message, then enqueue: a worker that takes the run finds its log begun."""
        address = LogAddress(record.id, record.shard)
        publisher = Publisher(self._jetstream, address, self._settings, patience_seconds=FIRST_MESSAGE_PATIENCE_SECONDS)
        try:
            async with publisher:
                # Fenced: a broker was faster, and has begun the log, or ended it for a client that cancelled the run.
                with contextlib.suppress(Fenced):
                    await publisher.publish_marked(first_message(record, trace))
            await self._queue.put(record.tenant, record.id, trace)
        except BrokerError as error:
            log.warning("run_not_enqueued", run_id=record.id, error=str(error))
            raise
