"""What a writer says, chunk by chunk: messages go into the log, the parts of an ending are held back until the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from runstream.broker.ending import Outcome, failed
from runstream.schemas import (
    ERROR_TYPES,
    MESSAGE_TYPES,
    ErrorMessage,
    Kind,
    StopReason,
    UsageStatistics,
    decode_chunk,
    encode_chunk,
    kind_of,
    message_type_of,
    status_of,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from runstream.broker.publisher import Publisher
    from runstream.schemas import Chunk

__all__ = ["Recording", "outcome_of_stop"]

_ERROR_TYPE_OF: Mapping[str, str] = {
    "llm_api_error": "llm_error",
    "context_window_overflow_in_system_prompt": "context_window_overflow_in_system_prompt",
}
"""What a stop reason alone proves. `invalid_llm_response` is not here: an invalid response need not be an empty one."""


class Recording:
    """One run as its writer tells it.

    `wanted` names the message types that the client asked for, None for all; what is no message of Letta's is never
    left out. `default_stop` is the stop reason of a writer that gives none; without one it has failed.
    """

    def __init__(
        self,
        publisher: Publisher,
        run_id: str,
        *,
        wanted: Sequence[str] | None = None,
        default_stop: str | None = None,
    ) -> None:
        self._publisher = publisher
        self._run_id = run_id
        self._unwanted = frozenset() if wanted is None else frozenset(MESSAGE_TYPES).difference(wanted)
        self._stop = None if default_stop is None else StopReason(stop_reason=default_stop)
        self._usage: UsageStatistics | None = None
        self._error: ErrorMessage | None = None

    async def take(self, chunk: Chunk | Mapping[str, object]) -> asyncio.Future[int] | None:
        """Queue a message to be stored, or hold a part of the ending back; a ping is dropped.

        Returns the future of the message's sequence, None if there will be none. Raises `InvalidChunk`, and as
        `Publisher.enqueue`.
        """
        body, kind = encode_chunk(chunk, run_id=self._run_id), kind_of(chunk)
        if kind is Kind.DATA:
            return None if message_type_of(chunk) in self._unwanted else await self._publisher.enqueue(body)
        held = decode_chunk(body)
        self._stop = held if isinstance(held, StopReason) else self._stop
        self._usage = held if isinstance(held, UsageStatistics) else self._usage
        self._error = _error_of(held, self._run_id) if kind is Kind.ERROR else self._error
        return None

    async def outcome(self) -> Outcome:
        """Say what the run came to, when all that was taken is stored. Raises what kept it from being so."""
        await self._publisher.flush()
        stop, error = self._stop, self._error
        if error is not None:
            if stop is not None and status_of(stop.stop_reason) == "failed":
                return Outcome(stop.stop_reason, error=error)
            known = ERROR_TYPES.get(error.error_type)
            return Outcome("error" if known is None else known.stop_reason, error=error)
        if stop is None:
            return failed(self._run_id, "stream_incomplete")
        return outcome_of_stop(stop.stop_reason, self._usage, self._run_id)


def outcome_of_stop(stop_reason: str, usage: UsageStatistics | None, run_id: str) -> Outcome:
    """Say what a run came to whose writer gave no error: one that has failed is given one."""
    if (status := status_of(stop_reason)) == "failed":
        return Outcome(stop_reason, error=_missing_error(stop_reason, run_id))
    return Outcome(stop_reason, usage=(usage or UsageStatistics()) if status == "completed" else None)


def _error_of(held: Chunk | dict[str, object], run_id: str) -> ErrorMessage:
    """Read an agent's own error, or make one of what it gave in place of it."""
    if isinstance(held, ErrorMessage):
        return held
    made = failed(run_id, "internal_error", detail=encode_chunk(held, run_id=run_id).decode()).error
    return made or ErrorMessage(run_id=run_id, error_type="internal_error", message="")


def _missing_error(stop_reason: str, run_id: str) -> ErrorMessage | None:
    """Make the error of a writer that ended with a failing stop reason and gave none."""
    said = f"The agent ended with the stop reason '{stop_reason}', and gave no error."
    if (error_type := _ERROR_TYPE_OF.get(stop_reason)) is not None:
        return failed(run_id, error_type, detail=said).error
    return failed(run_id, "internal_error", message=said).error
