"""The demo agent: answers in words, needs no key and no network, and fails, pauses and floods on request.

If the last thing the user said is a JSON object, its keys are knobs. Anything else is answered in words.

============  ========================  =======  =============================================================
knob          allowed                   default  what it does
============  ========================  =======  =============================================================
chunks        0 to 1,000,000            20       how many chunks the answer has; each is one event
interval_ms   0 to 86,400,000           20       milliseconds from one chunk to the next
chunk_bytes   1 to 67,108,864           unset    ASCII text of exactly this many bytes in each chunk
text          at least one word         a text   the words of the chunks, in turn, each followed by a space
silence_ms    0 to 86,400,000           0        milliseconds in which nothing happens, before everything else
reasoning     true or false             false    a reasoning message comes before the answer
tool_call     true or false             false    a tool call and its return come before the answer
error_after   0 to `chunks`             unset    fail after exactly this many chunks of the answer
error_type    a name                    unset    how to fail: `llm_error` if unset, or any other error type
approval      true or false             false    end by asking for approval of a tool call
============  ========================  =======  =============================================================

Only the answer counts in `chunks`: not reasoning, tool calls or approval requests. A request that answers an
approval request is told in words what was decided, after the tool's return if that was approved.
`stream_tokens` is ignored: so many chunks are so many events, always.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, NamedTuple, NoReturn
from uuid import uuid4

import msgspec

from runstream.broker.errors import AgentFailed
from runstream.schemas import (
    Approval,
    ApprovalRequestMessage,
    AssistantMessage,
    Chunk,
    ReasoningMessage,
    RunRequest,
    StopReason,
    ToolCall,
    ToolCallMessage,
    ToolReturn,
    ToolReturnMessage,
    UsageStatistics,
    approvals_in,
    carries_approval,
    last_user_text,
    new_message_id,
    new_otid,
    new_step_id,
)

__all__ = ["demo"]

DEFAULT_TEXT: Final = (
    "runstream stored every word of this answer before you saw it. Hang up, come back later, and nothing is lost."
)

WEATHER: Final = "The weather is fine."

MAX_CHUNKS: Final = 1_000_000
"""More than any log takes: enough to run into every limit there is."""

MAX_PAUSE_MS: Final = 86_400_000
"""A day, in milliseconds: longer than anyone waits for a demonstration."""

MAX_CHUNK_BYTES: Final = 64 * 1024 * 1024
"""The largest message a nats-server can be configured to take; a larger chunk would show nothing more."""

CHUNKS_PER_TURN: Final = 64
"""Chunks that are due at once and go out before others on the event loop get their turn."""

MILLISECOND: Final = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class _Knobs:
    chunks: int = 20
    interval_ms: float = 20
    chunk_bytes: int | None = None
    text: str = DEFAULT_TEXT
    silence_ms: float = 0
    reasoning: bool = False
    tool_call: bool = False
    error_after: int | None = None
    error_type: str = "llm_error"
    approval: bool = False


class _Allowed(NamedTuple):
    type: Any
    words: str


_PAUSE: Final = _Allowed(
    Annotated[float, msgspec.Meta(ge=0, le=MAX_PAUSE_MS)],
    f"a number of milliseconds from 0 to {MAX_PAUSE_MS}",
)
_FLAG: Final = _Allowed(bool, "true or false")
_COUNT: Final = _Allowed(Annotated[int, msgspec.Meta(ge=0, le=MAX_CHUNKS)], f"a whole number from 0 to {MAX_CHUNKS}")
_ALLOWED: Final = {
    "chunks": _COUNT,
    "interval_ms": _PAUSE,
    "chunk_bytes": _Allowed(
        Annotated[int, msgspec.Meta(ge=1, le=MAX_CHUNK_BYTES)], f"a whole number from 1 to {MAX_CHUNK_BYTES}"
    ),
    "text": _Allowed(Annotated[str, msgspec.Meta(pattern=r"\S")], "a string with at least one word"),
    "silence_ms": _PAUSE,
    "reasoning": _FLAG,
    "tool_call": _FLAG,
    "error_after": _COUNT,
    "error_type": _Allowed(Annotated[str, msgspec.Meta(min_length=1)], "a name such as llm_error"),
    "approval": _FLAG,
}


async def demo(
    request: RunRequest,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> AsyncGenerator[Chunk, None]:
    """Answer the request as its knobs say; the last two chunks are the stop reason and the usage.

    `clock` and `sleep` count in seconds. Raises AgentFailed: as `error_after` asks, or `invalid_demo_request`
    with a message that says which knob is wrong and what it may be.
    """
    user_text = last_user_text(request.body) or ""
    step_id = new_step_id()
    opening: Iterable[Chunk]
    if carries_approval(request.body):
        knobs, opening = _after_approval(approvals_in(request.body), step_id)
    else:
        knobs = _knobs_in(user_text)
        opening = _opening(knobs, step_id)

    # Each chunk has its moment, counted from the start: to sleep an interval after each would add up the time
    # that storing takes, and a thousand chunks would come seconds late.
    start = clock() + knobs.silence_ms * MILLISECOND
    if knobs.silence_ms:
        await sleep(knobs.silence_ms * MILLISECOND)
    for chunk in opening:
        yield chunk

    message_id, otid = new_message_id(), new_otid()
    count = knobs.chunks if knobs.error_after is None else knobs.error_after
    for index, content in enumerate(itertools.islice(_contents(knobs), count)):
        early = start + index * knobs.interval_ms * MILLISECOND - clock()
        if early > 0 or index % CHUNKS_PER_TURN == 0:
            await sleep(max(early, 0))
        yield AssistantMessage(id=message_id, otid=otid, step_id=step_id, content=content)

    if knobs.error_after is not None:
        raise AgentFailed(knobs.error_type, detail=f"The demo agent was asked to fail after {count} chunks.")
    if knobs.approval:
        yield _approval_request(step_id)
    for chunk in _closing(knobs, prompt_tokens=len(user_text.split())):
        yield chunk


def _knobs_in(user_text: str) -> _Knobs:
    """The knobs, if the text is a JSON object; else an answer in plain words."""
    try:
        values = msgspec.json.decode(user_text)
    except (ValueError, RecursionError):
        return _in_words(DEFAULT_TEXT)
    if not isinstance(values, dict):
        return _in_words(DEFAULT_TEXT)
    for name, value in values.items():
        if name not in _ALLOWED:
            _refuse(f"There is no knob '{name}'. There are: {', '.join(_ALLOWED)}.")
        try:
            msgspec.convert(value, _ALLOWED[name].type)
        except msgspec.ValidationError:
            _refuse(f"The knob '{name}' must be {_ALLOWED[name].words}.")
    knobs = _Knobs(**values)
    if knobs.error_after is not None and knobs.error_after > knobs.chunks:
        _refuse(f"The knob 'error_after' must be at most 'chunks', which is {knobs.chunks}.")
    return knobs


def _refuse(message: str) -> NoReturn:
    raise AgentFailed("invalid_demo_request", message=message)


def _in_words(text: str) -> _Knobs:
    return _Knobs(text=text, chunks=len(text.split()))


def _contents(knobs: _Knobs) -> Iterator[str]:
    """What the chunks say, without end."""
    words = knobs.text.split()
    if knobs.chunk_bytes is None:
        yield from itertools.cycle(f"{word} " for word in words)
        return
    size = knobs.chunk_bytes
    line = f"{' '.join(words)} ".encode("ascii", errors="replace").decode("ascii")
    lines = line * (size // len(line) + 2)
    for offset in itertools.count(0, size):
        begin = offset % len(line)
        yield lines[begin : begin + size]


def _opening(knobs: _Knobs, step_id: str) -> Iterator[Chunk]:
    if knobs.reasoning:
        yield ReasoningMessage(
            otid=new_otid(),
            step_id=step_id,
            source="reasoner_model",
            reasoning="The user wants to see a stream, so I shall stream.",
        )
    if knobs.tool_call:
        call = _call_a_tool()
        yield ToolCallMessage(otid=new_otid(), step_id=step_id, tool_call=call, tool_calls=[call])
        yield _tool_return(call.tool_call_id or "", WEATHER, step_id)


def _after_approval(approvals: list[Approval], step_id: str) -> tuple[_Knobs, list[Chunk]]:
    """How the run goes on: what the tools returned, theirs or the client's, and the decision in words."""
    returns: list[Chunk] = [
        _tool_return(
            approval.tool_call_id,
            approval.tool_return or WEATHER,
            step_id,
            status="success" if approval.approved else "error",
        )
        for approval in approvals
        if approval.approved or approval.tool_return is not None
    ]
    return _in_words(_decision(approvals)), returns


