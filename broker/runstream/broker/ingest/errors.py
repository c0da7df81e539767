"""What a writer at the ingest API is told when its request is refused: one error, and the one table of its types.

IngestError
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from runstream.broker.errors import (
    Broken,
    BrokerError,
    ChunkTooLarge,
    Conflict,
    ConversationDeleted,
    CursorExpired,
    Fenced,
    Forbidden,
    KeysUnavailable,
    LimitReached,
    NotStored,
    RecordTooLarge,
    RunTooLong,
    StoreFull,
    Unauthenticated,
    Unavailable,
    Unsettled,
    WrongAgent,
)
from runstream.broker.http_auth import challenge
from runstream.broker.http_body import BadBody, BodyNotFramed, BodyPacked, BodyTooLarge, BodyTooSlow, NotJson
from runstream.broker.operations import Answer, Body, Header

__all__ = ["STATUSES", "IngestError", "not_usable", "refusals", "translated"]

STATUSES: Final[Mapping[str, HTTPStatus]] = {
    "invalid_request": HTTPStatus.UNPROCESSABLE_ENTITY,
    "invalid_chunk": HTTPStatus.UNPROCESSABLE_ENTITY,
    "unauthorized": HTTPStatus.UNAUTHORIZED,
    "forbidden": HTTPStatus.FORBIDDEN,
    "unsupported_media_type": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "body_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "chunk_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "too_slow": HTTPStatus.REQUEST_TIMEOUT,
    "not_found": HTTPStatus.NOT_FOUND,
    "run_not_found": HTTPStatus.NOT_FOUND,
    "not_ingested": HTTPStatus.CONFLICT,
    "conversation_deleted": HTTPStatus.NOT_FOUND,
    "wrong_agent": HTTPStatus.CONFLICT,
    "record_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "conflict": HTTPStatus.CONFLICT,
    "run_ended": HTTPStatus.CONFLICT,
    "run_cancelled": HTTPStatus.CONFLICT,
    "run_too_long": HTTPStatus.CONFLICT,
    "wrong_index": HTTPStatus.CONFLICT,
    "fenced": HTTPStatus.CONFLICT,
    "expired": HTTPStatus.GONE,
    "store_full": HTTPStatus.INSUFFICIENT_STORAGE,
    "store_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "unsettled": HTTPStatus.SERVICE_UNAVAILABLE,
    "broker_busy": HTTPStatus.SERVICE_UNAVAILABLE,
    "broker_stopping": HTTPStatus.SERVICE_UNAVAILABLE,
    "limit_reached": HTTPStatus.TOO_MANY_REQUESTS,
    "internal_error": HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""The status of each error type. A 4xx is for the writer to mend; a 5xx may be sent again as it is, to any broker."""

RETRY_AFTER: Final[Mapping[str, str]] = {
    "store_unavailable": "2",
    "unsettled": "2",
    "broker_busy": "2",
    "broker_stopping": "0",
}
"""Seconds: a restarted NATS is there again by then, an election mostly over; another broker is there already."""


class IngestRefusal(msgspec.Struct):
    """Why it is refused, for people and for programs; a request that had begun to store says how far it came."""

    detail: str
    error_type: str
    stored: int | UnsetType = UNSET
    last_seq_id: int | UnsetType = UNSET
    index: int | UnsetType = UNSET
    line: int | UnsetType = UNSET
    item: int | UnsetType = UNSET
    run_id: str | UnsetType = UNSET
    otid: str | UnsetType | None = UNSET
    is_repeated: bool | UnsetType = UNSET
    status: str | UnsetType = UNSET
    stop_reason: str | UnsetType | None = UNSET
    run_type: str | UnsetType = UNSET
    agent_id: str | UnsetType = UNSET
    reference: str | UnsetType = UNSET


CHALLENGE: Final = Header("WWW-Authenticate", "How to be admitted, as RFC 6750 has it.")
RETRY_HEADER: Final = Header("Retry-After", "Seconds to wait before the request is sent again.", {"type": "integer"})


def refusals(*error_types: str) -> dict[int | str, Answer]:
    """Describe what an operation may be refused with, by status."""
    by_status: dict[int, list[str]] = {}
    for error_type in sorted(error_types):
        by_status.setdefault(STATUSES[error_type].value, []).append(error_type)
    return {
        status: Answer(
            "`error_type` is " + " or ".join(f"`{name}`" for name in names) + ".",
            [Body([IngestRefusal])],
            _headers_of(names),
        )
        for status, names in by_status.items()
    }


def _headers_of(error_types: list[str]) -> list[Header]:
    asks = [CHALLENGE] if {"unauthorized", "forbidden"} & set(error_types) else []
    return [*asks, RETRY_HEADER] if {*RETRY_AFTER, "limit_reached"} & set(error_types) else asks


