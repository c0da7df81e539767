"""What the logs say of their runs: enough to tell of each what the index must know.

A log's first message names the run (`Rs-Run`), its last one whether and how it has ended. What stands only in the
index cannot be told: the text of otids (a log has their digests), the request, what a client set in a conversation.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import msgspec

from runstream.broker.ending import Outcome, ended, told
from runstream.broker.errors import BrokenLog, Unavailable
from runstream.broker.log import ENDING, RUN, before_strangers, first_of, kind_of, last_of, place_of
from runstream.broker.logs import get_logger
from runstream.broker.tasks import cancel_all
from runstream.broker.topology import LogAddress, log_streams
from runstream.schemas import REQUIRES_APPROVAL, Kind, RunRecord, status_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from runstream.broker.jetstream import JetStream
    from runstream.broker.messages import StoredMessage

__all__ = ["LoggedRun", "Survey", "each", "is_sealed", "logged_run", "outcome_of", "survey"]

T = TypeVar("T")

log = get_logger(__name__)

QUESTIONS_AT_ONCE = 32
"""More are not answered faster by one server (measured: 7,500 a second), and brokers and gateways ask it, too."""


class _Known(msgspec.Struct, kw_only=True):
    """`Rs-Run`, as `ending.first_message` writes it."""

    v: int
    tenant: str
    agent_id: str
    conversation_id: str | None
    in_default: bool
    otids: list[str]
    background: bool
    run_type: str
    created_at: str


class LoggedRun(msgspec.Struct, frozen=True):
    """One run as its log knows it. `last` is the log's last message, without its body."""

    address: LogAddress
    known: _Known
    first_seq: int
    last: StoredMessage

    @property
    def id(self) -> str:
        """The run's id."""
        return self.address.run_id

    @property
    def scope(self) -> str:
        """What its otids and its request for approval are particular to."""
        return self.known.conversation_id or self.known.agent_id

    @property
    def holds(self) -> str | None:
        """The conversation that it was, or is, in: the agent's id stands for its default one."""
        return self.known.conversation_id or (self.known.agent_id if self.known.in_default else None)

    @property
    def waits_for_approval(self) -> bool:
        """Whether it ended with a request for approval."""
        return self.last.headers.get(ENDING) == REQUIRES_APPROVAL

    def record(self, last: StoredMessage, outcome: Outcome | None = None) -> RunRecord:
        """Make the record of a run whose log's last message is `last`; `outcome`: what the run came to with it."""
        known = self.known
        is_begun = kind_of(last) is not Kind.PING
        record = RunRecord(
            v=known.v,
            tenant=known.tenant,
            id=self.id,
            status="running" if is_begun else "created",
            created_at=known.created_at,
            agent_id=known.agent_id,
            conversation_id=known.conversation_id,
            in_default=known.in_default,
            background=known.background,
            run_type=known.run_type,
            shard=self.address.shard,
            first_seq=self.first_seq if is_begun else None,
        )
        return record if outcome is None else ended(record, outcome, at=stored_at(last))


class Survey(msgspec.Struct):
    """All logs there are: those that tell their run, and how many do not."""

    runs: list[LoggedRun] = msgspec.field(default_factory=list)
    expired: int = 0
    """Logs whose first message retention has removed."""
    unreadable: int = 0
    """Logs whose first message is not as a run's is."""


async def survey(jetstream: JetStream) -> Survey:
    """Read the first and the last message of every log. Raises `Unavailable`.

    A log that is begun or goes on meanwhile may be missing, or be further than it is said to be.
    """
    found = Survey()

    async def look(last: StoredMessage) -> None:
        shard, run_id = last.subject.split(".")[1:]
        address = LogAddress(run_id, int(shard))
        try:
            newest = await before_strangers(jetstream, address, last)
            if newest is None:
                raise BrokenLog("It has only somebody else's messages.")
            run = await _logged_run(jetstream, address, newest)
        except (BrokenLog, KeyError, ValueError, msgspec.MsgspecError) as error:
            found.unreadable += 1
            log.warning("log_unreadable", run_id=run_id, error=repr(error))
            return
        if run is None:
            found.expired += 1
            log.warning("log_without_beginning", run_id=run_id)
        else:
            found.runs.append(run)

    for shard in await log_streams(jetstream):
        # Not by the list of subjects in the stream's description, which changes between its pages.
        messages = await jetstream.last_messages(f"RUNS_{shard}", f"runs.{shard}.*")
        await each({message.subject: message for message in messages}.values(), look)
    return found


async def logged_run(jetstream: JetStream, run_id: str) -> LoggedRun | None:
    """Find one run by its log, whatever the index says; None if there is no log, or it does not tell its run.

    Raises `Unavailable`.
    """
    for shard in await log_streams(jetstream):
        address = LogAddress(run_id, shard)
        with contextlib.suppress(BrokenLog, KeyError, ValueError, msgspec.MsgspecError):
            last = await last_of(jetstream, address)
            if last is not None:
                return await _logged_run(jetstream, address, last)
    return None


async def _logged_run(jetstream: JetStream, address: LogAddress, last: StoredMessage) -> LoggedRun | None:
    """Read what a log knows of its run, None if its first message is gone. Raises what reading a strange log does."""
    if is_sealed(last) and ENDING not in last.headers:
        raise BrokenLog("Its end does not say what the run came to.", run_id=address.run_id, seq=last.seq)
    first = await first_of(jetstream, address)
    if first is None or place_of(first) > 0:
        return None
    return LoggedRun(address, msgspec.json.decode(first.headers[RUN], type=_Known), first.seq, last)


def is_sealed(last: StoredMessage) -> bool:
    """Whether a log that ends with `last` has its end."""
    return kind_of(last) is Kind.END


async def outcome_of(jetstream: JetStream, address: LogAddress, end: StoredMessage) -> Outcome:
    """Read what a run came to whose log's last message is `end`. Raises `Unavailable`."""
    stop_reason = end.headers[ENDING]
    if status_of(stop_reason) == "cancelled":
        return Outcome(stop_reason)
    before = await before_strangers(
        jetstream, address, await jetstream.message_before(address.stream, address.subject, end.seq)
    )
    if before is None or place_of(before) != place_of(end) - 1:
        raise Unavailable("A replica lags behind.", run_id=address.run_id)
    return told(stop_reason, before)


def stored_at(message: StoredMessage) -> datetime:
    """Give the time at which a message that a consumer delivered was stored."""
    return datetime.fromtimestamp(message.stored_at_ns / 1e9, tz=UTC)


async def each(items: Iterable[T], action: Callable[[T], Awaitable[None]]) -> None:
    """Do `action` to every item, a bounded number of them at one time; the first that raises ends all."""
    remaining = iter(items)

    async def work() -> None:
        for item in remaining:
            await action(item)

    tasks = [asyncio.create_task(work(), name="survey") for _ in range(QUESTIONS_AT_ONCE)]
    try:
        await asyncio.gather(*tasks)
    finally:
        await cancel_all(*tasks)
