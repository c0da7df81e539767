"""Runs: the record the index keeps of one, how a client sees it, and what a worker hands to an agent.

Newer writers may add fields; older readers pass over them, so nothing here refuses what it does not know.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args

import msgspec
from msgspec import UNSET, UnsetType

from runstream.schemas.chunks import UsageStatistics
from runstream.schemas.errors import InvalidRecord, NewerRecord
from runstream.schemas.ids import DEFAULT_TENANT
from runstream.schemas.trace import Trace

__all__ = [
    "ACTIVE_STATUSES",
    "RECORD_VERSION",
    "REQUIRES_APPROVAL",
    "RUN_STATUSES",
    "RequestConfig",
    "Run",
    "RunMetadata",
    "RunRecord",
    "RunRequest",
    "RunStatus",
    "RunUsage",
    "check_version",
    "completion_timestamp",
    "decode_run",
    "decode_run_request",
    "encode_run",
    "encode_run_request",
    "timestamp",
    "unreadable",
]

RECORD_VERSION: Final = 1
"""What `v` is in all that the index keeps. Keys may be added without a new one; an older reader refuses a newer one."""

RunStatus = Literal["created", "running", "completed", "failed", "cancelled"]
RUN_STATUSES: Final[tuple[str, ...]] = get_args(RunStatus)
REQUIRES_APPROVAL: Final = "requires_approval"
"""The stop reason of a run that waits for a client's decision: the next message must carry it."""
ACTIVE_STATUSES: Final = frozenset({"created", "running"})


def timestamp(at: datetime | None = None) -> str:
    """A time (None: now) as records carry it: UTC, microseconds, `Z` (`2026-11-21T04:28:06.668009Z`).

    One that names no zone is taken for UTC. Raises OverflowError for what is in no year of UTC that has four digits.
    """
    at = at or datetime.now(UTC)
    in_utc = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    # Not strftime: its years have as many digits as they need, and records are ordered as text.
    return in_utc.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def completion_timestamp(at: datetime | None = None) -> str:
    """The same without `Z`: the reference's `completed_at` names no zone, alone among its times."""
    return timestamp(at).removesuffix("Z")


class RequestConfig(msgspec.Struct, kw_only=True):
    """How the client asked to be answered."""

    use_assistant_message: bool = True
    assistant_message_tool_name: str = "send_message"
    assistant_message_tool_kwarg: str = "message"
    include_return_message_types: list[str] | None = None


class RunMetadata(msgspec.Struct, kw_only=True):
    """Where a run came from, and the error_message that it ended with, if it failed."""

    run_type: str
    error: dict[str, Any] | UnsetType = UNSET


class Run(msgspec.Struct, kw_only=True):
    """One run, as clients get it: every key, in the reference's order."""

    id: str
    status: RunStatus
    created_at: str
    completed_at: str | None
    agent_id: str
    conversation_id: str | None
    base_template_id: None = None
    background: bool
    metadata: RunMetadata
    request_config: RequestConfig
    stop_reason: str | None
    callback_url: None = None
    callback_sent_at: None = None
    callback_status_code: None = None
    callback_error: None = None
    ttft_ns: int | None
    total_duration_ns: int | None


class PromptTokensDetails(msgspec.Struct, kw_only=True):
    """Of the tokens of a prompt, those that were read from a cache or written to it."""

    cached_tokens: int | None
    cache_read_tokens: None = None
    cache_creation_tokens: int | None


class CompletionTokensDetails(msgspec.Struct, kw_only=True):
    """Of the tokens of an answer, those that were thoughts."""

    reasoning_tokens: int


class RunUsage(msgspec.Struct, kw_only=True):
    """What a run used, in the form of OpenAI's."""

    completion_tokens: int
    prompt_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None
    completion_tokens_details: CompletionTokensDetails | None


