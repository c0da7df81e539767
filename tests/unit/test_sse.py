"""Framing: any chunk goes over the wire and comes out as it was, with its cursor, whole within one HTTP chunk."""

import json
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runstream.broker.log import Entry
from runstream.gateway.sse import Style, chunked, cut_error, event_of, periodic_ping, retry_line
from runstream.schemas import Kind, encode_chunk
from tests.support.eventsource import SourceParser

SEQS = st.integers(min_value=1, max_value=2**53 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
# An agent may send anything that is an object and says its type; a `seq_id` of its own is not the log's.
OBJECTS = st.dictionaries(TEXT.filter(lambda key: key != "seq_id"), JSON, max_size=6).map(
    lambda body: {**body, "message_type": "custom_message"}
)
LETTA = st.sampled_from([Style.BACKGROUND, Style.FOREGROUND])
LINE_BREAKS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


def decoded(wire: bytes) -> list[tuple[str | None, str]]:
    """Server-Sent Events by the letter of the HTML standard: what any client makes of these bytes."""
    events: list[tuple[str | None, str]] = []
    name: str | None = None
    data: list[str] = []
    for line in re.split(r"\r\n|\n|\r", wire.decode("utf-8")):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                events.append((name, "\n".join(data)))
            name, data = None, []
        elif field == "event":
            name = value
        elif field == "data":
            data.append(value)
        else:
            complaint = f"a line that this protocol does not have: {line!r}"
            raise AssertionError(complaint)
    assert (name, data) == (None, []), "the last event has no end"
    return events


def unchunked(wire: bytes) -> list[bytes]:
    """The chunks of a body in HTTP's chunked encoding, without the last one; AssertionError where it is broken."""
    chunks: list[bytes] = []
    rest = wire
    while rest:
        head, _, rest = rest.partition(b"\r\n")
        size = int(head, 16)
        assert rest[size : size + 2] == b"\r\n"
        chunks.append(rest[:size])
        rest = rest[size + 2 :]
    return chunks


@given(body=OBJECTS, seq=SEQS, style=LETTA)
@example(body={"message_type": "x", "content": LINE_BREAKS}, seq=1, style=Style.BACKGROUND)
@example(body={"message_type": "x", "": '"}],"seq_id":5'}, seq=2, style=Style.FOREGROUND)
def test_any_chunk_comes_out_as_it_went_in(body: dict[str, Any], seq: int, style: Style) -> None:
    """One event, its data the agent's object with the run and the cursor, which is the last key; whatever the text."""
    entry = Entry(seq, Kind.DATA, encode_chunk(body, run_id="run-1"), 1)
    ((name, data),) = decoded(event_of(entry, style))
    parsed = json.loads(data)
    assert name is None
    assert list(parsed)[-1] == "seq_id"
    assert parsed.pop("seq_id") == (seq if style is Style.BACKGROUND else None)
    assert parsed == {**body, "run_id": "run-1"}


@given(body=OBJECTS, seq=SEQS)
def test_kinds_and_their_events(body: dict[str, Any], seq: int) -> None:
    """An error is named as one, what is plain has no cursor, the end is `[DONE]`, and an attempt is nothing."""
    stored = encode_chunk(body, run_id="run-1")

    def events(kind: Kind) -> list[tuple[str | None, str]]:
        return decoded(event_of(Entry(seq, kind, stored, 1), Style.BACKGROUND))

    with_cursor = events(Kind.DATA)[0][1]
    assert events(Kind.PING) == [(None, with_cursor)]
    assert events(Kind.ERROR) == [("error", with_cursor)]
    assert events(Kind.PLAIN) == [(None, stored.decode())]
    assert events(Kind.END) == [(None, "[DONE]")]
    assert events(Kind.ATTEMPT) == []


@given(st.lists(st.tuples(OBJECTS, SEQS, st.sampled_from(Kind)), max_size=8), st.sampled_from(Style))
def test_chunks_hold_whole_events(entries: list[tuple[dict[str, Any], int, Kind]], style: Style) -> None:
    """Each event is one HTTP chunk, and an entry without an event is none: an empty chunk would be the last."""
    made = [event_of(Entry(seq, kind, encode_chunk(body, run_id="run-1"), 1), style) for body, seq, kind in entries]
    assert unchunked(b"".join(map(chunked, made))) == [event for event in made if event]
    assert unchunked(b"0\r\n\r\n") == [b""]


@given(SEQS | st.none())
def test_pings_repeat_the_cursor(seq: int | None) -> None:
    """A keep-alive is a ping of the run with the cursor that its reader has."""
    ((name, data),) = decoded(periodic_ping("run-1", seq))
    parsed = json.loads(data)
    assert (name, parsed["message_type"], parsed["run_id"]) == (None, "ping", "run-1")
    assert list(parsed)[-1] == "seq_id"
    assert parsed["seq_id"] == seq


def test_event_before_a_cut() -> None:
    """A response that is cut says why, in an error without a cursor."""
    ((name, data),) = decoded(cut_error("run-1", "store_unavailable"))
    parsed = json.loads(data)
    assert name == "error"
    assert (parsed["message_type"], parsed["error_type"]) == ("error_message", "store_unavailable")
    assert (parsed["run_id"], parsed["seq_id"]) == ("run-1", None)


@pytest.mark.parametrize("style", [Style.BACKGROUND, Style.FOREGROUND])
def test_end(style: Style) -> None:
    """The end is the two words that every client knows."""
    assert event_of(Entry(7, Kind.END, b"", 1), style) == b"data: [DONE]\n\n"


@given(body=OBJECTS, seq=SEQS, kind=st.sampled_from(Kind))
@example(body={"message_type": "x", "content": LINE_BREAKS}, seq=1, kind=Kind.DATA)
def test_events_for_an_event_source(body: dict[str, Any], seq: int, kind: Kind) -> None:
    """What Letta's events say, with the sequence as the last line of all but pings; an error has a name of its own."""
    entry = Entry(seq, kind, encode_chunk(body, run_id="run-1"), 1)
    letta = event_of(entry, Style.BACKGROUND).replace(b"event: error\n", b"event: run_error\n")
    made = event_of(entry, Style.EVENT_SOURCE)
    if kind in {Kind.PING, Kind.ATTEMPT}:
        assert made == letta
    else:
        assert made == letta.removesuffix(b"\n") + b"id: %d\n\n" % seq


def test_cut_at_any_byte() -> None:
    """Wherever a connection breaks, what comes after the last id that its reader took is what the reader has not."""
    kinds = [Kind.PING, Kind.DATA, Kind.ATTEMPT, Kind.DATA, Kind.PLAIN, Kind.ERROR, Kind.END]
    body = encode_chunk({"message_type": "x", "content": "\u00e4 \U0001f600"}, run_id="run-1")
    entries = [Entry(seq, kind, b"" if kind is Kind.END else body, seq) for seq, kind in enumerate(kinds, start=11)]

    def wire(after: int) -> bytes:
        events = [event_of(entry, Style.EVENT_SOURCE) for entry in entries if entry.seq > after]
        return retry_line(1) + b"".join(events)

    whole = list(SourceParser("", 3000).feed(wire(0)))
    assert [message.last_event_id for message in whole] == ["", "12", "14", "15", "16", "17"]
    for cut in range(len(wire(0)) + 1):
        first = SourceParser("", 3000)
        seen = list(first.feed(wire(0)[:cut]))
        second = SourceParser(first.last_event_id, first.reconnection_ms)
        seen += second.feed(wire(int(first.last_event_id or 0)))
        assert [message for message in seen if message.last_event_id] == whole[1:], cut


def test_when_to_come_back() -> None:
    """A line by itself, in whole milliseconds, half more or less than it is meant, and not the same for everybody."""
    lines = {retry_line(2) for _ in range(200)}
    assert all(re.fullmatch(rb"retry: \d+\n", line) for line in lines)
    told = [int(line.split()[1]) for line in lines]
    assert 1000 <= min(told) < 1300
    assert 2700 < max(told) <= 3000
