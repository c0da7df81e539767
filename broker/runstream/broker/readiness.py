"""Whether a process is to be sent clients: it asks what it depends on, and knows whether it is to stop."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from runstream.broker.errors import BrokerError, NotStored, Refused, Unavailable
from runstream.broker.logs import get_logger
from runstream.broker.topology import streams_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from runstream.broker.jetstream import JetStream
    from runstream.broker.settings import BrokerSettings

__all__ = ["Draining", "Readiness", "Ready", "StreamInfo"]

log = get_logger(__name__)

READINESS_SECONDS = 1.0
"""How long an answer about the streams is good for: probes of many replicas must not become a load."""


class StreamInfo(msgspec.Struct, frozen=True):
    """What a stream of JetStream holds."""

    bytes: int
    messages: int
    limit_bytes: int | None


class Readiness:
    """Whether NATS and every stream can be used, asked at most once a second."""

    def __init__(self, jetstream: JetStream, settings: BrokerSettings) -> None:
        self._jetstream = jetstream
        self._streams = streams_of(settings)
        self._asked_at = 0.0
        self._reason: str | None = None
        self.found: dict[str, StreamInfo] = {}
        """What the streams held when they were asked last."""

    async def unready(self) -> str | None:
        """Say in words why not, None when ready."""
        if not self._jetstream.connection.is_connected:
            self.found, self._asked_at = {}, 0.0
            return "NATS is not connected."
        if self._jetstream.connection.is_deaf:
            return "NATS refuses what this process has to hear: its log says which subjects (nats_refused)."
        if time.monotonic() - self._asked_at > READINESS_SECONDS:
            self._reason = await self._ask()
            self._asked_at = time.monotonic()
        return self._reason

    async def _ask(self) -> str | None:
        found: dict[str, StreamInfo] = {}
        for stream in self._streams:
            try:
                info = await self._jetstream.api(f"STREAM.INFO.{stream}", None)
            except BrokerError as error:
                self.found = found
                # What NATS said is for the log: whoever reaches the port reads this.
                log.warning("not_ready", stream=stream, error=str(error))
                return _unready_for(stream, error)
            found[stream] = _read(info)
            cluster = info.get("cluster")
            if cluster is not None and not cluster.get("leader"):
                self.found = found
                return f"Stream {stream} has no leader."
        self.found = found
        return None


def _unready_for(stream: str, error: BrokerError) -> str:
    match error:
        case Refused():
            return f"NATS refuses what this process has to ask of stream {stream}: its log says what (nats_refused)."
        case NotStored():
            return f"Stream {stream} is not there: a broker, or `runstream provision`, makes it."
        case Unavailable():
            return f"Stream {stream} does not answer."
        case _:
            return f"Stream {stream} cannot be used: the log says why (not_ready)."


def _read(info: Mapping[str, Any]) -> StreamInfo:
    """Read what a stream holds from what JetStream answers."""
    state, limit = info["state"], info["config"].get("max_bytes", -1)
    return StreamInfo(bytes=state["bytes"], messages=state["messages"], limit_bytes=limit if limit > 0 else None)


class Ready:
    """Whether a service is ready, asked before its metrics are shown. `unready` says in words why not."""

    def __init__(self, unready: Callable[[], Awaitable[str | None]]) -> None:
        self.is_ready = False
        self._unready = unready

    async def look(self) -> None:
        """Ask. Whoever gives up waiting for the answer has it count as not ready."""
        is_ready = False
        try:
            is_ready = await self._unready() is None
        finally:
            self.is_ready = is_ready


class Draining:
    """Since when a service drains, and how long it may."""

    def __init__(self, limit_seconds: float) -> None:
        self.limit_seconds = limit_seconds
        self._began_at: float | None = None

    @property
    def has_begun(self) -> bool:
        """Whether it drains."""
        return self._began_at is not None

    @property
    def seconds(self) -> float:
        """How long it has been draining; 0 while it does not."""
        return 0.0 if self._began_at is None else time.monotonic() - self._began_at

    def begin(self) -> None:
        """Drain from now on, if it does not yet."""
        if self._began_at is None:
            self._began_at = time.monotonic()
