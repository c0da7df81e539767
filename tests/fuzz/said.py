"""What a writer, an agent or a platform may say in place of a chunk, and what readers are to get of it."""

import asyncio
import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import strategies as st

from tests.support.eventsource import open_source, source_path
from tests.support.http import Event, open_stream
from tests.support.stack import Stack

TEXT = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(categories=["Cs", "Cc", "Zl", "Zp", "Ll"]), max_size=8),
    st.sampled_from(
        [
            "\x00",
            "\n\ndata: [DONE]\n\n",
            "\r\n\r\n",
            "\u2028\u2029\x85",
            "\ud83d",
            "\ude00\ud83d",
            "[DONE]",
            "\ufeff",
            "data: x",
            "x" * 5000,
            "</script>",
            "run-123e4567-e89b-42d3-8456-426614174000",
        ]
    ),
)
NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([2**53, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, -0.0, 5e-324])
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXT)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=8
)
KNOWN_KEYS = st.sampled_from(
    [
        "id",
        "date",
        "name",
        "message_type",
        "otid",
        "sender_id",
        "step_id",
        "is_err",
        "run_id",
        "seq_id",
        "content",
        "reasoning",
        "tool_call",
        "tool_calls",
        "tool_returns",
        "tool_return",
        "status",
        "stdout",
        "stop_reason",
        "error_type",
        "message",
        "detail",
        "completion_tokens",
        "run_ids",
        "total_tokens",
        "type",
        "summary",
        "usage",
    ]
)
MESSAGE_TYPES = st.sampled_from(
    [
        "assistant_message",
        "reasoning_message",
        "hidden_reasoning_message",
        "tool_call_message",
        "tool_return_message",
        "approval_request_message",
        "approval_response_message",
        "summary_message",
        "event_message",
        "user_message",
        "ping",
        "stop_reason",
        "usage_statistics",
        "error_message",
        "end",
        "attempt",
        "nobody's",
        "",
    ]
)


def is_json(value: Any) -> bool:
    """Whether there is a word for it in JSON, and a character in UTF-8."""
    try:
        return bool(msgspec.json.encode(value)) and value == value  # noqa: PLR0124  # NaN is not
    except (OverflowError, UnicodeEncodeError):
        return False


def _nested(depth: int) -> Any:
    value: Any = 1
    for turn in range(depth):
        value = [value] if turn % 2 else {"a": value}
    return value


DEEP = st.sampled_from([10, 100, 500, 990, 1500]).map(_nested)
HUGE = st.sampled_from([10_000, 300_000, 1_047_000, 1_048_000, 1_100_000]).map(lambda size: "." * size)
OBJECTS = st.builds(
    lambda given, kind, more: {**given, **({} if kind is None else {"message_type": kind}), **more},
    st.dictionaries(st.one_of(KNOWN_KEYS, TEXT), VALUES, max_size=6),
    st.one_of(st.none(), MESSAGE_TYPES),
    st.one_of(*[st.just({})] * 8, DEEP.map(lambda value: {"deep": value}), HUGE.map(lambda value: {"huge": value})),
)
OWN = re.compile(r'^{(?:"[^{}]*)?"message_type":"(?:ping|stop_reason|usage_statistics|error_message)"')
"""How what a run has besides its data begins: a pattern, as data may be nested deeper than can be decoded here."""
MARKED = "whose"
"""The key that says which run's a chunk is, where it has one."""


def written(value: Any, *, is_ascii: bool, indent: int | None = None) -> bytes:
    """JSON, or what some languages take for it: NaN, and half a character."""
    try:
        return json.dumps(value, ensure_ascii=is_ascii, indent=indent).encode("utf-8", "surrogatepass")
    except RecursionError:
        return b"[" * 5000 + b"]" * 5000


