"""Whole messages: whatever pieces one came in, put together it is the message again; nothing else is touched."""

import json
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runstream.schemas import (
    ApprovalRequestMessage,
    AssistantMessage,
    Chunk,
    CompactionStats,
    EventMessage,
    HiddenReasoningMessage,
    InvalidChunk,
    Merging,
    ReasoningMessage,
    SummaryMessage,
    ToolCall,
    ToolCallMessage,
    ToolReturn,
    ToolReturnMessage,
    encode_chunk,
    new_message_id,
    new_run_id,
)

RUN = new_run_id()
Message = dict[str, Any]


def merged(events: Iterable[object]) -> list[Message]:
    """The messages that events make."""
    merging = Merging()
    for event in events:
        merging.add(event if isinstance(event, bytes) else msgspec.json.encode(event))
    messages = list(merging.messages())
    parsed = [json.loads(message.body) for message in messages]
    assert [message.id for message in messages] == [
        found if isinstance(found := message.get("id"), str) and found else None for message in parsed
    ]
    return parsed


def one(events: Iterable[object]) -> Message:
    (message,) = merged(events)
    return message


# -- pieces of a message ----------------------------------------------------------------------------------------------

TEXT = st.text(max_size=12)
PART = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text, "signature": None}, TEXT),
    st.builds(lambda url: {"type": "image", "source": {"url": url}}, TEXT),
)
CALL_IDS = st.lists(st.text(string.ascii_letters, min_size=1, max_size=4), min_size=1, max_size=3, unique=True)


