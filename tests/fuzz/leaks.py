"""What a runstream holds, counted: what is there after many requests and was not before them has been left behind."""

import asyncio
import gc
import os
from collections import Counter
from dataclasses import dataclass

from runstream.broker.connection import Connection
from runstream.broker.keys import KV_OPERATION, key_of, subject_of
from runstream.broker.topology import INDEX_STREAM, WORK_STREAM
from tests.support.stack import Stack
from tests.support.waiting import wait_until

SETTLED_SECONDS = 30.0
"""Within which everything is over: writers that have left are noticed a lease later, one after the other."""
OF_LIVE_RUNS = ("lease.", "cancel.", "request.")
"""Keys that a run has until it has ended."""


@dataclass(frozen=True)
class Held:
    """What is held at one moment."""

    tasks: Counter[str]
    descriptors: int
    subscriptions: Counter[str]
    """On NATS, of all connections of this process, by subject; but for the inbox for answers of many messages, which a
    connection has from the first time on that it needs one."""
    consumers: dict[str, int]
    """On NATS, by stream."""
    followers: int
    tails: int
    queued: int
    """Run requests that nobody has done with."""

    def more_than(self, before: "Held") -> dict[str, object]:
        """What there is more of than before; nothing if there is nothing."""
        found: dict[str, object] = {}
        if self.tasks.total() > before.tasks.total():
            found["tasks"] = self.tasks - before.tasks
        if self.subscriptions.total() > before.subscriptions.total():
            found["subscriptions"] = self.subscriptions - before.subscriptions
        for name in ("descriptors", "followers", "tails", "queued"):
            now, then = getattr(self, name), getattr(before, name)
            if now > then:
                found[name] = f"{now}, and {then} before"
        if consumers := {name: count for name, count in self.consumers.items() if count > before.consumers[name]}:
            found["consumers"] = consumers
        return found


async def held(stack: Stack) -> Held:
    """Count what the process holds, and NATS for it."""
    connections = [each for each in gc.get_objects() if isinstance(each, Connection)]
    streams = [INDEX_STREAM, WORK_STREAM, *(f"RUNS_{shard}" for shard in range(stack.settings.shards))]
    infos = {name: await stack.api(f"STREAM.INFO.{name}") for name in streams}
    return Held(
        tasks=Counter(_name(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()),
        descriptors=len(os.listdir("/proc/self/fd")),  # noqa: PTH208  # no path is made of them
        subscriptions=Counter(subject for each in connections for subject in _subjects(each)),
        consumers={name: int(info["state"]["consumer_count"]) for name, info in infos.items()},
        followers=stack.hub.seats.taken,
        tails=stack.hub.live_tails,
        queued=int(infos[WORK_STREAM]["state"]["messages"]),
    )


def _subjects(connection: Connection) -> list[str]:
    """What a connection listens to. Of inboxes for many answers, whose last token tells them apart, it has one."""
    every = [held.subject for held in connection._subscriptions]
    inboxes = [subject for subject in every if subject.startswith("_INBOX") and subject.endswith(".*")]
    assert len(inboxes) <= 1, inboxes
    return [subject for subject in every if subject not in inboxes]


async def nothing_is_left(stack: Stack, before: Held) -> None:
    """Wait until no more is held than before, every run has ended, and no key or log is of a run that is not there."""
    left: dict[str, object] = {}

    async def none() -> bool:
        nonlocal left
        left = (await held(stack)).more_than(before) or await _of_nobody(stack)
        return not left

    try:
        await wait_until(none, SETTLED_SECONDS)
    except AssertionError:
        complaint = f"left behind: {left}"
        raise AssertionError(complaint) from None


async def _of_nobody(stack: Stack) -> dict[str, object]:
    """The runs that go on, and the keys and logs of none."""
    stored = await stack.jetstream.last_messages(INDEX_STREAM, subject_of(">"))
    keys = {key_of(message.subject) for message in stored if KV_OPERATION not in message.headers}
    runs = {key.rpartition(".")[2] for key in keys if key.startswith("run.")}
    logs: set[str] = set()
    for shard in range(stack.settings.shards):
        info = await stack.api(f"STREAM.INFO.RUNS_{shard}", {"subjects_filter": ">"})
        logs |= {subject.rpartition(".")[2] for subject in info["state"].get("subjects") or {}}
    live = await stack.fetch("GET", "/v1/runs/?active=true&limit=1000")
    found = {
        "keys": {key for key in keys if key.startswith(OF_LIVE_RUNS)},
        "logs": logs - runs,
        "live runs": [run["id"] for run in live.json],
    }
    return {name: each for name, each in found.items() if each}


def _name(task: asyncio.Task[object]) -> str:
    coroutine = task.get_coro()
    return getattr(coroutine, "__qualname__", None) or task.get_name()
