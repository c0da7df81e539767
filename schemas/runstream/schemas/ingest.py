"""Bodies of the ingest API: what a writer says when it opens a run, and when it ends it.

Strict, and without unknown fields: whoever writes `convesation_id` is to hear of it, and not to get a run without one.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from runstream.schemas.chunks import StopReasonType, UsageStatistics
from runstream.schemas.errors import ERROR_TYPES
from runstream.schemas.ids import AGENT_PATH, STRICT_CONVERSATION_PATH
from runstream.schemas.requests import MAX_SEQ_ID, check_otids

__all__ = ["EndRunRequest", "FailRunRequest", "OpenRunRequest", "ReportedUsage"]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


def _empty_if_null(value: object) -> object:
    return [] if value is None else value


def _usable(otids: list[str]) -> list[str]:
    used = [otid for otid in otids if otid]
    check_otids(used)
    return used


def _is_agent(value: str) -> str:
    if not AGENT_PATH.matches(value):
        raise ValueError("an agent's id is agent-<uuid4>, in lower case")
    return value


def _is_conversation(value: str | None) -> str | None:
    if value is not None and not STRICT_CONVERSATION_PATH.matches(value):
        raise ValueError("a conversation's id is conv-<uuid4>, in lower case")
    return value


class OpenRunRequest(_Body):
    """To `POST /ingest/v1/runs`: whose run it is."""

    agent_id: Annotated[str, AfterValidator(_is_agent)]
    conversation_id: Annotated[str | None, AfterValidator(_is_conversation)] = None
    """A conversation that is not there is made. Null: none, as if the agent were addressed directly."""
    otids: Annotated[list[str], BeforeValidator(_empty_if_null), AfterValidator(_usable)] = Field(default_factory=list)
    """Those of the messages that the run answers."""
    background: bool = True
    """Whether clients can resume it."""


Count = Annotated[int, Field(ge=0, le=MAX_SEQ_ID)]
"""Tokens or steps, as many as every client can count."""


MAX_RUN_IDS = 1000
"""Runs that one run's usage names: those it has called upon."""


class ReportedUsage(_Body):
    """What a run used, in tokens and steps. Null: the provider did not say."""

    completion_tokens: Count = 0
    prompt_tokens: Count = 0
    total_tokens: Count = 0
    step_count: Count = 0
    run_ids: Annotated[list[str], Field(max_length=MAX_RUN_IDS)] | None = None
    cached_input_tokens: Count | None = None
    cache_write_tokens: Count | None = None
    reasoning_tokens: Count | None = None
    context_tokens: Count | None = None

    def to_chunk(self) -> UsageStatistics:
        """The chunk that tells it."""
        return UsageStatistics(**self.model_dump())


class EndRunRequest(_Body):
    """To `…/end`: what the run came to."""

    stop_reason: StopReasonType
    usage: ReportedUsage | None = None


class FailRunRequest(_Body):
    """To `…/fail`: the error that the run ends with."""

    error_type: Annotated[str, Field(min_length=1)]
    message: str | None = None
    """Null: the text that the catalogue has for this type. A type that is not there needs one."""
    detail: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> FailRunRequest:
        if self.message is None and self.error_type not in ERROR_TYPES:
            raise ValueError(f"the catalogue has no text for {self.error_type!r}: give a message")
        return self
