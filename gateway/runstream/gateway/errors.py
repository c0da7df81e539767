"""What a client is told when a request cannot be served: one tree, and the one table from errors to statuses.

ApiError
├── Defect              500
├── Unusable            500, what is stored of it cannot be read
├── Invalid             422, the body or the path, in the reference's form
├── EmptyMessages       422, in the reference's other form
├── BadRequest          400
│   ├── Misframed       its body is not framed as its headers say; the connection is closed
│   └── NoActiveRun     nothing goes on that could be followed
├── Unreadable          400, the body, in the reference's words
├── BadStatus           400, of a list of runs, in the reference's words
├── Unauthorized        401
├── NotAllowed          403, the credential does not allow it
├── NotFound            404
├── Busy                409, the conversation or an otid is taken; or nothing goes on in it, to be cancelled
├── Gone                410, retention has removed it
├── TooSlow             408
├── TooLarge            413
├── TooMany             429, with Retry-After
├── Packed              415, the body is compressed in a way that is not read here
├── TryLater            503, with Retry-After unless the request must not be repeated
├── PlatformRefused     what the platform said, 4xx
├── PlatformFailed      502, the platform gave no answer that can be used
│   └── PlatformSilent  504
├── NotPassedOn         501, the platform has to be asked for it at its own address
└── Loop                508, the platform's or the agent's address leads here

What a whole answer is refused with hangs on it, too, in `answering.py` and `transcripts.py`. A detail's text is the
reference's wherever clients or its own tests match on it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, UnsetType

from runstream.broker.errors import (
    Broken,
    BrokerError,
    Conflict,
    ConversationDeleted,
    ConversationTooLarge,
    CursorExpired,
    CursorUnknown,
    Forbidden,
    KeysUnavailable,
    LimitReached,
    NotStored,
    RecordTooLarge,
    StoreFull,
    Unauthenticated,
    Unavailable,
    Unsettled,
    ViewBehind,
)
from runstream.broker.http_auth import challenge
from runstream.broker.operations import Answer, Body, Header

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "NOT_AGAIN",
    "RETRY_SECONDS",
    "SHOULD_RETRY",
    "ApiError",
    "BadRequest",
    "BadStatus",
    "Busy",
    "Defect",
    "EmptyMessages",
    "Gone",
    "Invalid",
    "Loop",
    "Misframed",
    "NoActiveRun",
    "NotAllowed",
    "NotFound",
    "NotPassedOn",
    "Packed",
    "PlatformFailed",
    "PlatformRefused",
    "PlatformSilent",
    "TooLarge",
    "TooMany",
    "TooSlow",
    "TryLater",
    "Unauthorized",
    "UnavailableRefusal",
    "Unreadable",
    "Unusable",
    "refusals",
    "refused_also",
    "translated",
]

RETRY_SECONDS = 2.0
"""When to come back after NATS was away: a restarted server is there again, an election mostly over."""


NOT_AGAIN = {"x-should-retry": "false"}
"""letta-client repeats a 409 twice unless it is told not to, each time in vain."""

SHOULD_RETRY = Header("x-should-retry", "`false`: a client library need not repeat the request.")
CHALLENGE = Header("WWW-Authenticate", "How to be admitted, as RFC 6750 has it.")
RETRY_AFTER = Header("Retry-After", "Seconds to wait before the request is repeated.", {"type": "integer"})


class Refusal(msgspec.Struct):
    """Why a request cannot be served."""

    detail: str


class FailureRefusal(Refusal):
    """A defect; `reference` names the line of the log."""

    reference: str | UnsetType = UNSET


class InvalidRefusal(msgspec.Struct):
    """What has the wrong form: a list of errors as Python prints it, in one string."""

    trace_id: str
    detail: str
    examples: list[str] | UnsetType = UNSET


class ConflictRefusal(Refusal):
    """What is in the way: a run, and its first otid, or the otid that both requests have."""

    run_id: str | UnsetType = UNSET
    otid: str | UnsetType | None = UNSET


class UnavailableRefusal(Refusal):
    """With `run_id` a run was started, and the request must not be repeated."""

    run_id: str | UnsetType = UNSET


def again(*, may_be: bool) -> dict[str, str]:
    """Say when a request may be repeated, or that it must not be."""
    return {"Retry-After": str(math.ceil(RETRY_SECONDS))} if may_be else NOT_AGAIN


class ApiError(Exception):
    """The request cannot be served."""

    status: int
    statuses: Sequence[int | str] = ()
    """All that it may have, where an error has its status of what it is about."""
    shapes: Sequence[type[msgspec.Struct]] = (Refusal,)
    sends: Sequence[Header] = ()

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


class Defect(ApiError):
    """A defect of this server's."""

    status = 500
    shapes = (FailureRefusal,)

    def __init__(self, reference: str | None = None) -> None:
        extra = {} if reference is None else {"reference": reference}
        super().__init__("An unknown error occurred", extra=extra)