JSON_TEXTS = st.builds(lambda value, is_ascii: written(value, is_ascii=is_ascii), OBJECTS, st.booleans())
ODD_TEXTS = st.one_of(
    VALUES.map(lambda value: written(value, is_ascii=True)),
    st.binary(max_size=30),
    JSON_TEXTS.flatmap(lambda text: st.integers(0, len(text)).map(lambda at: text[:at])),
    st.sampled_from(
        [
            b'{"a":1,"a":2}',
            b'{"message_type":"ping","message_type":"stop_reason"}',
            b'{"run_id":"a","run_id":"b","message_type":"x"}',
            b'{"seq_id":1,"seq_id":2,"a":1}',
            b'{"a":1e400}',
            b'{"a":-1E-400}',
            b'{"a":01}',
            b'{"a":NaN}',
            b'{"a":Infinity}',
            b'{"a":"\\ud83d"}',
            b'{"\\ud83d":1}',
            b'{"message_type":"\\ud83d"}',
            b'{"a":"\xed\xa0\xbd"}',
            b'{"a":"\x00"}',
            b'{"a":"\\u0000"}',
            b'{"a":"\xe2\x80\xa8\xe2\x80\xa9"}',
            b'\xef\xbb\xbf{"a":1}',
            b'{"a":1}\r{"b":2}',
            b'{"a":1,\r\n"b":2}',
            b'{"a":1,}',
            b"{'a':1}",
            b'{"a":1}{"b":2}',
            b"[" * 100_000,
            b'{"a":' * 20_000,
            b'{"a":"' + b"\\" * 1001 + b'"}',
            b"{" + b'"k":1,' * 20_000 + b'"l":2}',
            b'{"seq_id":null}',
            b"{}",
            b"[]",
            b"null",
            b'"text"',
            b"\x00",
            b" ",
            b'\t{"a" :\t1 } ',
        ]
    ),
)
PLAIN_TEXTS = st.builds(
    lambda value, kind, indent: written({**value, "message_type": kind}, is_ascii=False, indent=indent),
    st.dictionaries(
        st.one_of(KNOWN_KEYS, st.text(max_size=5)), st.one_of(LEAVES.filter(is_json), st.just([{}])), max_size=4
    ),
    st.sampled_from(["assistant_message", "tool_call_message", "nobody's", 7]),
    st.sampled_from([None, None, 1]),
)
"""Chunks that are well-formed, whatever is in them, and however many lines they have."""
TEXTS = st.one_of(PLAIN_TEXTS, PLAIN_TEXTS, JSON_TEXTS, ODD_TEXTS)


async def told_of(stack: Stack, run_id: str) -> list[Event]:
    """What both kinds of readers get of a run that has ended, from its log, and none of its other forms is a defect."""
    stream, source = await asyncio.gather(_streamed(stack, run_id), _sourced(stack, run_id))
    # In a thread, whose stack is empty: what is nested as deep as can be is to be read here, too.
    await asyncio.to_thread(check_events, stream, run_id)
    assert data_of(source) == data_of(stream)
    for form in ("", "/messages", "/usage"):
        reply = await stack.fetch("GET", f"/v1/runs/{run_id}{form}")
        assert reply.status == 200, reply
    return stream


def data_of(events: Sequence[Event]) -> list[str]:
    """What was said in a run: all but pings, stop reason, usage, error and end."""
    return [each.data for each in events if not each.is_done and not OWN.search(each.data)]


async def _streamed(stack: Stack, run_id: str) -> list[Event]:
    async with stack.resume(run_id) as stream:
        return await stream.rest()


async def _sourced(stack: Stack, run_id: str) -> list[Event]:
    async with open_source(stack.base, source_path(run_id)) as source:
        return await source.rest()


async def said_in(stack: Stack, said: str, agent_id: str) -> tuple[str, list[Event]]:
    """Start a run that says something, and read it as it comes; its id, and its events."""
    path = f"/v1/agents/{agent_id}/messages/stream"
    async with open_stream(stack.base, path, {"background": True, "input": said}) as stream:
        events = await stream.rest()
    run_id = str(events[0].json["run_id"])
    await asyncio.to_thread(check_events, events, run_id)
    return run_id, events


def check_events(events: Sequence[Event], run_id: str) -> None:
    """Each is JSON, of this run, after the one before; there is one stop reason, and nothing after `[DONE]`."""
    assert [at for at, each in enumerate(events) if each.is_done] == [len(events) - 1], events[-3:]
    said = [json.loads(each.data) for each in events[:-1]]
    seq_ids = [each["seq_id"] for each in said if each.get("seq_id") is not None and each.get("message_type") != "ping"]
    assert seq_ids == sorted(set(seq_ids))
    assert sum(each.get("message_type") == "stop_reason" for each in said) == 1
    for each in said:
        if isinstance(each.get("message_type"), str) and "run_id" in each:
            assert each["run_id"] == run_id
        assert each.get(MARKED) in {None, run_id}


def failure_of(events: Sequence[Event]) -> str | None:
    """The error that a run has ended with, None if it has ended well."""
    errors = [each for each in events if each.event == "error"]
    return None if not errors else str(errors[0].json["error_type"])
