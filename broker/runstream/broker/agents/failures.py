"""What an agent's exception means to a client: the error type a run ends with.

Agents raise what their libraries raise, and those agree on little: the clients of model providers and of HTTP give an
error the status of the answer, in `status_code` or in `response.status_code`. That is enough to tell a client whether
trying again makes sense.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from runstream.broker.ending import Outcome, failed
from runstream.broker.errors import AgentFailed, ChunkTooLarge, RunTooLong, StoreFull
from runstream.schemas import INTERNAL_ERROR, InvalidChunk

__all__ = ["outcome_of"]

AGENT_CRASHED = "An error occurred during agent execution."

_BY_KIND: Mapping[type[BaseException], str] = {
    ChunkTooLarge: "chunk_too_large",
    RunTooLong: "run_too_long",
    InvalidChunk: INTERNAL_ERROR,
}
_BY_STATUS: Mapping[int, str] = {
    HTTPStatus.UNAUTHORIZED: "llm_authentication",
    HTTPStatus.FORBIDDEN: "llm_authentication",
    HTTPStatus.REQUEST_TIMEOUT: "llm_timeout",
    HTTPStatus.TOO_MANY_REQUESTS: "llm_rate_limit",
    HTTPStatus.GATEWAY_TIMEOUT: "llm_timeout",
}


def outcome_of(error: BaseException, run_id: str) -> Outcome:
    """Give the failure that `error`, raised by an agent or over its chunks, ends a run with."""
    if isinstance(error, StoreFull):
        return failed(run_id, "store_full")  # How full which stream is is for the operator.
    if isinstance(error, AgentFailed):
        return failed(run_id, error.error_type, message=error.message, detail=error.detail or None)
    detail = _text(error)
    if (error_type := _BY_KIND.get(type(error)) or _of_a_provider(error)) is not None:
        return failed(run_id, error_type, detail=detail)
    return failed(run_id, INTERNAL_ERROR, message=AGENT_CRASHED, detail=detail)


def _text(error: BaseException) -> str:
    """Say what `error` says; its type, if it cannot even say that."""
    try:
        return str(error) or repr(error)
    except Exception:  # noqa: BLE001  # whatever an agent made of it
        return type(error).__name__


def _of_a_provider(error: BaseException) -> str | None:
    """Read a model provider's failure off an exception; None when it is something else."""
    if isinstance(error, TimeoutError) or any("Timeout" in kind.__name__ for kind in type(error).__mro__):
        return "llm_timeout"
    try:
        status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
    except Exception:  # noqa: BLE001  # as above
        return None
    if not isinstance(status, int) or status < HTTPStatus.BAD_REQUEST:
        return None
    return _BY_STATUS.get(status, "llm_error")
