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


def outcome_of(error: BaseException, run_id: str) -> Outcome:
    """Give the failure that `error`, raised by an agent or over its chunks, ends a run with."""
    if isinstance(error, AgentFailed):
        return failed(run_id, error.error_type, message=error.message, detail=error.detail or None)
    if isinstance(error, StoreFull):
        return failed(run_id, "store_full")  # How full which stream is is for the operator.
    if (error_type := _of_the_store(error) or _of_a_provider(error)) is not None:
        return failed(run_id, error_type, detail=str(error) or repr(error))
    if isinstance(error, InvalidChunk):
        return failed(run_id, "internal_error", detail=str(error))
    return failed(run_id, "internal_error", message=AGENT_CRASHED, detail=str(error) or repr(error))


def _of_the_store(error: BaseException) -> str | None:
    """Name what kept a chunk from being stored; None when it is something else."""
    match error:
        case ChunkTooLarge():
            return "chunk_too_large"
        case RunTooLong():
            return "run_too_long"
        case _:
            return None


def _of_a_provider(error: BaseException) -> str | None:
    """Read a model provider's failure off an exception; None when it is something else."""
    if isinstance(error, TimeoutError) or any("Timeout" in kind.__name__ for kind in type(error).__mro__):
        return "llm_timeout"
    status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
    if not isinstance(status, int) or status < HTTPStatus.BAD_REQUEST:
        return None
    return _BY_STATUS.get(status, "llm_error")
