"""`runstream provision`: makes the streams and, if asked, rebuilds the index; says what it did, and ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runstream.broker.connection import Connection
from runstream.broker.index import Index
from runstream.broker.jetstream import JetStream
from runstream.broker.rebuild import rebuild
from runstream.broker.topology import check_server, provision

if TYPE_CHECKING:
    from collections.abc import Callable

    from runstream.broker.settings import BrokerSettings

__all__ = ["provision_once"]


async def provision_once(settings: BrokerSettings, *, rebuild_index: bool, tell: Callable[[str], None]) -> None:
    """Make what is absent; with `rebuild_index`, write what the index lacks. `tell` is called with each line.

    Raises `Unavailable`, `TopologyError`, `StoreRefused`. Repeating it is safe, at whatever point it was broken off.
    """
    access = settings.nats_access("provision")
    async with Connection(settings.nats_url, name="provision", access=access) as connection:
        check_server(connection.server_version)
        jetstream = JetStream(connection, timeout_seconds=settings.request_timeout_seconds)
        try:
            done = await provision(jetstream, settings)
            for name in done.made:
                tell(f"made {name}")
            for difference in done.differing:
                tell(f"differs: {difference}")
            if not done.made and not done.differing:
                tell("everything is there")
            if rebuild_index:
                await _rebuild(jetstream, tell)
        finally:
            await jetstream.close()


async def _rebuild(jetstream: JetStream, tell: Callable[[str], None]) -> None:
    done = await rebuild(jetstream, Index(jetstream))
    tell(
        f"rebuilt from {done.logs} logs: {done.records} records, {done.leases} leases, "
        f"{done.conversations} conversations and {done.lookups} lookups that were absent; "
        f"{done.ended} records of ended runs that said otherwise"
    )
    if done.expired or done.unreadable:
        tell(
            f"passed over: {done.expired} logs whose beginning retention has removed, "
            f"{done.unreadable} that are no run's"
        )
