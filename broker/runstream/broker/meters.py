"""What a metric is here, and what a process shows of its own: every metric is declared once, with all it may be.

From the declarations come the counters, `docs/metrics.md`, and what rules and dashboards may ask for. Each process has
them in a registry of its own, and none adds up what several count: that is Prometheus's part, and each declaration says
how it is done (ADR 0016).
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import msgspec
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from runstream.broker.settings import OTHER_TENANTS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from prometheus_client import Metric as Family

__all__ = ["Meters", "Metric"]

Made = TypeVar("Made", Counter, Histogram)

Reading: TypeAlias = "float | Mapping[str, float] | None"
"""What a metric stands at: a number, one for each value of its only label, or nothing that could be said."""


class Metric(msgspec.Struct, frozen=True):
    """One metric. Its unit is the end of its name; one without is a number of what `says` names.

    `labels` have every value they may have, `<…>` standing for a small number of them. `why` says what the buckets are
    for. `over` is how those of several processes are added up.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    says: str
    labels: Mapping[str, tuple[str, ...]] = {}
    buckets: tuple[float, ...] = ()
    why: str = ""
    over: Literal["sum", "max", "min"] = "sum"
    by_tenant: bool = False
    """Whether it has a label `tenant`, too, after its others, where tenants are named."""
    is_sparse: bool = False
    """Whether most of its labels' values may never come: those are not shown until they do."""

    @property
    def shown_as(self) -> str:
        """The name it is exposed under, and asked for by."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


class Meters:
    """The metrics of one part of runstream, in a registry of their own: one process may run several parts.

    Each is shown from the start with every value of its labels: of a counter that began with its first event,
    Prometheus would never see that event. `tenants` are those that are counted apart; without any there is no such
    label.
    """

    def __init__(self, metrics: Sequence[Metric], tenants: Collection[str] | None = None) -> None:
        self._tenants = tenants or ()
        self.registry = CollectorRegistry()
        self._readings: dict[str, Callable[[], Reading]] = {}
        self._made: dict[str, Counter | Histogram] = {}
        self._metrics = metrics
        self.registry.register(self)

    def counter(self, metric: Metric) -> Counter:
        """Make a counter to count with."""
        made = Counter(metric.name, metric.says, list(self._labels(metric)), registry=None)
        return self._begun(metric, made)

    def of(self, tenant: str, made: Counter, *values: str) -> Counter:
        """Give what counts for a tenant, of a counter that is `by_tenant`, with these values of its other labels."""
        if self._tenants:
            values = (*values, tenant if tenant in self._tenants else OTHER_TENANTS)
        return made.labels(*values) if values else made

    def histogram(self, metric: Metric) -> Histogram:
        """Make a histogram to observe with."""
        made = Histogram(metric.name, metric.says, list(metric.labels), buckets=metric.buckets, registry=None)
        return self._begun(metric, made)

    def watch(self, metric: Metric, read: Callable[[], Reading]) -> None:
        """Read a metric whenever it is shown, for what something else counts already."""
        self._readings[metric.name] = read

    def collect(self) -> Iterator[Family]:
        """Give what is to be shown, in the order of the declarations; what cannot be read yet without a value."""
        for metric in self._metrics:
            made = self._made.get(metric.name)
            if made is None:
                yield self._read(metric)
                continue
            for family in made.collect():
                # When each series began is known from its first zero: these would be as many again.
                family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
                yield family

    def _labels(self, metric: Metric) -> Mapping[str, Iterable[str]]:
        if not (metric.by_tenant and self._tenants):
            return metric.labels
        return {**metric.labels, "tenant": (*sorted(self._tenants), OTHER_TENANTS)}

    def _begun(self, metric: Metric, made: Made) -> Made:
        labels = self._labels(metric)
        if labels and not metric.is_sparse:
            for values in product(*labels.values()):
                made.labels(*values)
        self._made[metric.name] = made
        return made

    def _read(self, metric: Metric) -> Family:
        kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family = kind(metric.name, metric.says, labels=list(metric.labels))
        read = self._readings.get(metric.name)
        reading = None if read is None else read()
        if isinstance(reading, int | float):
            family.add_metric([], float(reading))
        elif reading is not None:
            for label, value in reading.items():
                family.add_metric([label], float(value))
        return family
