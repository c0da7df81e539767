"""How a gateway and what it needs are: NATS, the streams, the runs that go on, its own load, and its configuration.

All of it is an operator's to know, and tells of no tenant. No secret is in it: a setting that may have one in it is
shown as being set.
"""

from __future__ import annotations

import asyncio
import platform
import time
from importlib.metadata import version
from typing import TYPE_CHECKING

import msgspec

from runstream.broker.errors import BrokerError, Unavailable
from runstream.broker.readiness import unusable
from runstream.broker.settings import without_password
from runstream.broker.topology import streams_of
from runstream.gateway.settings_shown import SettingFinding, shown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from runstream.broker.jetstream import JetStream
    from runstream.broker.view import View
    from runstream.gateway.fanout import Hub
    from runstream.gateway.presence import AgentPresence
    from runstream.gateway.settings import GatewaySettings
    from runstream.gateway.settings_shown import AnySettings

__all__ = ["Checkup", "Findings"]


class StreamFinding(msgspec.Struct, kw_only=True):
    """One stream of JetStream's."""

    name: str
    problem: str | None = None
    """Why nothing is known of it; null: it answers."""
    messages: int = 0
    bytes: int = 0
    limit_bytes: int | None = None
    """Null: the server's own limit."""
    first_seq: int = 0
    last_seq: int = 0
    consumers: int = 0
    replicas: int = 0
    leader: str | None = None
    """Null on a server that is in no cluster."""


class NatsFinding(msgspec.Struct, kw_only=True):
    """NATS as this gateway has it."""

    is_connected: bool
    url: str
    server_version: str | None
    round_trip_ms: float | None
    """Of the question after the first stream; null: it was not answered."""
    reconnects: int
    max_payload_bytes: int


class GatewayFinding(msgspec.Struct, kw_only=True):
    """This gateway alone."""

    name: str
    uptime_seconds: float
    is_draining: bool
    streams: int
    streams_limit: int
    streams_behind: int
    runs_followed: int
    runs_in_memory: int
    conversations_in_memory: int
    list_silent_seconds: float
    """How long ago the index was heard of last; a second at most while all is well."""
    holes_repaired: int


class AgentFinding(msgspec.Struct, kw_only=True):
    """What a broker says of the agent it has."""

    is_demo: bool
    forwards_credentials: bool


class Findings(msgspec.Struct, kw_only=True):
    """How it is."""

    unready: str | None
    """Why this gateway is not ready; null: it is."""
    versions: dict[str, str]
    nats: NatsFinding
    streams: list[StreamFinding]
    runs: dict[str, int]
    """Runs in memory by status, all tenants' together: all that go on, as far as the index was heard of."""
    lease_seconds: float
    agent: AgentFinding | None
    """Null: no broker with an agent answers."""
    gateway: GatewayFinding
    settings: list[SettingFinding]


class Checkup:
    """Looks at everything there is to be looked at, and answers also while NATS is away.

    `also` are settings that are shown beside the gateway's own and those of what is stored.
    """

    def __init__(
        self,
        jetstream: JetStream,
        hub: Hub,
        view: View,
        presence: AgentPresence,
        settings: GatewaySettings,
        *,
        also: Sequence[AnySettings],
        unready: Callable[[], Awaitable[str | None]],
    ) -> None:
        self._jetstream = jetstream
        self._hub = hub
        self._view = view
        self._presence = presence
        self._settings = settings
        self._also = also
        self._unready = unready
        self._began_at = time.monotonic()

    async def findings(self) -> Findings:
        """Look. Never raises for what it finds."""
        name, *names = streams_of(self._hub.broker_settings)
        asked_at = time.monotonic()
        first = await self._stream(name)
        round_trip = None if first.problem else (time.monotonic() - asked_at) * 1000
        streams = [first, *await asyncio.gather(*map(self._stream, names))]
        return Findings(
            unready=await self._unready(),
            versions={
                "runstream": version("runstream"),
                "python": platform.python_version(),
                "aiohttp": version("aiohttp"),
                "nats-py": version("nats-py"),
            },
            nats=self._nats(round_trip),
            streams=streams,
            runs=self._view.runs_by_status,
            lease_seconds=self._hub.broker_settings.lease_seconds,
            agent=await self.agent(),
            gateway=self._gateway(),
            settings=self._configuration(),
        )

    def _configuration(self) -> list[SettingFinding]:
        """Give each setting once, as the first of those says that have it."""
        found: dict[str, SettingFinding] = {}
        for settings in (*self._also, self._settings, self._hub.broker_settings):
            for setting in shown(settings):
                found.setdefault(setting.name, setting)
        return list(found.values())

    async def agent(self) -> AgentFinding | None:
        """Ask what agent there is; None if nobody answers."""
        try:
            found = await self._presence.find()
        except Unavailable:
            return None
        if found is None:
            return None
        return AgentFinding(is_demo=found.is_demo, forwards_credentials=found.forwards_credentials)

    async def _stream(self, name: str) -> StreamFinding:
        try:
            info = await self._jetstream.api(f"STREAM.INFO.{name}", None)
        except BrokerError as error:
            return StreamFinding(name=name, problem=unusable(name, error))
        state, config = info["state"], info["config"]
        limit = config.get("max_bytes", -1)
        return StreamFinding(
            name=name,
            messages=state["messages"],
            bytes=state["bytes"],
            limit_bytes=limit if limit > 0 else None,
            first_seq=state["first_seq"],
            last_seq=state["last_seq"],
            consumers=state["consumer_count"],
            replicas=config["num_replicas"],
            leader=(info.get("cluster") or {}).get("leader"),
        )

    def _nats(self, round_trip_ms: float | None) -> NatsFinding:
        connection = self._jetstream.connection
        is_connected = connection.is_connected
        return NatsFinding(
            is_connected=is_connected,
            url=without_password(self._hub.broker_settings.nats_url),
            server_version=".".join(map(str, connection.server_version)) if is_connected else None,
            round_trip_ms=round_trip_ms,
            reconnects=connection.reconnects,
            max_payload_bytes=connection.max_payload,
        )

    def _gateway(self) -> GatewayFinding:
        hub, view = self._hub, self._view
        return GatewayFinding(
            name=hub.name,
            uptime_seconds=time.monotonic() - self._began_at,
            is_draining=hub.seats.is_draining,
            streams=hub.seats.taken,
            streams_limit=self._settings.max_followers,
            streams_behind=hub.followers_behind,
            runs_followed=hub.live_tails,
            runs_in_memory=view.run_count,
            conversations_in_memory=view.conversation_count,
            list_silent_seconds=view.feed.silent_seconds,
            holes_repaired=hub.counters.holes_repaired,
        )
