"""Writes Grafana's dashboards from the metrics' declarations: `python -m deploy.observability.dashboards`."""

from __future__ import annotations

from pathlib import Path

from deploy.observability.panels import Dashboard, Panel, Query, latest, quantile, rate, ratio, spread
from runstream.broker import common_metrics as common
from runstream.broker import metrics as broker
from runstream.broker import served_metrics as served
from runstream.broker.meters import Metric
from runstream.gateway import metrics as gateway
from runstream.gateway import workers_metrics as workers

__all__ = ["DASHBOARDS", "FOLDER", "threshold"]

FOLDER = Path(__file__).parents[1] / "helm" / "runstream" / "files" / "dashboards"


def threshold(name: str) -> Query:
    """Ask from where on an alert fires, as the rules have recorded it."""
    return Query(f"max(runstream:threshold:{name})", "alert")


def percentiles(metric: Metric, *by: str, match: str = "") -> list[Query]:
    """Ask for the middle of a histogram, and for what the slowest hundredth has to bear."""
    return [quantile(of, metric, *by, match=match) for of in (0.5, 0.99)]


def rates(title: str, metric: Metric, by: str, *, unit: str = "cps", is_stacked: bool = True) -> Panel:
    """Show how often a counter counts, by one of its labels, with what it says of itself."""
    return Panel(title, [rate(metric, by)], metric.says, unit=unit, is_stacked=is_stacked)


GLANCE = (
    Panel(
        "Alerts that fire",
        [Query('count(ALERTS{alertname=~"Runstream.*",alertstate="firing"}) or vector(0)', "")],
        "Of docs/runbooks. Of all namespaces.",
        kind="stat",
        width=4,
        height=4,
        red_above=1,
    ),
    Panel(
        "Gateways ready", [latest(gateway.GATEWAY_READY)], "By /readyz.", kind="stat", width=4, height=4, red_below=1
    ),
    Panel("Brokers ready", [latest(broker.BROKER_READY)], "By /readyz.", kind="stat", width=4, height=4, red_below=1),
    Panel(
        "NATS connected",
        [latest(common.NATS_CONNECTED)],
        "1 while all connections of all processes are.",
        kind="stat",
        width=4,
        height=4,
        red_below=1,
    ),
    Panel(
        "Streams open",
        [latest(gateway.FOLLOWERS)],
        "Of all gateways.",
        kind="stat",
        width=4,
        height=4,
    ),
    Panel("Draining", [latest(served.DRAINING)], "Processes that stop.", kind="stat", width=4, height=4),
)

READERS = (
    Panel(
        "From NATS to the socket",
        [*percentiles(gateway.PUBLISH_TO_SOCKET_SECONDS), threshold("publish_to_socket_seconds")],
        gateway.PUBLISH_TO_SOCKET_SECONDS.says,
        unit="s",
    ),
    Panel(
        "To the first chunk of a resume",
        percentiles(gateway.FIRST_CHUNK_SECONDS, "kind", match='kind!="create"'),
        "Of those that had missed any.",
        unit="s",
    ),
    rates("Resumes by outcome", gateway.RESUMES, "outcome", unit="reqps"),
    Panel(
        "Resumes that fail",
        [
            ratio(
                rate(gateway.RESUMES, match='outcome=~"unavailable|broken|failed"'),
                rate(gateway.RESUMES),
                "of all resumes",
            ),
            threshold("resumes_failing_ratio"),
        ],
        "Not by the clients' fault.",
        unit="percentunit",
    ),
    Panel(
        "Chunks",
        [rate(gateway.CHUNKS_DELIVERED, legend="to sockets"), rate(gateway.CATCHUP_CHUNKS, legend="read from the log")],
        "In a second. Those that are read are read for one follower each, that memory did not reach back to.",
        unit="cps",
    ),
    rates("Streams begun", gateway.STREAMS, "kind", unit="reqps"),
    rates("Streams cut", gateway.STREAMS_CUT, "cause"),
    Panel(
        "Followers behind",
        [latest(gateway.FOLLOWERS_BEHIND, legend="now"), rate(gateway.SLOW_FOLLOWERS, legend="fell behind, a second")],
        gateway.FOLLOWERS_BEHIND.says,
    ),
    Panel(
        "Doubts",
        [
            rate(gateway.HOLES_REPAIRED, legend="holes repaired"),
            rate(gateway.TIP_CHECKS, legend="tips asked for"),
            rate(gateway.EVENT_SOURCES_TURNED_AWAY, legend="EventSources turned away"),
        ],
        "Holes in what NATS republishes, filled from the log; questions to its leader where a run is silent.",
        unit="cps",
    ),
)

