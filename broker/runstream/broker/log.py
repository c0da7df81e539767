"""A run's log as its readers see it: entries, and the headers each message carries.

Rs-Kind     how the message goes out (`runstream.schemas.Kind`)
Rs-Writer   <writer>:<index>: who wrote it, and the how-many-th message of the log it is, from 0 without a gap
Rs-Run      on the first message only: what the index knows of the run, so that the index can be rebuilt
Rs-Ending   on the messages of an ending only: the run's stop reason
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from runstream.schemas import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runstream.broker.connection import Message
    from runstream.broker.jetstream import StoredMessage

__all__ = ["ENDING", "KIND", "RUN", "WRITER", "Entry", "entry_of", "live_entry", "writer_header"]

KIND = "Rs-Kind"
WRITER = "Rs-Writer"
RUN = "Rs-Run"
ENDING = "Rs-Ending"


_KINDS = {kind.value: kind for kind in Kind}
"""Looked up for every message; calling the enumeration costs ten times as much."""


class Entry(msgspec.Struct, frozen=True):
    """One message of a log: `seq` is its stream sequence and the client's cursor, `index` its place in the log."""

    seq: int
    kind: Kind
    body: bytes
    index: int


def writer_header(writer: str, index: int) -> str:
    """Name one attempt to store one message, so that its writer knows it again."""
    return f"{writer}:{index}"


def entry_of(message: StoredMessage) -> Entry:
    """Read an entry from what the log answers."""
    return _entry(message.seq, message.headers, message.body)


def live_entry(message: Message) -> tuple[Entry, int]:
    """Read an entry from its republished copy, with the sequence of the log's message before it (0: none)."""
    headers = message.headers or {}
    return _entry(int(headers["Nats-Sequence"]), headers, message.data), int(headers["Nats-Last-Sequence"])


def _entry(seq: int, headers: Mapping[str, str], body: bytes) -> Entry:
    return Entry(seq, _KINDS[headers[KIND]], body, int(headers[WRITER].rpartition(":")[2]))
