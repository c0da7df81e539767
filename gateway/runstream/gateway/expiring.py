"""Ends a stream when what admitted its reader does no longer: visibly, so that a new credential goes on from there."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from runstream.broker.http_auth import PRINCIPAL
from runstream.gateway.services import SERVICES
from runstream.gateway.sse import Style, cut_error, retry_line

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from aiohttp import web

    from runstream.gateway.fanout import Hub
    from runstream.gateway.follower import Follower

__all__ = ["while_admitted"]


def while_admitted(request: web.Request, follower: Follower, hub: Hub) -> AbstractContextManager[None]:
    """Cut a follower off that is still there when its reader is admitted no longer."""
    return request.app[SERVICES].admissions.over(request[PRINCIPAL], partial(_cut_off, follower, hub))


def _cut_off(follower: Follower, hub: Hub) -> None:
    if follower.is_done or follower.response.is_closed:
        return
    hub.metrics.stream_cut("credential")
    if follower.style is Style.EVENT_SOURCE:
        # It comes back whatever is said, and is refused then unless it has a credential.
        follower.response.write_event(retry_line(hub.settings.event_source_retry_seconds))
    else:
        follower.response.write_event(cut_error(follower.run_id, "credential_expired"))
    follower.response.cut()
    follower.woken.set()
