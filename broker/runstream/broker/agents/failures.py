"""What an agent's exception means to a client: the error type a run ends with.

Agents raise what their libraries raise, and those agree on little: the clients of model providers and of HTTP give an
error the status of the answer, in `status_code` or in `response.status_code`. That is enough to tell a client whether
trying again makes sense. What such an exception says is for whoever runs the agent: it may quote keys, addresses, or
another user's words, and nobody wrote it for a client. `AgentFailed` is what an agent tells its clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from runstream.broker.ending import Outcome, failed
from runstream.broker.errors import AgentFailed, ChunkTooLarge, RunTooLong, StoreFull
from runstream.broker.logs import get_logger
from runstream.schemas import INTERNAL_ERROR, InvalidChunk

__all__ = ["outcome_of"]

log = get_logger(__name__)

AGENT_CRASHED = "An error occurred during agent execution."

_OF_CHUNKS: Mapping[type[BaseException], str] = {
    ChunkTooLarge: "chunk_too_large",
    RunTooLong: "run_too_long",
    InvalidChunk: INTERNAL_ERROR,
}
"""What is wrong with what an agent said, in words of ours."""
_BY_STATUS: Mapping[int, str] = {
    HTTPStatus.UNAUTHORIZED: "llm_authentication",
    HTTPStatus.FORBIDDEN: "llm_authentication",
    HTTPStatus.REQUEST_TIMEOUT: "llm_timeout",
    HTTPStatus.TOO_MANY_REQUESTS: "llm_rate_limit",
    HTTPStatus.GATEWAY_TIMEOUT: "llm_timeout",
}


def outcome_of(error: BaseException, run_id: str) -> Outcome:
    """Give the failure that `error`, raised by an agent or over its chunks, ends a run with.

    What is not told to clients is logged, with its traceback.
    """
    if isinstance(error, StoreFull):
        return failed(run_id, "store_full")  # How full which stream is is for the operator.
    if isinstance(error, AgentFailed):
        return failed(run_id, error.error_type, message=error.message, detail=error.detail or None)
    if (error_type := _OF_CHUNKS.get(type(error))) is not None:
        return failed(run_id, error_type, detail=str(error))
    if (error_type := _of_a_provider(error)) is not None:
        log.warning("agent_failed", run_id=run_id, error_type=error_type, exc_info=error)
        return failed(run_id, error_type)
    log.error("agent_crashed", run_id=run_id, exc_info=error)
    return failed(run_id, INTERNAL_ERROR, message=AGENT_CRASHED)


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
