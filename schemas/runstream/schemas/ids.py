"""Ids: how they look, how they are made, and how a string is recognised as one.

Every id is a prefix and a version 4 UUID in lower case; the reference refuses upper case and other versions,
and so do these patterns. An otid is whatever a client chose; the ones made here are bare UUIDs.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from uuid import uuid4

__all__ = [
    "AGENT_PATH",
    "CONVERSATION_PATH",
    "DEFAULT_CONVERSATION",
    "DEFAULT_TENANT",
    "DEFAULT_USER_ID",
    "RUN_PATH",
    "STRICT_CONVERSATION_PATH",
    "PathPattern",
    "is_agent_id",
    "is_conversation_id",
    "is_run_id",
    "is_user_id",
    "new_agent_id",
    "new_conversation_id",
    "new_message_id",
    "new_otid",
    "new_ping_id",
    "new_run_id",
    "new_step_id",
]

UUID4 = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
UUID_LENGTH = 36

AGENT_PREFIX = "agent-"
CONVERSATION_PREFIX = "conv-"
MESSAGE_PREFIX = "message-"
PING_PREFIX = "ping-"
RUN_PREFIX = "run-"
STEP_PREFIX = "step-"
USER_PREFIX = "user-"

DEFAULT_CONVERSATION: Final = "default"
"""The conversation id that means: no conversation, the agent itself, named beside it."""

DEFAULT_TENANT: Final = "default"
"""The tenant of every request while authentication is off."""

DEFAULT_USER_ID: Final = "user-00000000-0000-4000-8000-000000000000"
"""The reference's default user, whom conversations name as their maker. It stands for nobody."""


class PathPattern(NamedTuple):
    """What an id in a path looks like: a regular expression, and the lengths that are checked before it."""

    pattern: str
    min_length: int
    max_length: int

    def matches(self, value: str) -> bool:
        """Whether all of `value` matches; a line break at its end is not let through, as `$` alone would."""
        return re.fullmatch(self.pattern, value) is not None


def _strict(prefix: str) -> PathPattern:
    length = len(prefix) + UUID_LENGTH
    return PathPattern(f"^{prefix}{UUID4}$", length, length)


AGENT_PATH: Final = _strict(AGENT_PREFIX)
"""`agent-<uuid4>`: where an agent is asked for."""

RUN_PATH: Final = _strict(RUN_PREFIX)
"""`run-<uuid4>`: where a run is asked for."""

STRICT_CONVERSATION_PATH: Final = _strict(CONVERSATION_PREFIX)
"""`conv-<uuid4>` only: where one conversation is read, changed or deleted."""

CONVERSATION_PATH: Final = PathPattern(
    f"^({DEFAULT_CONVERSATION}|{CONVERSATION_PREFIX}{UUID4}|{AGENT_PREFIX}{UUID4})$",
    1,
    AGENT_PATH.max_length,
)
"""`default`, a conversation, or (deprecated) an agent: where a stream, a message or a cancel is asked for."""

_RUN: Final = re.compile(RUN_PREFIX + UUID4)
_CONVERSATION: Final = re.compile(CONVERSATION_PREFIX + UUID4)
_AGENT: Final = re.compile(AGENT_PREFIX + UUID4)
_USER: Final = re.compile(USER_PREFIX + UUID4)


def is_run_id(value: str) -> bool:
    """Whether `value` is `run-<uuid4>`."""
    return _RUN.fullmatch(value) is not None


def is_conversation_id(value: str) -> bool:
    """Whether `value` is `conv-<uuid4>`; `default` is not."""
    return _CONVERSATION.fullmatch(value) is not None


def is_agent_id(value: str) -> bool:
    """Whether `value` is `agent-<uuid4>`."""
    return _AGENT.fullmatch(value) is not None


def is_user_id(value: str) -> bool:
    """Whether `value` is `user-<uuid4>`, as the `user_id` header must be."""
    return _USER.fullmatch(value) is not None


def new_run_id() -> str:
    """Make a fresh `run-<uuid4>`."""
    return f"{RUN_PREFIX}{uuid4()}"


def new_conversation_id() -> str:
    """Make a fresh `conv-<uuid4>`."""
    return f"{CONVERSATION_PREFIX}{uuid4()}"


def new_agent_id() -> str:
    """Make a fresh `agent-<uuid4>`."""
    return f"{AGENT_PREFIX}{uuid4()}"


def new_message_id() -> str:
    """Make a fresh `message-<uuid4>`."""
    return f"{MESSAGE_PREFIX}{uuid4()}"


def new_step_id() -> str:
    """Make a fresh `step-<uuid4>`."""
    return f"{STEP_PREFIX}{uuid4()}"


def new_ping_id() -> str:
    """Make a fresh `ping-<uuid4>`."""
    return f"{PING_PREFIX}{uuid4()}"


def new_otid() -> str:
    """Make a fresh otid for a message of the agent's: a bare UUID."""
    return str(uuid4())
