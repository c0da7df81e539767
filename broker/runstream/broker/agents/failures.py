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
from runstream.schemas import InvalidChunk

__all__ = ["outcome_of"]

AGENT_CRASHED = "An error occurred during agent execution."

_BY_STATUS: Mapping[int, str] = {
    HTTPStatus.UNAUTHORIZED: "llm_authentication",
    HTTPStatus.FORBIDDEN: "llm_authentication",
    HTTPStatus.REQUEST_TIMEOUT: "llm_timeout",
    HTTPStatus.TOO_MANY_REQUESTS: "llm_rate_limit",
    HTTPStatus.GATEWAY_TIMEOUT: "llm_timeout",
}


_OWN: Mapping[type[Exception], str] = {
    ChunkTooLarge: "chunk_too_large",
    RunTooLong: "run_too_long",
    StoreFull: "store_full",
    InvalidChunk: "internal_error",
}
"""What kept a chunk from being stored."""


def outcome_of(error: BaseException, run_id: str) -> Outcome:
    """Give the failure that `error`, raised by an agent or over its chunks, ends a run with."""
    detail = str(error) or repr(error)
    if isinstance(error, AgentFailed):
        return failed(run_id, error.error_type, message=error.message, detail=error.detail or None)
    if (own := next((own for kind, own in _OWN.items() if isinstance(error, kind)), None)) is not None:
        # How full which stream is is for the operator.
        return failed(run_id, own, detail=None if isinstance(error, StoreFull) else detail)
    if (of_a_provider := _of_a_provider(error)) is not None:
        return failed(run_id, of_a_provider, detail=detail)
    return failed(run_id, "internal_error", message=AGENT_CRASHED, detail=detail)


def _of_a_provider(error: BaseException) -> str | None:
    """Read a model provider's failure off an exception; None when it is something else."""
    if isinstance(error, TimeoutError) or any("Timeout" in kind.__name__ for kind in type(error).__mro__):
        return "llm_timeout"
    status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
    if not isinstance(status, int) or status < HTTPStatus.BAD_REQUEST:
        return None
    return _BY_STATUS.get(status, "llm_error")
