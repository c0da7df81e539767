"""What the edge counts, in a registry of its own: one process may run a broker and a gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["GatewayMetrics"]


class GatewayMetrics:
    """The gateway's counters. No label ever names a run."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._delivered = Counter(
            "runstream_chunks_delivered", "Chunks written to a follower's socket.", registry=self.registry
        )
        self._caught_up = Counter(
            "runstream_catchup_chunks", "Chunks read from the log for one follower.", registry=self.registry
        )
        self._behind = Counter(
            "runstream_slow_followers",
            "Times a follower could not keep up and went on alone.",
            registry=self.registry,
        )
        self._streams = Counter(
            "runstream_streams",
            "Streams begun, by what they were asked for.",
            ["kind"],
            registry=self.registry,
        )
        self._cut = Counter(
            "runstream_streams_cut",
            "Streams ended before the run's end, by cause.",
            ["cause"],
            registry=self.registry,
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
        self._turned_away = Counter(
            "runstream_event_sources_turned_away",
            "EventSources told to come back later, as others are by 503.",
            registry=self.registry,
        )

        self._passed_on = Counter(
            "runstream_passed_on",
            "Requests passed on to the platform, by how they ended.",
            ["outcome"],
            registry=self.registry,
        )

    def delivered(self, chunks: int) -> None:
        """Chunks were written to followers."""
        self._delivered.inc(chunks)

    def caught_up(self, chunks: int) -> None:
        """Chunks were read from the log for a follower that memory did not reach back to."""
        self._caught_up.inc(chunks)

    def fell_behind(self) -> None:
        """A follower's socket is full; it goes on at its own pace."""
        self._behind.inc()

    def stream_begun(self, kind: str) -> None:
        """A stream's headers went out: `create`, `resume` or `event_source`."""
        self._streams.labels(kind).inc()

    def stream_cut(self, cause: str) -> None:
        """A stream was ended for the gateway's own reasons."""
        self._cut.labels(cause).inc()

    def repaired(self, kind: str) -> None:
        """Something in the index did not agree with a log, and was mended."""
        self._repaired.labels(kind).inc()

    def broken(self, kind: str) -> None:
        """Something was found stored that cannot be read: a kind of key, or a `message` of a log."""
        self._broken.labels(kind).inc()

    def turned_away(self) -> None:
        """An EventSource was answered with nothing but when to come back."""
        self._turned_away.inc()

    def passed_on(self, outcome: str) -> None:
        """A request went to the platform: `answered`, `refused` before it was sent, `failed`, `broken` or `left`."""
        self._passed_on.labels(outcome).inc()

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Read a value whenever the metrics are."""
        Gauge(f"runstream_{name}", text, registry=self.registry).set_function(read)
