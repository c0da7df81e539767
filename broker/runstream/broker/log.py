"""A run's log as its readers see it: entries, and the headers each message carries.

Rs-Kind     how the message goes out (`runstream.schemas.Kind`)
Rs-Writer   <writer>:<index>: who wrote it, and the how-many-th message of the log it is, from 0 without a gap
Rs-Run      on the first message only: what the index knows of the run, so that the index can be rebuilt
Rs-Ending   on the messages of an ending only: the run's stop reason
traceparent and tracestate, on the first message only: the trace of the request that the run answers, as W3C has it

What has no `Rs-Writer` is a **stranger's**: somebody else has published to the run's subject. It has no place in the
log, and is passed over wherever a log is read or written, and noted. What has a place and cannot be read is a hole that
nobody may step over: `BrokenLog`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from runstream.broker.errors import BrokenLog
from runstream.schemas import TRACEPARENT, TRACESTATE, Kind, trace_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runstream.broker.connection import Message
    from runstream.broker.jetstream import JetStream
    from runstream.broker.messages import StoredMessage
    from runstream.broker.topology import LogAddress
    from runstream.schemas import Trace

__all__ = [
    "ENDING",
    "KIND",
    "RUN",
    "WRITER",
    "Entry",
    "before_strangers",
    "entry_at",
    "entry_of",
    "first_of",
    "is_stranger",
    "kind_of",
    "last_of",
    "live_entry",
    "place_in",
    "place_of",
    "trace_in",
    "traced",
    "whole",
    "writer_header",
]

KIND = "Rs-Kind"
WRITER = "Rs-Writer"
RUN = "Rs-Run"
ENDING = "Rs-Ending"


_KINDS = {kind.value: kind for kind in Kind}
"""Looked up for every message; calling the enumeration costs ten times as much."""


SHOWN = frozenset({Kind.PING, Kind.DATA, Kind.PLAIN, Kind.ERROR})
"""What clients get: JSON objects."""

MOST_DIGITS = 18
"""As long as a place may be: no log has more, and what Python does not convert to a number is no place either."""
MOST_STRANGERS = 100
"""Messages of somebody else's that are stepped over at one end of a log: to flood a run's subject is to break it."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One message of a log: `seq` is its stream sequence and the client's cursor, `index` its place in the log."""

    seq: int
    kind: Kind
    body: bytes
    index: int


def traced(trace: Trace | None) -> dict[str, str]:
    """Give the headers that say which trace a message belongs to, if it belongs to one."""
    return {} if trace is None else trace.headers


async def trace_in(jetstream: JetStream, address: LogAddress) -> Trace | None:
    """Return the trace that a run's log says it belongs to, if it does. Raises as `first_of`."""
    first = await first_of(jetstream, address)
    if first is None:
        return None
    found = ([value] if (value := first.headers.get(name)) else [] for name in (TRACEPARENT, TRACESTATE))
    return trace_of(*found)


def writer_header(writer: str, index: int) -> str:
    """Name one attempt to store one message, so that its writer knows it again."""
    return f"{writer}:{index}"


def is_stranger(message: StoredMessage | Message) -> bool:
    """Whether a message was stored under a run's subject by somebody else: it has no place in the log."""
    return place_in(message.headers or {}) is None


def place_of(message: StoredMessage) -> int:
    """Give a message's place in its log. Raises `BrokenLog` for a stranger's."""
    place = place_in(message.headers)
    if place is None:
        raise BrokenLog("It has no place in the log.", seq=message.seq)
    return place


def kind_of(message: StoredMessage) -> Kind | None:
    """Give a message's kind, None for one that this runstream does not know."""
    return _KINDS.get(message.headers.get(KIND, ""))


def entry_of(message: StoredMessage) -> Entry:
    """Read an entry from what the log answers. Raises `BrokenLog`."""
    return entry_at(place_in(message.headers), message.seq, message.headers, message.body)


def live_entry(message: Message) -> tuple[Entry | None, int]:
    """Read an entry from its republished copy, with the sequence of the log's message before it (0: none).

    No entry is read of a stranger's. Raises `BrokenLog`.
    """
    headers = message.headers or {}
    if (place := place_in(headers)) is None:
        return None, 0
    entry = whole(entry_at(place, int(headers["Nats-Sequence"]), headers, message.data))
    return entry, int(headers["Nats-Last-Sequence"])


def whole(entry: Entry) -> Entry:
    """Give an entry back that can be shown. Raises `BrokenLog` for one whose body is no JSON object.

    As far as its ends tell: nobody decodes it on its way, and a sequence number is spliced in before the last brace.
    """
    if entry.kind in SHOWN and not (entry.body.startswith(b"{") and entry.body.endswith(b"}")):
        raise BrokenLog("It is no JSON object.", seq=entry.seq)
    return entry


async def last_of(jetstream: JetStream, address: LogAddress) -> StoredMessage | None:
    """Return the newest message of a run's log as its leader has it, None if there is none. Raises `Unavailable`."""
    return await before_strangers(jetstream, address, await jetstream.last_message(address.stream, address.subject))


async def before_strangers(
    jetstream: JetStream, address: LogAddress, message: StoredMessage | None
) -> StoredMessage | None:
    """Return `message`, or the nearest before it that is the log's own. Raises `Unavailable`, `BrokenLog`."""
    for _ in range(MOST_STRANGERS):
        if message is None or not is_stranger(message):
            return message
        jetstream.findings.note("message", address.subject, message.seq, "Somebody else's message, passed over.")
        message = await jetstream.message_before(address.stream, address.subject, message.seq)
    raise BrokenLog("Its newest messages are somebody else's.", run_id=address.run_id)


async def first_of(jetstream: JetStream, address: LogAddress, *, seq: int = 1) -> StoredMessage | None:
    """Return the oldest message of a run's log, from `seq` on, that is its own, None if there is none.

    Raises as `last_of`.
    """
    message = await jetstream.first_message(address.stream, address.subject, seq=seq)
    for _ in range(MOST_STRANGERS):
        if message is None or not is_stranger(message):
            return message
        jetstream.findings.note("message", address.subject, message.seq, "Somebody else's message, passed over.")
        message = await jetstream.first_message(address.stream, address.subject, seq=message.seq + 1)
    raise BrokenLog("Its oldest messages are somebody else's.", run_id=address.run_id)


def place_in(headers: Mapping[str, str]) -> int | None:
    """Give the place that a message's headers say it has, None for a stranger's."""
    place = headers.get(WRITER, "").rpartition(":")[2]
    return int(place) if place.isdecimal() and len(place) <= MOST_DIGITS else None


def entry_at(place: int | None, seq: int, headers: Mapping[str, str], body: bytes) -> Entry:
    """Make an entry of a message whose place is known. Raises `BrokenLog`."""
    kind = _KINDS.get(headers.get(KIND, ""))
    if place is None or kind is None:
        raise BrokenLog("Its headers are not as runstream writes them.", seq=seq)
    return Entry(seq, kind, body, place)
