"""How a run begins and ends in its log: the first message, and the four steps of the end.

    tell      stop_reason with usage_statistics or error_message, stored together or not at all
    release   one index batch: the record is terminal, the conversation free; the lease stays
    seal      the end, `[DONE]`
    forget    lease and cancel keys deleted

In this order a client that sees `[DONE]` can post again at once. A writer that dies between two steps leaves a state
that tells which are missing: the log's last message carries the stop reason once `tell` is done, and is the end once
`seal` is. So whoever finds a run half ended does what is left, and doing a step twice changes nothing.
"""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from runstream.broker.errors import StoreFull, Unavailable
from runstream.broker.keys import digest
from runstream.broker.log import ENDING, RUN, kind_of, traced
from runstream.broker.logs import get_logger
from runstream.broker.publisher import Write
from runstream.schemas import (
    ErrorMessage,
    Kind,
    Ping,
    StopReason,
    UsageStatistics,
    completion_timestamp,
    decode_chunk,
    encode_chunk,
    error_ending,
    status_of,
)

if TYPE_CHECKING:
    from runstream.broker.fullness import Room
    from runstream.broker.index import Index
    from runstream.broker.messages import StoredMessage
    from runstream.broker.publisher import Publisher
    from runstream.schemas import (
        RunRecord,
        Trace,
    )

__all__ = ["STEPS", "Ending", "Outcome", "end_run", "ended", "failed", "finish_run", "first_message", "told"]

log = get_logger(__name__)

LONGEST_TEXT = 8192
"""Bytes of an error's message and detail that are kept: an upstream's HTML page must not fill a message."""
LONGEST_NAME = 256
"""Bytes of a stop reason or an error type that are kept. The stop reason also stands in a header."""
MOST_RUN_IDS = 32
"""Of an agent's usage. Mostly there is one, or none."""
ENDING_BYTES = 2 * LONGEST_NAME + max(2 * LONGEST_TEXT, MOST_RUN_IDS * (LONGEST_NAME + 3)) + 2048
"""What a run's record can grow by until its end: both names; the error's two texts, or the usage's ids with quotes and
commas; and 2 KiB for all that has a length of its own, numbers, times and keys, and for the message's headers. All is
counted as JSON has it. A record that leaves no room for this is not claimed: its run could not end."""

LONGEST_CHARACTER = len("\\u0000")

_HALF_A_PAIR = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class Outcome(msgspec.Struct, frozen=True):
    """What a run came to: its stop reason, and its usage or its error.

    What an agent put into them is cut to what surely fits into a message: a run whose ending does not could not end.
    The stop reason is made one line without control characters: it also stands in a header, which can hold no other.
    """

    stop_reason: str
    usage: UsageStatistics | None = None
    error: ErrorMessage | None = None

    def __post_init__(self) -> None:
        """Shorten what is too long, and mend what is no text."""
        cut = msgspec.structs.force_setattr
        cut(self, "stop_reason", _text(_CONTROL.sub(" ", self.stop_reason[:LONGEST_NAME]), LONGEST_NAME).strip())
        if self.usage is not None and self.usage.run_ids is not None:
            run_ids = [_text(run_id, LONGEST_NAME) for run_id in self.usage.run_ids[:MOST_RUN_IDS]]
            cut(self, "usage", msgspec.structs.replace(self.usage, run_ids=run_ids))
        if self.error is not None:
            shortened = msgspec.structs.replace(
                self.error,
                error_type=_text(self.error.error_type, LONGEST_NAME),
                message=_text(self.error.message, LONGEST_TEXT),
                detail=None if self.error.detail is None else _text(self.error.detail, LONGEST_TEXT),
            )
            cut(self, "error", shortened)


def _text(value: str, longest: int) -> str:
    """Shorten `value` to so many bytes of JSON; half a surrogate pair, which no JSON can hold, becomes U+FFFD."""
    text = _HALF_A_PAIR.sub("\ufffd", value[:longest])
    size = _size(text)
    if size <= longest:
        return text
    # Found by halving: a character has from one to six bytes.
    fits, too_long = longest // LONGEST_CHARACTER, len(text)
    while fits + 1 < too_long:
        middle = (fits + too_long) // 2
        fits, too_long = (middle, too_long) if _size(text[:middle]) <= longest else (fits, middle)
    return text[:fits]


def _size(text: str) -> int:
    return len(msgspec.json.encode(text)) - len('""')


def failed(run_id: str, error_type: str, *, message: str | None = None, detail: str | None = None) -> Outcome:
    """Give the outcome of a run that fails with `error_type`, one of the catalogue or an agent's own."""
    stop, error = error_ending(error_type, run_id=run_id, message=message, detail=detail)
    return Outcome(stop.stop_reason, error=error)


