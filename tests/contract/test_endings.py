"""Every way in which a run can end: what its creator and those who come back see of it, and what its record says."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import NamedTuple, cast

import pytest
import pytest_asyncio

from runstream.broker.errors import AgentFailed
from runstream.schemas import (
    ERROR_TYPES,
    STOP_REASONS,
    AssistantMessage,
    Chunk,
    ErrorMessage,
    RunRequest,
    StopReason,
    UsageStatistics,
    last_user_text,
    status_of,
)
from tests.support.http import DONE, Event
from tests.support.stack import Stack, stack_running


class Ending(NamedTuple):
    """How an agent ends, and what that is to come to."""

    lines: Sequence[Chunk | Exception]
    stop_reason: str
    error_type: str | None = None
    said: str = ""
    """A part of the error's message or detail."""
    chunks: int = 0
    """How many messages the agent had said before."""


def stop(stop_reason: str) -> StopReason:
    return StopReason(stop_reason=stop_reason)


SAID = AssistantMessage(content="so far")
USAGE = UsageStatistics(total_tokens=7)
OWN_ERROR = ErrorMessage(error_type="quota", message="No more today.", detail="Ask again tomorrow.")
CRASHED = "An error occurred during agent execution. None"
"""What a client is told of what an agent did not raise for it: nothing that it said."""
NO_STOP = "Stream ended unexpectedly without stop_reason."
# The error types that a stop reason alone proves; any other failing one comes to an internal error.
PROVEN = {
    "llm_api_error": "llm_error",
    "context_window_overflow_in_system_prompt": "context_window_overflow_in_system_prompt",
}
COMPLETED = [reason for reason in STOP_REASONS if status_of(reason) == "completed"]
FAILED = [*(reason for reason in STOP_REASONS if status_of(reason) == "failed"), "of_tomorrow"]

ENDINGS: dict[str, Ending] = {
    **{f"with {reason}": Ending([SAID, stop(reason), USAGE], reason, chunks=1) for reason in COMPLETED},
    "with a stop reason alone": Ending([stop("end_turn")], "end_turn"),
    "with usage before the stop reason": Ending([SAID, USAGE, stop("end_turn")], "end_turn", chunks=1),
    "cancelled by the agent": Ending([SAID, stop("cancelled"), USAGE], "cancelled", chunks=1),
    **{
        f"with {reason} and no error": Ending(
            [SAID, stop(reason), USAGE], reason, PROVEN.get(reason, "internal_error"), f"stop reason '{reason}'", 1
        )
        for reason in FAILED
    },
    "with nothing": Ending([], "error", "stream_incomplete", NO_STOP),
    "with messages alone": Ending([SAID, SAID], "error", "stream_incomplete", NO_STOP, 2),
    "with usage alone": Ending([USAGE], "error", "stream_incomplete", NO_STOP),
    "an unknown exception at once": Ending([ValueError("a defect")], "error", "internal_error", CRASHED),
    "an unknown exception in the middle": Ending([SAID, KeyError("a key")], "error", "internal_error", CRASHED, 1),
    "a time-out of the agent's": Ending([SAID, TimeoutError()], "llm_api_error", "llm_timeout", "timed out", 1),
    "an error of its own": Ending([AgentFailed("quota", message="No more today.")], "error", "quota", "No more today."),
    "an error chunk": Ending([SAID, OWN_ERROR], "error", "quota", "Ask again tomorrow.", 1),
    "an error chunk and a stop reason": Ending(
        [stop("invalid_tool_call"), OWN_ERROR], "invalid_tool_call", "quota", "No more today."
    ),
    "an error chunk and a good stop reason": Ending([OWN_ERROR, stop("end_turn"), USAGE], "error", "quota", "No more"),
    "two stop reasons": Ending(
        [SAID, stop("error"), stop("llm_api_error")], "llm_api_error", "llm_error", "no error", 1
    ),
    "an exception after the stop reason": Ending(
        [SAID, stop("end_turn"), USAGE, AgentFailed("llm_error")], "llm_api_error", "llm_error", "LLM request", 1
    ),
    **{
        f"{name} {when}": Ending([*before, AgentFailed(name)], known.stop_reason, name, known.message, len(before))
        for name, known in ERROR_TYPES.items()
        for when, before in (("at once", []), ("in the middle", [SAID, SAID]))
    },
}


class Actor:
    """An agent that ends as the message names it, once it is let go."""

    def __init__(self) -> None:
        self.may_end: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def __call__(self, request: RunRequest) -> AsyncGenerator[Chunk, None]:
        await self.may_end[request.run_id].wait()
        for line in ENDINGS[last_user_text(request.body) or ""].lines:
            if isinstance(line, Exception):
                raise line
            yield line


@pytest_asyncio.fixture(scope="module")
async def stack(nats_url: str) -> AsyncIterator[Stack]:
    """A runstream whose agent ends in every way."""
    async with stack_running(nats_url, agent=Actor()) as running:
        yield running


