"""Request bodies and queries: what clients may ask for, and how they are told what is wrong.

The models validate as the reference's do, so that a body refused there is refused here, in the same words:
call `Model.model_validate(parsed_json)` and put `("body",)` before each `loc` of `errors(include_url=False)`.
Unknown fields are ignored. A message's body goes to the agent as it was sent, not as it was validated: what a
model does not look into, such as the parts of a message other than text, is the agent's to judge.

The functions at the end read bodies as they were sent, and take nothing for granted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from runstream.schemas.chunks import STOP_REASONS, MessageType, StopReasonType
from runstream.schemas.runs import ACTIVE_STATUSES, RequestConfig

__all__ = [
    "DEFAULT_BATCH_SIZE",
    "MAX_OTIDS",
    "MAX_OTID_CHARACTERS",
    "MAX_SEQ_ID",
    "AgentMessagesRequest",
    "AgentStreamRequest",
    "Approval",
    "ApprovalCreate",
    "ApprovalDecision",
    "CancelRequest",
    "ClientSkill",
    "ClientTool",
    "ContentPart",
    "ConversationMessagesRequest",
    "CreateConversationRequest",
    "CreateMessagesRequest",
    "FiguresRequest",
    "FindRunRequest",
    "FollowRequest",
    "ListActiveRunsRequest",
    "ListConversationsRequest",
    "ListRunMessagesRequest",
    "ListRunsRequest",
    "MessageCreate",
    "OfAgent",
    "OutlineRequest",
    "RetrieveStreamRequest",
    "ToolResult",
    "ToolReturnCreate",
    "UpdateConversationRequest",
    "approvals_in",
    "carries_approval",
    "check_otids",
    "last_user_text",
]

MAX_SEQ_ID: Final = 2**53 - 1
"""The largest cursor: above it a JavaScript client could not hold the number exactly."""

DEFAULT_BATCH_SIZE: Final = 100
"""Chunks. The reference's default, and what null, zero and less mean here."""

MAX_OTIDS: Final = 64
"""Otids in one request: each of them is looked up and written when the run is claimed, in one batch."""

MAX_OTID_CHARACTERS: Final = 512
"""Characters of one otid. A UUID has 36; what is longer is not an id."""

MAX_TOOL_NAME_CHARACTERS: Final = 512
"""Characters of the name of a tool, or of its argument, that the run's record keeps."""

MAX_MESSAGES: Final = 1000
"""Messages in one request, and answers in one message: a request is a turn of a conversation, not the whole of it."""

MAX_PARTS: Final = 1000
"""Parts of one message's content: pages of a long document."""

MAX_IN_MESSAGES: Final = 5000
"""Parts and answers in all messages of a request together: each is validated by itself."""

MAX_OFFERED: Final = 1000
"""Tools of a client's, and skills: more than any model can be told of."""

MAX_LINES: Final = 10_000
"""Lines of what a tool wrote to one of its outputs."""

MAX_TYPES: Final = 100
"""Names of message types: there are less than twenty."""

MAX_PAGE: Final = 1000
"""Entries on one page of a list: the reference's bound for runs."""
DEFAULT_PAGE_OF_RUNS: Final = 100
DEFAULT_PAGE_OF_CONVERSATIONS: Final = 50

MAX_FIGURES: Final = 100
"""Runs whose figures one request may ask for, each a look at its log: more than a screen shows."""

MAX_OUTLINE: Final = 2000
"""Messages of a log that one request may have listed: eight reads of small ones, as bodies are read with them."""

MAX_CANCELLED: Final = 100
"""Runs in one request to cancel: the reference's bound, where it cancels all that it finds."""