class IngestError(Exception):
    """The request is refused, or could not be carried out. `facts` are for programs, and stand beside the detail."""

    def __init__(self, error_type: str, detail: str, **facts: Any) -> None:
        self.asks: Mapping[str, str] = {}
        """Headers that say how to be admitted, or when."""
        self.error_type = error_type
        self.detail = detail
        self.facts = facts
        super().__init__(detail)

    @property
    def status(self) -> int:
        """What HTTP calls it."""
        return STATUSES[self.error_type].value

    @property
    def headers(self) -> Mapping[str, str]:
        """When to come back, if that helps, or how or when to be admitted."""
        after = RETRY_AFTER.get(self.error_type)
        return self.asks if after is None else {"Retry-After": after}

    @property
    def body(self) -> dict[str, Any]:
        """The JSON a writer gets."""
        return {"detail": self.detail, "error_type": self.error_type, **self.facts}


def translated(error: BrokerError) -> IngestError:  # noqa: C901, PLR0911, PLR0912  # a table
    """Choose what a writer is told of an error of the durable side."""
    match error:
        case Unauthenticated(reason=reason):
            return _asking("unauthorized", reason or "A key or a token is needed: Authorization: Bearer.", error)
        case Forbidden(detail=detail):
            return _asking("forbidden", detail, error)
        case LimitReached(detail=detail, seconds=seconds):
            refused = IngestError("limit_reached", detail)
            refused.asks = {"Retry-After": str(math.ceil(seconds))}
            return refused
        case KeysUnavailable():
            return IngestError(
                "store_unavailable", "The keys that tokens are checked with cannot be fetched at the moment. Try again."
            )
        case Conflict(detail=detail, run_id=run_id, otid=otid, is_repeated=is_repeated):
            return IngestError("conflict", detail, run_id=run_id, otid=otid, is_repeated=is_repeated)
        case ConversationDeleted(conversation_id=conversation_id):
            return IngestError(
                "conversation_deleted", f"Conversation {conversation_id} was deleted: no run starts in it."
            )
        case WrongAgent(conversation_id=conversation_id, agent_id=agent_id):
            return IngestError("wrong_agent", f"Conversation {conversation_id} is {agent_id}'s.", agent_id=agent_id)
        case RecordTooLarge(size=size, limit=limit):
            return IngestError(
                "record_too_large", f"What the store would keep of this has {size} bytes; at most {limit} are kept."
            )
        case ChunkTooLarge(size=size, limit=limit):
            return IngestError("chunk_too_large", f"A chunk has {size} bytes; at most {limit} are stored.")
        case RunTooLong():
            return IngestError("run_too_long", "The run has as many chunks as a run may have: end it.")
        case Fenced():
            return IngestError(
                "fenced",
                "Another request has written to this run meanwhile. If that was an earlier try of this one, send this "
                "one again, with its Expected-Index; else stop: the run has another writer.",
            )
        case CursorExpired():
            return IngestError("expired", "What this would have to be compared with was removed by retention.")
        case StoreFull():
            return IngestError("store_full", "The store is full: an operator has to make room, or the run to end.")
        case Broken():
            return IngestError(
                "internal_error", "What is stored of this cannot be read: an operator has to look at it."
            )
        case Unsettled():
            return IngestError(
                "unsettled",
                "It is not known whether the run was opened: NATS did not answer. With otids it is safe to ask again: "
                "if it was, the answer is a conflict that names it.",
            )
        case Unavailable():
            return IngestError("store_unavailable", "The store is not reachable at the moment. Try again.")
        case NotStored():
            return IngestError("store_unavailable", "The store has no streams yet: a broker makes them. Try again.")
        case _:
            return IngestError("internal_error", "An unknown error occurred.")


def _asking(error_type: str, detail: str, error: Unauthenticated | Forbidden) -> IngestError:
    refused = IngestError(error_type, detail)
    refused.asks = challenge(error)
    return refused


def not_usable(error: BadBody) -> IngestError:
    """Choose what a writer is told of a body that cannot be used."""
    match error:
        case BodyTooLarge():
            return IngestError("body_too_large", str(error))
        case BodyPacked():
            return IngestError("unsupported_media_type", str(error))
        case BodyTooSlow():
            return IngestError("too_slow", str(error))
        case NotJson() | BodyNotFramed():
            return IngestError("invalid_request", str(error))
        case _:
            return IngestError(
                "invalid_request",
                "The body cannot be read: it is not UTF-8, its encoding is broken, it is nested without end, or it "
                "has half a character or a number that cannot be stored.",
            )
