"""`runstream provision`: plans or makes the streams and, if asked, rebuilds the index; says what it did, and ends."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from runstream.broker.connection import Connection
from runstream.broker.index import Index
from runstream.broker.jetstream import JetStream
from runstream.broker.rebuild import rebuild
from runstream.broker.topology import Plan, check_server, plan_streams, plan_workers, provision
from runstream.gateway.commands.terminal import counted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from runstream.broker.settings import BrokerSettings

__all__ = ["planned", "provision_once"]


@contextlib.asynccontextmanager
async def _provisioner(settings: BrokerSettings) -> AsyncIterator[JetStream]:
    """Connect as who makes the streams. Raises `Unavailable`, `ServerTooOld`."""
    access = settings.nats_access("provision")
    async with Connection(settings.nats_url, name="provision", access=access) as connection:
        check_server(connection.server_version)
        jetstream = JetStream(connection, timeout_seconds=settings.request_timeout_seconds)
        try:
            yield jetstream
        finally:
            await jetstream.close()


async def planned(settings: BrokerSettings) -> Plan:
    """Say what there is to make, and what differs; changes nothing. Raises `Unavailable`, `ServerTooOld`."""
    async with _provisioner(settings) as jetstream:
        streams, workers = await plan_streams(jetstream, settings), await plan_workers(jetstream, settings)
    return Plan(streams.absent + workers.absent, streams.differing + workers.differing)


async def provision_once(
    settings: BrokerSettings, *, apply: bool = False, rebuild_index: bool, tell: Callable[[str], None]
) -> None:
    """Make what is absent; with `apply` change what differs; with `rebuild_index`, write what the index lacks.

    `tell` is called with each line. Raises `Unavailable`, `TopologyError`, `StoreRefused`. Repeating it is safe, at
    whatever point it was broken off.
    """
    async with _provisioner(settings) as jetstream:
        done = await provision(jetstream, settings, apply=apply)
        for name in done.made:
            tell(f"made {name}")
        for difference in done.differing:
            tell(f"changed {difference.change}" if apply else f"differs: {difference}")
        if not done.made and not done.differing:
            tell("everything is there")
        if rebuild_index:
            await _rebuild(jetstream, tell)


async def _rebuild(jetstream: JetStream, tell: Callable[[str], None]) -> None:
    done = await rebuild(jetstream, Index(jetstream))
    tell(
        f"rebuilt from {counted(done.logs, 'log')}: "
        f"{counted(done.records, 'record')}, {counted(done.leases, 'lease')}, "
        f"{counted(done.conversations, 'conversation')} and {counted(done.lookups, 'lookup')} that were absent; "
        f"{counted(done.ended, 'record')} of ended runs that said otherwise"
    )
    if done.expired or done.unreadable:
        tell(
            f"passed over: {counted(done.expired, 'log')} whose beginning retention has removed, "
            f"{done.unreadable} of no run"
        )
