"""What can go wrong with a schema, as one tree; and the errors a run can end with, as data.

SchemaError
├── InvalidChunk    what an agent gave, or a body that was read, is not a chunk
└── InvalidRecord   a stored record or run request cannot be read
    └── NewerRecord     a newer runstream wrote it
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

__all__ = [
    "ERROR_TYPES",
    "INTERNAL_ERROR",
    "WAITING_FOR_APPROVAL",
    "ErrorType",
    "InvalidChunk",
    "InvalidRecord",
    "NewerRecord",
    "SchemaError",
]


class SchemaError(ValueError):
    """Something does not have the shape it must have."""


class InvalidChunk(SchemaError):
    """A chunk is a JSON object with at least one key, and this is something else."""


class InvalidRecord(SchemaError):
    """A stored record cannot be read."""


class NewerRecord(InvalidRecord):
    """A stored record is of a version that this runstream does not know: to write it back would lose what it says."""


class ErrorType(NamedTuple):
    """How a run ends with an error of this type: the stop reason it carries and the text a client shows."""

    stop_reason: str
    message: str


INTERNAL_ERROR: Final = "internal_error"

WAITING_FOR_APPROVAL: Final = (
    "CONFLICT: Cannot send a new message: The agent is waiting for approval on a tool call. "
    "Please approve or deny the pending request before continuing."
)
"""The message of the `internal_error` of a run whose request does not answer what waits: the reference's words."""

ERROR_TYPES: Final[Mapping[str, ErrorType]] = MappingProxyType(
    {
        # The reference's catalogue; the texts are its own.
        "llm_timeout": ErrorType("llm_api_error", "The LLM request timed out. Please try again."),
        "llm_rate_limit": ErrorType(
            "llm_api_error",
            "Rate limit exceeded for LLM model provider. Please wait before making another request.",
        ),
        "llm_authentication": ErrorType("llm_api_error", "Authentication failed with the LLM model provider."),
        "llm_empty_response": ErrorType("invalid_llm_response", "LLM returned an empty response."),
        "llm_error": ErrorType("llm_api_error", "An error occurred with the LLM request."),
        "context_window_overflow_in_system_prompt": ErrorType(
            "context_window_overflow_in_system_prompt",
            "The system prompt alone is larger than the model's context window.",
        ),
        INTERNAL_ERROR: ErrorType("error", "An unknown error occurred with the LLM streaming request."),
        "cleanup_error": ErrorType("error", "An error occurred while the run was being finished."),
        "stream_incomplete": ErrorType("error", "Stream ended unexpectedly without stop_reason."),
        "stream_task_cancelled": ErrorType(
            "error", "Background stream processing was interrupted before completion. Please retry."
        ),
        # runstream's own.
        "run_lost": ErrorType(
            "error", "The process that wrote this run stopped answering. What it had stored is complete."
        ),
        "run_too_long": ErrorType("error", "This run has reached the number of messages a run may have."),
        "chunk_too_large": ErrorType("error", "The agent sent a message that is too large to be stored."),
        "upstream_rejected": ErrorType("error", "The agent platform refused the request."),
        "upstream_unreachable": ErrorType("error", "The agent platform cannot be reached."),
        "upstream_timeout": ErrorType("error", "The agent platform was silent for too long."),
        "upstream_invalid": ErrorType("error", "The agent platform sent something that is not a JSON object."),
        "store_full": ErrorType("error", "The store is full: an operator has to make room for further runs."),
        "expired": ErrorType("error", "Part of this run was removed by retention."),
        "store_unavailable": ErrorType(
            "error", "The run's log cannot be reached. Resume from the last seq_id in a moment."
        ),
        "log_broken": ErrorType(
            "error", "The run's log has a message that cannot be read. What was stored before it is complete."
        ),
        "invalid_demo_request": ErrorType("error", "The demo agent does not understand this request."),
        "credential_lost": ErrorType(
            "error", "The gateway that knew this request's credential is gone. Send the request again."
        ),
        "credential_expired": ErrorType("error", "The credential expired. Resume from the last seq_id with a new one."),
    }
)
"""Every error type runstream ends a run or a response with. An agent's own types may come on top of these.

The messages of `context_window_overflow_in_system_prompt` and `cleanup_error` are runstream's: the
reference's are not known.
"""