def first_message(record: RunRecord, trace: Trace | None = None) -> Write:
    """Make a log's first message: the ping that tells a client its run, and what the index knows of the run.

    `trace` is that of the request that the run answers.
    """
    known = {
        "v": record.v,
        "tenant": record.tenant,
        "agent_id": record.agent_id,
        "conversation_id": record.conversation_id,
        "in_default": record.in_default,
        "otids": [digest(otid) for otid in record.otids],
        "background": record.background,
        "run_type": record.run_type,
        "created_at": record.created_at,
    }
    body = encode_chunk(Ping(), run_id=record.id)
    return Write(Kind.PING, body, {RUN: msgspec.json.encode(known).decode(), **traced(trace)})


def ended(
    record: RunRecord, outcome: Outcome, *, at: datetime | None = None, first_chunk_at: datetime | None = None
) -> RunRecord:
    """Give the record of a run that came to `outcome` at that time, now if none is given."""
    at = at or datetime.now(UTC)
    created_at = datetime.fromisoformat(record.created_at)
    return msgspec.structs.replace(
        record,
        status=status_of(outcome.stop_reason),
        stop_reason=outcome.stop_reason,
        error=None if outcome.error is None else msgspec.to_builtins(outcome.error),
        usage=outcome.usage,
        completed_at=completion_timestamp(at),
        total_duration_ns=_nanoseconds(created_at, at),
        ttft_ns=None if first_chunk_at is None else max(_nanoseconds(created_at, first_chunk_at), 0),
    )


def _nanoseconds(since: datetime, until: datetime) -> int:
    return int((until - since).total_seconds() * 1e9)


class Ending:
    """One run's end, step by step; `STEPS` has them in their order."""

    def __init__(self, publisher: Publisher, index: Index, record: RunRecord, outcome: Outcome) -> None:
        self.publisher = publisher
        self.index = index
        self.record = record
        self.outcome = outcome

    async def tell(self) -> None:
        """Store the stop reason, and the usage or the error with it."""
        run_id, outcome = self.record.id, self.outcome
        stop = StopReason(stop_reason=outcome.stop_reason)
        writes = [Write(Kind.PLAIN, encode_chunk(stop, run_id=run_id))]
        if outcome.error is not None:
            writes.append(Write(Kind.ERROR, encode_chunk(outcome.error, run_id=run_id)))
        elif outcome.usage is not None:
            writes.append(Write(Kind.PLAIN, encode_chunk(outcome.usage, run_id=run_id)))
        await self.publisher.publish_together(writes, stop_reason=outcome.stop_reason)

    async def release(self) -> None:
        """Make the record terminal and the conversation free."""
        first_chunk_at = self.publisher.first_chunk_at
        await self.index.release(ended(self.record, self.outcome, first_chunk_at=first_chunk_at))

    async def seal(self) -> None:
        """Store the end: nothing after it is ever shown."""
        await self.publisher.publish_marked(
            Write(Kind.END, b"", {ENDING: self.outcome.stop_reason}),
        )

    async def forget(self) -> None:
        """Delete the run's lease and cancel key. The run has ended without that: the watchdog does what is left."""
        try:
            await self.index.forget(self.record.id)
        except (Unavailable, StoreFull) as error:
            log.info("lease_left", run_id=self.record.id, error=str(error))


STEPS = (Ending.tell, Ending.release, Ending.seal, Ending.forget)


async def end_run(
    publisher: Publisher, index: Index, record: RunRecord, outcome: Outcome, *, room: Room | None = None
) -> None:
    """End a run whose log has no part of an ending yet. Raises what `Publisher` and `Index` raise.

    With `room` each step waits while the store is full.
    """
    ending = Ending(publisher, index, record, outcome)
    for step in STEPS:
        if room is None:
            await step(ending)
        else:
            await room.found(partial(step, ending))


def told(stop_reason: str, last: StoredMessage) -> Outcome:
    """Give the outcome that an ending tells, of which `last` is the last message; a log's end says no more of it."""
    kind, held = kind_of(last), None
    # What cannot be read says nothing more of it; the run has ended all the same.
    with contextlib.suppress(ValueError):
        if kind is Kind.ERROR:
            return Outcome(stop_reason, error=msgspec.json.decode(last.body, type=ErrorMessage))
        held = decode_chunk(last.body) if kind is Kind.PLAIN else None
    return Outcome(stop_reason, usage=held if isinstance(held, UsageStatistics) else None)


async def finish_run(publisher: Publisher, index: Index, record: RunRecord, last: StoredMessage) -> Outcome:
    """Do what is left of an ending that `last`, the log's last message, is a part of; returns what it told."""
    stop_reason, kind = last.headers[ENDING], kind_of(last)
    outcome = told(stop_reason, last)
    ending = Ending(publisher, index, record, outcome)
    await ending.release()
    if kind is not Kind.END:
        await ending.seal()
    await ending.forget()
    return outcome
