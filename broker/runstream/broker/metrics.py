"""What the durable side counts, in a registry of its own: one process may run a broker and a gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BrokerMetrics"]

PUBLISH_SECONDS_BUCKETS = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.05,
    0.1,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
)
"""From a store on the same machine to a leader election and an outage."""


class BrokerMetrics:
    """The broker's counters. No label ever names a run."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._published = Histogram(
            "runstream_publish_seconds",
            "From a chunk's turn to be sent until it is known to be stored.",
            buckets=PUBLISH_SECONDS_BUCKETS,
            registry=self.registry,
        )
        self._started = Counter("runstream_runs_started", "Runs handed to the agent.", registry=self.registry)
        self._ended = Counter(
            "runstream_runs_ended", "Runs ended, by their status.", ["status"], registry=self.registry
        )
        self._repaired = Counter(
            "runstream_repairs",
            "What did not agree with the logs and was mended, by kind.",
            ["kind"],
            registry=self.registry,
        )
        self._broken = Counter(
            "runstream_broken",
            "Keys and messages found that are not as runstream writes them, by kind, each once.",
            ["kind"],
            registry=self.registry,
        )
        self._swept = Counter(
            "runstream_index_keys_swept",
            "Keys removed from the index because their run's log is gone, by what they say.",
            ["kind"],
            registry=self.registry,
        )
        self._abandoned = Counter(
            "runstream_runs_abandoned",
            "Runs removed from the index that nobody had ended before their log was gone.",
            registry=self.registry,
        )
        self._ingest_requests = Counter(
            "runstream_ingest_requests",
            "Requests to the ingest API, by operation, and by what came of them: ok, hung_up, or the error type.",
            ["operation", "outcome"],
            registry=self.registry,
        )
        self._ingested = Counter("runstream_ingest_chunks", "Chunks stored by the ingest API.", registry=self.registry)
        self._live = Gauge("runstream_runs_live", "Runs being executed here.", registry=self.registry)

    def published(self, seconds: float) -> None:
        """One publish was stored."""
        self._published.observe(seconds)

    def run_started(self) -> None:
        """A run was handed to the agent."""
        self._started.inc()

    def run_ended(self, status: str) -> None:
        """A run's log has its end."""
        self._ended.labels(status).inc()

    def repaired(self, kind: str) -> None:
        """Something in the index or the queue did not agree with a log, and was mended."""
        self._repaired.labels(kind).inc()

    def broken(self, kind: str) -> None:
        """Something was found stored that cannot be read: a kind of key, a `message` of a log, or `work`."""
        self._broken.labels(kind).inc()

    def key_swept(self, kind: str) -> None:
        """A key was removed from the index: `run`, `lease`, and so on."""
        self._swept.labels(kind).inc()

    def run_abandoned(self) -> None:
        """A run that has no end was removed from the index."""
        self._abandoned.inc()

    def ingest_request(self, operation: str, outcome: str) -> None:
        """A request to the ingest API was answered, or its writer has left."""
        self._ingest_requests.labels(operation, outcome).inc()

    def chunk_ingested(self) -> None:
        """A chunk of a writer's at the ingest API was stored."""
        self._ingested.inc()

    def watch_uploads(self, count: Callable[[], float]) -> None:
        """Read the number of open uploads whenever the metrics are."""
        gauge = Gauge("runstream_ingest_uploads", "Open uploads to the ingest API.", registry=self.registry)
        gauge.set_function(count)

    def watch_live_runs(self, count: Callable[[], float]) -> None:
        """Read the number of runs being executed whenever the metrics are."""
        self._live.set_function(count)

    def watch_reconnects(self, count: Callable[[], float]) -> None:
        """Read the number of reconnects whenever the metrics are."""
        gauge = Gauge(
            "runstream_nats_reconnects",
            "Reconnects to NATS since this process started.",
            registry=self.registry,
        )
        gauge.set_function(count)
