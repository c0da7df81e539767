"""Records keep what they are given, tolerate newer writers, and look to clients as the reference's do."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runstream.schemas import (
    ACTIVE_STATUSES,
    DEFAULT_USER_ID,
    RUN_STATUSES,
    ConversationRecord,
    InvalidRecord,
    NewerRecord,
    RequestConfig,
    RunRecord,
    RunRequest,
    SchemaError,
    UsageStatistics,
    completion_timestamp,
    decode_conversation,
    decode_run,
    decode_run_request,
    encode_conversation,
    encode_run,
    encode_run_request,
    error_ending,
    new_agent_id,
    new_conversation_id,
    new_run_id,
    timestamp,
)
from runstream.schemas.chunks import encode_chunk

CAPTURES = Path(__file__).parents[1] / "contract" / "captures"


def captured(name: str) -> Any:
    """The JSON body of a captured response."""
    return json.loads((CAPTURES / f"{name}.http").read_bytes().split(b"\r\n\r\n", 1)[1])


def run(**changes: Any) -> RunRecord:
    fields: dict[str, Any] = {"id": new_run_id(), "agent_id": new_agent_id(), "shard": 0}
    return RunRecord(**fields | changes)


def conversation(**changes: Any) -> ConversationRecord:
    fields: dict[str, Any] = {"id": new_conversation_id(), "agent_id": new_agent_id()}
    return ConversationRecord(**fields | changes)


def run_request(**changes: Any) -> RunRequest:
    fields: dict[str, Any] = {"run_id": new_run_id(), "agent_id": new_agent_id(), "body": {"input": "x"}}
    return RunRequest(**fields | changes)


def same_json(value: Any, expected: Any) -> bool:
    """Equal, and the keys in the same order at every depth."""
    return json.dumps(value) == json.dumps(expected)


@pytest.mark.parametrize(
    "wire", [captured("16_run_get_cancelled"), *captured("17_runs_list")], ids=["single", "listed"]
)
def test_a_run_looks_as_the_references(wire: dict[str, Any]) -> None:
    """All keys, always, in the reference's order, from what the record keeps."""
    record = run(
        **{name: wire[name] for name in ("id", "status", "created_at", "completed_at", "agent_id")},
        conversation_id=wire["conversation_id"],
        background=True,
        run_type="send_conversation_message",
        stop_reason=wire["stop_reason"],
        total_duration_ns=wire["total_duration_ns"],
    )
    assert same_json(msgspec.to_builtins(decode_run(encode_run(record)).to_wire()), wire)


def test_a_failed_run_shows_its_error() -> None:
    """`metadata.error` is the error_message the run ended with, its `seq_id` null."""
    record = run()
    _, error = error_ending("llm_error", run_id=record.id, detail="boom")
    record.error = json.loads(encode_chunk(error, run_id=record.id))
    metadata = msgspec.to_builtins(record.to_wire().metadata)
    assert list(metadata) == ["run_type", "error"]
    assert metadata["error"] == {
        "message_type": "error_message",
        "run_id": record.id,
        "error_type": "llm_error",
        "message": "An error occurred with the LLM request.",
        "detail": "boom",
        "seq_id": None,
    }
    assert "seq_id" not in record.error


def test_a_conversation_looks_as_the_references() -> None:
    """The open-source server's keys in its order, then the hosted service's, then the client's own."""
    wire = captured("18_conversation_get")
    record = conversation(**wire, extra={"hidden": True, "id": "not this one"})
    shown = decode_conversation(encode_conversation(record)).to_wire()
    added = {"archived": None, "archived_at": None, "context_window_limit": None, "description": None}
    assert same_json(shown, {**wire, **added, "hidden": True})


def test_what_runs_in_a_conversation_is_not_shown() -> None:
    """Tenant, runs and deletion are runstream's own affair."""
    shown = conversation(tenant="acme", active_run="a", latest_run="b", deleted=True).to_wire()
    assert not {"v", "tenant", "active_run", "latest_run", "deleted", "extra"} & set(shown)
    assert shown["created_by_id"] == shown["last_updated_by_id"] == DEFAULT_USER_ID


