"""What operations answer when all is well, described once for all that answer alike."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, get_args

import msgspec

from runstream.broker.operations import SERVER_SENT_EVENTS, Answer, Body, Header
from runstream.schemas import Chunk, Conversation, Run, RunUsage, StopReason, UsageStatistics

__all__ = [
    "CANCELLED",
    "CONVERSATION",
    "CONVERSATIONS",
    "EVENTS",
    "LAST_EVENT_ID",
    "MESSAGES",
    "NOTHING_FOLLOWS",
    "NULL",
    "RUN",
    "RUNS",
    "USAGE",
    "WHOLE_OR_EVENTS",
]

SEQ_ID: Final[dict[str, Any]] = {
    "type": ["integer", "null"],
    "description": "The cursor to resume after. Not of `stop_reason` and `usage_statistics`; null in foreground runs.",
}


MESSAGE: Final[dict[str, Any]] = {
    "anyOf": [*({"$ref": f"#/components/schemas/{shape.__name__}"} for shape in get_args(Chunk)), {"type": "object"}]
}
"""One of Letta's, which the events' schemas are, or whatever else a platform says."""
Messages = Annotated[list[dict[str, Any]], msgspec.Meta(extra_json_schema={"items": MESSAGE})]


class LettaResponse(msgspec.Struct):
    """All that a run said, put together, when it has ended."""

    messages: Messages
    stop_reason: StopReason
    usage: UsageStatistics


EVENTS: Final = Answer(
    "Server-Sent Events: one JSON object each, then `[DONE]`, which means that the run has ended.",
    [Body(get_args(Chunk), SERVER_SENT_EVENTS, adds={"seq_id": SEQ_ID})],
    [
        Header("Cache-Control", "`no-cache`"),
        Header("X-Accel-Buffering", "`no`: a proxy is to hand on each event as it comes."),
    ],
)
WHOLE_OR_EVENTS: Final = Answer(
    "With `streaming` false all that the run said, when it has ended; else Server-Sent Events.",
    [Body([LettaResponse]), *EVENTS.bodies],
)
MESSAGES: Final = Answer("The messages, put together.", [Body([Messages])])
USAGE: Final = Answer("What the run has used.", [Body([RunUsage])])
NOTHING_FOLLOWS: Final = Answer("Nothing follows: the run has ended, and the browser has seen all of it.")
RUN: Final = Answer("The run.", [Body([Run])])
RUNS: Final = Answer("A page of runs.", [Body([list[Run]])])
CONVERSATIONS: Final = Answer("A page of conversations.", [Body([list[Conversation]])])
CONVERSATION: Final = Answer("The conversation.", [Body([Conversation])])
CANCELLED: Final = Answer(
    "By run: `cancelled`, or `failed` if it is no run of the agent's.",
    [Body([dict[str, Literal["cancelled", "failed"]]])],
)
NULL: Final = Answer("Done.", [Body([type(None)])])

LAST_EVENT_ID: Final = Header(
    "Last-Event-ID",
    "The id of the last event that was seen. Wins over `starting_after`; what was never issued is absent.",
)