class Unusable(ApiError):
    """What is stored of it cannot be read. Not to be repeated: it stays so until an operator has looked at it."""

    status = 500
    sends = (SHOULD_RETRY,)

    def __init__(self) -> None:
        super().__init__("What is stored of this cannot be read: an operator has to look at it.", headers=NOT_AGAIN)


class Invalid(ApiError):
    """A value has the wrong form. `errors` are pydantic's; a client gets their Python form in one string."""

    status = 422
    shapes = (InvalidRefusal,)

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


class Misframed(BadRequest):
    """The body is not framed as the request's headers say."""

    def __init__(self) -> None:
        super().__init__("The request body is not framed as its headers say.")


class NoActiveRun(BadRequest):
    """Nothing goes on in the conversation that could be followed."""

    def __init__(self) -> None:
        super().__init__("No active runs found for this conversation.")


class EmptyMessages(ApiError):
    """There is nothing to answer."""

    status = 422

    def __init__(self) -> None:
        super().__init__("Messages must not be empty")


class Unreadable(ApiError):
    """The body is no text, or has what cannot be stored."""

    status = 400


class BadStatus(ApiError):
    """There is no such status."""

    status = 400

    def __init__(self, status: str) -> None:
        super().__init__(f"'{status}' is not a valid RunStatus")


class Unauthorized(ApiError):
    """Nobody showed who asks, or what was sent for it is not good."""

    status = 401
    sends = (CHALLENGE,)

    def __init__(self, error: Unauthenticated) -> None:
        super().__init__("Unauthorized", headers=challenge(error))


class NotAllowed(ApiError):
    """The credential does not allow this."""

    status = 403
    sends = (CHALLENGE,)

    def __init__(self, error: Forbidden) -> None:
        super().__init__(f"FORBIDDEN: {error.detail}", headers=challenge(error))


class NotFound(ApiError):
    """There is no such thing."""

    status = 404

    @classmethod
    def run(cls, run_id: str) -> NotFound:
        """Say that there is no such run."""
        return cls(f"Run not found with id='{run_id}'")

    @classmethod
    def conversation(cls, conversation_id: str) -> NotFound:
        """Say that there is no such conversation."""
        return cls(f"Conversation not found with id='{conversation_id}'")


class Busy(ApiError):
    """The state of a conversation or an agent does not allow it."""

    status = 409
    shapes = (ConflictRefusal,)
    sends = (SHOULD_RETRY,)


class Gone(ApiError):
    """Retention has removed it, or it never was there."""

    status = 410

    def __init__(self, detail: str = "Part of this run was removed by retention.") -> None:
        super().__init__(f"EXPIRED: {detail}")


class TooSlow(ApiError):
    """The request did not arrive in time."""

    status = 408


class TooLarge(ApiError):
    """The request is larger than may be stored."""

    status = 413


