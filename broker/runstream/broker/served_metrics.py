"""What every process that serves a port counts: whom it has turned away, and how it drains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from runstream.broker.auth.causes import CAUSES
from runstream.broker.common_metrics import ProcessMetrics
from runstream.broker.limits.limiter import LIMITS
from runstream.broker.meters import Metric

if TYPE_CHECKING:
    from collections.abc import Collection

    from runstream.broker.auth.causes import Cause
    from runstream.broker.readiness import Draining

__all__ = [
    "CREDENTIALS_REFUSED",
    "DRAINING",
    "DRAINING_SECONDS",
    "DRAIN_LIMIT_SECONDS",
    "LIMITS_REACHED",
    "ServedMetrics",
]

CREDENTIALS_REFUSED: Final = Metric(
    "runstream_credentials_refused",
    "counter",
    "Requests refused for their credential, by cause. 401: missing; malformed; unknown_key, no such key is in the "
    "file or among those that sign tokens; bad_signature; expired; not_yet_valid; audience and issuer, another's; "
    "claims, one is absent or is none; revoked; ticket, used, too old or none; cookie, what is in it stands for too "
    "long. 403: scope, one is lacking; narrowed, it is for something else.",
    labels={"cause": CAUSES},
)
LIMITS_REACHED: Final = Metric(
    "runstream_limits_reached",
    "counter",
    "Requests and connections refused because a limit was reached, by which: of a tenant, a key or an address; how "
    "many connections there may be; how long a request's head may take, or be; how long an answer may take to be read.",
    labels={"limit": LIMITS},
)
DRAINING: Final = Metric(
    "runstream_draining", "gauge", "1 once this process takes nothing new and lets go of what it has, to stop."
)
DRAINING_SECONDS: Final = Metric(
    "runstream_draining_seconds", "gauge", "How long it has been draining; 0 while it does not.", over="max"
)
DRAIN_LIMIT_SECONDS: Final = Metric(
    "runstream_drain_limit_seconds",
    "gauge",
    "How long what is open is given when it drains (RUNSTREAM_DRAIN_SECONDS).",
    over="max",
)


class ServedMetrics(ProcessMetrics):
    """What a process with a port counts of those who come to it."""

    def __init__(self, tenants: Collection[str] | None = None) -> None:
        super().__init__(tenants)
        self._refused = self.meters.counter(CREDENTIALS_REFUSED)
        self._limits_reached = self.meters.counter(LIMITS_REACHED)

    def credential_refused(self, cause: Cause) -> None:
        """Whoever asked may not, or has not shown who they are."""
        self._refused.labels(cause).inc()

    def limit_reached(self, limit: str) -> None:
        """Something was refused because of a limit."""
        self._limits_reached.labels(limit).inc()

    def watch_draining(self, draining: Draining) -> None:
        """Read whether it drains, and for how long, whenever the metrics are."""
        self.meters.watch(DRAINING, lambda: draining.has_begun)
        self.meters.watch(DRAINING_SECONDS, lambda: draining.seconds)
        self.meters.watch(DRAIN_LIMIT_SECONDS, lambda: draining.limit_seconds)