def let_end(stack: Stack, run_id: str) -> None:
    cast("Actor", stack.agent).may_end[run_id].set()


def check(events: list[Event], expected: Ending, run_id: str) -> None:
    """The first ping, what was said, one stop reason, what belongs to it, and one `[DONE]`, the last of all."""
    types = [event.message_type for event in events]
    closing = {"completed": ["usage_statistics"], "failed": ["error_message"], "cancelled": []}
    assert types == [
        "ping",
        *["assistant_message"] * expected.chunks,
        "stop_reason",
        *closing[status_of(expected.stop_reason)],
        None,
    ]
    assert events[-1] == DONE
    assert [event.message_type for event in events if event.event == "error"] == [
        kind for kind in types if kind == "error_message"
    ]
    assert events[types.index("stop_reason")].json["stop_reason"] == expected.stop_reason
    if expected.error_type is not None:
        error = events[-2].json
        assert (error["error_type"], error["run_id"]) == (expected.error_type, run_id)
        assert expected.said in f"{error['message']} {error['detail']}"
        assert error["message"]


async def check_record(stack: Stack, events: list[Event], expected: Ending, run_id: str) -> None:
    """The record says what the stream said, and its error is the stream's."""
    run = (await stack.fetch("GET", f"/v1/runs/{run_id}")).json
    assert (run["status"], run["stop_reason"]) == (status_of(expected.stop_reason), expected.stop_reason)
    assert run["completed_at"] is not None
    told = None if expected.error_type is None else {**events[-2].json, "seq_id": None}
    kept = run["metadata"].get("error")
    assert (kept and {**kept, "seq_id": None}) == told


@pytest.mark.parametrize("name", ENDINGS)
async def test_ending_in_the_background(stack: Stack, name: str) -> None:
    """Who made the run, who joined it, and who comes after its end, see one and the same ending; so says the record."""
    expected = ENDINGS[name]
    async with stack.create(name) as creator:
        run_id = str((await creator.take(1))[0].json["run_id"])
        async with stack.resume(run_id) as joined:
            await joined.take(1)
            let_end(stack, run_id)
            await creator.rest()
            # The end says that all is settled: the record is read before anybody else is waited for.
            await check_record(stack, creator.seen, expected, run_id)
            await joined.rest()
    check(creator.seen, expected, run_id)
    assert joined.seen == creator.seen
    async with stack.resume(run_id) as late:
        assert await late.rest() == creator.seen
    last_seen = [event.seq_id for event in creator.seen].index(creator.cursor)
    async with stack.resume(run_id, creator.cursor) as at_the_end:
        assert await at_the_end.rest() == creator.seen[last_seen + 1 :]


@pytest.mark.parametrize("name", ENDINGS)
async def test_ending_in_the_foreground(stack: Stack, name: str) -> None:
    """A run of the foreground ends in the same way, without cursors."""
    expected = ENDINGS[name]
    async with stack.create(name, background=False) as creator:
        run_id = str((await creator.take(1))[0].json["run_id"])
        let_end(stack, run_id)
        await creator.rest()
    await check_record(stack, creator.seen, expected, run_id)
    check(creator.seen, expected, run_id)
    assert {event.seq_id for event in creator.seen} == {None}


# The reference's own: stop reason and text. None: it has none that is known.
REFERENCE: dict[str, tuple[str, str | None]] = {
    "llm_timeout": ("llm_api_error", "The LLM request timed out. Please try again."),
    "llm_rate_limit": (
        "llm_api_error",
        "Rate limit exceeded for LLM model provider. Please wait before making another request.",
    ),
    "llm_authentication": ("llm_api_error", "Authentication failed with the LLM model provider."),
    "llm_empty_response": ("invalid_llm_response", "LLM returned an empty response."),
    "llm_error": ("llm_api_error", "An error occurred with the LLM request."),
    "context_window_overflow_in_system_prompt": ("context_window_overflow_in_system_prompt", None),
    "internal_error": ("error", "An unknown error occurred with the LLM streaming request."),
    "cleanup_error": ("error", None),
    "stream_incomplete": ("error", NO_STOP),
    "stream_task_cancelled": (
        "error",
        "Background stream processing was interrupted before completion. Please retry.",
    ),
}


@pytest.mark.parametrize("error_type", REFERENCE)
def test_an_error_type_of_the_references_is_as_there(error_type: str) -> None:
    """Its stop reason and its text are the reference's, word for word: the endings above are made of the catalogue."""
    stop_reason, message = REFERENCE[error_type]
    known = ERROR_TYPES[error_type]
    assert known == (stop_reason, message or known.message)


def test_every_error_type_and_stop_reason_is_there() -> None:
    """No ending that the catalogue or the reference knows is left out."""
    assert {ending.error_type for ending in ENDINGS.values()} >= set(ERROR_TYPES)
    assert {ending.stop_reason for ending in ENDINGS.values()} >= set(STOP_REASONS)
