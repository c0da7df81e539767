"""Chunks become the bytes the reference sends, and come back as what was written."""

import copy
import json
import math
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from letta_client import types as letta
from letta_client.types import agents as letta_agents
from pydantic import BaseModel

from runstream.schemas import (
    ERROR_TYPES,
    MESSAGE_TYPES,
    STOP_REASONS,
    ApprovalRequestMessage,
    ApprovalResponseMessage,
    ApprovalReturn,
    AssistantMessage,
    Chunk,
    CompactionStats,
    ErrorMessage,
    EventMessage,
    HiddenReasoningMessage,
    InvalidChunk,
    Kind,
    Ping,
    ReasoningMessage,
    StopReason,
    SummaryMessage,
    SystemMessage,
    ToolCall,
    ToolCallMessage,
    ToolReturn,
    ToolReturnMessage,
    UsageStatistics,
    UserMessage,
    decode_chunk,
    encode_chunk,
    error_ending,
    kind_of,
    new_run_id,
    splice_seq_id,
    status_of,
)

CAPTURES = Path(__file__).parents[1] / "contract" / "captures"
RUN_ID = new_run_id()
HEAD = ["id", "date", "name", "message_type", "otid", "sender_id", "step_id", "is_err", "run_id"]
CALL = ToolCall(name="look", arguments="{}", tool_call_id="call_1")
RETURN = ToolReturn(tool_return="fine", status="success", tool_call_id="call_1")

