"""Writes docs/metrics.md from the metrics' declarations: `python -m deploy.observability.page`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runstream.broker.common_metrics import LIBRARY_METRICS
from runstream.broker.metrics import BROKER_METRICS
from runstream.gateway.metrics import GATEWAY_METRICS
from runstream.gateway.workers_metrics import WORKERS_METRICS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runstream.broker.meters import Metric

__all__ = ["PAGE", "page", "unit"]

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"

HEAD = """\
# Metrics

<!-- Written by `python -m deploy.observability.page` from the declarations in the source: change those. -->

Gateways and brokers have `GET /metrics`, in Prometheus's text: on the service's port, or with `--metrics-port` on one
of its own. `runstream up` is one process, and still has two of them, one for each port. A counter, and each value of a
label, is there from the start, at 0: Prometheus does not see the first event of one that begins with it.
`runstream_ingest_requests` is the exception, as most of its combinations never come.

**No label names a run, a conversation, an agent or a tenant**: each would be a series for every one of them. What
became of one run is in the logs, by `run_id`. Only the tenants that `RUNSTREAM_METRICS_TENANTS` names (`acme,globex`)
are counted apart: a metric that says so below then has the label `tenant`, which is one of these names, or `other` for
all the rest. Without that setting there is no such label.

**Several processes** are added up by Prometheus, and never add themselves up
([ADR 0016](adr/0016-metrics-are-added-up-by-prometheus.md)); the last column says how. Counters and histograms are
summed, after `rate`. The metrics port of a gateway with `--workers` shows those of all workers, each series with one
more label, `worker`: `0`, `1` and so on.

For a scrape a process asks NATS for the state of each stream, at most once a second, and waits for the answer for three
seconds at most.

[Rules and alerts](../deploy/helm/runstream/files/rules.yaml) are made of these metrics, and every alert has a
[runbook](runbooks/README.md).
"""

WORKERS = """\
Their parent shows these beside what they show themselves. A worker keeps its number when its process is replaced: then
its counters begin at 0 again.

"""
LIBRARY = """\
`Runs` has them in `runs.registry`, and `prometheus_client.REGISTRY.register(runs.registry)` shows them with the
process's own. They have a broker's names, so they add up with a broker's.

"""
PARTS = (
    ("Of a gateway", "", GATEWAY_METRICS),
    ("Of a gateway's workers", WORKERS, WORKERS_METRICS),
    ("Of a broker", "", BROKER_METRICS),
    (
        "Of a process that writes runs itself",
        LIBRARY,
        LIBRARY_METRICS,
    ),
)
HISTOGRAMS = """\
## Buckets

Upper bounds, in seconds.

"""


def page() -> str:
    """Say all that is declared."""
    parts = [f"## {title}\n\n{says}{_table(metrics)}" for title, says, metrics in PARTS]
    histograms = {metric.name: metric for _, _, metrics in PARTS for metric in metrics if metric.buckets}
    buckets = "".join(
        f"- `{name}`: {', '.join(f'{bound:g}' for bound in metric.buckets)}. {metric.why}\n"
        for name, metric in sorted(histograms.items())
    )
    return "\n".join([HEAD, *parts, HISTOGRAMS + buckets])


def unit(metric: Metric) -> str:
    """Give the unit that a metric's name ends in, or nothing for a number of things."""
    last = metric.name.rpartition("_")[2]
    return last if last in {"seconds", "bytes"} else ""


def _table(metrics: Sequence[Metric]) -> str:
    rows = [
        f"| `{metric.shown_as}` | {metric.kind} | {_labels(metric)} | {unit(metric)} | {metric.says} "
        f"| {'sum' if metric.kind == 'histogram' else metric.over} |"
        for metric in sorted(metrics, key=lambda metric: metric.name)
    ]
    head = "| metric | type | labels | unit | what it says | over processes |"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows, ""])


def _labels(metric: Metric) -> str:
    labels = [f"`{name}`: {', '.join(f'`{value}`' for value in values)}" for name, values in metric.labels.items()]
    return "; ".join([*labels, "`tenant`, if any is named"] if metric.by_tenant else labels)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
