"""What the edge counts. No label ever names a run, a conversation or an agent, nor a tenant that was not named.

On the way of a chunk nothing is counted once a chunk and reader: a pass over all readers is counted once, and of the
chunks every `SAMPLED`th is timed.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from aiohttp.web import HTTPException

from runstream.broker.common_metrics import (
    BROKEN,
    NATS_CONNECTED,
    NATS_RECONNECTS,
    REPAIRS,
    STORE_FULL,
)
from runstream.broker.errors import Broken, BrokerError
from runstream.broker.meters import Metric
from runstream.broker.served_metrics import (
    CREDENTIALS_REFUSED,
    DRAIN_LIMIT_SECONDS,
    DRAINING,
    DRAINING_SECONDS,
    LIMITS_REACHED,
    ServedMetrics,
)
from runstream.gateway.errors import ApiError, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from runstream.broker.readiness import Ready
    from runstream.broker.view import View
    from runstream.gateway.fanout import Hub

__all__ = ["GATEWAY_METRICS", "CutCause", "GatewayMetrics"]

STREAM_KINDS = ("create", "resume", "event_source")
CutCause: TypeAlias = Literal["drain", "stop", "age", "blocked", "credential", "store", "broken"]

FOLLOWERS: Final = Metric("runstream_followers", "gauge", "Open streams.")
FOLLOWERS_LIMIT: Final = Metric(
    "runstream_followers_limit", "gauge", "Streams that may be open at one time (RUNSTREAM_MAX_FOLLOWERS)."
)
FOLLOWERS_BEHIND: Final = Metric(
    "runstream_followers_behind",
    "gauge",
    "Open streams that are not at the newest chunk: they have just come, or their sockets are full.",
)
LIVE_TAILS: Final = Metric("runstream_live_tails", "gauge", "Runs held in memory, because somebody follows them.")
STREAMS: Final = Metric(
    "runstream_streams",
    "counter",
    "Streams begun, by what they were asked for.",
    labels={"kind": STREAM_KINDS},
    by_tenant=True,
)
STREAMS_CUT: Final = Metric(
    "runstream_streams_cut",
    "counter",
    "Streams ended before the run's end, by cause: the gateway drains, or stops; they were as old as may be; their "
    "readers took nothing, or were admitted no longer; the log could not be read, or what is stored cannot.",
    labels={"cause": get_args(CutCause)},
)
RESUMES: Final = Metric(
    "runstream_resumes",
    "counter",
    "Resumes, by outcome. Served: live, nothing was missed; memory and log, where what was missed came from; over, the "
    "run had ended and nothing was missed. Not served: expired, not_found, refused (the request is at fault), "
    "unavailable (503), broken (what is stored cannot be read), failed (a defect).",
    labels={
        "outcome": (
            "live",
            "memory",
            "log",
            "over",
            "expired",
            "not_found",
            "refused",
            "unavailable",
            "broken",
            "failed",
        )
    },
)
FIRST_CHUNK_SECONDS: Final = Metric(
    "runstream_first_chunk_seconds",
    "histogram",
    "From a request until the first chunk was written to its stream's socket: of create with the agent's time to "
    "think, else of those that had missed any.",
    labels={"kind": STREAM_KINDS},
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    why="A resume from memory takes a few milliseconds, from the log tens; an agent thinks for seconds, or a minute.",
)
PUBLISH_TO_SOCKET_SECONDS: Final = Metric(
    "runstream_publish_to_socket_seconds",
    "histogram",
    "From when NATS stored a chunk, by the clock of its server, until it was written to the sockets of all who were at "
    "the newest chunk, by the clock of this gateway: as exact as both clocks agree, and 0 where they do not. Of every "
    "16th chunk.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    why="A millisecond on one machine, a few within a data centre, tens in a cluster under load; a reader sees a tenth "
    "of a second; a hole is repaired in seconds.",
)
CHUNKS_DELIVERED: Final = Metric(
    "runstream_chunks_delivered", "counter", "Chunks written to sockets, once for each of the streams."
)
CATCHUP_CHUNKS: Final = Metric(
    "runstream_catchup_chunks",
    "counter",
    "Chunks read from logs for streams that memory did not reach back to, once for all that lacked the same.",
)
REPLAY_CACHE_BYTES: Final = Metric(
    "runstream_replay_cache_bytes",
    "gauge",
    "Of logs, framed, as they were read for streams that were behind: kept for those that come next, at most "
    "RUNSTREAM_REPLAY_CACHE_BYTES.",
)
SLOW_FOLLOWERS: Final = Metric(
    "runstream_slow_followers", "counter", "Times a follower could not keep up and went on alone."
)
HOLES_REPAIRED: Final = Metric(
    "runstream_holes_repaired", "counter", "Holes in live messages, filled from the log before anybody saw them."
)
TIP_CHECKS: Final = Metric("runstream_tip_checks", "counter", "Times a run's tip was asked of its leader.")
EVENT_SOURCES_TURNED_AWAY: Final = Metric(
    "runstream_event_sources_turned_away",
    "counter",
    "EventSources told to come back later, as others are by 503 or 429.",
)
PASSED_ON: Final = Metric(
    "runstream_passed_on",
    "counter",
    "Requests passed on to the platform, by how they ended: answered, failed before an answer, broken within it, or "
    "left by their client.",
    labels={"outcome": ("answered", "failed", "broken", "left")},
)
ANSWERS_HELD_BYTES: Final = Metric(
    "runstream_answers_held_bytes", "gauge", "Of whole answers that their readers do not have yet."
)
VIEW_RUNS: Final = Metric("runstream_view_runs", "gauge", "Runs in memory, for lists.", over="max")
VIEW_CONVERSATIONS: Final = Metric(
    "runstream_view_conversations", "gauge", "Conversations in memory, for lists.", over="max"
)
VIEW_WATCHES: Final = Metric(
    "runstream_view_watches", "counter", "Times that the index began to be watched, or did again."
)
VIEW_RESETS: Final = Metric("runstream_view_resets", "counter", "Times that all of it was read, the first included.")
VIEW_SILENT_SECONDS: Final = Metric(
    "runstream_view_silent_seconds",
    "gauge",
    "How long ago the index was heard of last; a second at most while all is well.",
    over="max",
)
GATEWAY_READY: Final = Metric("runstream_gateway_ready", "gauge", "1 while this gateway's /readyz says so, else 0.")

GATEWAY_METRICS: Final = (
    FOLLOWERS,
    FOLLOWERS_LIMIT,
    FOLLOWERS_BEHIND,
    LIVE_TAILS,
    STREAMS,
    STREAMS_CUT,
    RESUMES,
    FIRST_CHUNK_SECONDS,
    PUBLISH_TO_SOCKET_SECONDS,
    CHUNKS_DELIVERED,
    CATCHUP_CHUNKS,
    REPLAY_CACHE_BYTES,
    SLOW_FOLLOWERS,
    HOLES_REPAIRED,
    TIP_CHECKS,
    EVENT_SOURCES_TURNED_AWAY,
    PASSED_ON,
    CREDENTIALS_REFUSED,
    ANSWERS_HELD_BYTES,
    VIEW_RUNS,
    VIEW_CONVERSATIONS,
    VIEW_WATCHES,
    VIEW_RESETS,
    VIEW_SILENT_SECONDS,
    REPAIRS,
    BROKEN,
    GATEWAY_READY,
    LIMITS_REACHED,
    DRAINING,
    DRAINING_SECONDS,
    DRAIN_LIMIT_SECONDS,
    NATS_CONNECTED,
    NATS_RECONNECTS,
    STORE_FULL,
)

NOT_SERVED: Final = {
    HTTPStatus.GONE: "expired",
    HTTPStatus.NOT_FOUND: "not_found",
    HTTPStatus.SERVICE_UNAVAILABLE: "unavailable",
}


class GatewayMetrics(ServedMetrics):
    """The gateway's counters."""

    declared = GATEWAY_METRICS

    def __init__(self, tenants: Collection[str] | None = None) -> None:
        super().__init__(tenants)
        self._delivered = self.meters.counter(CHUNKS_DELIVERED)
        self._caught_up = self.meters.counter(CATCHUP_CHUNKS)
        self._behind = self.meters.counter(SLOW_FOLLOWERS)
        self._streams = self.meters.counter(STREAMS)
        self._cut = self.meters.counter(STREAMS_CUT)
        self._resumes = self.meters.counter(RESUMES)
        self._first_chunk = self.meters.histogram(FIRST_CHUNK_SECONDS)
        self._to_socket = self.meters.histogram(PUBLISH_TO_SOCKET_SECONDS)
        self._turned_away = self.meters.counter(EVENT_SOURCES_TURNED_AWAY)
        self._passed_on = self.meters.counter(PASSED_ON)

    def delivered(self, chunks: int) -> None:
        """Chunks were written to followers."""
        self._delivered.inc(chunks)

    def reached_sockets(self, seconds: float) -> None:
        """A live chunk was written to all who were at the tip, so long after it was stored."""
        self._to_socket.observe(seconds)

    def caught_up(self, chunks: int) -> None:
        """Chunks were read from a log for followers that memory did not reach back to."""
        self._caught_up.inc(chunks)

    def fell_behind(self) -> None:
        """A follower's socket is full; it goes on at its own pace."""
        self._behind.inc()

    def stream_begun(self, kind: str, source: str, tenant: str) -> None:
        """A stream's headers went out: `create`, or `resume` or `event_source`, and where it begins."""
        self.meters.of(tenant, self._streams, kind).inc()
        if kind != "create":
            self.resumed(source)

    def first_chunk(self, kind: str, seconds: float) -> None:
        """The first chunk of a stream was written, so long after it was asked for."""
        self._first_chunk.labels(kind).observe(seconds)

    def stream_cut(self, cause: CutCause) -> None:
        """A stream was ended for the gateway's own reasons."""
        self._cut.labels(cause).inc()

    def resumed(self, outcome: str) -> None:
        """A resume is served: `live`, from `memory`, from the `log`, or `over`, as there is nothing more."""
        self._resumes.labels(outcome).inc()

    def resuming(self) -> _Resuming:
        """Count a resume that is not served."""
        return _Resuming(self)

    def refused(self, error: Exception) -> None:
        """A resume is not served, because of that."""
        self._resumes.labels(_not_served(error)).inc()

    def turned_away(self) -> None:
        """An EventSource was answered with nothing but when to come back."""
        self._turned_away.inc()

    def passed_on(self, outcome: str) -> None:
        """A request went to the platform: `answered`, `failed`, `broken` or `left`."""
        self._passed_on.labels(outcome).inc()

    def watch_hub(self, hub: Hub) -> None:
        """Read what is followed whenever the metrics are."""
        self.meters.watch(FOLLOWERS, lambda: hub.seats.taken)
        self.meters.watch(FOLLOWERS_LIMIT, lambda: hub.settings.max_followers)
        self.meters.watch(FOLLOWERS_BEHIND, lambda: hub.followers_behind)
        self.meters.watch(LIVE_TAILS, lambda: hub.live_tails)
        self.meters.watch(REPLAY_CACHE_BYTES, lambda: hub.replays.bytes)
        self.meters.watch(HOLES_REPAIRED, lambda: hub.counters.holes_repaired)
        self.meters.watch(TIP_CHECKS, lambda: hub.counters.tip_checks)
        self.watch_draining(hub.seats.draining)

    def watch_view(self, view: View) -> None:
        """Read what is held for lists whenever the metrics are."""
        self.meters.watch(VIEW_RUNS, lambda: view.run_count)
        self.meters.watch(VIEW_CONVERSATIONS, lambda: view.conversation_count)
        self.meters.watch(VIEW_WATCHES, lambda: view.feed.watches)
        self.meters.watch(VIEW_RESETS, lambda: view.feed.resets)
        self.meters.watch(VIEW_SILENT_SECONDS, lambda: view.feed.silent_seconds)

    def watch_service(self, *, ready: Ready, held_bytes: Callable[[], float]) -> None:
        """Read whether it is ready, and what it holds of whole answers, whenever the metrics are."""
        self.meters.watch(GATEWAY_READY, lambda: ready.is_ready)
        self.meters.watch(ANSWERS_HELD_BYTES, held_bytes)


class _Resuming:
    """One resume. Not made of a generator: it lasts as long as the stream."""

    __slots__ = ("_metrics",)

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._metrics = metrics

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        # With a connection that breaks its client has left.
        if isinstance(error, Exception) and not isinstance(error, ConnectionError):
            self._metrics.refused(error)


def _not_served(error: Exception) -> str:
    """Say why a resume is not served."""
    if isinstance(error, Broken):
        return "broken"
    answer = translated(error) if isinstance(error, BrokerError) else error
    if not isinstance(answer, ApiError | HTTPException):
        return "failed"
    if answer.status in NOT_SERVED:
        return NOT_SERVED[HTTPStatus(answer.status)]
    return "refused" if answer.status < HTTPStatus.INTERNAL_SERVER_ERROR else "failed"
