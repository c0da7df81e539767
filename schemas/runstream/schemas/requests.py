"""Request bodies: what clients may ask for, and how they are told what is wrong.

The models validate as the reference's do, so that a body refused there is refused here, in the same words:
call `Model.model_validate(parsed_json)` and put `("body",)` before each `loc` of `errors(include_url=False)`.
Unknown fields are ignored. A message's body goes to the agent as it was sent, not as it was validated: what a
model does not look into, such as the parts of a message other than text, is the agent's to judge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

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

from runstream.schemas.chunks import MessageType
from runstream.schemas.runs import RequestConfig
from runstream.schemas.sent import answer_type, message_type

__all__ = [
    "DEFAULT_BATCH_SIZE",
    "MAX_OTIDS",
    "MAX_OTID_CHARACTERS",
    "MAX_SEQ_ID",
    "AgentMessagesRequest",
    "AgentStreamRequest",
    "ApprovalCreate",
    "ApprovalDecision",
    "CancelRequest",
    "ClientSkill",
    "ClientTool",
    "ContentPart",
    "ConversationMessagesRequest",
    "CreateConversationRequest",
    "CreateMessagesRequest",
    "FollowRequest",
    "MessageCreate",
    "RetrieveStreamRequest",
    "ToolResult",
    "ToolReturnCreate",
    "UpdateConversationRequest",
    "check_otids",
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


_Answer = Annotated[
    Annotated[ApprovalDecision, Tag("approval")] | Annotated[ToolResult, Tag("tool")],
    Discriminator(
        answer_type,
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
        message_type,
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
