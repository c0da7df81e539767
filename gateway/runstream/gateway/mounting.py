"""Where the routes are: under three prefixes, and without those that a platform answers, if there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiohttp import web

from runstream.gateway.routes import agents, conversations, runs

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["mounted"]

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


def mounted(*, before_platform: bool) -> Iterator[web.RouteDef]:
    """Yield the routes, each under all prefixes; in front of a platform, conversations are the platform's."""
    for route in [*conversations.routes, *agents.routes, *runs.routes]:
        if before_platform and _is_platforms(route):
            continue
        for prefix in PREFIXES:
            path = prefix + route.path.removeprefix("/v1")
            yield web.RouteDef(route.method, path, route.handler, route.kwargs)


def _is_platforms(route: web.RouteDef) -> bool:
    return route.path.startswith("/v1/conversations/") and (route.method, route.path) not in OWN