class RunRecord(msgspec.Struct, kw_only=True):
    """One run, as the index keeps it."""

    v: int = 1
    tenant: str = DEFAULT_TENANT
    id: str
    status: RunStatus = "created"
    created_at: str = msgspec.field(default_factory=timestamp)
    completed_at: str | None = None
    """See `completion_timestamp`."""
    agent_id: str
    conversation_id: str | None = None
    """None: the agent was addressed directly."""
    in_default: bool = False
    """Whether the agent was addressed as a conversation, its default one, which has one run at a time."""
    background: bool = False
    run_type: str = "send_message_streaming"
    """Which endpoint it came from; clients see it as `metadata.run_type`. The reference has `send_message`,
    `send_message_streaming` and `send_conversation_message`; `library` and `ingest` came from none."""
    request_config: RequestConfig = msgspec.field(default_factory=RequestConfig)
    stop_reason: str | None = None
    error: dict[str, Any] | None = None
    """The error_message a failed run ended with."""
    usage: UsageStatistics | None = None
    """What the run used, once it has ended; None if it did not say."""
    shard: int
    """Which stream the log is in; chosen once."""
    first_seq: int | None = None
    """The sequence of the log's first message; None until it is stored."""
    otids: list[str] = msgspec.field(default_factory=list)
    """The otids the client sent, in order."""
    answers: str | None = None
    """The run whose request for approval this one answers."""
    total_duration_ns: int | None = None
    ttft_ns: int | None = None
    """From the claim until the agent's first chunk was stored; None if it said nothing, or who ended it cannot tell."""

    @property
    def holds(self) -> str | None:
        """The conversation that is busy while the run goes on: the agent's id stands for its default one."""
        return self.conversation_id or (self.agent_id if self.in_default else None)

    @property
    def scope(self) -> str:
        """What otids and requests for approval are particular to: the conversation, or else the agent."""
        return self.conversation_id or self.agent_id

    @property
    def is_terminal(self) -> bool:
        """Whether the run is over: completed, failed or cancelled."""
        return self.status not in ACTIVE_STATUSES

    def to_wire(self) -> Run:
        """The run as clients get it."""
        error = UNSET if self.error is None else {**self.error, "seq_id": None}
        return Run(
            id=self.id,
            status=self.status,
            created_at=self.created_at,
            completed_at=self.completed_at,
            agent_id=self.agent_id,
            conversation_id=self.conversation_id,
            background=self.background,
            metadata=RunMetadata(run_type=self.run_type, error=error),
            request_config=self.request_config,
            stop_reason=self.stop_reason,
            ttft_ns=self.ttft_ns,
            total_duration_ns=self.total_duration_ns,
        )

    def usage_to_wire(self) -> RunUsage:
        """What the run used, as clients get it of a run; zeros while that is not known."""
        usage = self.usage or UsageStatistics()
        cached, written, reasoning = usage.cached_input_tokens, usage.cache_write_tokens, usage.reasoning_tokens
        prompt = PromptTokensDetails(cached_tokens=cached, cache_creation_tokens=written)
        return RunUsage(
            completion_tokens=usage.completion_tokens,
            prompt_tokens=usage.prompt_tokens,
            total_tokens=usage.total_tokens,
            prompt_tokens_details=None if cached is None and written is None else prompt,
            completion_tokens_details=None
            if reasoning is None
            else CompletionTokensDetails(reasoning_tokens=reasoning),
        )


class RunRequest(msgspec.Struct, kw_only=True):
    """One run to execute: what a worker hands to an agent."""

    v: int = 1
    tenant: str = DEFAULT_TENANT
    run_id: str
    agent_id: str
    conversation_id: str | None = None
    background: bool = False
    include_return_message_types: list[str] | None = None
    body: dict[str, Any]
    """The client's request body, as sent."""
    credentials_from: str | None = None
    """The NATS subject on which the gateway tells what the client authenticated itself with: that is never stored.
    Empty if the client did not; None if no broker wanted to know."""
    traceparent: str | None = None
    """W3C trace context of the request."""
    tracestate: str | None = None
    hops: list[str] | None = None
    """The runs, of whichever runstream, that the request has come by; None for none."""

    @property
    def trace(self) -> Trace | None:
        """The trace of the request that the run answers, if it belongs to one."""
        return None if self.traceparent is None else Trace(self.traceparent, self.tracestate)

    def within(self, trace: Trace | None) -> RunRequest:
        """The same request as a part of another trace, or of another span of it."""
        if trace is None or trace == self.trace:
            return self
        return msgspec.structs.replace(self, traceparent=trace.parent, tracestate=trace.state)


_encoder: Final = msgspec.json.Encoder()
_run_decoder: Final = msgspec.json.Decoder(RunRecord)
_request_decoder: Final = msgspec.json.Decoder(RunRequest)


def encode_run(record: RunRecord) -> bytes:
    """The record as the index stores it."""
    return _encoder.encode(record)


class _Versioned(msgspec.Struct):
    v: int = RECORD_VERSION


_version_decoder: Final = msgspec.json.Decoder(_Versioned)


def unreadable(value: bytes, what: str, error: Exception) -> InvalidRecord:
    """Say why a value cannot be read: a newer runstream wrote it, or it is not `what` it should be."""
    try:
        version = _version_decoder.decode(value).v
    except (ValueError, RecursionError):
        version = 0
    if version > RECORD_VERSION:
        return NewerRecord(f"It is of version {version}: a newer runstream wrote it.")
    return InvalidRecord(f"This is not {what}: {error}")


def check_version(version: int) -> None:
    """Raise ValueError for what a newer runstream wrote, whether or not it looks as if it could be read."""
    if version > RECORD_VERSION:
        message = f"version {version}"
        raise ValueError(message)


def decode_run(value: bytes) -> RunRecord:
    """Read a record back. Raises InvalidRecord for anything else, NewerRecord for what a newer runstream wrote."""
    try:
        record = _run_decoder.decode(value)
        check_version(record.v)
        datetime.fromisoformat(record.created_at)
    except (ValueError, RecursionError) as error:
        raise unreadable(value, "the record of a run", error) from error
    return record


def encode_run_request(request: RunRequest) -> bytes:
    """The request as the work queue stores it. Raises InvalidRecord if its body cannot be JSON."""
    try:
        return _encoder.encode(request)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRecord(f"The body of this run request cannot be written as JSON: {error}") from error


def decode_run_request(value: bytes) -> RunRequest:
    """Read a request back. Raises InvalidRecord for anything else."""
    try:
        request = _request_decoder.decode(value)
        check_version(request.v)
    except (ValueError, RecursionError) as error:
        raise unreadable(value, "a run request", error) from error
    return request
