"""What the parent of workers shows: what each of them counts, with a label that names it, and a few numbers of its own.

Nothing is added up: a sum falls when one of the workers begins anew, and Prometheus would take it for one that begins
at 0 (ADR 0016).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

import structlog
from prometheus_client import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from runstream.broker.meters import Meters, Metric

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["WORKERS_METRICS", "WorkersMetrics"]

log = structlog.get_logger(__name__)

WORKERS: Final = Metric("runstream_workers", "gauge", "Worker processes that a port is to have (RUNSTREAM_WORKERS).")
WORKERS_ALIVE: Final = Metric("runstream_workers_alive", "gauge", "Worker processes that are there.")
WORKERS_SHOWN: Final = Metric(
    "runstream_workers_shown",
    "gauge",
    "Worker processes whose metrics are shown; what others count is left out, as they did not answer in time.",
)
WORKER_RESTARTS: Final = Metric(
    "runstream_worker_restarts", "counter", "Worker processes started in place of one that had ended unasked."
)

WORKERS_METRICS: Final = (WORKERS, WORKERS_ALIVE, WORKERS_SHOWN, WORKER_RESTARTS)


class Shown(Protocol):
    """A worker, as far as it is shown."""

    number: int
    restarts: int

    @property
    def is_alive(self) -> bool:
        """Whether its process is there."""
        ...

    async def metrics(self) -> str | None:
        """Ask for what it shows of itself, None if it does not answer."""
        ...


class WorkersMetrics:
    """The metrics of several workers. Those in `registry` are of the `look` that ended last."""

    def __init__(self, workers: Sequence[Shown]) -> None:
        self._workers = workers
        self._texts: dict[int, str] = {}
        meters = Meters(WORKERS_METRICS)
        meters.watch(WORKERS, lambda: len(workers))
        meters.watch(WORKERS_ALIVE, lambda: sum(worker.is_alive for worker in workers))
        meters.watch(WORKERS_SHOWN, lambda: len(self._texts))
        meters.watch(WORKER_RESTARTS, lambda: sum(worker.restarts for worker in workers))
        self.registry = meters.registry
        self.registry.register(self)

    async def look(self) -> None:
        """Ask all workers. Whoever gives up waiting has what has come until then."""
        # Not kept from the last time: what is old would be shown as if it were not. Nor shared with whoever else looks
        # at the same time, as two Prometheis do: each would be shown what has come for the other.
        texts: dict[int, str] = {}

        async def ask(worker: Shown) -> None:
            text = await worker.metrics()
            if text is None:
                log.warning("worker_left_out", worker=worker.number, meaning="it does not say what it counts")
            else:
                texts[worker.number] = text

        try:
            await asyncio.gather(*map(ask, self._workers))
        finally:
            self._texts = texts

    def collect(self) -> Iterator[Family]:
        """Give what the workers have shown, each series with the label `worker`."""
        families: dict[str, Family] = {}
        for number, text in sorted(self._texts.items()):
            for one in text_string_to_metric_families(text):
                all_of_it = families.setdefault(one.name, Family(one.name, one.documentation, one.type))
                all_of_it.samples += [
                    sample._replace(labels={**sample.labels, "worker": str(number)}) for sample in one.samples
                ]
        yield from families.values()
