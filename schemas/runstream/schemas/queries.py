"""Queries: what clients may ask for in a URL, validated as request bodies are."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticKnownError

from runstream.schemas.chunks import STOP_REASONS, StopReasonType
from runstream.schemas.requests import MAX_SEQ_ID
from runstream.schemas.runs import ACTIVE_STATUSES

__all__ = [
    "FiguresRequest",
    "FindRunRequest",
    "ListActiveRunsRequest",
    "ListConversationsRequest",
    "ListRunMessagesRequest",
    "ListRunsRequest",
    "OfAgent",
    "OutlineRequest",
]

MAX_PAGE: Final = 1000
"""Entries on one page of a list: the reference's bound for runs."""
DEFAULT_PAGE_OF_RUNS: Final = 100
DEFAULT_PAGE_OF_CONVERSATIONS: Final = 50

MAX_FIGURES: Final = 100
"""Runs whose figures one request may ask for, each a look at its log: more than a screen shows."""

MAX_OUTLINE: Final = 2000
"""Messages of a log that one request may have listed: eight reads of small ones, as bodies are read with them."""


class _Query(BaseModel):
    """Parameters in a query. What is empty there is absent before it comes here, see the gateway's `query_of`."""

    model_config = ConfigDict(use_attribute_docstrings=True)


_DEPRECATED: Final[dict[str, Any]] = {"deprecated": True}


class OfAgent(_Query):
    """In a query: which agent is meant."""

    agent_id: str | None = None
    """Whose conversation it is: of `default`, or of one that is made and whose body does not say."""


class ListRunMessagesRequest(_Query):
    """Of `runs/{run_id}/messages`: which of a run's messages. The cursors are messages' ids."""

    after: str | None = None
    """A message's id: what comes after it in this order."""
    before: str | None = None
    """A message's id: what comes before it in this order."""
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = 100
    """Ids; messages that share one are not parted."""
    order: Literal["asc", "desc"] = "asc"
    """`asc`: in the order in which they began."""
    order_by: Literal["created_at"] = "created_at"


def _known_stop_reason(value: str) -> str:
    """Refuse what is no stop reason in the words for an enumeration; those for a `Literal` have another type."""
    if value not in STOP_REASONS:
        *others, last = (f"'{name}'" for name in STOP_REASONS)
        raise PydanticKnownError("enum", {"expected": f"{', '.join(others)} or {last}"})
    return value


class ListActiveRunsRequest(_Query):
    """The query of `runs/active`: which of the runs that go on."""

    agent_id: str | None = None
    """Whose runs; everybody's if it is absent."""
    agent_ids: Annotated[list[str], Field(json_schema_extra=_DEPRECATED)] = []
    """The older form of `agent_id`, which wins."""
    background: bool | None = None
    """Those that can be resumed, or those that cannot; both if it is absent."""

    @property
    def agents(self) -> list[str]:
        """Whose runs are wanted; everybody's if it is empty."""
        return self.agent_ids if self.agent_id is None else [self.agent_id]


class ListRunsRequest(ListActiveRunsRequest):
    """The query of `runs/`: which runs, and which part of their list."""

    conversation_id: str | None = None
    """Those of one conversation."""
    statuses: list[str] = []
    """Those with one of these statuses; one that is none is 400."""
    active: bool = False
    """Those that go on; nothing if there are `statuses`."""
    stop_reason: Annotated[StopReasonType | None, BeforeValidator(_known_stop_reason)] = None
    before: str | None = None
    """A run's id: the page directly before it in this order."""
    after: str | None = None
    """A run's id: what follows it in this order."""
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE_OF_RUNS
    order: Literal["asc", "desc"] = "desc"
    """By the time they were made; `desc`: the newest first."""
    ascending: Annotated[bool, Field(json_schema_extra=_DEPRECATED)] = False
    """The older form of `order`, which it wins over."""
    order_by: Literal["created_at"] = "created_at"

    @property
    def wanted_statuses(self) -> frozenset[str]:
        """The statuses that are wanted; all if it is empty."""
        return frozenset(self.statuses) or (ACTIVE_STATUSES if self.active else frozenset())

    @property
    def is_descending(self) -> bool:
        """Whether the newest come first."""
        return self.order == "desc" and not self.ascending


class FiguresRequest(_Query):
    """The query of `runstream/figures`: of which runs."""

    run_ids: Annotated[list[str], Field(max_length=MAX_FIGURES)] = []
    """Runs; those that there are not are passed over."""


class FindRunRequest(_Query):
    """The query of `runstream/run`: which run is looked for."""

    otid: str
    """An otid of the messages that it answers; of several runs the newest is meant."""


class OutlineRequest(_Query):
    """The query of `runstream/runs/{run_id}/outline`: which part of its log."""

    starting_after: Annotated[int, Field(ge=0, le=MAX_SEQ_ID)] = 0
    """A sequence: what follows it; 0: from the beginning."""
    limit: Annotated[int, Field(ge=1, le=MAX_OUTLINE)] = MAX_OUTLINE
    """Messages at most; there may be fewer, of large ones, and more to come."""


class ListConversationsRequest(_Query):
    """The query of `conversations/`: which conversations, and which part of their list."""

    agent_id: str | None = None
    """Whose conversations; everybody's if it is absent."""
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE_OF_CONVERSATIONS
    after: str | None = None
    """A conversation's id: what follows it in this order."""
    summary_search: str | None = None
    """Text in the summary, as it is written there."""
    order: Literal["asc", "desc"] = "desc"
    """`desc`: the newest first."""
    order_by: Literal["created_at", "last_run_completion", "last_message_at"] = "created_at"
    """By which of their times; those without one come last."""
    archive_status: Literal["unarchived", "archived", "all"] = "unarchived"

    @property
    def archived(self) -> bool | None:
        """Whether archived ones are wanted, or others; None: both."""
        return None if self.archive_status == "all" else self.archive_status == "archived"