STORE = (
    Panel(
        "Until a chunk is stored",
        [*percentiles(common.PUBLISH_SECONDS), threshold("publish_seconds")],
        common.PUBLISH_SECONDS.says,
        unit="s",
    ),
    Panel("Chunks stored", [rate(common.PUBLISH_SECONDS, "instance")], "In a second, by writer.", unit="cps"),
    rates("NATS reconnects", common.NATS_RECONNECTS, "instance", is_stacked=False),
    Panel("Bytes stored", [latest(broker.STREAM_BYTES, "stream")], broker.STREAM_BYTES.says, unit="bytes"),
    Panel(
        "Of the bytes that may be stored",
        [
            ratio(latest(broker.STREAM_BYTES, "stream"), latest(broker.STREAM_LIMIT_BYTES, "stream"), "{{stream}}"),
            threshold("stream_bytes_ratio"),
        ],
        "Of streams that have a limit of their own (RUNSTREAM_MAX_LOG_BYTES).",
        unit="percentunit",
    ),
    Panel(
        "Messages stored, writes refused",
        [
            latest(broker.STREAM_MESSAGES, "stream"),
            rate(common.STORE_FULL, legend="refused a second, as the storage is full"),
        ],
        broker.STREAM_MESSAGES.says,
    ),
)

PROCESSES = (
    Panel("Streams open by gateway", [latest(gateway.FOLLOWERS, "instance")], gateway.FOLLOWERS.says, is_stacked=True),
    Panel(
        "Of the streams that may be open",
        [ratio(latest(gateway.FOLLOWERS), latest(gateway.FOLLOWERS_LIMIT), "taken"), threshold("followers_ratio")],
        gateway.FOLLOWERS_LIMIT.says,
        unit="percentunit",
    ),
    Panel("Runs held in memory", [latest(gateway.LIVE_TAILS, "instance")], gateway.LIVE_TAILS.says),
    Panel(
        "How long it drains",
        [
            latest(served.DRAINING_SECONDS, "instance"),
            latest(served.DRAIN_LIMIT_SECONDS, legend="as long as it should"),
        ],
        served.DRAINING_SECONDS.says,
        unit="s",
    ),
    Panel(
        "For lists",
        [
            latest(gateway.VIEW_RUNS, legend="runs"),
            latest(gateway.VIEW_CONVERSATIONS, legend="conversations"),
        ],
        "What each gateway holds of the index in memory.",
    ),
    Panel(
        "Lists that lag",
        [
            latest(gateway.VIEW_SILENT_SECONDS, "instance"),
            rate(gateway.VIEW_WATCHES, legend="watches begun, a second"),
            rate(gateway.VIEW_RESETS, legend="all read, a second"),
        ],
        gateway.VIEW_SILENT_SECONDS.says,
        unit="s",
    ),
    Panel("Whole answers", [latest(gateway.ANSWERS_HELD_BYTES)], gateway.ANSWERS_HELD_BYTES.says, unit="bytes"),
    Panel("Read before", [latest(gateway.REPLAY_CACHE_BYTES)], gateway.REPLAY_CACHE_BYTES.says, unit="bytes"),
    rates("Credentials refused", served.CREDENTIALS_REFUSED, "cause", unit="reqps"),
    rates("Passed on to the platform", gateway.PASSED_ON, "outcome", unit="reqps"),
    Panel(
        "Workers of gateways",
        [
            latest(workers.WORKERS, legend="wanted"),
            latest(workers.WORKERS_ALIVE, legend="alive"),
            latest(workers.WORKERS_SHOWN, legend="shown"),
            rate(workers.WORKER_RESTARTS, legend="restarts, a second"),
        ],
        "Of gateways that are several processes on one port.",
    ),
)

ABOUT_RUNS = """\
What runs are like, as far as numbers can tell: by status, by kind, by what went wrong. **No metric names a run**: what
became of one is in the logs of gateways and brokers, by its `run_id`, and at `GET /v1/runs/{run_id}`.
"""

