"""What a reader sees on the wire: entries of a log as Server-Sent Events, bytes only.

Letta's framing: `data:` lines and `event: error`, nothing else. No `id:`, no comment, no `retry:`, because
letta-client fails on a comment or a blank line once it has seen an id. Nothing is decoded: an entry's body is one
JSON object without line breaks, and its `seq_id` is spliced in as the last key.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from runstream.schemas import ErrorMessage, Kind, Ping, encode_chunk, error_ending, splice_seq_id

if TYPE_CHECKING:
    from runstream.broker.log import Entry

__all__ = ["DONE", "Style", "chunked", "cut_error", "event_of", "periodic_ping"]

DONE = b"data: [DONE]\n\n"


class Style(enum.Enum):
    """Which events a response is made of."""

    BACKGROUND = enum.auto()
    """Each message carries its `seq_id`: the response can be resumed."""
    FOREGROUND = enum.auto()
    """Each message carries `"seq_id":null`, as the reference's foreground streams do."""


def event_of(entry: Entry, style: Style) -> bytes:
    """Make the event of one entry; an attempt, which nobody sees, makes none."""
    seq_id = entry.seq if style is Style.BACKGROUND else None
    match entry.kind:
        case Kind.PING | Kind.DATA:
            return b"data: " + splice_seq_id(entry.body, seq_id) + b"\n\n"
        case Kind.PLAIN:
            return b"data: " + entry.body + b"\n\n"
        case Kind.ERROR:
            return b"event: error\ndata: " + splice_seq_id(entry.body, seq_id) + b"\n\n"
        case Kind.END:
            return DONE
        case Kind.ATTEMPT:
            return b""


def chunked(event: bytes) -> bytes:
    """Wrap bytes as one chunk of HTTP/1.1's chunked encoding; nothing stays nothing, as an empty chunk is the last."""
    return b"%x\r\n%b\r\n" % (len(event), event) if event else b""


def periodic_ping(run_id: str, seq_id: int | None) -> bytes:
    """Make the ping that keeps a silent response alive; `seq_id` repeats the last one the reader was sent."""
    return b"data: " + splice_seq_id(encode_chunk(Ping(), run_id=run_id), seq_id) + b"\n\n"


def cut_error(run_id: str, error_type: str, detail: str | None = None) -> bytes:
    """Make the event that goes before a cut: the response ends for the gateway's reasons, the run does not."""
    error: ErrorMessage = error_ending(error_type, run_id=run_id, detail=detail)[1]
    return b"event: error\ndata: " + splice_seq_id(encode_chunk(error, run_id=run_id), None) + b"\n\n"
