"""What a broker counts. No label names a run, nor a tenant that was not named in the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, get_args

from runstream.broker.common_metrics import (
    BROKEN,
    NATS_CONNECTED,
    NATS_RECONNECTS,
    PUBLISH_SECONDS,
    REPAIRS,
    RUNS_ENDED,
    RUNS_LIVE,
    STORE_FULL,
    LibraryMetrics,
)
from runstream.broker.ingest.errors import STATUSES
from runstream.broker.keys import SWEPT_KINDS
from runstream.broker.meters import Metric
from runstream.broker.served_metrics import (
    CREDENTIALS_REFUSED,
    DRAIN_LIMIT_SECONDS,
    DRAINING,
    DRAINING_SECONDS,
    LIMITS_REACHED,
    ServedMetrics,
)
from runstream.schemas import FinalStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from runstream.broker.readiness import Draining, Ready, StreamInfo

__all__ = ["BROKER_METRICS", "BrokerMetrics"]

STREAMS = ("RUNS_<shard>", "KV_RUNSTREAM", "RUNSTREAM_WORK", "KV_RUNSTREAM_REVOKED")


def _of_stream(name: str, says: str) -> Metric:
    return Metric(f"runstream_stream_{name}", "gauge", says, labels={"stream": STREAMS}, over="max")


RUNS_STARTED: Final = Metric("runstream_runs_started", "counter", "Runs handed to the agent.", by_tenant=True)
RUNS_LOST: Final = Metric(
    "runstream_runs_lost",
    "counter",
    "Runs whose writer died, ended here as run_lost. They are among the failed, too.",
    by_tenant=True,
)
RUNS_FENCED: Final = Metric(
    "runstream_runs_fenced",
    "counter",
    "Runs that were being executed here when another took them over: their lease was lost.",
)
RUNS_ABANDONED: Final = Metric(
    "runstream_runs_abandoned",
    "counter",
    "Runs removed from the index that nobody had ended before their log was gone.",
)
RUN_SECONDS: Final = Metric(
    "runstream_run_seconds",
    "histogram",
    "From when a worker had taken a run until its end was stored, by its status.",
    labels={"status": get_args(FinalStatus)},
    buckets=(0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600),
    why="From an answer that is there at once to an agent that works for an hour.",
)
RUNS_LIMIT: Final = Metric("runstream_runs_limit", "gauge", "Runs that may be executed here at one time.")
INDEX_KEYS_SWEPT: Final = Metric(
    "runstream_index_keys_swept",
    "counter",
    "Keys removed from the index because their run's log is gone, by what they say.",
    labels={"kind": SWEPT_KINDS},
)
INGEST_REQUESTS: Final = Metric(
    "runstream_ingest_requests",
    "counter",
    "Requests to the ingest API, by operation, and by what came of them: ok, hung_up, or the error type.",
    labels={
        "operation": ("open", "append", "lease", "end", "fail", "unknown"),
        "outcome": ("ok", "hung_up", *STATUSES),
    },
    is_sparse=True,
)
INGEST_CHUNKS: Final = Metric("runstream_ingest_chunks", "counter", "Chunks stored by the ingest API.")
INGEST_UPLOADS: Final = Metric("runstream_ingest_uploads", "gauge", "Open uploads to the ingest API.")
STREAM_BYTES: Final = _of_stream("bytes", "Bytes that a stream of JetStream holds, on each server that has it.")
STREAM_LIMIT_BYTES: Final = _of_stream(
    "limit_bytes",
    "Bytes that a stream may hold before it refuses writes; not there for one without a limit of its own.",
)
STREAM_MESSAGES: Final = _of_stream(
    "messages", "Messages that a stream holds: of RUNSTREAM_WORK, runs that wait or are being executed."
)
BROKER_READY: Final = Metric("runstream_broker_ready", "gauge", "1 while this broker's /readyz says so, else 0.")

BROKER_METRICS: Final = (
    PUBLISH_SECONDS,
    RUNS_STARTED,
    RUNS_ENDED,
    RUNS_LOST,
    RUNS_FENCED,
    RUNS_ABANDONED,
    RUN_SECONDS,
    RUNS_LIVE,
    RUNS_LIMIT,
    REPAIRS,
    BROKEN,
    INDEX_KEYS_SWEPT,
    INGEST_REQUESTS,
    INGEST_CHUNKS,
    INGEST_UPLOADS,
    CREDENTIALS_REFUSED,
    STORE_FULL,
    STREAM_BYTES,
    STREAM_LIMIT_BYTES,
    STREAM_MESSAGES,
    BROKER_READY,
    LIMITS_REACHED,
    DRAINING,
    DRAINING_SECONDS,
    DRAIN_LIMIT_SECONDS,
    NATS_CONNECTED,
    NATS_RECONNECTS,
)


class BrokerMetrics(LibraryMetrics, ServedMetrics):
    """What a broker counts."""

    declared = BROKER_METRICS

    def __init__(self, tenants: Collection[str] | None = None) -> None:
        super().__init__(tenants)
        self._started = self.meters.counter(RUNS_STARTED)
        self._lost = self.meters.counter(RUNS_LOST)
        self._fenced = self.meters.counter(RUNS_FENCED)
        self._abandoned = self.meters.counter(RUNS_ABANDONED)
        self._executed = self.meters.histogram(RUN_SECONDS)
        self._swept = self.meters.counter(INDEX_KEYS_SWEPT)
        self._ingest_requests = self.meters.counter(INGEST_REQUESTS)
        self._ingested = self.meters.counter(INGEST_CHUNKS)

    def run_started(self, tenant: str) -> None:
        """A run was handed to the agent."""
        self.meters.of(tenant, self._started).inc()

    def run_executed(self, status: str, seconds: float) -> None:
        """A run that was executed here took so long."""
        self._executed.labels(status).observe(seconds)

    def run_lost(self, tenant: str) -> None:
        """A run's writer has died, and its end was stored in its place."""
        self.meters.of(tenant, self._lost).inc()

    def run_fenced(self) -> None:
        """A run that was being executed here is another's now."""
        self._fenced.inc()

    def run_abandoned(self) -> None:
        """A run that has no end was removed from the index."""
        self._abandoned.inc()

    def key_swept(self, kind: str) -> None:
        """A key was removed from the index: `run`, `lease`, and so on."""
        self._swept.labels(kind).inc()

    def ingest_request(self, operation: str, outcome: str) -> None:
        """A request to the ingest API was answered, or its writer has left."""
        self._ingest_requests.labels(operation, outcome).inc()

    def chunk_ingested(self) -> None:
        """A chunk of a writer's at the ingest API was stored."""
        self._ingested.inc()

    def watch_runs(self, *, live: Callable[[], float], limit: int) -> None:
        """Read how many runs are executed, of as many as may be, whenever the metrics are."""
        self.meters.watch(RUNS_LIVE, live)
        self.meters.watch(RUNS_LIMIT, lambda: limit)

    def watch_service(self, *, ready: Ready, draining: Draining) -> None:
        """Read whether it is ready, or drains, whenever the metrics are."""
        self.meters.watch(BROKER_READY, lambda: ready.is_ready)
        self.watch_draining(draining)

    def watch_uploads(self, count: Callable[[], float]) -> None:
        """Read the number of open uploads whenever the metrics are."""
        self.meters.watch(INGEST_UPLOADS, count)

    def watch_streams(self, read: Callable[[], Mapping[str, StreamInfo]]) -> None:
        """Read what the streams hold, as they were last heard of, whenever the metrics are."""
        self.meters.watch(STREAM_BYTES, lambda: {name: info.bytes for name, info in read().items()})
        self.meters.watch(STREAM_MESSAGES, lambda: {name: info.messages for name, info in read().items()})
        self.meters.watch(
            STREAM_LIMIT_BYTES,
            lambda: {name: info.limit_bytes for name, info in read().items() if info.limit_bytes is not None},
        )
