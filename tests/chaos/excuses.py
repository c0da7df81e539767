"""What may be the reason of what: the one table that every error, and every late end, of a history is held against.

A fault explains an error if it is of a kind that has such errors, was on at about that time (`calm.py`), and was done
to something that the error came by: the gateway that served, the broker that was asked, the process that wrote, or the
way from one to the next. What it was done to is its target, a name or several: `gateway-0`, `broker-1`, `nats-2`,
`RUNS_0`, `library`, and `reader->gateway-0`, `broker-1->nats-2`, `nats-0->nats-1` for what is between two. Any other
fault has nothing to do with it, whatever else went wrong at that time.

What is in no row has met a defect.
"""

import re
from collections.abc import Collection, Mapping
from functools import cache
from typing import NamedTuple

from tests.chaos.history import FaultKind, Mode

GATEWAY = frozenset({"gateway"})
BROKER = frozenset({"broker"})
PROCESS = frozenset({"writer"})
"""A process of the load, which writes runs, or asks for them and reads them itself."""
LOG = frozenset({"store"})
NATS = frozenset({"nats", "nats->nats"})
"""The servers, each and between each other."""
SERVING = GATEWAY | {"reader->gateway"}
"""By what a response comes from a gateway."""
LOOKING_UP = GATEWAY | NATS | {"gateway->nats"}
"""By what a gateway comes to know what it answers. It listens before it has reached NATS, so that one that was just
started again knows nothing yet."""
INGESTING = BROKER | {"writer->broker"}
"""By what an answer comes from a broker."""
STORING = BROKER | NATS | {"broker->nats"}
"""By what a broker stores; it, too, listens before it has reached NATS."""
WRITING = PROCESS | NATS | {"writer->nats"}
"""By what the library stores: its own process, which may stand still while its patience ends."""
MACHINE = "machine"
"""The target of what is nobody's doing: everything stood still, and the driver with it."""

WHERE = SERVING | LOOKING_UP | INGESTING | STORING | WRITING | LOG | {MACHINE}
"""Everything that something may be done to."""


class Reasons(NamedTuple):
    """What may be the reason of something: for each kind of fault, to what it must have been done."""

    outage: frozenset[str] = frozenset()
    drain: frozenset[str] = frozenset()
    full: frozenset[str] = frozenset()
    retention: frozenset[str] = frozenset()

    def where(self, kind: FaultKind) -> frozenset[str]:
        """To what a fault of that kind must have been done."""
        found: frozenset[str] = getattr(self, kind)
        return found | {MACHINE} if found and kind == "outage" else found

    def __str__(self) -> str:
        told = (f"{kind} of {', '.join(sorted(where))}" for kind, where in self._asdict().items() if where)
        return " or ".join(told) or "reason that would do"


NOTHING = Reasons()

CUT = Reasons(outage=SERVING, drain=GATEWAY)
"""A response that ends without a word: it never got through, or its gateway went. NATS cuts nobody: a gateway waits
for it, and if it gives that up, it says so."""

RESPONSES: Mapping[str, Reasons] = {
    "cut": CUT,
    # A process of the load that stood still finds that it has waited for too long.
    "unreachable": CUT._replace(outage=SERVING | PROCESS),
    # A browser is told when to come back, and not why; and that comes first of all, so it may be all that came.
    "announced": Reasons(outage=SERVING | LOOKING_UP, drain=GATEWAY, full=LOG, retention=LOG),
    "503": Reasons(outage=LOOKING_UP, drain=GATEWAY, full=LOG),
    "507": Reasons(full=LOG),
    "410": Reasons(retention=LOG),
    "404": Reasons(retention=LOG),
}
"""How a response ended, or with which status it was refused."""

NOTICES: Mapping[str, Reasons] = {
    "expired": Reasons(retention=LOG),
    "store_full": Reasons(full=LOG),
    "store_unavailable": Reasons(outage=LOOKING_UP, drain=GATEWAY),
}
"""What a gateway says before it cuts a response."""

# The log without room, or removed, leaves a run that its writer cannot end: a broker does, as lost.
_LOST = {"full": LOG, "retention": LOG}
RUNS: Mapping[Mode, Mapping[str, Reasons]] = {
    "library": {
        "run_lost": Reasons(outage=WRITING, **_LOST),
        "stream_task_cancelled": Reasons(drain=PROCESS),
        "store_full": Reasons(full=LOG),
    },
    "ingest": {
        "run_lost": Reasons(outage=STORING | INGESTING | PROCESS, **_LOST),
        "store_full": Reasons(full=LOG),
    },
    "capture": {
        "run_lost": Reasons(outage=STORING, **_LOST),
        "stream_task_cancelled": Reasons(drain=BROKER),
        "store_full": Reasons(full=LOG),
    },
}
"""What a run fails with, by who writes it."""

