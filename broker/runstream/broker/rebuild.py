"""The log is the truth: writes what the index lacks of the runs whose logs are there, and ends what has ended.

What is there stays: a key is written where there is none, and every write is refused if somebody else was faster.
So runs may be started, written and ended meanwhile, by others who know more; several processes may do the same work;
and whoever is stopped begins again. What surveys the logs, and what they cannot tell, is in `survey.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from runstream.broker.bucket import Stored
from runstream.broker.ending import ended
from runstream.broker.errors import Broken
from runstream.broker.keys import agent_key, approval_key, claim_key, conversation_key, lease_key, otid_key, run_key
from runstream.broker.log import last_of
from runstream.broker.logs import get_logger
from runstream.broker.survey import each, is_sealed, outcome_of, stored_at, survey
from runstream.schemas import (
    ConversationRecord,
    InvalidRecord,
    completion_timestamp,
    decode_conversation,
    decode_run,
    encode_conversation,
    encode_run,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runstream.broker.index import Index
    from runstream.broker.jetstream import JetStream
    from runstream.broker.messages import StoredMessage
    from runstream.broker.survey import LoggedRun
    from runstream.schemas import RunRecord

__all__ = ["Rebuilt", "rebuild"]

log = get_logger(__name__)

APPROVALS = "approval."


class Rebuilt(msgspec.Struct):
    """What a rebuild found and did."""

    logs: int = 0
    """Logs that tell their run."""
    records: int = 0
    """Records that were absent, and are there now."""
    ended: int = 0
    """Records that said a run goes on whose log has its end."""
    leases: int = 0
    """Leases of runs without an end, that were absent."""
    conversations: int = 0
    """Conversations that were absent, or did not know the run that goes on in them."""
    lookups: int = 0
    """Keys of requests, otids, agents and requests for approval that were absent."""
    expired: int = 0
    """Logs that tell nothing, because retention has removed their beginning."""
    unreadable: int = 0
    """Logs that do not begin as a run's does, and runs whose record, or whose conversation's, cannot be read."""


async def rebuild(jetstream: JetStream, index: Index) -> Rebuilt:
    """Write what the index lacks; returns what was done. Raises `Unavailable`, `StoreRefused`: then begin again."""
    found = await survey(jetstream)
    # The youngest first: of several runs of one conversation, agent or otid it is the one that the index names.
    runs = sorted(found.runs, key=lambda run: (run.known.created_at, run.first_seq), reverse=True)
    rebuilding = _Rebuilding(jetstream, index, runs)
    rebuilding.done.expired = found.expired
    rebuilding.done.unreadable = found.unreadable
    await rebuilding.run()
    log.info("index_rebuilt", **msgspec.structs.asdict(rebuilding.done))
    return rebuilding.done


class _Rebuilding:
    """One rebuild. Records come first: what names a run is of use once the run is there."""

    def __init__(self, jetstream: JetStream, index: Index, runs: list[LoggedRun]) -> None:
        self.done = Rebuilt(logs=len(runs))
        self._jetstream = jetstream
        self._index = index
        self._runs = runs
        self._conversations = _conversations(runs)
        self._lookups = _lookups(runs)

    async def run(self) -> None:
        await each(self._runs, self._restore_run)
        await each(self._conversations.values(), self._restore_conversation)
        await each(self._lookups.items(), self._restore_lookup)

    async def _restore_run(self, run: LoggedRun) -> None:
        try:
            if not is_sealed(run.last):
                await self._index.persist(lambda: self._restore_live(run))
            else:
                await self._index.persist(lambda: self._restore_ended(run, run.last))
        except (InvalidRecord, Broken) as error:
            # One that nobody can read is for people to look at; the others must not wait for that.
            self.done.unreadable += 1
            log.warning("record_unreadable", run_id=run.id, error=str(error))

    async def _restore_ended(self, run: LoggedRun, end: StoredMessage) -> None:
        key = run_key(run.known.tenant, run.id)
        stored = await self._index.stored(key)
        record = None if stored.value is None else decode_run(stored.value)
        if record is not None and record.is_terminal:
            return
        if await self._jetstream.last_message(run.address.stream, run.address.subject) is None:
            return  # Removed since the logs were surveyed, by a client or by retention.
        outcome = await outcome_of(self._jetstream, run.address, end)
        if record is None:
            restored = run.record(end, outcome)
            await self._index.write({key: Stored(encode_run(restored), stored.revision)})
            self.done.records += 1
            return
        # With its request, and its conversation if it has that still.
        await self._index.release(ended(record, outcome, at=stored_at(end)))
        await self._index.forget(run.id)
        self.done.ended += 1
        log.warning("run_record_repaired", run_id=run.id, was=record.status, stop_reason=outcome.stop_reason)

    async def _restore_live(self, run: LoggedRun) -> None:
        """Write what is missing of a run that goes on, in one batch that excludes every other change of the run."""
        record_key, lease_at = run_key(run.known.tenant, run.id), lease_key(run.id)
        # Before the log: an end that comes after it is read changes these, and the batch is refused.
        lease = await self._index.stored(lease_at)
        stored = await self._index.stored(record_key)
        last = await last_of(self._jetstream, run.address)
        if last is None:
            return
        if is_sealed(last):
            await self._restore_ended(run, last)
            return
        record = run.record(last) if stored.value is None else decode_run(stored.value)
        changes: dict[str, Stored[bytes]] = {}
        if lease.value is None:
            # Whether its writer lives is for those to find out who watch leases; without one, nobody would.
            changes[lease_at] = Stored(run.known.tenant.encode(), lease.revision)
        taken = {} if record.is_terminal else await self._taken(record)
        changes |= taken
        if stored.value is None or taken:
            # Also when it is as it was: a release that has read the conversation as free must read it again.
            changes[record_key] = Stored(encode_run(record), stored.revision)
        if changes:
            await self._index.write(changes)
        self.done.leases += lease.value is None
        self.done.records += stored.value is None
        self.done.conversations += len(taken)

    async def _taken(self, record: RunRecord) -> dict[str, Stored[bytes]]:
        """Return the write that gives a run that goes on its conversation, unless another that goes on has it."""
        if record.holds is None:
            return {}
        key = conversation_key(record.tenant, record.holds)
        stored = await self._index.stored(key)
        found = self._conversations[key] if stored.value is None else decode_conversation(stored.value)
        if found.active_run == record.id:
            return {}
        if found.active_run is not None:
            holder = await self._index.run(record.tenant, found.active_run)
            if holder is not None and not holder.value.is_terminal:
                log.warning("conversation_held_by_another", run_id=record.id, holder=found.active_run)
                return {}
        taken = msgspec.structs.replace(found, active_run=record.id)
        if found.last_message_at is None or found.last_message_at <= record.created_at:
            taken = msgspec.structs.replace(taken, latest_run=record.id, last_message_at=record.created_at)
        return {key: Stored(encode_conversation(taken), stored.revision)}

    async def _restore_conversation(self, conversation: ConversationRecord) -> None:
        key = conversation_key(conversation.tenant, conversation.id)
        if await self._put_if_absent(key, encode_conversation(conversation)):
            self.done.conversations += 1

    async def _restore_lookup(self, lookup: tuple[str, str]) -> None:
        key, run_id = lookup
        # What was deleted was answered, or withdrawn: only where there never was anything has the index been lost.
        may_be_deleted = not key.startswith(APPROVALS)
        if await self._put_if_absent(key, run_id.encode(), may_be_deleted=may_be_deleted):
            self.done.lookups += 1

    async def _put_if_absent(self, key: str, value: bytes, *, may_be_deleted: bool = True) -> bool:
        async def attempt() -> bool:
            stored = await self._index.stored(key)
            if stored.value is not None or (stored.revision and not may_be_deleted):
                return False
            await self._index.write({key: Stored(value, stored.revision)})
            return True

        return await self._index.persist(attempt)


def _lookups(runs: Iterable[LoggedRun]) -> dict[str, str]:
    """Name, by their keys, the runs that requests, otids and agents lead to, and those that wait for approval.

    `runs` are the youngest first. Only the youngest of a conversation can wait: what came after it may have answered.
    """
    found: dict[str, str] = {}
    scopes: set[tuple[str, str]] = set()
    for run in runs:
        known = run.known
        if run.waits_for_approval and (known.tenant, run.scope) not in scopes:
            found[approval_key(known.tenant, run.scope)] = run.id
        scopes.add((known.tenant, run.scope))
        found.setdefault(agent_key(known.tenant, known.agent_id), run.id)
        if known.otids:
            found.setdefault(claim_key(known.tenant, run.scope, known.otids), run.id)
        for otid in known.otids:
            found.setdefault(otid_key(known.tenant, otid), run.id)
    return found


def _conversations(runs: Iterable[LoggedRun]) -> dict[str, ConversationRecord]:
    """Make, by their keys, the conversations that the runs, the youngest first, went on in; none of them is busy."""
    found: dict[str, ConversationRecord] = {}
    for run in runs:
        known = run.known
        if run.holds is None:
            continue
        key = conversation_key(known.tenant, run.holds)
        completed_at = completion_timestamp(stored_at(run.last)) if is_sealed(run.last) else None
        youngest = found.get(key)
        if youngest is None:
            found[key] = ConversationRecord(
                tenant=known.tenant,
                id=run.holds,
                agent_id=known.agent_id,
                created_at=known.created_at,
                updated_at=known.created_at,
                last_message_at=known.created_at,
                latest_run=run.id,
                last_run_completion=completed_at,
            )
        else:
            # The oldest run that is known is as near to its beginning as can be told.
            youngest.created_at = known.created_at
            youngest.last_run_completion = youngest.last_run_completion or completed_at
    return found
