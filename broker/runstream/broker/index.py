"""The index: who is running what. One KV bucket (`keys.py` names what is in it), read from its leader.

Written by compare-and-set. Which run there is, whose it is and how it ended also stands in the log; where the two
disagree, the log is right.

The claim's invariant: *of any number of simultaneous requests that are the same, or that want the same conversation,
exactly one starts a run.* The claim key, the otids, the conversation, the record, the request and the lease are
written in one atomic batch, each on the condition that it is as it was read (with them goes the agent's latest run, on
none); so a batch that wins excludes every other that read the same state, and a loser reads again and finds the winner.
A claim outlives its run: the same request, repeated after the end, is answered by the same run.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

import msgspec

from runstream.broker.bucket import Bucket, Put, Stored, persist
from runstream.broker.ending import ENDING_BYTES
from runstream.broker.errors import (
    BrokenRecord,
    Conflict,
    Contended,
    ConversationDeleted,
    ConversationTooLarge,
    Fenced,
    NotSent,
    NotStored,
    RecordTooLarge,
    Unavailable,
    Unsettled,
    WrongAgent,
    WrongLastSequence,
)
from runstream.broker.keys import (
    LEASE_SECONDS,
    agent_key,
    approval_key,
    cancel_key,
    claim_key,
    conversation_key,
    digest,
    is_token,
    lease_key,
    otid_key,
    pulse_key,
    request_key,
    run_key,
)
from runstream.broker.log import first_of, place_of
from runstream.broker.logs import get_logger
from runstream.broker.topology import INDEX_STREAM, LogAddress
from runstream.schemas import (
    REQUIRES_APPROVAL,
    ConversationRecord,
    InvalidRecord,
    RunRecord,
    RunRequest,
    decode_conversation,
    decode_run,
    decode_run_request,
    encode_conversation,
    encode_run,
    encode_run_request,
    is_run_id,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from runstream.broker.jetstream import JetStream
    from runstream.broker.messages import StoredMessage

__all__ = ["Claimed", "Index"]

log = get_logger(__name__)

T = TypeVar("T")

CLAIM_PATIENCE_SECONDS = 5.0
"""How long a claim is tried, and any other change that somebody waits for: shorter than a client's time-out, longer
than a leader's election mostly takes."""
SETTLING_SECONDS = 2.5
"""How long it is tried to find out what became of a claim whose answer was lost, on top of the patience: a client that
is told that nobody knows can neither repeat its request nor follow its run."""
UPDATE_PATIENCE_SECONDS = 60.0
"""How long a change to a run's record is tried: its writer has nothing better to do, and the run is not lost by it."""
PULSE_BYTES = 512
"""What a pulse grows by for a moment: more than any lease, with its headers, its subject and what is stored around it.
While there is no room for it nobody's lease counts as lapsed."""
CONVERSATION_SHARE = 4
"""A conversation may have a fourth of the server's `max_payload`, in bytes of its record, when a client makes it or
changes it: every run in it writes it twice, with what that adds, and a release that did not fit would leave the run
without an end. The rest is for servers that are given a smaller `max_payload` later."""


class Claimed(msgspec.Struct, frozen=True):
    """What a claim came to: the run that answers the request, and whether this claim started it."""

    record: RunRecord
    is_new: bool


def _decode_id(value: bytes) -> str:
    found = value.decode()
    if not is_run_id(found):
        raise InvalidRecord("This is not the id of a run.")
    return found


def decode_tenant(value: bytes) -> str:
    """Read whose run a lease, or a wish to cancel, is about. Raises `InvalidRecord`."""
    found = value.decode()
    if not is_token(found):
        raise InvalidRecord("This is not the name of a tenant.")
    return found


def _claim_key_of(record: RunRecord) -> str:
    return claim_key(record.tenant, record.scope, [*map(digest, record.otids)])


def _approval_key_of(record: RunRecord) -> str:
    return approval_key(record.tenant, record.scope)


