"""Forms of requests that are deprecated: they work, and their answers say so with RFC 9745's `Deprecation`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from runstream.schemas import is_agent_id

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["DEPRECATION", "add_to"]

DEPRECATION: Final = "Deprecation"

SINCE: Final = "@1778716800"
"""2026-05-14, the day of Letta 0.16.8, its last release, in which all of them were deprecated."""

DEPRECATED_PATHS: Final = ("/agents/{agent_id}/messages/stream", "/runs/active")
"""In favour of `…/messages`, which streams if it is asked to, and of a list of runs that are `active`."""
DEPRECATED_PARAMETERS: Final = frozenset({"agent_ids", "ascending"})
"""In favour of `agent_id` and `order`, in the queries of lists."""
LISTS: Final = ("/runs/", "/runs/active")


def add_to(app: web.Application) -> None:
    """Sign every answer, refusals too, to what has a successor."""
    app.on_response_prepare.append(_sign)


def _is_deprecated(request: web.Request) -> bool:
    """Tell whether a path or parameter has a successor, or an agent's id stands in place of a conversation's."""
    resource = request.match_info.route.resource
    path = "" if resource is None else resource.canonical
    if path.endswith(DEPRECATED_PATHS) or (path.endswith(LISTS) and request.query.keys() & DEPRECATED_PARAMETERS):
        return True
    return is_agent_id(request.match_info.get("conversation_id", ""))


async def _sign(request: web.Request, response: web.StreamResponse) -> None:
    if _is_deprecated(request):
        response.headers[DEPRECATION] = SINCE
