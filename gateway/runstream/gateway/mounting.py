"""Where the routes are: under three prefixes, and without those that a platform answers, if there is one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import hdrs, web

from runstream.broker.http import routes
from runstream.broker.operations import OPEN, Header, Operation
from runstream.gateway.admission import guarded
from runstream.gateway.deprecation import DEPRECATION
from runstream.gateway.errors import (
    NotAllowed,
    PlatformFailed,
    PlatformRefused,
    PlatformSilent,
    TooMany,
    Unauthorized,
    refused_also,
)
from runstream.gateway.eventsource import comes_back
from runstream.gateway.routes import agents, checkups, conversations, health, runs, sessions, watching

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runstream.broker.operations import Handler

__all__ = ["OPERATIONS", "is_ours", "mounted", "operations"]

PREFIXES: Final = ("/v1", "/latest/v1", "/latest")

CONVERSATION: Final = "/v1/conversations/{conversation_id}"
OWN: Final = frozenset(
    {
        ("POST", f"{CONVERSATION}/messages"),
        ("POST", f"{CONVERSATION}/stream"),
        ("POST", f"{CONVERSATION}/cancel"),
    }
)
"""What goes on in a conversation is runstream's in any case."""
ASKING: Final = frozenset({("POST", f"{CONVERSATION}/messages"), ("POST", f"{CONVERSATION}/cancel")})
"""What may have to ask the platform first whose a conversation is."""

USER_ID: Final = Header("user_id", "`user-<uuid4>`, as the reference has it: malformed it is 400, else ignored.")
DEPRECATED: Final = Header(DEPRECATION, "Since when this form of the request is deprecated: see RFC 9745.")


def _whole(operation: Operation) -> Operation:
    """Add what all operations have in common."""
    always = [*operation.always, DEPRECATED] if operation.is_deprecated else operation.always
    answers = operation.answers
    if operation.scope != OPEN:
        answers = refused_also(answers, Unauthorized, NotAllowed, TooMany)
    return msgspec.structs.replace(operation, headers=[*operation.headers, USER_ID], always=always, answers=answers)


OPERATIONS: Final = tuple(
    map(
        _whole,
        [
            *conversations.operations,
            *agents.operations,
            *runs.operations,
            *health.operations,
            *watching.operations,
            *sessions.operations,
            *checkups.operations,
        ],
    )
)
"""All that a gateway answers that is not in front of a platform."""


def operations(*, before_platform: bool) -> list[Operation]:
    """Give what a gateway answers itself; in front of a platform, conversations are the platform's."""
    if not before_platform:
        return [*OPERATIONS]
    return [_before_platform(operation) for operation in OPERATIONS if not _is_platforms(operation)]


def mounted(served: Sequence[Operation]) -> list[web.RouteDef]:
    """Make the routes of operations, each under all prefixes, for those who may."""
    guards = [msgspec.structs.replace(operation, handler=_guarded(operation)) for operation in served]
    return [
        web.RouteDef(route.method, prefix + route.path.removeprefix("/v1"), route.handler, route.kwargs)
        for route in routes(guards)
        for prefix in PREFIXES
    ]


def _guarded(operation: Operation) -> Handler:
    handler = guarded(operation)
    # What will pass must not stop a browser, were it that nobody can say who asks.
    return comes_back(handler) if operation.is_for_browsers else handler


def is_ours(method: str, path: str) -> bool:
    """Tell whether a path without a last slash is served here, in front of a platform, with this method."""
    method = hdrs.METH_GET if method == hdrs.METH_HEAD else method
    return any(of == method and template.fullmatch(path) for of, template in _OURS)


def _is_platforms(operation: Operation) -> bool:
    return operation.path.startswith("/v1/conversations/") and (operation.method, operation.path) not in OWN


def _before_platform(operation: Operation) -> Operation:
    if (operation.method, operation.path) not in ASKING:
        return operation
    answers = refused_also(operation.answers, PlatformRefused, PlatformFailed, PlatformSilent)
    return msgspec.structs.replace(operation, answers=answers)


_OURS: Final = [
    (operation.method, re.compile(re.sub(r"\{\w+\}", "[^/]+", operation.path.rstrip("/"))))
    for operation in operations(before_platform=True)
]
