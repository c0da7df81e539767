"""What a reader sees on the wire: entries of a log as Server-Sent Events, bytes only.

Letta's framing: `data:` lines and `event: error`, nothing else. No `id:`, no comment, no `retry:`, because
letta-client fails on a comment or a blank line once it has seen an id. An EventSource's framing, on a path of its own,
has the ids that a browser resumes by, and `retry:`. Nothing is decoded: an entry's body is one JSON object without
line breaks, and its `seq_id` is spliced in as the last key.
"""

from __future__ import annotations

import enum
import random
from typing import TYPE_CHECKING

from runstream.schemas import ErrorMessage, Kind, Ping, encode_chunk, error_ending, splice_seq_id

if TYPE_CHECKING:
    from runstream.broker.log import Entry

__all__ = ["Style", "chunked", "cut_error", "event_of", "periodic_ping", "retry_line"]

DONE = b"data: [DONE]"


class Style(enum.Enum):
    """Which events a response is made of."""

    BACKGROUND = enum.auto()
    """Each message carries its `seq_id`: the response can be resumed."""
    FOREGROUND = enum.auto()
    """Each message carries `"seq_id":null`, as the reference's foreground streams do."""
    EVENT_SOURCE = enum.auto()
    """As in the background, and each message that is stored has its sequence as `id:`, pings aside."""

    # Looked up for every event and reader: by identity, and not, as enumerations are, by a name.
    __hash__ = object.__hash__


def event_of(entry: Entry, style: Style) -> bytes:
    """Make the event of one entry; an attempt, which nobody sees, makes none."""
    seq_id = None if style is Style.FOREGROUND else entry.seq
    is_identified = style is Style.EVENT_SOURCE and entry.kind is not Kind.PING
    match entry.kind:
        case Kind.PING | Kind.DATA:
            event = b"data: " + splice_seq_id(entry.body, seq_id)
        case Kind.PLAIN:
            event = b"data: " + entry.body
        case Kind.ERROR:
            # An EventSource calls the loss of its connection `error`; a run's has to be told from that.
            name = b"run_error" if style is Style.EVENT_SOURCE else b"error"
            event = b"event: " + name + b"\ndata: " + splice_seq_id(entry.body, seq_id)
        case Kind.END:
            event = DONE
        case Kind.ATTEMPT:
            return b""
    # The id comes last. Some libraries (fetch-event-source) take it from its line, not with the whole event: cut off
    # within the data, they would resume behind a message that they never had.
    return b"%b\nid: %d\n\n" % (event, entry.seq) if is_identified else event + b"\n\n"


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


def retry_line(seconds: float) -> bytes:
    """Make the line that says when to come back once this response has ended: after `seconds`, half more or less.

    Spread, so that those whom one gateway loses do not come to another all at once. No blank line follows: the line
    belongs to the next event, or stands at the end. By itself it would be an event without data to libraries that go
    by blocks (httpx-sse), and whoever uses them expects JSON.
    """
    milliseconds = seconds * 1000 * random.uniform(0.5, 1.5)  # noqa: S311  # nothing hangs on who guesses it
    return b"retry: %d\n" % milliseconds
