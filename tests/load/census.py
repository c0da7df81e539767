"""What there is, counted from outside: memory and descriptors of a process, what NATS has of it, keys and consumers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from runstream.broker.connection import Connection
from runstream.broker.jetstream import JetStream
from runstream.broker.keys import KV_OPERATION, key_of, subject_of
from runstream.broker.topology import INDEX_STREAM, WORK_STREAM
from tests.support.http import fetch
from tests.support.nats import ask
from tests.support.services import Service

MIB = 2**20
OWN_CONNECTIONS = (None, "census")
"""Of `ask`, which gives no name, and of `keys`."""


def memory_bytes(pid: int, field: str = "VmRSS") -> int:
    """What a process has in memory (`VmRSS`), or has had at most since `forget_peak` (`VmHWM`)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise AssertionError(field)


def forget_peak(pid: int) -> None:
    """Let `VmHWM` begin anew, at what is in memory now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def descriptors(pid: int) -> int:
    """How many files, sockets and pipes a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def metric(service: Service, name: str) -> float:
    """A metric of a service's, all labels together."""
    text = (await service.get("/metrics")).body.decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == name)


async def subscriptions(monitor: str) -> Counter[str]:
    """What every connection to NATS listens to, by the connection's name and the beginning of the subject.

    But for the census's own: they are closed, and the server may still list one.
    """
    found = (await fetch(monitor, "GET", "/connz?subs=1")).json
    return Counter(
        f"{connection.get('name')}: {subject.partition('.')[0]}"
        for connection in found["connections"]
        if connection.get("name") not in OWN_CONNECTIONS
        for subject in connection.get("subscriptions_list") or ()
    )


async def state(nats_url: str, stream: str) -> dict[str, Any]:
    """The state of a stream, as its leader has it."""
    found = await ask(nats_url, f"$JS.API.STREAM.INFO.{stream}", timeout=10)
    assert found is not None, stream
    told: dict[str, Any] = found["state"]
    return told


async def keys(nats_url: str) -> Counter[str]:
    """How many keys of each kind the index has. Of a deleted one a mark is left for a retention, which is none."""
    async with Connection(nats_url, name="census") as connection:
        jetstream = JetStream(connection, timeout_seconds=30)
        found = await jetstream.last_messages(INDEX_STREAM, subject_of(">"))
    living = [key_of(message.subject) for message in found if KV_OPERATION not in message.headers]
    return Counter(key.partition(".")[0] for key in living)


async def logs(nats_url: str) -> int:
    """How many runs have a log."""
    return int((await state(nats_url, "RUNS_0")).get("num_subjects", 0))


@dataclass(frozen=True)
class Census:
    """What a load must leave as it was."""

    descriptors: int
    subscriptions: Counter[str]
    consumers: dict[str, int]

    def is_within(self, before: Census) -> bool:
        """Whether nothing is there that was not there before. What was closed late then may be there no more."""
        return (
            self.descriptors <= before.descriptors
            and self.subscriptions <= before.subscriptions
            and self.consumers == before.consumers
        )


async def census(service: Service, nats_url: str, monitor: str) -> Census:
    """Count."""
    consumers = {
        name: int((await state(nats_url, name))["consumer_count"]) for name in ("RUNS_0", INDEX_STREAM, WORK_STREAM)
    }
    return Census(descriptors(service.process.pid), await subscriptions(monitor), consumers)