@pytest.mark.parametrize("status", RUN_STATUSES)
def test_a_run_is_over_once_it_is_not_active(status: Any) -> None:
    """Created and running are active; completed, failed and cancelled are final."""
    assert run(status=status).is_terminal is (status not in ACTIVE_STATUSES)
    assert run(status=status).is_terminal is (status in {"completed", "failed", "cancelled"})


def test_records_come_back_as_they_were_written() -> None:
    """Every field survives, whatever a client put into those that are its own."""
    record = run(
        tenant="acme",
        status="failed",
        completed_at=completion_timestamp(),
        conversation_id=new_conversation_id(),
        background=True,
        request_config=RequestConfig(use_assistant_message=False, include_return_message_types=["ping"]),
        stop_reason="error",
        error={"message": "\u2028"},
        shard=3,
        first_seq=2**53 - 1,
        otids=["b", "a"],
        total_duration_ns=1,
        ttft_ns=2,
    )
    assert decode_run(encode_run(record)) == record
    talk = conversation(model_settings={"a": [1, None]}, extra={"b": {}}, active_run="r", deleted=True)
    assert decode_conversation(encode_conversation(talk)) == talk
    asked = run_request(
        conversation_id="conv", background=True, traceparent="00-a-b-01", include_return_message_types=[]
    )
    assert decode_run_request(encode_run_request(asked)) == asked


@pytest.mark.parametrize(
    ("encode", "decode", "record"),
    [
        (encode_run, decode_run, run()),
        (encode_conversation, decode_conversation, conversation()),
        (encode_run_request, decode_run_request, run_request()),
    ],
)
def test_a_newer_writers_fields_are_passed_over(encode: Any, decode: Any, record: Any) -> None:
    """A field nobody knows yet, at any depth, stops nobody from reading the record."""
    newer = json.loads(encode(record)) | {"added_later": {"a": 1}}
    if "request_config" in newer:
        newer["request_config"]["added_later"] = True
    assert decode(json.dumps(newer).encode()) == record
    # What an older reader must not take for what it knows has a version of its own.
    for changed in ({"v": 2}, {"v": 2, "id": 1, "run_id": 1}):
        with pytest.raises(NewerRecord, match="version 2"):
            decode(json.dumps(newer | changed).encode())


@pytest.mark.parametrize("decode", [decode_run, decode_conversation, decode_run_request])
@pytest.mark.parametrize("value", [b"", b"{}", b"[]", b"null", b"{", b'{"id":"\xff"}', b'{"id":1,"run_id":1}'])
def test_what_is_no_record_is_refused(decode: Any, value: bytes) -> None:
    """Damage is told apart from absence."""
    with pytest.raises(InvalidRecord):
        decode(value)


def test_a_request_that_cannot_be_json_is_refused() -> None:
    """A body is stored as JSON or not at all."""
    for body in ({"input": "\ud800"}, {"input": object()}):
        with pytest.raises(SchemaError):
            encode_run_request(run_request(body=body))


def test_times_are_written_as_the_references_are() -> None:
    """Microseconds, with `Z`; and without a zone for `completed_at`."""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", timestamp())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}", completion_timestamp())
    assert abs((datetime.now(UTC) - datetime.fromisoformat(timestamp())).total_seconds()) < 60


def test_defaults_are_not_shared() -> None:
    """What is put into one record is not in the next."""
    first, second = run(), run()
    first.otids.append("a")
    first.request_config.use_assistant_message = False
    assert (second.otids, second.request_config) == ([], RequestConfig())


def test_usage_is_in_the_form_of_openais() -> None:
    """What the provider did not say is null, and there are zeros as long as nothing is known."""
    assert msgspec.to_builtins(run().usage_to_wire()) == {
        "completion_tokens": 0,
        "prompt_tokens": 0,
        "total_tokens": 0,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }
    usage = UsageStatistics(
        completion_tokens=1, prompt_tokens=2, total_tokens=3, cached_input_tokens=4, reasoning_tokens=0
    )
    record = decode_run(encode_run(run(usage=usage)))
    assert record.usage == usage
    assert msgspec.to_builtins(record.usage_to_wire()) == {
        "completion_tokens": 1,
        "prompt_tokens": 2,
        "total_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 4, "cache_read_tokens": None, "cache_creation_tokens": None},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
