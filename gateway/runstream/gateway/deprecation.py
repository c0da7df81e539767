"""Forms of requests that are deprecated: they work, and their answers say so with RFC 9745's `Deprecation`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiohttp import web

from runstream.schemas import is_agent_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

__all__ = ["DEPRECATION", "add_to", "deprecate"]

DEPRECATION: Final = "Deprecation"

SINCE: Final = "@1778716800"
"""2026-05-14, the day of Letta 0.16.8, its last release, in which all of them were deprecated."""

DEPRECATED_PATH: Final = "/agents/{agent_id}/messages/stream"
"""In favour of `…/messages`, which streams if it is asked to."""

MARK: Final = web.RequestKey("deprecated", bool)


def deprecate(request: web.Request) -> None:
    """Say in the answer that this form of the request is deprecated, whatever the answer is."""
    request[MARK] = True


def add_to(app: web.Application) -> None:
    """Mark requests by their path, before anything can be refused, and sign the answers of all that are marked."""

    @web.middleware
    async def mark(request: web.Request, handler: Handler) -> web.StreamResponse:
        if _has_deprecated_path(request):
            deprecate(request)
        return await handler(request)

    app.middlewares.insert(0, mark)
    app.on_response_prepare.append(_sign)


def _has_deprecated_path(request: web.Request) -> bool:
    """Tell whether a path is one that has a successor, or has an agent's id in place of a conversation's."""
    resource = request.match_info.route.resource
    if resource is not None and resource.canonical.endswith(DEPRECATED_PATH):
        return True
    return is_agent_id(request.match_info.get("conversation_id", ""))


async def _sign(request: web.Request, response: web.StreamResponse) -> None:
    if MARK in request:
        response.headers[DEPRECATION] = SINCE