# One of each type, its keys after the head, and the SDK's own model of it.
MESSAGES: list[tuple[Chunk, list[str], type[BaseModel]]] = [
    (SystemMessage(content="x"), ["content"], letta_agents.SystemMessage),
    (UserMessage(content="x"), ["content"], letta_agents.UserMessage),
    (
        AssistantMessage(content=[{"type": "text", "text": "x"}]),
        ["content"],
        letta_agents.AssistantMessage,
    ),
    (ReasoningMessage(reasoning="x"), ["source", "reasoning", "signature"], letta_agents.ReasoningMessage),
    (
        HiddenReasoningMessage(state="redacted"),
        ["state", "hidden_reasoning"],
        letta_agents.HiddenReasoningMessage,
    ),
    (
        ToolCallMessage(tool_call=CALL, tool_calls=[CALL]),
        ["tool_call", "tool_calls"],
        letta_agents.ToolCallMessage,
    ),
    (
        ToolReturnMessage(
            tool_return="fine", status="success", tool_call_id="call_1", stdout=["a"], tool_returns=[RETURN]
        ),
        ["tool_return", "status", "tool_call_id", "stdout", "stderr", "tool_returns"],
        letta.ToolReturnMessage,
    ),
    (
        ApprovalRequestMessage(tool_call=CALL),
        ["tool_call", "tool_calls"],
        letta_agents.ApprovalRequestMessage,
    ),
    (
        ApprovalResponseMessage(approvals=[ApprovalReturn(tool_call_id="call_1", approve=True), RETURN]),
        ["approvals", "approve", "approval_request_id", "reason"],
        letta_agents.ApprovalResponseMessage,
    ),
    (
        SummaryMessage(
            summary="x",
            compaction_stats=CompactionStats(
                trigger="full", context_window=9, messages_count_before=2, messages_count_after=1
            ),
        ),
        ["summary", "compaction_stats"],
        letta_agents.SummaryMessage,
    ),
    (EventMessage(event_data={"a": 1}), ["event_type", "event_data"], letta_agents.EventMessage),
]
ENDINGS: list[Chunk] = [
    ErrorMessage(error_type="llm_error", message="x"),
    StopReason(stop_reason="end_turn"),
    UsageStatistics(completion_tokens=1),
]

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(["\u2028\u2029", "日本語 \U0001f642", '"\\\n\x00\x1f', "data: x\n\n"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
json_objects = st.dictionaries(
    st.text() | st.sampled_from(["id", "run_id", "seq_id", "message_type", "content"]),
    json_values,
    max_size=8,
)


def captured_events() -> list[tuple[str, bytes]]:
    """Every chunk of every captured stream, `seq_id` cut out. The crash in one of them is no chunk."""
    events = []
    for capture in sorted(CAPTURES.glob("*.http")):
        body = capture.read_bytes().split(b"\r\n\r\n", 1)[1]
        for number, event in enumerate(body.split(b"\n\n")):
            data = event.rpartition(b"data: ")[2]
            if b"data: " in event and b'"message_type"' in data:
                events.append((f"{capture.stem}-{number}", without_seq_id(data)))
    return events


def without_seq_id(data: bytes) -> bytes:
    chunk = json.loads(data)
    chunk.pop("seq_id", None)
    return json.dumps(chunk, separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize(("name", "body"), captured_events())
def test_a_captured_event_is_read_and_written_byte_for_byte(name: str, body: bytes) -> None:
    """Keys, their order, nulls and spacing are the reference's, but for `seq_id`, which comes last."""
    chunk = decode_chunk(body)
    assert not isinstance(chunk, dict), name
    assert encode_chunk(chunk, run_id=getattr(chunk, "run_id", None) or RUN_ID) == body


def test_the_captures_have_all_there_is_to_compare() -> None:
    """The test above would pass on nothing."""
    types = {json.loads(body)["message_type"] for _, body in captured_events()}
    assert types == {"ping", "assistant_message", "stop_reason", "usage_statistics", "error_message"}


@pytest.mark.parametrize(("chunk", "tail", "model"), MESSAGES)
def test_a_message_has_the_common_head_and_its_own_tail(chunk: Chunk, tail: list[str], model: type[BaseModel]) -> None:
    """Each type's keys come in the order of the wire, and the client's own model takes it."""
    body = splice_seq_id(encode_chunk(chunk, run_id=RUN_ID), 7)
    assert list(json.loads(body)) == [*HEAD, *tail, "seq_id"]
    parsed = model.model_validate_json(body)
    assert parsed.model_extra in (None, {})
    assert (getattr(parsed, "run_id"), getattr(parsed, "seq_id")) == (RUN_ID, 7)  # noqa: B009  (models differ)


def test_every_message_type_has_its_struct() -> None:
    """What a client may filter by is exactly what can be written."""
    assert tuple(chunk.message_type for chunk, _, _ in MESSAGES) == MESSAGE_TYPES


@pytest.mark.parametrize("chunk", [*(chunk for chunk, _, _ in MESSAGES), Ping(), *ENDINGS])
def test_a_chunk_comes_back_as_it_was_written(chunk: Chunk) -> None:
    """Written and read, a struct is the same struct, with the run's id where the type has one."""
    before = copy.deepcopy(chunk)
    body = encode_chunk(chunk, run_id=RUN_ID)
    assert chunk == before
    read = decode_chunk(body)
    assert type(read) is type(chunk)
    assert encode_chunk(read, run_id=RUN_ID) == body
    assert (b"run_id" in body.replace(b"run_ids", b"")) == hasattr(chunk, "run_id")


def test_a_message_needs_nothing_but_its_content() -> None:
    """Id and date are filled in: a message's id, and UTC in whole seconds with its offset."""
    message = AssistantMessage(content="hi")
    assert message.id.startswith("message-")
    assert message.id != AssistantMessage(content="hi").id
    assert Ping().id.startswith("ping-")
    date = datetime.fromisoformat(message.date)
    assert (message.date[-6:], date.microsecond) == ("+00:00", 0)
    assert abs((datetime.now(UTC) - date).total_seconds()) < 60


@given(json_objects)
@example({"content": "\u2028 \u2029 日本語", "nested": {"": [{"a": None}, 1e300, -0.0, 2**70]}})
@example({"message_type": "stop_reason", "stop_reason": "end_turn", "seq_id": 5})
@example({"run_id": "run-of-the-platform", "message_type": "assistant_message"})
def test_any_object_passes_through(chunk: dict[str, Any]) -> None:
    """Keys and their order are kept; only `run_id` is set, and `seq_id` dropped and spliced in last."""
    before = copy.deepcopy(chunk)
    if not set(chunk) - {"seq_id"}:
        with pytest.raises(InvalidChunk):
            encode_chunk(chunk, run_id=RUN_ID)
        return
    body = encode_chunk(chunk, run_id=RUN_ID)
    assert chunk == before
    expected = {key: value for key, value in chunk.items() if key != "seq_id"}
    message_type = chunk.get("message_type")
    if isinstance(message_type, str) and ("run_id" in chunk or message_type not in ("stop_reason", "usage_statistics")):
        expected["run_id"] = RUN_ID
    assert json.loads(body) == expected
    for seq_id in (None, 1, 2**53 - 1):
        spliced = json.loads(splice_seq_id(body, seq_id))
        assert list(spliced.items()) == [*expected.items(), ("seq_id", seq_id)]
    read = decode_chunk(body)
    assert encode_chunk(read, run_id=RUN_ID) == body or not isinstance(read, dict)


@given(json_objects.filter(lambda chunk: bool(set(chunk) - {"seq_id"})))
def test_stored_bytes_are_one_line(chunk: dict[str, Any]) -> None:
    """No line break in a body can end an event early."""
    body = encode_chunk(chunk, run_id=RUN_ID)
    assert b"\n" not in body
    assert b"\r" not in body


@given(st.integers(min_value=0, max_value=2**53 - 1))
def test_a_spliced_seq_id_is_a_plain_number(seq_id: int) -> None:
    """The bytes are the body's, with the number over its last one."""
    body = encode_chunk({"a": 1}, run_id=RUN_ID)
    assert splice_seq_id(body, seq_id) == body[:-1] + f',"seq_id":{seq_id}}}'.encode()


def recursive() -> dict[str, Any]:
    chunk: dict[str, Any] = {}
    chunk["self"] = [chunk]
    return chunk


@pytest.mark.parametrize(
    "chunk",
    [
        {},
        {"seq_id": 3},
        {1: "a"},
        {"a": {2: "b"}},
        {"a": [{None: "b"}]},
        {"a": object()},
        {"a": "\ud800"},
        {"\ud800": 1},
        recursive(),
        [],
        [("a", 1)],
        "text",
        b"{}",
        7,
        None,
        CALL,
        AssistantMessage(content=object()),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_chunk_is_refused(chunk: Any) -> None:
    """Not an object, empty, keys that are not strings, or nothing JSON could say."""
    with pytest.raises(InvalidChunk):
        encode_chunk(chunk, run_id=RUN_ID)


def test_any_mapping_will_do() -> None:
    """A mapping need not be a dict, and what JSON has no word for is null."""
    assert encode_chunk(MappingProxyType({"a": math.nan, "b": math.inf}), run_id="r") == (b'{"a":null,"b":null}')


@pytest.mark.parametrize("message_type", [{}, {"message_type": None}, {"message_type": 7}])
def test_what_is_no_message_keeps_its_own_run_id(message_type: dict[str, object]) -> None:
    """Another protocol's `run_id` is no run of ours: it is neither replaced nor added."""
    for chunk in ({"run_id": "theirs", **message_type, "a": 1}, {**message_type, "a": 1}):
        assert json.loads(encode_chunk({**chunk, "seq_id": 3}, run_id=RUN_ID)) == chunk


@pytest.mark.parametrize("body", [b"", b"[]", b"3", b"null", b'"x"', b"{", b'{"a":1}x', b'{"a":"\xff"}', b"["])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    """Only JSON objects are chunks."""
    with pytest.raises(InvalidChunk):
        decode_chunk(body)


@pytest.mark.parametrize(
    "change",
    [
        {"message_type": "new_message"},
        {"message_type": None},
        {"message_type": ["assistant_message"]},
        {"added_later": 1},
        {"seq_id": 4},
        {"content": 7},
        {"is_err": 1},
    ],
)
def test_a_message_that_fits_no_struct_stays_as_it_is(change: dict[str, Any]) -> None:
    """An unknown type, an unknown key or another type of value: nothing is dropped or made up."""
    chunk = {**json.loads(encode_chunk(AssistantMessage(content="x"), run_id=RUN_ID)), **change}
    assert decode_chunk(json.dumps(chunk).encode()) == chunk


def test_a_message_with_missing_keys_stays_as_it_is() -> None:
    """No id and no date are invented for a message that had none."""
    chunk = {"message_type": "assistant_message", "content": "x"}
    assert decode_chunk(json.dumps(chunk).encode()) == chunk


@pytest.mark.parametrize(
    ("chunk", "read"),
    [
        ({"message_type": "stop_reason", "stop_reason": "new", "more": 1}, StopReason(stop_reason="new")),
        ({"message_type": "usage_statistics", "total_tokens": 3}, UsageStatistics(total_tokens=3)),
        (
            {"message_type": "error_message", "error_type": "e", "message": "m", "code": 4},
            ErrorMessage(error_type="e", message="m"),
        ),
        ({"message_type": "stop_reason"}, {"message_type": "stop_reason"}),
    ],
)
def test_an_ending_is_read_for_what_is_known_of_it(chunk: dict[str, Any], read: object) -> None:
    """A key that a newer platform adds or leaves out does not hide that a run has ended."""
    assert decode_chunk(json.dumps(chunk).encode()) == read


@pytest.mark.parametrize(
    ("chunk", "kind"),
    [
        (AssistantMessage(content="x"), Kind.DATA),
        (Ping(), Kind.PING),
        (StopReason(stop_reason="end_turn"), Kind.PLAIN),
        (UsageStatistics(), Kind.PLAIN),
        (ErrorMessage(error_type="e", message="m"), Kind.ERROR),
        ({"message_type": "ping"}, Kind.PING),
        ({"message_type": "stop_reason"}, Kind.PLAIN),
        ({"message_type": "usage_statistics"}, Kind.PLAIN),
        ({"message_type": "error_message"}, Kind.ERROR),
        ({"message_type": "new_message"}, Kind.DATA),
        ({"message_type": "end"}, Kind.DATA),
        ({"message_type": {}}, Kind.DATA),
        ({"anything": 1}, Kind.DATA),
    ],
)
def test_the_kind_follows_from_the_message_type(chunk: Any, kind: Kind) -> None:
    """Structs and mappings alike; what nobody knows is data, and no agent can write an end."""
    assert kind_of(chunk) is kind


def test_kinds_are_written_as_they_are_named() -> None:
    """Their values are what stored headers say."""
    assert [str(kind) for kind in Kind] == ["ping", "data", "plain", "error", "end", "attempt"]


def test_stop_reasons_are_the_references_in_its_order() -> None:
    """The reference lists them where it refuses another."""
    matrix = (CAPTURES / "errors_matrix.txt").read_text()
    *head, last = [f"'{each}'" for each in STOP_REASONS]
    assert f"Input should be {', '.join(head)} or {last}" in matrix


def test_the_last_stop_reason_decides_the_status() -> None:
    """Four complete a run, one cancels it, and all others, known or not, fail it."""
    completed = {"end_turn", "max_steps", "tool_rule", "requires_approval"}
    for stop_reason in (*STOP_REASONS, "new", ""):
        expected = "completed" if stop_reason in completed else "failed"
        assert status_of(stop_reason) == ("cancelled" if stop_reason == "cancelled" else expected)


@pytest.mark.parametrize("error_type", ERROR_TYPES)
def test_every_error_type_fails_its_run(error_type: str) -> None:
    """Each type in the catalogue has a known stop reason that means failure, and something to say."""
    stop, error = error_ending(error_type, run_id=RUN_ID)
    assert stop.stop_reason in STOP_REASONS
    assert status_of(stop.stop_reason) == "failed"
    assert (error.error_type, error.run_id, error.detail) == (error_type, RUN_ID, None)
    assert error.message.endswith(".")


def test_an_error_ending_says_what_it_is_told() -> None:
    """What is given wins over the catalogue; a type nobody knows ends as an internal error does."""
    stop, error = error_ending("llm_error", run_id="r", message="m", detail="d", stop_reason="max_steps")
    assert (stop.stop_reason, error.message, error.detail) == ("max_steps", "m", "d")
    stop, error = error_ending("agents_own", run_id="r")
    assert (stop.stop_reason, error.error_type) == ("error", "agents_own")
    assert error.message == ERROR_TYPES["internal_error"].message
    assert error_ending("llm_error", run_id="r", message="")[1].message == ""


def test_the_catalogue_has_the_references_words() -> None:
    """The captured error's stop reason and message are the catalogue's."""
    capture = (CAPTURES / "10_error_background_early.http").read_text()
    stop, error = error_ending("llm_error", run_id="r")
    assert f'"stop_reason":"{stop.stop_reason}"' in capture
    assert f'"error_type":"llm_error","message":"{error.message}"' in capture
