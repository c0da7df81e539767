"""What every process counts of its stores, and every writer of runs, a platform's with the library as a broker.

No label names a run, a conversation or an agent, nor a tenant that was not named in the settings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, get_args

from runstream.broker.keys import SWEPT_KINDS
from runstream.broker.meters import Meters, Metric
from runstream.schemas import FinalStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from prometheus_client import CollectorRegistry

    from runstream.broker.jetstream import JetStream

__all__ = [
    "BROKEN",
    "LIBRARY_METRICS",
    "NATS_CONNECTED",
    "NATS_RECONNECTS",
    "PUBLISH_SECONDS",
    "REPAIRS",
    "RUNS_ENDED",
    "RUNS_LIVE",
    "STORE_FULL",
    "LibraryMetrics",
    "ProcessMetrics",
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


class ProcessMetrics:
    """What every part of runstream counts of its stores."""

    declared: Sequence[Metric]

    def __init__(self, tenants: Collection[str] | None = None) -> None:
        self.meters = Meters(self.declared, tenants)
        self._repaired = self.meters.counter(REPAIRS)
        self._broken = self.meters.counter(BROKEN)

    @property
    def registry(self) -> CollectorRegistry:
        """What is shown of them."""
        return self.meters.registry

    def repaired(self, kind: str) -> None:
        """Something in the index or the queue did not agree with a log, and was mended."""
        self._repaired.labels(kind).inc()

    def broken(self, kind: str) -> None:
        """Something was found stored that cannot be read: a kind of key, a `message` of a log, or `work`."""
        self._broken.labels(kind).inc()

    def watch_nats(self, *jetstreams: JetStream) -> None:
        """Read how NATS is, over each connection of the process, whenever the metrics are."""
        connections = [each.connection for each in jetstreams]
        self.meters.watch(NATS_CONNECTED, lambda: all(each.is_connected for each in connections))
        self.meters.watch(NATS_RECONNECTS, lambda: sum(each.reconnects for each in connections))
        self.meters.watch(STORE_FULL, lambda: sum(each.times_full for each in jetstreams))


class LibraryMetrics(ProcessMetrics):
    """What a process that writes runs counts of them."""

    declared: Sequence[Metric] = LIBRARY_METRICS

    def __init__(self, tenants: Collection[str] | None = None) -> None:
        super().__init__(tenants)
        self._published = self.meters.histogram(PUBLISH_SECONDS)
        self._ended = self.meters.counter(RUNS_ENDED)

    def published(self, seconds: float) -> None:
        """One publish was stored."""
        self._published.observe(seconds)

    def run_ended(self, status: str, tenant: str) -> None:
        """A run's log has its end."""
        self.meters.of(tenant, self._ended, status).inc()

    def watch_live_runs(self, count: Callable[[], float]) -> None:
        """Read the number of open runs whenever the metrics are."""
        self.meters.watch(RUNS_LIVE, count)
