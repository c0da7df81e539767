"""What every writer of runs counts, a platform's process with the library as a broker, and what all services show.

No label names a run, a conversation or an agent, nor a tenant that was not named in the settings.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, get_args

from runstream.broker.auth.causes import CAUSES
from runstream.broker.limits.limiter import LIMITS
from runstream.broker.meters import Meters, Metric
from runstream.broker.sweep import SWEPT_KINDS
from runstream.schemas import FinalStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from prometheus_client import CollectorRegistry

    from runstream.broker.jetstream import JetStream

__all__ = [
    "BROKEN",
    "CREDENTIALS_REFUSED",
    "DRAINING",
    "DRAINING_SECONDS",
    "DRAIN_LIMIT_SECONDS",
    "LIBRARY_METRICS",
    "LIMITS_REACHED",
    "NATS_CONNECTED",
    "NATS_RECONNECTS",
    "PUBLISH_SECONDS",
    "REPAIRS",
    "RUNS_ENDED",
    "RUNS_LIVE",
    "STORE_FULL",
    "Draining",
    "LibraryMetrics",
    "Ready",
    "watch_nats",
]

PUBLISH_SECONDS: Final = Metric(
    "runstream_publish_seconds",
    "histogram",
    "From a chunk's turn to be sent until it is known to be stored; what is stored together counts as one.",
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30),
    why="From a store on the same machine, by way of one of three that syncs, to an election and an outage.",
)
RUNS_ENDED: Final = Metric(
    "runstream_runs_ended",
    "counter",
    "Runs ended, by their status.",
    labels={"status": get_args(FinalStatus)},
    by_tenant=True,
)
RUNS_LIVE: Final = Metric("runstream_runs_live", "gauge", "Runs being executed here.")
REPAIRS: Final = Metric(
    "runstream_repairs",
    "counter",
    "What did not agree with the logs and was mended, by kind.",
    labels={
        "kind": (
            "half_ended",
            "lease_missing",
            "lease_without_run",
            "not_enqueued",
            "record_missing",
            "record_not_terminal",
        )
    },
)
BROKEN: Final = Metric(
    "runstream_broken",
    "counter",
    "Keys and messages found that are not as runstream writes them, by kind, each once.",
    labels={"kind": (*SWEPT_KINDS, "conversation", "message", "work")},
)
STORE_FULL: Final = Metric(
    "runstream_store_full", "counter", "Writes that JetStream refused because a limit of its storage was reached."
)
CREDENTIALS_REFUSED: Final = Metric(
    "runstream_credentials_refused",
    "counter",
    "Requests refused for their credential, by cause. 401: missing; malformed; unknown_key, no such key is in the "
    "file or among those that sign tokens; bad_signature; expired; not_yet_valid; audience and issuer, another's; "
    "claims, one is absent or is none; revoked; ticket, used, too old or none; cookie, what is in it stands for too "
    "long; session, over or none. 403: scope, one is lacking; narrowed, it is for something else.",
    labels={"cause": CAUSES},
)
LIMITS_REACHED: Final = Metric(
    "runstream_limits_reached",
    "counter",
    "Requests and connections refused because a limit was reached, by which: of a tenant, a key or an address; how "
    "many connections there may be; how long a request's head may take, or be; how long an answer may take to be read.",
    labels={"limit": LIMITS},
)
DRAINING: Final = Metric(
    "runstream_draining", "gauge", "1 once this process takes nothing new and lets go of what it has, to stop."
)
DRAINING_SECONDS: Final = Metric(
    "runstream_draining_seconds", "gauge", "How long it has been draining; 0 while it does not.", over="max"
)
DRAIN_LIMIT_SECONDS: Final = Metric(
    "runstream_drain_limit_seconds",
    "gauge",
    "How long what is open is given when it drains (RUNSTREAM_DRAIN_SECONDS).",
    over="max",
)
NATS_CONNECTED: Final = Metric(
    "runstream_nats_connected",
    "gauge",
    "1 while every connection of this process to NATS is up, as far as the last probe knows, else 0.",
    over="min",
)
NATS_RECONNECTS: Final = Metric(
    "runstream_nats_reconnects", "counter", "Reconnects to NATS, of all connections of this process."
)

LIBRARY_METRICS: Final = (
    PUBLISH_SECONDS,
    RUNS_ENDED,
    RUNS_LIVE,
    REPAIRS,
    BROKEN,
    STORE_FULL,
    NATS_CONNECTED,
    NATS_RECONNECTS,
)


class LibraryMetrics:
    """What a platform's process that writes runs counts of them."""

    declared: Sequence[Metric] = LIBRARY_METRICS

    def __init__(self, tenants: Collection[str] | None = None) -> None:
        self.meters = Meters(self.declared, tenants)
        self._published = self.meters.histogram(PUBLISH_SECONDS)
        self._ended = self.meters.counter(RUNS_ENDED)
        self._repaired = self.meters.counter(REPAIRS)
        self._broken = self.meters.counter(BROKEN)

    @property
    def registry(self) -> CollectorRegistry:
        """What is shown of them."""
        return self.meters.registry

    def published(self, seconds: float) -> None:
        """One publish was stored."""
        self._published.observe(seconds)

    def run_ended(self, status: str, tenant: str) -> None:
        """A run's log has its end."""
        self.meters.of(tenant, self._ended, status).inc()

    def repaired(self, kind: str) -> None:
        """Something in the index or the queue did not agree with a log, and was mended."""
        self._repaired.labels(kind).inc()

    def broken(self, kind: str) -> None:
        """Something was found stored that cannot be read: a kind of key, a `message` of a log, or `work`."""
        self._broken.labels(kind).inc()

    def watch_live_runs(self, count: Callable[[], float]) -> None:
        """Read the number of open runs whenever the metrics are."""
        self.meters.watch(RUNS_LIVE, count)

    def watch_nats(self, jetstream: JetStream) -> None:
        """Read how NATS is whenever the metrics are."""
        watch_nats(self.meters, [jetstream])


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
        self._limit_seconds = limit_seconds
        self._began_at: float | None = None

    @property
    def has_begun(self) -> bool:
        """Whether it drains."""
        return self._began_at is not None

    def begin(self) -> None:
        """Drain from now on, if it does not yet."""
        if self._began_at is None:
            self._began_at = time.monotonic()

    def watched(self, meters: Meters) -> None:
        """Have it shown."""
        meters.watch(DRAINING, lambda: self.has_begun)
        meters.watch(DRAINING_SECONDS, lambda: 0.0 if self._began_at is None else time.monotonic() - self._began_at)
        meters.watch(DRAIN_LIMIT_SECONDS, lambda: self._limit_seconds)


def watch_nats(meters: Meters, jetstreams: Sequence[JetStream]) -> None:
    """Read how NATS is for a process, over each of its connections, whenever its metrics are."""
    connections = [each.connection for each in jetstreams]
    meters.watch(NATS_CONNECTED, lambda: all(each.is_connected for each in connections))
    meters.watch(NATS_RECONNECTS, lambda: sum(each.reconnects for each in connections))
    meters.watch(STORE_FULL, lambda: sum(each.times_full for each in jetstreams))
