"""What a client is told when a request cannot be served: one tree, and the one table from errors to statuses.

ApiError
├── Invalid             422, the body or the path, in the reference's form
├── BadRequest          400
├── NotFound            404
├── Busy                409, the conversation or an otid is taken; or nothing goes on in it, to be cancelled
├── Gone                410, retention has removed it
├── TooSlow             408
├── TooLarge            413
└── TryLater            503, with Retry-After unless the request must not be repeated

A detail's text is the reference's wherever clients or its own tests match on it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from runstream.broker.errors import (
    BrokerError,
    Conflict,
    CursorExpired,
    NotStored,
    StoreFull,
    Unavailable,
    Unsettled,
    ViewBehind,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "NOT_AGAIN",
    "RETRY_SECONDS",
    "ApiError",
    "BadRequest",
    "Busy",
    "Gone",
    "Invalid",
    "NotFound",
    "TooLarge",
    "TooSlow",
    "TryLater",
    "translated",
]

RETRY_SECONDS = 2.0
"""When to come back after NATS was away: a restarted server is there again, an election mostly over."""


NOT_AGAIN = {"x-should-retry": "false"}
"""letta-client repeats a 409 twice unless it is told not to, each time in vain."""


class ApiError(Exception):
    """The request cannot be served."""

    status = 500

    def __init__(
        self, detail: str, *, extra: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        self.detail = detail
        self.extra = dict(extra or {})
        self.headers = dict(headers or {})
        super().__init__(detail)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON a client gets."""
        return {"detail": self.detail, **self.extra}


class Invalid(ApiError):
    """A value has the wrong form. `errors` are pydantic's; a client gets their Python form in one string."""

    status = 422

    def __init__(self, errors: Sequence[Mapping[str, Any]], *, examples: Sequence[str] | None = None) -> None:
        self._examples = examples
        super().__init__(repr([dict(error) for error in errors]))

    @property
    def body(self) -> dict[str, Any]:
        """The reference's form: the list of errors as Python would print it."""
        examples = {} if self._examples is None else {"examples": list(self._examples)}
        return {"trace_id": "", "detail": self.detail, **examples}


class BadRequest(ApiError):
    """The request makes no sense as it is."""

    status = 400

    def __init__(self, detail: str) -> None:
        super().__init__(f"INVALID_ARGUMENT: {detail}")


class NotFound(ApiError):
    """There is no such thing."""

    status = 404


class Busy(ApiError):
    """The state of a conversation or an agent does not allow it."""

    status = 409


class Gone(ApiError):
    """Retention has removed it."""

    status = 410

    def __init__(self) -> None:
        super().__init__("EXPIRED: Part of this run was removed by retention.")


class TooSlow(ApiError):
    """The request did not arrive in time."""

    status = 408


class TooLarge(ApiError):
    """The request is larger than may be stored."""

    status = 413


class TryLater(ApiError):
    """The request could be served at another moment, or by another gateway.

    Not to be repeated (`x-should-retry: false`) once a run was started by it, `run_id`, or may have been.
    """

    status = 503

    def __init__(self, detail: str, *, should_retry: bool = True, run_id: str | None = None) -> None:
        repeatable = should_retry and run_id is None
        headers = {"Retry-After": str(math.ceil(RETRY_SECONDS))} if repeatable else NOT_AGAIN
        super().__init__(detail, headers=headers, extra={} if run_id is None else {"run_id": run_id})


def translated(error: BrokerError) -> ApiError:  # noqa: PLR0911  # a table
    """Choose what a client is told of an error of the durable side."""
    match error:
        case Conflict():
            return _busy(error)
        case CursorExpired():
            return Gone()
        case Unsettled():
            return TryLater(
                "It is not known whether the run was started: NATS did not answer. Look for it before repeating.",
                should_retry=False,
            )
        case ViewBehind():
            return TryLater("This gateway is still reading what there is. Try again.")
        case Unavailable():
            return TryLater("The store is not reachable at the moment. Try again.")
        case NotStored():
            return TryLater("The store has no streams yet: a broker makes them when it starts. Try again.")
        case StoreFull():
            return TryLater("The store is full: an operator has to make room.", should_retry=False)
        case _:
            return ApiError("An unknown error occurred")


def _busy(conflict: Conflict) -> Busy:
    """Tell which run holds what was asked for, so that the client can follow that run instead."""
    if conflict.shares_otid:
        detail = f"CONFLICT: otid {conflict.otid} belongs to another request, answered by run {conflict.run_id}."
    else:
        detail = (
            f"CONFLICT: Cannot send a new message: Another request (run_id={conflict.run_id}) is currently being "
            "processed for this conversation. Please wait for it to complete."
        )
    extra = {"run_id": conflict.run_id, "otid": conflict.otid}
    return Busy(detail, extra=extra, headers=NOT_AGAIN)