class TooMany(ApiError):
    """Whoever asks has had as much as they may for now. Nothing was done."""

    status = 429
    sends = (RETRY_AFTER,)

    def __init__(self, detail: str, *, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(detail, headers={"Retry-After": str(math.ceil(seconds))})


class Packed(ApiError):
    """The request's body is compressed in a way that is not read here."""

    status = 415
    shapes = (Refusal,)


class TryLater(ApiError):
    """The request could be served at another moment, or by another gateway.

    Not to be repeated (`x-should-retry: false`) once a run was started by it, `run_id`, or may have been.
    """

    status = 503
    shapes = (UnavailableRefusal,)
    sends = (RETRY_AFTER, SHOULD_RETRY)

    def __init__(self, detail: str, *, should_retry: bool = True, run_id: str | None = None) -> None:
        headers = again(may_be=should_retry and run_id is None)
        super().__init__(detail, headers=headers, extra={} if run_id is None else {"run_id": run_id})


class PlatformRefused(ApiError):
    """The platform has refused what it had to be asked first, and its refusal is handed on."""

    statuses = ("4XX", 401, 403, 429)

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        self._said = dict(body)
        super().__init__(str(body.get("detail", "")))
        self.status = status

    @property
    def body(self) -> dict[str, Any]:
        """What the platform said."""
        return self._said


class PlatformFailed(ApiError):
    """The platform gave no answer that can be used.

    Not to be repeated (`x-should-retry: false`) if it may have done what was asked for.
    """

    status = 502
    sends = (RETRY_AFTER, SHOULD_RETRY)

    def __init__(self, detail: str, *, should_retry: bool) -> None:
        super().__init__(detail, headers=again(may_be=should_retry))


class PlatformSilent(PlatformFailed):
    """The platform is connected, and does not answer."""

    status = 504


class NotPassedOn(ApiError):
    """The platform might do this; through this gateway it cannot be asked to."""

    status = 501


class Loop(ApiError):
    """The request came from here."""

    status = 508


def refusals(*kinds: type[ApiError]) -> dict[int | str, Answer]:
    """Describe the refusals of an operation, by status; every one may be refused for its `user_id`, or a defect."""
    return refused_also({}, BadRequest, *kinds, Defect, Unusable)


def refused_also(answers: Mapping[int | str, Answer], *kinds: type[ApiError]) -> dict[int | str, Answer]:
    """Describe answers to which refusals of further kinds are added."""
    found = dict(answers)
    for kind in kinds:
        for status in kind.statuses or (kind.status,):
            answer = Answer(_first_paragraph(kind), [Body(kind.shapes)], kind.sends)
            found[status] = found[status].joined(answer) if status in found else answer
    return found


def _first_paragraph(kind: type[ApiError]) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def translated(error: BrokerError) -> ApiError:  # noqa: C901, PLR0911, PLR0912  # a table
    """Choose what a client is told of an error of the durable side."""
    match error:
        case Unauthenticated():
            return Unauthorized(error)
        case Forbidden():
            return NotAllowed(error)
        case LimitReached(detail=detail, seconds=seconds):
            return TooMany(detail, seconds=seconds)
        case Conflict():
            return _busy(error)
        case ConversationDeleted(conversation_id=conversation_id):
            return NotFound.conversation(conversation_id)
        case ConversationTooLarge(size=size, limit=limit):
            return TooLarge(f"The conversation would have {size} bytes; at most {limit} are kept.")
        case RecordTooLarge(size=size, limit=limit):
            return TooLarge(f"What the store would keep of this has {size} bytes; at most {limit} are kept.")
        case CursorUnknown():
            return Gone("This run has no event with that seq_id yet: resume from one that was received, or from 0.")
        case CursorExpired():
            return Gone()
        case Unsettled():
            return TryLater(
                "It is not known whether the run was started: NATS did not answer. Look for it before repeating.",
                should_retry=False,
            )
        case Broken():
            return Unusable()
        case KeysUnavailable():
            return TryLater("The keys that tokens are checked with cannot be fetched at the moment. Try again.")
        case ViewBehind():
            return TryLater("This gateway is still reading what there is. Try again.")
        case Unavailable():
            return TryLater("The store is not reachable at the moment. Try again.")
        case NotStored():
            return TryLater("The store has no streams yet: a broker makes them when it starts. Try again.")
        case StoreFull():
            return TryLater("The store is full: an operator has to make room.", should_retry=False)
        case _:
            return Defect()


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