def _decision(approvals: list[Approval]) -> str:
    if approvals and all(approval.approved for approval in approvals):
        return "The tool call was approved, and above is what the tool returned."
    if any(approval.approved for approval in approvals):
        return "Some of the tool calls were approved, and others were not."
    if any(approval.tool_return is not None for approval in approvals):
        return "The tool call failed, and above is what came of it."
    reason = next((f" The reason: {approval.reason}" for approval in approvals if approval.reason), "")
    return f"The tool call was denied, so the tool did not run.{reason}"


def _call_a_tool() -> ToolCall:
    return ToolCall(name="look_outside", arguments='{"window": "south"}', tool_call_id=f"call_{uuid4().hex}")


def _tool_return(
    tool_call_id: str, text: str, step_id: str, *, status: Literal["success", "error"] = "success"
) -> ToolReturnMessage:
    return ToolReturnMessage(
        otid=new_otid(),
        step_id=step_id,
        tool_return=text,
        status=status,
        tool_call_id=tool_call_id,
        tool_returns=[ToolReturn(tool_return=text, status=status, tool_call_id=tool_call_id)],
    )


def _approval_request(step_id: str) -> ApprovalRequestMessage:
    call = _call_a_tool()
    return ApprovalRequestMessage(otid=new_otid(), step_id=step_id, tool_call=call, tool_calls=[call])


def _closing(knobs: _Knobs, *, prompt_tokens: int) -> Iterator[Chunk]:
    total = prompt_tokens + knobs.chunks
    yield StopReason(stop_reason="requires_approval" if knobs.approval else "end_turn")
    yield UsageStatistics(
        completion_tokens=knobs.chunks,
        prompt_tokens=prompt_tokens,
        total_tokens=total,
        step_count=1,
        context_tokens=total,
    )
