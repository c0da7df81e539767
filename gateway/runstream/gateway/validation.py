"""Reads what a client sent, strictly, and says what is wrong in the reference's words and order of checks."""

from __future__ import annotations

import asyncio
import json
import zlib
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar, get_origin

import msgspec
from aiohttp import hdrs, web
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from runstream.gateway.errors import ApiError, BadRequest, Invalid, TooLarge, TooSlow
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
    "agent_path",
    "body_of",
    "check_conversation_id",
    "check_run_id",
    "check_user",
    "conversation_path",
    "model_of",
    "query_of",
    "run_path",
    "strict_conversation_path",
]

Model = TypeVar("Model", bound=BaseModel)

NESTING_RESERVE = 32
"""Levels of nesting kept free: what a request is stored with is encoded deeper in the stack than it is read."""

WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""What zlib calls the compressions that a body may have."""

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
    raise Invalid(
        [
            {
                "type": found["type"],
                "loc": (*where, *found["loc"]),
                "msg": found["msg"],
                "input": found["input"],
                **({"ctx": found["ctx"]} if "ctx" in found else {}),
            }
            for found in error.errors(include_url=False)
        ]
    ) from None


async def body_of(request: web.Request, *, limit: int, seconds: float) -> Any:
    """Return the request's body: parsed if it is JSON or says nothing of its type, else its bytes; None if empty.

    Raises `Invalid` for malformed JSON, `TooLarge`, `TooSlow`, `ApiError` 400 for what is no text, or cannot be stored.
    """
    raw = _unpacked(await _read(request, limit, seconds), request, limit)
    if not raw:
        return None
    if not _is_json(request):
        return raw
    try:
        parsed = json.loads(raw, parse_constant=_no_constant)
        size = _stored_size(parsed)
    except json.JSONDecodeError as error:
        raise Invalid(
            [
                {
                    "type": "json_invalid",
                    "loc": ("body", error.pos),
                    "msg": "JSON decode error",
                    "input": {},
                    "ctx": {"error": error.msg},
                }
            ]
        ) from None
    except (UnicodeDecodeError, RecursionError, ValueError):
        raise _unreadable() from None
    if size > limit:
        raise TooLarge(f"The request body would be stored with {size} bytes; at most {limit} are accepted.")
    return parsed


def _stored_size(parsed: Any) -> int:
    """Return the bytes a body has when it is stored, which may be more than were sent: `1e9` is written out.

    Raises UnicodeEncodeError for half a surrogate pair, RecursionError for nesting without end.
    """
    for _ in range(NESTING_RESERVE):
        parsed = [parsed]
    return len(msgspec.json.encode(parsed)) - 2 * NESTING_RESERVE


async def _read(request: web.Request, limit: int, seconds: float) -> bytes:
    length = request.content_length
    if length is not None and length > limit:
        raise TooLarge(f"The request body has {length} bytes; at most {limit} are accepted.")
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.content.iter_any():
                size += len(part)
                if size > limit:
                    raise TooLarge(f"The request body has more than {limit} bytes, which is as many as are accepted.")
                parts.append(part)
    except web.RequestPayloadError:
        raise _unreadable() from None
    except TimeoutError:
        raise TooSlow(f"The request body was not there after {seconds:g} s.") from None
    return b"".join(parts)


def _unpacked(raw: bytes, request: web.Request, limit: int) -> bytes:
    """Return a compressed body as it was; nothing beyond the limit is made of it."""
    window = WINDOW.get(request.headers.get(hdrs.CONTENT_ENCODING, "").strip().lower())
    if window is None or not raw:
        return raw
    unpacking = zlib.decompressobj(window)
    try:
        body = unpacking.decompress(raw, limit + 1)
    except zlib.error:
        raise _unreadable() from None
    if len(body) > limit:
        raise TooLarge(f"The request body has more than {limit} bytes, which is as many as are accepted.")
    if not unpacking.eof:
        raise _unreadable()
    return body


def _unreadable() -> ApiError:
    refused = ApiError("There was an error parsing the body")
    refused.status = HTTPStatus.BAD_REQUEST
    return refused


def _is_json(request: web.Request) -> bool:
    if "Content-Type" not in request.headers:
        return True
    main, _, sub = request.content_type.partition("/")
    return main == "application" and (sub == "json" or sub.endswith("+json"))


def _no_constant(name: str) -> NoReturn:
    """Refuse NaN and Infinity, which Python would take and no agent could be sent."""
    raise json.JSONDecodeError(f"{name} is not JSON", name, 0)


def model_of(kind: type[Model], body: Any, *, required: bool) -> Model:
    """Validate a parsed body. Raises `Invalid`; absent or null, it is an empty one unless it is `required`."""
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