_MOVED = Reasons(outage=STORING | INGESTING | PROCESS, drain=BROKER, **_LOST)
REFUSALS: Mapping[str, Reasons] = {
    # By a broker.
    "unreachable": Reasons(outage=INGESTING | PROCESS, drain=BROKER),
    "cut": Reasons(outage=INGESTING | PROCESS, drain=BROKER),
    "timeout": Reasons(outage=INGESTING | STORING | PROCESS, drain=BROKER),
    "too_slow": Reasons(outage=INGESTING | PROCESS),
    "503": Reasons(outage=STORING, drain=BROKER),
    "store_unavailable": Reasons(outage=STORING, drain=BROKER),
    "unsettled": Reasons(outage=STORING),
    "broker_stopping": Reasons(drain=BROKER),
    "fenced": _MOVED,
    "run_ended": _MOVED,
    "store_full": Reasons(full=LOG),
    "507": Reasons(full=LOG),
    "expired": Reasons(retention=LOG),
    "run_not_found": Reasons(retention=LOG),
    # By the library.
    "Unavailable": Reasons(outage=WRITING),
    "NoResponders": Reasons(outage=WRITING),
    "Unsettled": Reasons(outage=WRITING),
    "StoreUnavailable": Reasons(outage=WRITING),
    "Fenced": Reasons(outage=WRITING, **_LOST),
    "Draining": Reasons(drain=PROCESS),
    "StoreFull": Reasons(full=LOG),
    "StoreRefused": Reasons(full=LOG),
}
"""What a writer is told, or makes of hearing nothing."""
OUTLASTS = frozenset({"Fenced", "fenced", "run_ended", "expired", "run_not_found", "StoreUnavailable"})
"""What may be heard of long after its reason is over, by a writer that had nothing to say meanwhile, and by any broker:
what was done to one shows when the next is asked."""

TELLING = Reasons(outage=SERVING | LOOKING_UP | PROCESS, drain=GATEWAY, full=LOG, retention=LOG)
"""Why an end that was there is told late: by what it comes to that reader."""
_WATCHING = STORING | SERVING | LOOKING_UP | PROCESS
ENDING: Mapping[Mode, Reasons] = {
    "library": Reasons(outage=_WATCHING | WRITING, drain=BROKER | GATEWAY, **_LOST),
    "ingest": Reasons(outage=_WATCHING | INGESTING, drain=BROKER | GATEWAY, **_LOST),
    "capture": Reasons(outage=_WATCHING, drain=BROKER | GATEWAY, **_LOST),
}
"""Why a run of which there is no sign ends late: by what its writer ends it, or brokers find out that there is none any
more, and by what readers tell that it has ended, where its writer does not."""


class Concerned(NamedTuple):
    """Who had to do with an error, by name; None is anybody of that kind, as it is not known who."""

    gateways: Collection[str] | None = ()
    brokers: Collection[str] | None = ()
    processes: Collection[str] | None = ()

    def has(self, name: str) -> bool:
        """Tell whether that one had; nats-servers and the log are everybody's."""
        of = {"gateway": self.gateways, "broker": self.brokers, "writer": self.processes}
        names = of.get(kind_of(name))
        return names is None or name in names


class Site(NamedTuple):
    """Something that a fault was done to: one of `WHERE`, and whose it is."""

    where: str
    whose: str


def kind_of(name: str) -> str:
    """What is called so. Whatever is no service is a process of the load."""
    stem = name.partition("-")[0]
    if stem in {"gateway", "broker", "nats", "reader", MACHINE}:
        return stem
    return "store" if name.startswith("RUNS_") else "writer"


@cache
def sites_of(target: str) -> tuple[Site, ...]:
    """What the target of a fault names."""
    return tuple(map(_site, re.findall(r"[^\s,]+", target)))


def _site(name: str) -> Site:
    near, arrow, far = name.partition("->")
    if not arrow:
        return Site(kind_of(name), name)
    # What is between a service and NATS is the service's, and so is what is between it and who comes to it.
    return Site(f"{kind_of(near)}->{kind_of(far)}", near if kind_of(far) == "nats" else far)


def touches(target: str, where: Collection[str], concerned: Concerned) -> bool:
    """Tell whether a fault was done to any of those, and to one that had to do with it."""
    return any(site.where in where and concerned.has(site.whose) for site in sites_of(target))