@st.composite
def pieces_of(draw: st.DrawFn, text: str) -> list[str]:
    """A text cut anywhere; what is empty is a piece, too."""
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    return [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def apart(parts: Sequence[Message]) -> list[Message]:
    """Parts of which no two texts are neighbours: whether those are one is not to be told from the pieces."""
    kept: list[Message] = []
    for part in parts:
        if not kept or not kept[-1]["type"] == part["type"] == "text":
            kept.append(part)
    return kept


@st.composite
def part_events(draw: st.DrawFn, parts: Sequence[Message]) -> list[list[Message]]:
    """A list of parts, cut between and within them."""
    events: list[list[Message]] = [[]]
    for part in parts:
        pieces = (
            [{**part, "text": text} for text in draw(pieces_of(part["text"]))] if part["type"] == "text" else [part]
        )
        for at, piece in enumerate(pieces):
            if at or draw(st.booleans()):
                events.append([])
            events[-1].append(piece)
    return events


def with_head(message_type: str, fields: Mapping[str, Any]) -> Message:
    head = {"id": "message-1", "date": "2026-11-21T04:07:03+00:00", "name": None, "message_type": message_type}
    return {**head, "otid": "otid-1", **fields}


@given(st.data(), st.sampled_from(["assistant_message", "reasoning_message", "hidden_reasoning_message"]), TEXT)
def test_text_cut_anywhere_is_the_text_again(data: st.DataObject, message_type: str, text: str) -> None:
    """The pieces of a text, however small, are the text."""
    key = {"assistant_message": "content", "reasoning_message": "reasoning"}.get(message_type, "hidden_reasoning")
    events = [with_head(message_type, {key: piece}) for piece in data.draw(pieces_of(text))]
    assert one(events) == with_head(message_type, {key: text})


@given(st.data(), st.lists(PART, min_size=1, max_size=5).map(apart))
def test_parts_cut_anywhere_are_the_parts_again(data: st.DataObject, parts: list[Message]) -> None:
    """Content of parts is put together part by part, and a text part that was cut is one part again."""
    events = [with_head("assistant_message", {"content": piece}) for piece in data.draw(part_events(parts))]
    assert one(events)["content"] == parts


@given(
    st.data(),
    CALL_IDS,
    st.sampled_from(["tool_call_message", "approval_request_message"]),
    st.sampled_from(["list", "delta"]),
)
def test_calls_cut_anywhere_are_the_calls_again(
    data: st.DataObject, call_ids: list[str], message_type: str, form: str
) -> None:
    """Arguments are put together call by call, however their pieces alternate, in both forms of a piece."""
    calls = [{"name": f"tool_{call}", "arguments": data.draw(TEXT), "tool_call_id": call} for call in call_ids]
    waiting = [[{**call, "arguments": piece} for piece in data.draw(pieces_of(call["arguments"]))] for call in calls]
    events = [waiting[0].pop(0)]
    first = calls[:1]
    while any(waiting):
        at = data.draw(st.sampled_from([at for at, left in enumerate(waiting) if left]))
        events.append(waiting[at].pop(0))
        if calls[at] not in first:
            first.append(calls[at])
    message = one(
        with_head(message_type, {"tool_call": piece, "tool_calls": [piece] if form == "list" else piece})
        for piece in events
    )
    # One event is given back as it came; where there are more, `tool_calls` is the list of a whole message.
    is_one = form == "delta" and len(events) == 1
    assert message == with_head(message_type, {"tool_call": calls[0], "tool_calls": calls[0] if is_one else first})


@given(st.data(), CALL_IDS)
def test_returns_cut_anywhere_are_the_returns_again(data: st.DataObject, call_ids: list[str]) -> None:
    """What tools returned is put together by the call, with what they wrote."""
    events: list[Message] = []
    returns = []
    for call in call_ids:
        text, lines = data.draw(TEXT), data.draw(st.lists(TEXT, max_size=3))
        returned = {"tool_return": text, "status": "success", "tool_call_id": call, "stdout": lines, "stderr": None}
        returns.append({"type": "tool", **returned})
        for at, piece in enumerate(data.draw(pieces_of(text))):
            part = {**returned, "tool_return": piece, "stdout": lines if at == 0 else None}
            events.append(with_head("tool_return_message", {**part, "tool_returns": [{"type": "tool", **part}]}))
    expected = {key: value for key, value in returns[0].items() if key != "type"}
    assert one(events) == with_head("tool_return_message", {**expected, "tool_returns": returns})


@given(st.lists(st.lists(TEXT, min_size=1, max_size=4), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_messages_that_alternate_are_kept_apart(said: list[list[str]], random: Any) -> None:
    """Each event finds its message, whatever comes in between; messages are in the order in which they began."""
    waiting = [(at, list(pieces)) for at, pieces in enumerate(said)]
    events, begun = [], list[int]()
    while waiting := [(at, left) for at, left in waiting if left]:
        at, left = random.choice(waiting)
        begun += [at] if at not in begun else []
        events.append({"id": f"message-{at}", "message_type": "assistant_message", "content": left.pop(0)})
    assert [(message["id"], message["content"]) for message in merged(events)] == [
        (f"message-{at}", "".join(said[at])) for at in begun
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["id", "otid", "message_type", "content", "tool_call", "tool_calls", "tool_return", "tool_returns", "date", "x"]
)
TYPES = st.sampled_from(
    ["assistant_message", "reasoning_message", "tool_call_message", "tool_return_message", "usage_of_tomorrow"]
)


@given(st.lists(st.dictionaries(KEYS, JSON, min_size=1, max_size=5), max_size=5), st.data())
def test_whatever_an_agent_streams_is_put_together(chunks: list[Message], data: st.DataObject) -> None:
    """No object, however odd, keeps a run from being read; one event by itself is given back byte for byte."""
    for chunk in chunks:
        if data.draw(st.booleans()):
            chunk.update({"id": "message-1", "message_type": data.draw(TYPES)})
    bodies = [json.dumps(chunk).encode() for chunk in chunks]
    messages = merged(bodies)
    assert len(messages) <= len(chunks)
    for body in bodies:
        assert one([body]) == json.loads(body)


# -- one by one -------------------------------------------------------------------------------------------------------


def test_one_event_is_given_back_byte_for_byte() -> None:
    """A message that came whole keeps its spaces, its order of keys and its numbers."""
    body = b'{"content": "a",  "id":"m","message_type":"assistant_message","n": 1e400, "m":1.00}'
    merging = Merging()
    merging.add(body)
    assert [message.body for message in merging.messages()] == [body]


def test_values_that_nobody_looks_into_stand_as_they_came() -> None:
    """A number that would be another after decoding is the same in a message of two events."""
    events = [
        b'{"id":"m","message_type":"assistant_message","content":"a","score":1.00,"big":123456789012345678901234567890}',
        b'{"id":"m","message_type":"assistant_message","content":"b","score":null}',
    ]
    merging = Merging()
    for event in events:
        merging.add(event)
    assert [message.body for message in merging.messages()] == [
        b'{"id":"m","message_type":"assistant_message","content":"ab","score":1.00,"big":123456789012345678901234567890}'
    ]


@pytest.mark.parametrize(
    "chunk",
    [
        AssistantMessage(content="a"),
        AssistantMessage(content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
        ReasoningMessage(reasoning="a", signature="s"),
        HiddenReasoningMessage(state="redacted"),
        ToolCallMessage(tool_call=ToolCall(name="f", arguments="{}", tool_call_id="c"), tool_calls=None),
        ApprovalRequestMessage(tool_call=ToolCall(arguments="{"), tool_calls=ToolCall(arguments="{")),
        ToolReturnMessage(
            tool_return="a",
            status="error",
            tool_call_id="c",
            tool_returns=[ToolReturn(tool_return="a", status="error", tool_call_id="c")],
        ),
        SummaryMessage(
            summary="a",
            compaction_stats=CompactionStats(
                trigger="t", context_window=1, messages_count_before=2, messages_count_after=1
            ),
        ),
        EventMessage(event_data={"a": 1}),
    ],
    ids=lambda chunk: str(chunk.message_type),
)
def test_a_message_that_is_repeated_empty_is_itself(chunk: Any) -> None:
    """An event that adds nothing changes nothing, but that tool calls become a list, as they are in a whole message."""
    first = encode_chunk(chunk, run_id=RUN)
    empty = json.loads(first)
    if chunk.message_type == "event_message":
        assert merged([first, first]) == [empty, empty]  # Nothing in it can grow: each is one by itself.
        return
    for key in ("content", "reasoning", "hidden_reasoning", "summary"):
        empty.update({key: ""} if isinstance(empty.get(key), str) else {})
        empty.update({key: []} if isinstance(empty.get(key), list) else {})
    empty = {key: None if key.startswith("tool_") and key != "tool_call_id" else value for key, value in empty.items()}
    expected = json.loads(first)
    if isinstance(expected.get("tool_calls"), dict):
        expected["tool_calls"] = [expected["tool_calls"]]
    assert one([first, empty]) == expected


def test_thoughts_and_answer_of_one_step_are_two_messages() -> None:
    """Messages that share an id differ in their type or their otid, and stand together."""
    message_id = new_message_id()
    said: list[Chunk] = [
        ReasoningMessage(id=message_id, otid="0", reasoning="hm"),
        AssistantMessage(id=message_id, otid="1", content="a"),
        AssistantMessage(content="another"),
        ReasoningMessage(id=message_id, otid="2", reasoning="again"),
        AssistantMessage(id=message_id, otid="1", content="b"),
        ReasoningMessage(id=message_id, otid="0", reasoning="m"),
    ]
    messages = merged(encode_chunk(chunk, run_id=RUN) for chunk in said)
    assert [message.get("reasoning", message.get("content")) for message in messages] == [
        "hmm",
        "ab",
        "again",
        "another",
    ]


def test_an_otid_that_comes_late_is_the_messages() -> None:
    """Events without an otid go on with the latest message of their id and type; one with it names that."""
    events = [
        {"id": "m", "message_type": "assistant_message", "otid": otid, "content": content}
        for otid, content in [(None, "a"), ("0", "b"), ("1", "c"), (None, "d"), ("0", "e")]
    ]
    assert [(message["otid"], message["content"]) for message in merged(events)] == [("0", "abe"), ("1", "cd")]


def test_what_is_no_message_passes_through() -> None:
    """A platform's own objects and types are wholes, with or without an id, however often it is the same."""
    odd: list[Message] = [
        {"token": "a"},
        {"token": "a"},
        {"id": "m", "message_type": "voice_message", "content": "a"},
        {"id": "m", "message_type": "voice_message", "content": "b"},
        {"id": 7, "message_type": "assistant_message", "content": "a"},
        {"message_type": "assistant_message", "content": "b"},
        {"id": "", "message_type": "assistant_message", "content": "c"},
    ]
    assert merged(odd) == odd


def test_pieces_of_calls_without_an_id_go_on_with_the_latest() -> None:
    """A delta names its call once, at its beginning or after it, and a call that is named before has all its pieces."""
    pieces = [
        {"name": "f", "arguments": "", "tool_call_id": None},
        {"name": None, "arguments": "{", "tool_call_id": "c1"},
        {"name": None, "arguments": "}", "tool_call_id": None},
        {"name": "g", "arguments": "[", "tool_call_id": "c2"},
        {"name": "", "arguments": "]"},
    ]
    message = one({"id": "m", "message_type": "tool_call_message", "tool_call": piece} for piece in pieces)
    calls = [
        {"name": "f", "arguments": "{}", "tool_call_id": "c1"},
        {"name": "g", "arguments": "[]", "tool_call_id": "c2"},
    ]
    assert message == {"id": "m", "message_type": "tool_call_message", "tool_call": calls[0], "tool_calls": calls}


def test_text_and_parts_of_one_message_are_parts() -> None:
    """Where an agent changes from text to parts nothing is lost."""
    contents: list[Any] = ["a", [{"type": "text", "text": "b"}, {"type": "image"}], "c"]
    events = [{"id": "m", "message_type": "assistant_message", "content": content} for content in contents]
    assert one(events)["content"] == [{"type": "text", "text": "ab"}, {"type": "image"}, {"type": "text", "text": "c"}]


def test_the_first_date_and_the_last_of_all_else_count() -> None:
    """A message is as old as its first event; what becomes known of it later is not taken back by a null."""
    events = [
        {
            "id": "m",
            "date": "1",
            "message_type": "reasoning_message",
            "signature": None,
            "reasoning": "a",
            "is_err": True,
        },
        {
            "id": "m",
            "date": "2",
            "message_type": "reasoning_message",
            "signature": "s",
            "reasoning": "b",
            "is_err": None,
        },
        {"id": "m", "date": "3", "message_type": "reasoning_message", "signature": None, "reasoning": "c", "new": 1},
    ]
    assert one(events) == {
        "id": "m",
        "date": "1",
        "message_type": "reasoning_message",
        "signature": "s",
        "reasoning": "abc",
        "is_err": True,
        "new": 1,
    }


def test_size_tells_what_is_kept() -> None:
    """Many small events of one message are small together."""
    merging = Merging()
    event = encode_chunk(AssistantMessage(content="0123456789"), run_id=RUN)
    for _ in range(1000):
        merging.add(event)
    (message,) = merging.messages()
    assert len(message.body) - 300 < merging.size < len(message.body) + 300


def test_an_event_that_is_nested_too_deep_stands_for_itself() -> None:
    """What could be stored, by whoever stood less deep in the stack, is no defect to who reads it: it is left as is."""
    deep = b'{"message_type":"assistant_message","id":"m","content":' + b"[" * 2000 + b"]" * 2000 + b"}"
    word = b'{"message_type":"assistant_message","id":"m","content":"word "}'
    merging = Merging()
    for event in (word, deep, word, deep):
        merging.add(event)
    bodies = [message.body for message in merging.messages()]
    assert [body for body in bodies if body != deep] == [word.replace(b"word ", b"word word ")]
    assert bodies.count(deep) == 2


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"a"', b"7"])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    """A log with something else in it was not written by a writer of ours."""
    with pytest.raises(InvalidChunk):
        Merging().add(body)


@pytest.mark.parametrize("key", ["id", "message_type", "otid"])
@pytest.mark.parametrize(
    "value", [b"1e999", b"-1e999", b"[1e999]", b'{"a":1e999}', b"12345678901234567890123456789012345"]
)
def test_what_names_no_message_is_not_looked_into(key: str, value: bytes) -> None:
    """A number that no machine has, where an id belongs, goes out as it came: its run can be read."""
    body = b'{"' + key.encode() + b'":' + value + b',"content":"x"}'
    merging = Merging()
    merging.add(body)
    merging.add(b'{"id":"message-1","message_type":"assistant_message","content":"y"}')
    assert next(message.body for message in merging.messages()) == body
