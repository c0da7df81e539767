"""Ends a stream when what admitted its reader does no longer: visibly, so that a new credential goes on from there."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from runstream.gateway.sse import Style, cut_error, retry_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runstream.broker.auth.principal import Principal
    from runstream.gateway.fanout import Hub
    from runstream.gateway.follower import Follower

__all__ = ["until_expired"]


@contextmanager
def until_expired(who: Principal, follower: Follower, hub: Hub) -> Iterator[None]:
    """Cut a follower off that is still there when its credential expires."""
    if who.expires_at is None:
        yield
        return
    seconds = max(0.0, who.expires_at - time.time())
    timer = asyncio.get_running_loop().call_later(seconds, _cut_off, follower, hub)
    try:
        yield
    finally:
        timer.cancel()


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
