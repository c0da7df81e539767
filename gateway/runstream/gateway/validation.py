"""Reads what a client sent, strictly, and says what is wrong in the reference's words and order of checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, TypeVar, get_origin

from aiohttp import web
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from runstream.broker.http_body import (
    BadBody,
    BodyNotFramed,
    BodyPacked,
    BodyTooLarge,
    BodyTooSlow,
    NotJson,
    parse_body,
    read_body,
)
from runstream.gateway.errors import ApiError, BadRequest, Invalid, Misframed, Packed, TooLarge, TooSlow, Unreadable
from runstream.gateway.quoting import quoted
from runstream.gateway.services import SERVICES
from runstream.schemas import (
    AGENT_PATH,
    CONVERSATION_PATH,
    STRICT_CONVERSATION_PATH,
    is_conversation_id,
    is_run_id,
    is_user_id,
)

if TYPE_CHECKING:
    from runstream.schemas import PathPattern

__all__ = [
    "OF_BODIES",
    "agent_path",
    "body_of",
    "check_conversation_id",
    "check_run_id",
    "check_user",
    "conversation_path",
    "query_of",
    "run_path",
    "strict_conversation_path",
]

Model = TypeVar("Model", bound=BaseModel)

OF_BODIES: Final = (Invalid, TooSlow, TooLarge, Packed)
"""What `body_of` refuses, but for what every request may be refused for."""

MOST_ERRORS: Final = 12
"""What is told of one request that is wrong: who mends these will see the rest."""

EXAMPLE_AGENT = "agent-123e4567-e89b-42d3-8456-426614174000"


def _adapter(path: PathPattern) -> TypeAdapter[str]:
    field = Field(min_length=path.min_length, max_length=path.max_length, pattern=path.pattern)
    return TypeAdapter(Annotated[str, field])


_CONVERSATION = _adapter(CONVERSATION_PATH)
_STRICT_CONVERSATION = _adapter(STRICT_CONVERSATION_PATH)
_AGENT = _adapter(AGENT_PATH)


def conversation_path(request: web.Request) -> str:
    """Return the path's conversation: `conv-…`, `default` or `agent-…`. Raises `Invalid`."""
    return _path(request, "conversation_id", _CONVERSATION)


def strict_conversation_path(request: web.Request) -> str:
    """Return the path's conversation, `conv-…` only. Raises `Invalid`."""
    return _path(request, "conversation_id", _STRICT_CONVERSATION)


def agent_path(request: web.Request) -> str:
    """Return the path's agent. Raises `Invalid`, in the reference's special form for agents."""
    value = request.match_info["agent_id"]
    if AGENT_PATH.matches(value):
        return value
    raise Invalid(
        [
            {
                "type": "string_pattern_mismatch",
                "loc": ("path", "agent_id"),
                "msg": "String should match pattern 'agent-{uuid4}'",
                "input": value,
                "ctx": {"pattern": AGENT_PATH.pattern},
            }
        ],
        examples=[EXAMPLE_AGENT],
    )


def run_path(request: web.Request) -> str:
    """Return the path's run. Raises `BadRequest`: the reference checks a run's id later than others."""
    return check_run_id(request.match_info["run_id"])


def check_run_id(value: str) -> str:
    """Return `value` if it is a run's id. Raises `BadRequest`."""
    if not is_run_id(value):
        raise BadRequest(f"Invalid run ID format: {value}. Expected format: 'run-<uuid4>'")
    return value


def check_conversation_id(value: str) -> str:
    """Return `value` if it is a conversation's id, not `default`. Raises `BadRequest`, for where it is no path."""
    if not is_conversation_id(value):
        raise BadRequest(f"Invalid conversation ID format: {value}. Expected format: 'conv-<uuid4>'")
    return value


def check_user(request: web.Request) -> None:
    """Refuse a malformed `user_id` header; a well-formed one selects nothing."""
    value = request.headers.get("user_id")
    if value is not None and not is_user_id(value):
        raise BadRequest(f"Invalid user ID format: {value}. Expected format: 'user-<uuid4>'")


def _path(request: web.Request, name: str, adapter: TypeAdapter[str]) -> str:
    try:
        value: str = adapter.validate_python(request.match_info[name])
    except ValidationError as error:
        _refuse(error, ("path", name))
    return value


def _refuse(error: ValidationError, where: tuple[str, ...]) -> NoReturn:
    found = error.errors(include_url=False)
    told = [
        {
            "type": one["type"],
            "loc": (*where, *one["loc"]),
            "msg": one["msg"],
            "input": quoted(one["input"]),
            **({"ctx": one["ctx"]} if "ctx" in one else {}),
        }
        for one in found[:MOST_ERRORS]
    ]
    if len(found) > MOST_ERRORS:
        more = f"{len(found) - MOST_ERRORS} more errors are not shown"
        told.append({"type": "too_many_errors", "loc": where, "msg": more, "input": None})
    raise Invalid(told) from None


async def body_of(kind: type[Model], request: web.Request, *, required: bool) -> tuple[Model, Any]:
    """Return the request's body as its model, and as it was sent; absent or null, it is an empty one unless `required`.

    Raises `Invalid`, `TooLarge`, `Packed`, `TooSlow`, `Misframed`, `Unreadable`.
    """
    services = request.app[SERVICES]
    body = await _parsed(request, services.body_limit(), services.body_seconds)
    return _model_of(kind, body, required=required), body


async def _parsed(request: web.Request, limit: int, seconds: float) -> Any:
    """Return the body parsed if it is JSON or says nothing of its type, else its bytes; None if it is empty."""
    try:
        raw = await read_body(request, limit=limit, seconds=seconds)
        if not raw:
            return None
        return parse_body(raw, limit=limit) if _is_json(request) else raw
    except BadBody as error:
        raise _translated(error) from None


def _translated(error: BadBody) -> ApiError:
    match error:
        case BodyTooLarge():
            return TooLarge(str(error))
        case BodyPacked():
            return Packed(str(error))
        case BodyTooSlow():
            return TooSlow(str(error))
        case BodyNotFramed():
            return Misframed()
        case NotJson(reason=reason, position=position):
            where = {"type": "json_invalid", "loc": ("body", position), "msg": "JSON decode error", "input": {}}
            return Invalid([{**where, "ctx": {"error": reason}}])
    return Unreadable(str(error))


def _is_json(request: web.Request) -> bool:
    if "Content-Type" not in request.headers:
        return True
    main, _, sub = request.content_type.partition("/")
    return main == "application" and (sub == "json" or sub.endswith("+json"))


def _model_of(kind: type[Model], body: Any, *, required: bool) -> Model:
    if body is None:
        if required:
            raise Invalid([{"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}])
        body = {}
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        _refuse(error, ("body",))


def query_of(kind: type[Model], request: web.Request, *names: str) -> Model:
    """Validate the parameters of these names in the query (none: all of the model); others are not looked at.

    Of one that is there twice, and is no list, the last counts. Where all are asked for, one that is empty is absent:
    so a client writes null that knows no other way. Raises `Invalid`.
    """
    given: dict[str, Any] = {}
    for name in names or kind.model_fields:
        if values := [value for value in request.query.getall(name, []) if value or names]:
            is_list = get_origin(kind.model_fields[name].annotation) is list
            given[name] = values if is_list else values[-1]
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        _refuse(error, ("query",))