RUNS = (
    Panel("About this page", [], ABOUT_RUNS, kind="text", width=24, height=3),
    Panel("Runs begun", [rate(broker.RUNS_STARTED, legend="begun")], broker.RUNS_STARTED.says, unit="cps"),
    rates("Runs ended", common.RUNS_ENDED, "status"),
    Panel(
        "Of the runs that ended",
        [
            ratio(rate(common.RUNS_ENDED, match='status="failed"'), rate(common.RUNS_ENDED), "failed"),
            ratio(rate(common.RUNS_ENDED, match='status="cancelled"'), rate(common.RUNS_ENDED), "cancelled"),
        ],
        "How many failed, or were cancelled.",
        unit="percentunit",
    ),
    Panel(
        "Live runs",
        [latest(common.RUNS_LIVE, "instance"), latest(broker.RUNS_LIMIT, legend="as many as may")],
        "By who writes them: brokers, and processes with the library.",
    ),
    Panel(
        "Runs that wait, or go on",
        [latest(broker.STREAM_MESSAGES, legend="on the work queue", match='stream="RUNSTREAM_WORK"')],
        "More than go on is as many that wait for a broker.",
    ),
    Panel(
        "Writers lost",
        [
            rate(broker.RUNS_LOST, legend="died: run_lost"),
            rate(broker.RUNS_FENCED, legend="were too slow: fenced"),
            rate(broker.RUNS_ABANDONED, legend="nobody ended them: abandoned"),
        ],
        "Runs whose writer did not bring them to their end.",
        unit="cps",
    ),
)

TIMES = (
    Panel(
        "To the first word",
        percentiles(gateway.FIRST_CHUNK_SECONDS, match='kind="create"'),
        "From a message until its answer's first chunk is on the socket: nearly all of it is the agent's.",
        unit="s",
    ),
    Panel(
        "To the first word, all of them",
        [spread(gateway.FIRST_CHUNK_SECONDS, match='kind="create"')],
        "The same, as it is spread.",
        unit="s",
        kind="heatmap",
    ),
    Panel(
        "How long runs take",
        percentiles(broker.RUN_SECONDS, "status"),
        broker.RUN_SECONDS.says,
        unit="s",
    ),
    Panel(
        "Chunks a run",
        [ratio(rate(common.PUBLISH_SECONDS), rate(common.RUNS_ENDED), "stored for each run that ended")],
        "On average, what a log has beside them included.",
    ),
)

LIMITS = (
    Panel(
        "Limits reached",
        [rate(served.LIMITS_REACHED, "limit")],
        served.LIMITS_REACHED.says,
        unit="reqps",
        is_stacked=True,
    ),
)

INGEST = (
    rates("Ingest requests", broker.INGEST_REQUESTS, "operation", unit="reqps", is_stacked=False),
    rates("Ingest requests by outcome", broker.INGEST_REQUESTS, "outcome", unit="reqps"),
    Panel(
        "Ingested",
        [rate(broker.INGEST_CHUNKS, legend="chunks, a second"), latest(broker.INGEST_UPLOADS, legend="open uploads")],
        "By writers over HTTP.",
    ),
)

CARE = (
    rates("Mended", common.REPAIRS, "kind"),
    rates("Broken", common.BROKEN, "kind"),
    rates("Swept", broker.INDEX_KEYS_SWEPT, "kind"),
)

DASHBOARDS = {
    "operate.json": Dashboard(
        "runstream-operate",
        "runstream / operate",
        "How runstream is: what readers get, NATS, and each process.",
        [("At a glance", GLANCE), ("Readers", READERS), ("Limits", LIMITS), ("NATS", STORE), ("Processes", PROCESSES)],
    ),
    "runs.json": Dashboard(
        "runstream-runs",
        "runstream / runs",
        "What runs are like, by status and kind. No metric names a run.",
        [
            ("Runs", RUNS),
            ("How long they take", TIMES),
            ("Written over HTTP", INGEST),
            ("Care of what is stored", CARE),
        ],
    ),
}


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, dashboard in DASHBOARDS.items():
        (FOLDER / name).write_text(dashboard.json(), encoding="utf-8")
