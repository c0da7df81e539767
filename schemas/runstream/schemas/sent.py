"""What a request's body says, read as it was sent, which is how it goes to the agent: nothing is taken for granted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["Approval", "approvals_in", "carries_approval", "last_user_text"]


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
        if message_type(message) == "message" and message.get("role") == "user":
            return _text_of(message.get("content"))
    return None


def carries_approval(body: Mapping[str, object]) -> bool:
    """Whether the request answers a tool call instead of, or besides, saying something."""
    return any(message_type(message) in {"approval", "tool_return"} for message in _messages(body))


def approvals_in(body: Mapping[str, object]) -> list[Approval]:
    """The answers to tool calls that the request carries, in order."""
    return [
        approval
        for message in _messages(body)
        if message_type(message) in {"approval", "tool_return"}
        for approval in _answers(message)
    ]


def message_type(value: object) -> str:
    """What a message is: what its `type` says; without one, what its fields say, as older clients send it."""
    declared = _get(value, "type")
    if isinstance(declared, str):
        return declared
    if _get(value, "tool_returns") is not None:
        return "tool_return"
    approves = any(_get(value, name) is not None for name in ("approvals", "approve", "approval_request_id"))
    return "approval" if approves else "message"


def answer_type(value: object) -> str:
    """What an answer to a tool call is: `approval`, or `tool` for what a client that executed it has got."""
    declared = _get(value, "type")
    if isinstance(declared, str):
        return declared
    return "tool" if _get(value, "tool_return") is not None else "approval"


def _get(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _answers(message: Mapping[str, object]) -> list[Approval]:
    name = "tool_returns" if message_type(message) == "tool_return" else "approvals"
    answers = [_answer(answer) for answer in _objects(message.get(name))]
    if answers or not isinstance(message.get("approve"), bool):
        return answers
    return [_answer({**message, "type": "approval", "tool_call_id": message.get("approval_request_id")})]


def _answer(answer: Mapping[str, object]) -> Approval:
    reason = answer.get("reason")
    executed = answer_type(answer) == "tool"
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