def check_otids(otids: Sequence[str]) -> None:
    """Raise ValueError when a run cannot be claimed for the messages that have these otids."""
    if len(otids) > MAX_OTIDS:
        raise ValueError(f"A request may have at most {MAX_OTIDS} otids, and this one has {len(otids)}.")
    if any(len(otid) > MAX_OTID_CHARACTERS for otid in otids):
        raise ValueError(f"An otid may have at most {MAX_OTID_CHARACTERS} characters.")
    twice = next((otid for otid, count in Counter(otids).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"Each message must have an otid of its own, and {twice!r} is there twice.")


class _Body(BaseModel):
    """A body or a part of one. `from_attributes` gives the reference's words for a body that is an array."""

    model_config = ConfigDict(extra="ignore", from_attributes=True, use_attribute_docstrings=True)


def _absent_if_empty(value: str | None) -> str | None:
    return value or None


def _off_if_null(value: object) -> object:
    return False if value is None else value


def _known_stop_reason(value: str) -> str:
    """Refuse what is no stop reason in the words for an enumeration; those for a `Literal` have another type."""
    if value not in STOP_REASONS:
        *others, last = (f"'{name}'" for name in STOP_REASONS)
        raise PydanticKnownError("enum", {"expected": f"{', '.join(others)} or {last}"})
    return value


def _default_batch_if_null(value: object) -> object:
    return DEFAULT_BATCH_SIZE if value is None else value


def _default_batch_if_not_positive(value: int) -> int:
    return value if value > 0 else DEFAULT_BATCH_SIZE


class RetrieveStreamRequest(_Body):
    """Resume a stream: of a run, else of the run with an otid, else of what is active in the conversation."""

    agent_id: str | None = None
    """Which agent `default` in the path means. Its shape is not checked."""
    run_id: Annotated[str | None, AfterValidator(_absent_if_empty)] = None
    """Its shape is checked where it is looked up: 400, not 422."""
    otid: Annotated[str | None, AfterValidator(_absent_if_empty)] = None
    starting_after: Annotated[int, Field(le=MAX_SEQ_ID)] = 0
    """Only chunks with a greater seq_id are wanted. Null is refused; negative means 0, see `cursor`."""
    include_pings: Annotated[bool, BeforeValidator(_off_if_null)] = True
    poll_interval: float | None = 0.1
    """Accepted and ignored: nothing here polls."""
    batch_size: Annotated[
        int, BeforeValidator(_default_batch_if_null), AfterValidator(_default_batch_if_not_positive)
    ] = DEFAULT_BATCH_SIZE

    @property
    def cursor(self) -> int:
        """The seq_id after which to start: 0 for everything."""
        return max(0, self.starting_after)


class FollowRequest(RetrieveStreamRequest):
    """What an EventSource's URL may say."""

    ticket: str | None = None
    """What lets it in once, where it can send no header."""


class ContentPart(_Body):
    """One part of a message's content. Parts that are not text pass through."""

    type: str | None = None
    text: str | None = None


_Content = str | Annotated[list[ContentPart], Field(max_length=MAX_PARTS)]


class MessageCreate(_Body):
    """A message for the agent."""

    type: Literal["message"] | None = "message"
    role: Literal["user", "system", "assistant"]
    content: _Content
    name: str | None = None
    otid: str | None = None
    sender_id: str | None = None
    batch_item_id: str | None = None
    group_id: str | None = None


class ApprovalDecision(_Body):
    """Whether one tool call may go ahead."""

    type: Literal["approval"] = "approval"
    tool_call_id: str
    approve: bool
    reason: str | None = None


class ToolResult(_Body):
    """What the client's own execution of one tool call returned."""

    type: Literal["tool"] = "tool"
    tool_return: _Content
    status: Literal["success", "error"]
    tool_call_id: str
    stdout: Annotated[list[str], Field(max_length=MAX_LINES)] | None = None
    stderr: Annotated[list[str], Field(max_length=MAX_LINES)] | None = None


def _get(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _answer_type(value: object) -> str:
    declared = _get(value, "type")
    if isinstance(declared, str):
        return declared
    return "tool" if _get(value, "tool_return") is not None else "approval"


def _message_type(value: object) -> str:
    """What a message is: what its `type` says; without one, what its fields say, as older clients send it."""
    declared = _get(value, "type")
    if isinstance(declared, str):
        return declared
    if _get(value, "tool_returns") is not None:
        return "tool_return"
    approves = any(_get(value, name) is not None for name in ("approvals", "approve", "approval_request_id"))
    return "approval" if approves else "message"


_Answer = Annotated[
    Annotated[ApprovalDecision, Tag("approval")] | Annotated[ToolResult, Tag("tool")],
    Discriminator(
        _answer_type,
        custom_error_type="unknown_type",
        custom_error_message="Input should have type 'approval' or 'tool'",
    ),
]


class ApprovalCreate(_Body):
    """Answers to tool calls that wait for approval.

    `approve`, `approval_request_id` and `reason` are the older form, for a single call.
    """

    type: Literal["approval"] = "approval"
    approvals: Annotated[list[_Answer], Field(max_length=MAX_MESSAGES)] | None = None
    approve: bool | None = None
    approval_request_id: str | None = None
    reason: str | None = None
    otid: str | None = None
    group_id: str | None = None


class ToolReturnCreate(_Body):
    """What the client's own execution of tool calls returned: an approval without the word."""

    type: Literal["tool_return"] = "tool_return"
    tool_returns: Annotated[list[ToolResult], Field(max_length=MAX_MESSAGES)]
    otid: str | None = None
    group_id: str | None = None


_Message = Annotated[
    Annotated[MessageCreate, Tag("message")]
    | Annotated[ApprovalCreate, Tag("approval")]
    | Annotated[ToolReturnCreate, Tag("tool_return")],
    Discriminator(
        _message_type,
        custom_error_type="unknown_type",
        custom_error_message="Input should have type 'message', 'approval' or 'tool_return'",
    ),
]


def _few_in_all(value: object) -> object:
    """Refuse messages that are few, and have very much in them, before anything of it is looked at."""
    if isinstance(value, list) and len(value) <= MAX_MESSAGES:
        lists = ("content", "approvals", "tool_returns")
        found = [message[name] for message in value if isinstance(message, dict) for name in lists if name in message]
        count = sum(len(items) for items in found if isinstance(items, list))
        if count > MAX_IN_MESSAGES:
            facts = {"field_type": "Messages together", "max_length": MAX_IN_MESSAGES, "actual_length": count}
            raise PydanticKnownError("too_long", facts)
    return value


class ClientTool(_Body):
    """A tool that the client executes; the run pauses for it."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON Schema."""


class ClientSkill(_Body):
    """A skill of the client's environment, for the agent to know of."""

    name: str
    description: str
    location: str


ToolName = Annotated[str, Field(max_length=MAX_TOOL_NAME_CHARACTERS)]


class CreateMessagesRequest(_Body):
    """Messages for an agent: either `input`, which is one user message, or `messages`."""

    input: _Content | None = None
    messages: Annotated[list[_Message], Field(max_length=MAX_MESSAGES), BeforeValidator(_few_in_all)] | None = None
    streaming: bool = False
    """False: one JSON object when the run has ended."""
    stream_tokens: bool = False
    """One event per token instead of one per message, if the agent can."""
    background: bool = False
    """The run can be resumed: its chunks have a seq_id."""
    include_pings: bool = True
    include_return_message_types: Annotated[list[MessageType], Field(max_length=MAX_TYPES)] | None = None
    max_steps: int = 50
    use_assistant_message: bool = True
    assistant_message_tool_name: ToolName = "send_message"
    assistant_message_tool_kwarg: ToolName = "message"
    enable_thinking: str | bool = True
    client_tools: Annotated[list[ClientTool], Field(max_length=MAX_OFFERED)] | None = None
    client_skills: Annotated[list[ClientSkill], Field(max_length=MAX_OFFERED)] | None = None
    override_model: str | None = None
    override_system: Annotated[str | None, Field(validation_alias=AliasChoices("override_system", "system"))] = None
    include_compaction_messages: bool = False
    return_logprobs: bool = False
    top_logprobs: int | None = None
    return_token_ids: bool = False

    @model_validator(mode="after")
    def _one_of_input_and_messages(self) -> CreateMessagesRequest:
        if self.input is None and self.messages is None:
            raise ValueError("Must specify either 'input' or 'messages'.")
        if self.input is not None and self.messages is not None:
            raise ValueError("Cannot specify both 'input' and 'messages'. Use one or the other.")
        return self

    @model_validator(mode="after")
    def _otids_are_bounded_and_unique(self) -> CreateMessagesRequest:
        check_otids(self.client_otids)
        return self

    @property
    def messages_are_empty(self) -> bool:
        """`messages: []`: valid here, and refused by the gateway in words that are not a validator's."""
        return self.messages is not None and not self.messages

    @property
    def client_otids(self) -> list[str]:
        """The otids the client sent, in order. None are made up: they tell that a request is repeated."""
        return [message.otid for message in self.messages or () if message.otid]

    @property
    def request_config(self) -> RequestConfig:
        """The part of the request that the run's record keeps."""
        types = self.include_return_message_types
        return RequestConfig(
            use_assistant_message=self.use_assistant_message,
            assistant_message_tool_name=self.assistant_message_tool_name,
            assistant_message_tool_kwarg=self.assistant_message_tool_kwarg,
            include_return_message_types=None if types is None else list(dict.fromkeys(types)),
        )


class AgentStreamRequest(CreateMessagesRequest):
    """To `agents/{agent_id}/messages/stream`, which streams whatever `streaming` says."""

    streaming: bool = True

    @field_validator("streaming")
    @classmethod
    def _always(cls, _: bool) -> bool:  # noqa: FBT001  (pydantic passes the value alone)
        return True


class AgentMessagesRequest(CreateMessagesRequest):
    """To `agents/{agent_id}/messages`."""


class ConversationMessagesRequest(CreateMessagesRequest):
    """To `conversations/{conversation_id}/messages`."""

    streaming: bool = True
    agent_id: str | None = None
    """Which agent `default` in the path means."""


class CancelRequest(_Body):
    """To `agents/{agent_id}/messages/cancel`: which of its runs to cancel; None: the latest.

    What is not known is refused: a misspelt `run_ids` would end another run than was meant.
    """

    model_config = ConfigDict(extra="forbid")

    run_ids: Annotated[list[str] | None, Field(max_length=MAX_CANCELLED)] = None


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


def _in_utc(value: datetime | None) -> datetime | None:
    """Refuse a time that has no year of four digits where records have it, in UTC."""
    try:
        return value if value is None or value.tzinfo is None else value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("this time is in none of the years 1 to 9999 of UTC") from error


class _ConversationBody(BaseModel):
    """What a conversation is made or changed with."""

    model_config = ConfigDict(extra="allow", from_attributes=True, use_attribute_docstrings=True)

    summary: str | None = None
    description: str | None = None
    model: str | None = None
    model_settings: dict[str, Any] | None = None
    """Any provider's, told apart by `provider_type`; kept as it is sent."""
    context_window_limit: int | None = None

    @property
    def unknown(self) -> dict[str, Any]:
        """The fields runstream has no use for, to be kept for the client."""
        return dict(self.model_extra or {})


class CreateConversationRequest(_ConversationBody):
    """Make a conversation. Letta's clients send the agent as `?agent_id=`; the body may name it, too."""

    agent_id: str | None = None


class UpdateConversationRequest(_ConversationBody):
    """Change a conversation: the fields that were sent, `model_fields_set`, and no others."""

    archived: bool | None = None
    last_message_at: Annotated[datetime | None, AfterValidator(_in_utc)] = None


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


class Approval(NamedTuple):
    """One answer to a tool call that waited for approval, whichever of the three forms it came in."""

    tool_call_id: str
    approved: bool
    reason: str | None = None
    tool_return: str | None = None
    """What the tool returned, if the client executed it: then it is approved if it succeeded."""


def last_user_text(body: Mapping[str, object]) -> str | None:
    """What the user said last: the text of `input`, or of the last user message, or its first text part.

    None if that has no text, or if there is none.
    """
    if body.get("input") is not None:
        return _text_of(body["input"])
    for message in reversed(_messages(body)):
        if _message_type(message) == "message" and message.get("role") == "user":
            return _text_of(message.get("content"))
    return None


def carries_approval(body: Mapping[str, object]) -> bool:
    """Whether the request answers a tool call instead of, or besides, saying something."""
    return any(_message_type(message) in {"approval", "tool_return"} for message in _messages(body))


def approvals_in(body: Mapping[str, object]) -> list[Approval]:
    """The answers to tool calls that the request carries, in order."""
    return [
        approval
        for message in _messages(body)
        if _message_type(message) in {"approval", "tool_return"}
        for approval in _answers(message)
    ]


def _answers(message: Mapping[str, object]) -> list[Approval]:
    name = "tool_returns" if _message_type(message) == "tool_return" else "approvals"
    answers = [_answer(answer) for answer in _objects(message.get(name))]
    if answers or not isinstance(message.get("approve"), bool):
        return answers
    return [_answer({**message, "type": "approval", "tool_call_id": message.get("approval_request_id")})]


def _answer(answer: Mapping[str, object]) -> Approval:
    reason = answer.get("reason")
    executed = _answer_type(answer) == "tool"
    return Approval(
        tool_call_id=str(answer.get("tool_call_id") or ""),
        approved=answer.get("status") == "success" if executed else answer.get("approve") is True,
        reason=reason if isinstance(reason, str) else None,
        tool_return=_text_of(answer.get("tool_return")),
    )


def _messages(body: Mapping[str, object]) -> list[Mapping[str, object]]:
    return _objects(body.get("messages"))


def _objects(value: object) -> list[Mapping[str, object]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _text_of(content: object) -> str | None:
    if isinstance(content, str):
        return content
    for part in _objects(content):
        text = part.get("text")
        if part.get("type", "text") == "text" and isinstance(text, str):
            return text
    return None
