"""Writes docs/metrics.md from the metrics' declarations: `python -m deploy.observability.page`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runstream.broker.common_metrics import LIBRARY_METRICS
from runstream.broker.metrics import BROKER_METRICS
from runstream.gateway.metrics import GATEWAY_METRICS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runstream.broker.meters import Metric

__all__ = ["PAGE", "page", "unit"]

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"

HEAD = """\
# Metrics

<!-- Written by `python -m deploy.observability.page` from the declarations in the source: change those. -->

`GET /metrics` of a gateway and of a broker, in Prometheus's text: on the service's port, or with `--metrics-port` on
one of its own. What `runstream up` runs in one process is still two ports. A counter, and each value of a label, is
there from the start, at 0: Prometheus does not see the first event of one that begins with it.
`runstream_ingest_requests` is the exception, as most of its combinations never come.

**No label names a run, a conversation, an agent or a tenant**: each would be a series for every one of them. What
became of one run is in the logs, by `run_id`. Tenants may be counted apart that are named, one by one, in
`RUNSTREAM_METRICS_TENANTS` (`acme,globex`): what says so below then has the label `tenant`, one of these names,
or `other` for all that are not named. Without that setting there is no such label.

**Several processes** are added up by Prometheus, never by themselves
([ADR 0016](adr/0016-metrics-are-added-up-by-prometheus.md)); the last column says how. Counters and histograms are
summed, after `rate`.

What a scrape costs: the process asks NATS for the state of each stream, at most once a second. It does not wait for it
longer than three seconds.

[Rules and alerts](../deploy/helm/runstream/files/rules.yaml) ask for them, and every alert has a
[runbook](runbooks/README.md).
"""

LIBRARY = """\
With `Runs` they are in `runs.registry`, which is shown with the process's own:
`prometheus_client.REGISTRY.register(runs.registry)`. The names are a broker's: they add up.

"""
PARTS = (
    ("Of a gateway", "", GATEWAY_METRICS),
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