class Index:
    """Questions to the index, and the few ways it changes. Every call raises `Unavailable`, and `BrokenRecord`.

    `patience_seconds`: how long a change is tried that somebody waits for, in place of `CLAIM_PATIENCE_SECONDS`.
    """

    def __init__(self, jetstream: JetStream, *, patience_seconds: float | None = None) -> None:
        self._jetstream = jetstream
        self._patience_seconds = CLAIM_PATIENCE_SECONDS if patience_seconds is None else patience_seconds
        self._bucket = Bucket(jetstream)

    # -- questions ----------------------------------------------------------------------------------------------

    async def run(self, tenant: str, run_id: str) -> Stored[RunRecord] | None:
        """Return a run's record."""
        return await self._bucket.get(run_key(tenant, run_id), decode_run)

    async def request(self, tenant: str, run_id: str) -> RunRequest | None:
        """Return what the run's agent is asked; None when the run has ended."""
        found = await self._bucket.get(request_key(tenant, run_id), decode_run_request)
        return None if found is None else found.value

    async def conversation(self, tenant: str, conversation_id: str) -> Stored[ConversationRecord] | None:
        """Return a conversation's record; an agent's id stands for its default conversation."""
        return await self._bucket.get(conversation_key(tenant, conversation_id), decode_conversation)

    async def run_with_otid(self, tenant: str, otid: str) -> Stored[RunRecord] | None:
        """Return the newest run that holds `otid`."""
        found = await self._bucket.get(otid_key(tenant, digest(otid)), _decode_id)
        return None if found is None else await self.run(tenant, found.value)

    async def claimed_run(self, record: RunRecord) -> RunRecord | None:
        """Return the run that answered the same request as `record` would, if there was one."""
        if not record.otids:
            return None
        found = await self._bucket.get(_claim_key_of(record), _decode_id)
        existing = None if found is None else await self.run(record.tenant, found.value)
        return None if existing is None else existing.value

    async def latest_run_of_agent(self, tenant: str, agent_id: str) -> Stored[RunRecord] | None:
        """Return the run that was last started for an agent, in whichever conversation."""
        found = await self._hint(agent_key(tenant, agent_id))
        return None if found is None else await self.run(tenant, found.value)

    async def _hint(self, key: str) -> Stored[str] | None:
        """Return the run that a key leads to which its next run overwrites: what cannot be read there leads nowhere."""
        try:
            return await self._bucket.get(key, _decode_id)
        except BrokenRecord:
            return None

    async def waiting_for_approval(self, tenant: str, scope: str) -> str | None:
        """Return the run that waits for approval in a conversation, or with an agent outside of one."""
        found = await self._hint(approval_key(tenant, scope))
        return None if found is None else found.value

    async def withdraw_approval(self, run: RunRecord) -> None:
        """Let a run wait for approval no longer: its conversation takes other messages again."""
        key = _approval_key_of(run)

        async def attempt() -> None:
            waiting = await self._hint(key)
            if waiting is not None and waiting.value == run.id:
                await self._bucket.write([Put(key, None, waiting.revision)])

        await persist(attempt, self._patience_seconds)

    # -- conversations ------------------------------------------------------------------------------------------

    async def create_conversation(self, record: ConversationRecord) -> None:
        """Write a new conversation; one that exists is left as it is. Raises `ConversationTooLarge`."""
        value = self._encoded(record)

        async def attempt() -> None:
            # Wrong last sequence: it is there, by an earlier try whose answer was lost; ids are not chosen twice.
            with contextlib.suppress(WrongLastSequence):
                await self._bucket.write([Put(conversation_key(record.tenant, record.id), value, 0)])

        await persist(attempt, self._patience_seconds)

    async def update_conversation(
        self, tenant: str, conversation_id: str, change: Callable[[ConversationRecord], ConversationRecord]
    ) -> ConversationRecord | None:
        """Change a conversation on the condition that it is as read; None if it is not there, or deleted.

        Raises `ConversationTooLarge` for one that would be, unless it gets smaller.
        """
        sent: ConversationRecord | None = None

        async def attempt() -> ConversationRecord | None:
            nonlocal sent
            stored = await self.conversation(tenant, conversation_id)
            if stored is None:
                return None
            if stored.value.deleted:
                # By the attempt before, if that was to delete it: then only the answer was lost.
                return sent if sent is not None and sent.deleted else None
            if stored.value == sent:
                return sent
            changed = change(stored.value)
            value = self._encoded(changed, instead_of=stored.value)
            try:
                await self._bucket.write([Put(conversation_key(tenant, conversation_id), value, stored.revision)])
            except Unavailable:
                sent = changed
                raise
            return changed

        return await persist(attempt, self._patience_seconds)

    def _encoded(self, record: ConversationRecord, *, instead_of: ConversationRecord | None = None) -> bytes:
        value = encode_conversation(record)
        limit = self._jetstream.connection.max_payload // CONVERSATION_SHARE
        if len(value) > limit and (instead_of is None or len(value) > len(encode_conversation(instead_of))):
            raise ConversationTooLarge(size=len(value), limit=limit)
        return value

    # -- the life of a run --------------------------------------------------------------------------------------

    async def claim(self, record: RunRecord, request: RunRequest | None) -> Claimed:
        """Start a run, or find the one that this same request started.

        `request` is what its agent is asked, None for a run whose writer is there already: no worker executes it.

        Raises `Conflict` when another run holds the conversation or one of the otids; `ConversationDeleted`;
        `WrongAgent`; `RecordTooLarge`, also when the record would leave no room for its end; `Unavailable` when surely
        nothing was stored; `Unsettled` when that could not be found out.
        """
        unsettled = False

        async def attempt() -> Claimed:
            nonlocal unsettled
            if unsettled and (found := await self.run(record.tenant, record.id)) is not None:
                return Claimed(found.value, is_new=True)
            try:
                claimed = await self._claim_once(record, request)
            except Unsettled:
                unsettled = True
                raise
            except Conflict as conflict:
                if unsettled and conflict.run_id == record.id:
                    return await attempt()  # A try before this one was carried out since its run was looked for.
                raise
            is_own = unsettled and claimed.record.id == record.id  # The same, found by its claim.
            return Claimed(claimed.record, is_new=claimed.is_new or is_own)

        try:
            claimed = await persist(attempt, self._patience_seconds)
        except Unavailable:
            if not unsettled:
                raise
            try:
                claimed = await persist(attempt, SETTLING_SECONDS)
            except Unavailable as error:
                raise Unsettled(run_id=record.id) from error
        return claimed

    async def _claim_once(self, record: RunRecord, request: RunRequest | None) -> Claimed:
        tenant, conversation_id = record.tenant, record.holds
        # The claim is read last and looked at first: a same request that wins in between holds the otids and the
        # conversation, and is to be found, not to be refused for.
        held = {otid: await self._bucket.get_any(otid_key(tenant, digest(otid))) for otid in record.otids}
        conversation = None if conversation_id is None else await self.conversation(tenant, conversation_id)
        puts: list[Put] = []
        if record.otids:
            key = _claim_key_of(record)
            claimed = await self._bucket.get_any(key)
            existing = None
            if claimed.value is not None:
                existing = await self.run(tenant, self._bucket.read(key, claimed.value, claimed.revision, _decode_id))
            if existing is not None:
                return Claimed(existing.value, is_new=False)
            puts.append(Put(key, record.id.encode(), claimed.revision))
        puts += [await self._take_otid(record, otid, found) for otid, found in held.items()]
        if conversation_id is not None:
            puts.append(await self._take_conversation(record, conversation_id, conversation))
        puts.append(Put(run_key(tenant, record.id), self._with_room(encode_run(record)), 0))
        if request is not None:
            puts.append(Put(request_key(tenant, record.id), encode_run_request(request), 0))
        puts.append(Put(lease_key(record.id), tenant.encode(), 0))
        # On no condition: an agent has parallel conversations, and each of their runs is its latest for a moment.
        puts.append(Put(agent_key(tenant, record.agent_id), record.id.encode()))
        if not record.otids and conversation_id is None:
            # Nothing was asked so far: whether NATS is there is found out, for the price of one more answer, before
            # anything is sent that may be stored.
            await self._bucket.get_any(run_key(tenant, record.id))
        if not self._jetstream.connection.is_connected:
            # What is sent now would wait for the next connection, and nobody could say any more that it was not stored.
            raise Unavailable("NATS is not connected.")
        try:
            await self._bucket.write(puts)
        except (Contended, NotSent):
            raise  # Surely not stored.
        except Unavailable as error:
            raise Unsettled(run_id=record.id) from error
        return Claimed(record, is_new=True)

    def _with_room(self, record: bytes) -> bytes:
        """Give back a run's record. Raises `RecordTooLarge` if it could not be written with the run's end in it."""
        limit = self._jetstream.connection.max_payload - ENDING_BYTES
        if len(record) > limit:
            raise RecordTooLarge(size=len(record), limit=limit)
        return record

    async def _take_otid(self, record: RunRecord, otid: str, held: Stored[bytes | None]) -> Put:
        """Return the write that gives `otid` to `record`; raises `Conflict` when another request's run holds it."""
        if held.value is not None:
            key = otid_key(record.tenant, digest(otid))
            run_id = self._bucket.read(key, held.value, held.revision, _decode_id)
            if await self.run(record.tenant, run_id) is not None:
                raise Conflict(run_id=run_id, otid=otid, shares_otid=True)
        return Put(otid_key(record.tenant, digest(otid)), record.id.encode(), held.revision)

    async def _take_conversation(
        self, record: RunRecord, conversation_id: str, stored: Stored[ConversationRecord] | None
    ) -> Put:
        """Return the write that makes `record` the conversation's active run; raises `Conflict` when it has one.

        Raises `ConversationDeleted`: whoever looked at it before may have been overtaken, and who writes runs himself
        does not look; `WrongAgent`.
        """
        if stored is None:
            found = ConversationRecord(tenant=record.tenant, id=conversation_id, agent_id=record.agent_id)
        else:
            found = stored.value
        if found.deleted:
            raise ConversationDeleted(conversation_id=conversation_id)
        if found.agent_id != record.agent_id:
            raise WrongAgent(conversation_id=conversation_id, agent_id=found.agent_id)
        if found.active_run is not None:
            try:
                holder = await self.run(record.tenant, found.active_run)
            except BrokenRecord as error:
                # As far as can be told it goes on: who is refused for it sees to it that a watchdog finds out.
                raise Conflict(run_id=found.active_run, otid=None, shares_otid=False) from error
            if holder is not None and not holder.value.is_terminal:
                otid = holder.value.otids[0] if holder.value.otids else None
                raise Conflict(run_id=found.active_run, otid=otid, shares_otid=False)
        taken = msgspec.structs.replace(
            found,
            active_run=record.id,
            latest_run=record.id,
            last_message_at=record.created_at,
            updated_at=record.created_at,
        )
        revision = 0 if stored is None else stored.revision
        return Put(conversation_key(record.tenant, conversation_id), encode_conversation(taken), revision)

    async def begin(self, run: RunRecord, *, first_seq: int, answers: str | None = None) -> RunRecord:
        """Mark a run as running, with the sequence of its log's first message; returns the record as it is now.

        `answers`: the run that waits for approval, which this one answers. Raises `Fenced` if the run was removed.
        """

        def begun(record: RunRecord) -> RunRecord:
            return msgspec.structs.replace(record, status="running", first_seq=first_seq, answers=answers)

        return await self._update_run(run, begun)

    async def release(self, ended: RunRecord) -> None:
        """Write the record of a run that has come to its end, and free its conversation, in one batch.

        The lease stays until the log has its end. Repeating it changes nothing. Raises `Fenced` if it was removed.
        """
        await self._update_run(ended, lambda _: ended)

    async def _update_run(self, run: RunRecord, change: Callable[[RunRecord], RunRecord]) -> RunRecord:
        """Write a changed record on the condition that it is as read; the record of an ended run stays as it is."""
        key = run_key(run.tenant, run.id)

        async def attempt() -> RunRecord:
            stored = await self._bucket.get_any(key)
            if stored.value is None and stored.revision and not await self._has_beginning(run):
                raise Fenced("It was removed.", run_id=run.id)
            # It was lost: the bucket was, or somebody deleted it who had no reason that the run's writer knows of.
            known = None if stored.value is None else self._as_stored(run, stored.value, stored.revision)
            current = known or run
            changed = current if current.is_terminal else change(current)
            puts: list[Put] = []
            if known is None or changed != current:
                puts.append(Put(key, encode_run(changed), stored.revision))
                if changed.is_terminal:
                    puts.append(Put(request_key(run.tenant, run.id), None))
                    puts += await self._settle_approval(changed)
            if changed.is_terminal:
                puts += await self._free_conversation(changed)
            if puts:
                await self._bucket.write(puts)
            if known is None:
                log.warning("record_written_anew", run_id=run.id, status=changed.status)
            return changed

        return await persist(attempt, UPDATE_PATIENCE_SECONDS)

    def _as_stored(self, run: RunRecord, value: bytes, revision: int) -> RunRecord | None:
        """Read a run's record; None for what cannot be read: what its writer knows of it is written in its place."""
        try:
            return self._bucket.read(run_key(run.tenant, run.id), value, revision, decode_run)
        except BrokenRecord as error:
            if error.is_newer:
                raise
            return None

    async def _has_beginning(self, run: RunRecord) -> bool:
        """Whether a run's log is there from its first message on: that of a run that was removed never is again."""
        address = LogAddress(run.id, run.shard)
        with contextlib.suppress(NotStored):
            first = await first_of(self._jetstream, address)
            return first is not None and place_of(first) == 0
        return False

    async def _settle_approval(self, ended: RunRecord) -> list[Put]:
        """Return the write that remembers that a run waits for approval, or forgets what it has answered."""
        key = _approval_key_of(ended)
        if ended.stop_reason == REQUIRES_APPROVAL:
            return [Put(key, ended.id.encode())]
        if ended.answers is None:
            return []
        waiting = await self._hint(key)
        return [Put(key, None, waiting.revision)] if waiting is not None and waiting.value == ended.answers else []

    async def _free_conversation(self, run: RunRecord) -> list[Put]:
        if run.holds is None:
            return []
        try:
            stored = await self.conversation(run.tenant, run.holds)
        except BrokenRecord:
            return []  # The run ends all the same.
        if stored is None or stored.value.active_run != run.id:
            return []
        freed = msgspec.structs.replace(stored.value, active_run=None, last_run_completion=run.completed_at)
        return [
            Put(
                conversation_key(run.tenant, run.holds),
                encode_conversation(freed),
                stored.revision,
            )
        ]

    async def remove_run(self, run: RunRecord) -> None:
        """Delete what is known of an ended run, in one batch: from then on nobody finds it, nor what it answered."""
        claims = [_claim_key_of(run), *(otid_key(run.tenant, digest(otid)) for otid in run.otids)] if run.otids else []
        names_it = [*claims, agent_key(run.tenant, run.agent_id), _approval_key_of(run)]

        async def attempt() -> None:
            held = {key: await self._bucket.get_any(key) for key in names_it}
            puts = [Put(key, None, found.revision) for key, found in held.items() if found.value == run.id.encode()]
            stored = await self._bucket.get_any(run_key(run.tenant, run.id))
            if stored.value is not None:
                puts.append(Put(run_key(run.tenant, run.id), None, stored.revision))
            if puts:
                await self._bucket.write(puts)

        await persist(attempt, self._patience_seconds)

    # -- leases and wishes to cancel ------------------------------------------------------------------------------

    async def lease(self, run_id: str) -> Stored[str] | None:
        """Return a run's lease: its tenant, and a revision that is another after each sign of life."""
        return await self._bucket.get(lease_key(run_id), decode_tenant)

    async def lease_revision(self, run_id: str) -> int | None:
        """Return the revision of a run's lease, whatever somebody has written there; None if there is none."""
        found = await self._bucket.get_any(lease_key(run_id))
        return None if found.value is None else found.revision

    async def renew_lease(self, tenant: str, run_id: str, revision: int, *, seconds: float | None = None) -> int:
        """Give a sign of life; returns the lease's new revision. Raises `WrongLastSequence` if it is not `revision`.

        `seconds`: how long the writer's lease is, where it may differ from the watchdogs' own; 0 lets it go.
        """
        headers = {} if seconds is None else {LEASE_SECONDS: f"{seconds:g}"}
        return await self._bucket.write([Put(lease_key(run_id), tenant.encode(), revision, headers)])

    async def restore_lease(self, tenant: str, run_id: str) -> int:
        """Give a run a lease that has none; returns the revision of the one it has then."""
        while True:
            lease = await self._bucket.get_any(lease_key(run_id))
            if lease.value is not None:
                return lease.revision
            with contextlib.suppress(WrongLastSequence):
                return await self.renew_lease(tenant, run_id, lease.revision)

    async def wish_cancelled(self, tenant: str, run_id: str) -> None:
        """Wish that a run end. Its writer hears of it at once, and a broker that its writer does not obey."""

        async def attempt() -> None:
            await self._bucket.write([Put(cancel_key(run_id), tenant.encode())])

        await persist(attempt, self._patience_seconds)

    async def cancel_wish(self, run_id: str) -> str | None:
        """Return the tenant of a run that somebody wishes to end, None when nobody does."""
        wish = await self._bucket.get(cancel_key(run_id), decode_tenant)
        return None if wish is None else wish.value

    async def is_wished_cancelled(self, run_id: str) -> bool:
        """Whether somebody wishes that a run end, whoever that is."""
        return (await self._bucket.get_any(cancel_key(run_id))).value is not None

    async def forget(self, run_id: str) -> None:
        """Delete what an ended run no longer needs: its lease, and its cancel key if there is one."""
        keys = [
            key
            for key in (lease_key(run_id), cancel_key(run_id))
            if (await self._bucket.get_any(key)).value is not None
        ]
        if keys:
            await self._bucket.write([Put(key, None) for key in keys])

    async def pulse(self, broker_id: str) -> int:
        """Write a broker's own key, to see that the index can be written; returns its revision.

        Raises `StoreFull` when there is no room for a lease: a bucket that is full still takes what is no larger than
        the value whose place it takes, which a pulse would be and a lease may not be. So it is made large first.
        """
        await self._bucket.write([Put(pulse_key(broker_id), b"." * PULSE_BYTES)])
        return await self._bucket.write([Put(pulse_key(broker_id), b"")])

    async def leases(self) -> dict[str, StoredMessage]:
        """List the runs that have a lease, with the message that renewed it last."""
        return await self._bucket.listed(lease_key("*"))

    async def cancel_wishes(self) -> list[str]:
        """List the runs that somebody wishes to end."""
        return [*await self._bucket.listed(cancel_key("*"))]

    async def newest_revision(self) -> int:
        """Return the revision of what was written last."""
        info = await self._jetstream.api(f"STREAM.INFO.{INDEX_STREAM}", None)
        return int(info["state"]["last_seq"])

    # -- keys, for who repairs them -----------------------------------------------------------------------------

    async def stored(self, key: str) -> Stored[bytes | None]:
        """Return a key's value (None: absent or deleted) with the revision that a write must expect."""
        return await self._bucket.get_any(key)

    async def write(self, changes: Mapping[str, Stored[bytes]]) -> None:
        """Write keys together, each if its revision is the one given. Raises `WrongLastSequence` if one's is not."""
        await self._bucket.write([Put(key, change.value, change.revision) for key, change in changes.items()])

    async def persist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeat what reads keys and then writes them, until nobody else's write and no outage comes in between."""
        return await persist(attempt, UPDATE_PATIENCE_SECONDS)
