"""What is done to a world. Each fault takes back what it did, waits until its target serves, and tells what it saw.

    Fault
    ├── Restarted        a process ends by a signal, and another is there
    ├── Rolled           all of a kind, one after the other
    ├── Paused           a process stands still, and goes on
    ├── Toppled          one of three nats-servers ends, or stands still, until another leads
    ├── Weathered        a link is slow, dead or torn for a while
    ├── Severed          the connections of a link end
    ├── LogFull          the log has reached its limit
    ├── DiskFull         nats-server's file system has no byte left
    └── Expired          retention passes a reader's cursor

A fault was effective if that was *observed*: not that it was asked for.
"""

import abc
import asyncio
import contextlib
import dataclasses
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Literal, TypeAlias

from tests.chaos.proxy import BOTH, FAIR, Counts, Link, Way, Weather
from tests.chaos.services import Victim, paused, ready
from tests.chaos.world import LOG, SILENCE, World
from tests.support.processes import alive
from tests.support.waiting import wait_until

Chance: TypeAlias = random.Random
Kind: TypeAlias = Literal["outage", "drain", "full", "retention"]
Role: TypeAlias = Literal["gateway", "broker", "writer", "nats"]

REPLACED: Sequence[Kind] = ("drain", "outage")
"""Who is told to end gives its work away; who begins listens before it has reached NATS."""
FULL = "10077"
"""The error of a stream that has as many bytes as it may have."""
SEEN_SECONDS = 5.0
"""How long a fault may take to be seen: a link without traffic shows nothing of its weather."""
USED_SECONDS = 10.0
"""How long it may take until somebody uses a link: whoever was just started again imports for seconds."""
ELECTION_SECONDS = 60.0
"""An election takes 4 to 9 s on a machine that has nothing else to do."""


@dataclasses.dataclass(frozen=True)
class Injected:
    """What was done, from when to when, and what was seen of it. `ended` is when its target served again."""

    name: str
    kinds: Sequence[Kind]
    """What clients may take it for."""
    target: str
    began: float
    ended: float
    effective: bool
    evidence: str
    gone: str = ""
    """A process of the load that was killed, by the name of its files."""
    first_seq: int = 0
    """Where the log begins since retention has passed."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a fault came to."""

    target: str
    effective: bool
    evidence: str
    gone: str = ""
    first_seq: int = 0


class Fault(abc.ABC):
    """Something that can be done to a world."""

    kinds: Sequence[Kind] = ("outage",)

    def __init__(self, name: str, place: str) -> None:
        self.name = name
        self.place = place
        """What it is done to: two faults at one place are not at one time."""

    async def inject(self, world: World, chance: Chance) -> Injected:
        """Do it, and take it back. Raises `AssertionError` if what it was done to does not serve again."""
        began = time.monotonic()
        seen = await self.done_to(world, chance)
        return Injected(
            self.name,
            self.kinds,
            seen.target,
            began,
            time.monotonic(),
            seen.effective,
            seen.evidence,
            seen.gone,
            seen.first_seq,
        )

    @abc.abstractmethod
    async def done_to(self, world: World, chance: Chance) -> Seen:
        """Do it, and take it back."""


# -- processes ----------------------------------------------------------------------------------------------------


def victims(world: World, role: Role) -> Sequence[Victim]:
    """All of a kind."""
    of: dict[Role, Sequence[Victim]] = {
        "gateway": world.gateways,
        "broker": world.brokers,
        "writer": world.writers,
        "nats": world.nodes,
    }
    return of[role]


async def restarted(world: World, victim: Victim, how: signal.Signals, down_seconds: float = 0) -> Seen:
    """End it, leave it down, start it again."""
    before = victim.pid
    assert before is not None, f"{victim.name} does not run"
    await victim.stop(how)
    is_dead = not alive(before)
    await world.linger(down_seconds)
    since = time.monotonic()
    await victim.start()
    await ready(victim)
    after = victim.pid
    evidence = f"{before} is dead by {how.name}, {after} serves after {time.monotonic() - since:.1f} s"
    return Seen(victim.name, is_dead and after not in {None, before}, evidence)


class Restarted(Fault):
    """One of a kind ends by a signal, and is started again."""

    def __init__(self, name: str, role: Role, how: signal.Signals) -> None:
        super().__init__(name, role)
        self._role, self._how = role, how
        if how is signal.SIGTERM and role != "nats":
            self.kinds = REPLACED

    async def done_to(self, world: World, chance: Chance) -> Seen:
        victim = chance.choice(victims(world, self._role))
        gone = f"{victim.name}p{victim.pid}" if self._role == "writer" and self._how is signal.SIGKILL else ""
        seen = await restarted(world, victim, self._how, chance.choice([0, 1, 3]))
        return dataclasses.replace(seen, gone=gone)


class Rolled(Fault):
    """All of a kind end by SIGTERM and are started again, each when the one before serves."""

    kinds = REPLACED

    def __init__(self, name: str, role: Role) -> None:
        super().__init__(name, role)
        self._role: Role = role

    async def done_to(self, world: World, chance: Chance) -> Seen:
        order = chance.sample(victims(world, self._role), len(victims(world, self._role)))
        seen = [await restarted(world, victim, signal.SIGTERM) for victim in order]
        evidence = "; ".join(each.evidence for each in seen)
        return Seen(",".join(each.target for each in seen), all(each.effective for each in seen), evidence)


class Paused(Fault):
    """One of a kind is stopped where it stands, for a while."""

    def __init__(self, name: str, role: Role, seconds: tuple[float, float] = (0.5, 6.0)) -> None:
        super().__init__(name, role)
        self._role: Role = role
        self._seconds = seconds

    async def done_to(self, world: World, chance: Chance) -> Seen:
        victim = chance.choice(victims(world, self._role))
        since = time.monotonic()
        async with standing_still(victim) as pid:
            await world.linger(chance.uniform(*self._seconds))
        stood = time.monotonic() - since
        await ready(victim)
        return Seen(victim.name, True, f"every thread of {pid} stood still, {stood:.1f} s")


@contextlib.asynccontextmanager
async def standing_still(victim: Victim) -> AsyncIterator[int]:
    """Its process, stopped while the block lasts."""
    pid = victim.pid
    assert pid is not None, f"{victim.name} does not run"
    try:
        yield await paused(victim)
    finally:
        os.kill(pid, signal.SIGCONT)


class Toppled(Fault):
    """One of three nats-servers ends by a signal, or is paused; if it led the log, until another does."""

    def __init__(self, name: str, which: Literal["leader", "follower"], how: signal.Signals) -> None:
        super().__init__(name, "nats")
        self._which, self._how = which, how

    async def done_to(self, world: World, chance: Chance) -> Seen:
        leader = await wait_until(world.leader, ELECTION_SECONDS, f"nobody leads {LOG}")
        led = self._which == "leader"
        victim = chance.choice([node for node in world.nodes if (node.name == leader) == led])
        before, since = victim.pid, time.monotonic()
        assert before is not None, f"{victim.name} does not run"
        async with contextlib.AsyncExitStack() as stack:
            if self._how is signal.SIGSTOP:
                await stack.enter_async_context(standing_still(victim))
            else:
                await victim.stop(self._how)
                stack.push_async_callback(victim.start)
            gone = f"{before} {'stood still' if self._how is signal.SIGSTOP else f'is dead by {self._how.name}'}"
            if led:
                other = await self._another_leads(world, victim.name)
                evidence = f"{gone}, {other} led {LOG} in the place of {leader} after {time.monotonic() - since:.1f} s"
            else:
                await world.linger(chance.uniform(0.5, 5))
                evidence = f"{gone} while {await world.leader() or leader} led {LOG}"
        await ready(victim)
        is_another = victim.pid not in {None, before}
        return Seen(victim.name, is_another or self._how is signal.SIGSTOP, evidence)

    async def _another_leads(self, world: World, than: str) -> str:
        async def led() -> str:
            name = await world.leader()
            return name if name != than else ""

        return await wait_until(led, ELECTION_SECONDS, f"nobody but {than} leads {LOG}")


# -- links --------------------------------------------------------------------------------------------------------

Reckoning: TypeAlias = Callable[[Counts], int]


async def link_of(world: World, place: str, chance: Chance) -> Link:
    """One of the links between two kinds that somebody uses; any of them if nobody comes to use one."""

    def used() -> list[Link]:
        return [link for link in world.links[place] if link.passages]

    with contextlib.suppress(AssertionError):
        return chance.choice(await wait_until(used, USED_SECONDS))
    return chance.choice(world.links[place])


class Weathered(Fault):
    """A link has bad weather, for as long as it takes to be seen and a while longer."""

    def __init__(
        self,
        name: str,
        place: str,
        made: Callable[[Chance], Weather],
        counted: Reckoning,
        *,
        seconds: tuple[float, float] = (0.5, 4.0),
    ) -> None:
        super().__init__(f"{name} {place}", place)
        self._made, self._counted, self._seconds = made, counted, seconds

    async def done_to(self, world: World, chance: Chance) -> Seen:
        link, weather = await link_of(world, self.place, chance), self._made(chance)
        before, resets, since = self._counted(link.counts), link.counts.reset, time.monotonic()
        link.weather = weather
        try:
            with contextlib.suppress(AssertionError):
                await wait_until(lambda: self._counted(link.counts) > before, SEEN_SECONDS)
            await world.linger(chance.uniform(*self._seconds))
            connections = len(link.passages)
        finally:
            link.weather = FAIR
        seen, lost = self._counted(link.counts) - before, link.counts.reset - resets
        evidence = f"{seen} bytes of {connections} connections in {time.monotonic() - since:.1f} s of {told(weather)}"
        return Seen(link.name, seen > 0, f"{evidence}, {lost} reset after it" if lost else evidence)


def told(weather: Weather) -> str:
    """Say what is not fair about it."""
    pairs = ((field.name, getattr(weather, field.name)) for field in dataclasses.fields(weather))
    ways = {
        name: sorted(way.value for way in value) if isinstance(value, frozenset) else value for name, value in pairs
    }
    return ", ".join(f"{name}={value}" for name, value in ways.items() if value)


class Severed(Fault):
    """All connections of a link end at once: cut in good order, or reset."""

    def __init__(self, name: str, place: str, severed: Callable[[Link], int]) -> None:
        super().__init__(f"{name} {place}", place)
        self._severed = severed

    async def done_to(self, world: World, chance: Chance) -> Seen:
        link = await link_of(world, self.place, chance)
        count = self._severed(link)
        return Seen(link.name, count > 0, f"{count} connections ended")


def delayed(chance: Chance) -> Weather:
    return Weather(delay_seconds=chance.choice([0.02, 0.2, 1.5]))


def throttled(chance: Chance) -> Weather:
    return Weather(bytes_per_second=chance.choice([2_000, 20_000]))


def split(chance: Chance) -> Weather:
    # Smaller, what comes meanwhile would be as many writes as it has bytes, and all other links would wait for them.
    return Weather(segment_bytes=chance.choice([7, 30, 100]))


def dead(_: Chance) -> Weather:
    return Weather(held=BOTH)


def dead_one_way(chance: Chance) -> Weather:
    return Weather(held=frozenset([chance.choice(list(Way))]))


def dead_downwards(_: Chance) -> Weather:
    return Weather(held=frozenset([Way.DOWN]))


def half_open(_: Chance) -> Weather:
    return Weather(swallowed=BOTH)


def link_faults(place: str) -> list[Fault]:
    """Everything that can be done to the links between two kinds."""
    return [
        Weathered("delay", place, delayed, lambda counts: counts.hampered_bytes),
        Weathered("throttle", place, throttled, lambda counts: counts.hampered_bytes),
        Weathered("split", place, split, lambda counts: counts.hampered_bytes),
        Weathered("dead", place, dead, lambda counts: counts.held_bytes),
        # A reader that follows a run says nothing that could be held up.
        Weathered(
            "dead one way",
            place,
            dead_downwards if place == "reader-gateway" else dead_one_way,
            lambda counts: counts.held_bytes,
        ),
        Weathered("half-open", place, half_open, lambda counts: counts.swallowed_bytes, seconds=(0.5, 12.0)),
        Severed("cut", place, Link.cut),
        Severed("reset", place, Link.reset),
    ]


# -- stores -------------------------------------------------------------------------------------------------------


class LogFull(Fault):
    """The log may have no more bytes than it has, for a while."""

    kinds = ("full",)

    def __init__(self) -> None:
        super().__init__("log full", "nats")  # What a server without a free byte says would hide it.

    async def done_to(self, world: World, chance: Chance) -> Seen:
        found = await world.state()
        config, limit = found["config"], max(1, int(found["state"]["bytes"]))
        await world.api(f"STREAM.UPDATE.{LOG}", {**config, "max_bytes": limit})
        try:
            refusal = await refused(world, FULL)
            await world.linger(chance.uniform(0.5, 3))
        finally:
            await world.api(f"STREAM.UPDATE.{LOG}", config)
        return Seen(LOG, bool(refusal), f"at {limit} bytes: {refusal or 'it took what was written'}")


class DiskFull(Fault):
    """nats-server's file system has no byte left. A stream that has met that takes nothing until a restart.

    Nobody is told that it is full: the server does not answer, as in any other outage.
    """

    def __init__(self) -> None:
        super().__init__("disk full", "nats")

    async def done_to(self, world: World, chance: Chance) -> Seen:
        disk, (node,) = world.disk, world.nodes
        assert disk is not None, "this world has no small disk: give its plan disk_bytes"
        await asyncio.to_thread(disk.fill)
        try:
            free, refusal = disk.free_bytes, await refused(world, SILENCE)
            await world.linger(chance.uniform(0.5, 3))
        finally:
            disk.empty()
        again = await restarted(world, node, chance.choice([signal.SIGTERM, signal.SIGKILL]))
        evidence = f"{free} bytes free: {refusal or 'it took what was written'}; {again.evidence}"
        return Seen(node.name, bool(refusal) and free == 0 and again.effective, evidence)


async def refused(world: World, error: str) -> str:
    """Write until that is the answer; all of what it says, empty if it never is."""

    async def found() -> str:
        refusal = await world.probe()
        return refusal if refusal.startswith(error) else ""

    with contextlib.suppress(AssertionError):
        return await wait_until(found, SEEN_SECONDS)
    return ""


class Expired(Fault):
    """The log loses its oldest messages, past where one of the readers is that are furthest behind."""

    kinds = ("retention",)

    def __init__(self) -> None:
        super().__init__("retention", "store")

    async def done_to(self, world: World, chance: Chance) -> Seen:
        cursors = sorted(world.cursors())
        if not cursors:
            return Seen(LOG, False, "no reader stood anywhere")
        cursor = chance.choice(cursors[: len(cursors) // 4 + 1])
        # As retention does: everything up to there, whoever's it is.
        await world.api(f"STREAM.PURGE.{LOG}", {"seq": cursor + 1})
        first = int((await world.state())["state"]["first_seq"])
        evidence = f"a reader stands at {cursor}, and the log begins at {first}"
        return Seen(LOG, first > cursor, evidence, first_seq=first)


ROLES: tuple[Role, ...] = ("gateway", "broker", "writer", "nats")


def catalogue(world: World) -> list[Fault]:
    """Everything that can be done to that world."""
    is_cluster = len(world.nodes) > 1
    faults: list[Fault] = []
    for role in ROLES:
        if victims(world, role) and not (role == "nats" and is_cluster):
            faults += [
                Restarted(f"kill {role}", role, signal.SIGKILL),
                Restarted(f"restart {role}", role, signal.SIGTERM),
                Paused(f"pause {role}", role),
            ]
    if is_cluster:
        faults += node_faults("leader") + node_faults("follower")
    if world.disk is not None:
        faults.append(DiskFull())
    faults += [Rolled("roll gateways", "gateway"), Rolled("roll brokers", "broker"), LogFull(), Expired()]
    return faults + [fault for place in world.links for fault in link_faults(place)]


def node_faults(which: Literal["leader", "follower"]) -> list[Fault]:
    """Everything that can be done to one of three nats-servers."""
    return [
        Toppled(f"kill {which}", which, signal.SIGKILL),
        Toppled(f"restart {which}", which, signal.SIGTERM),
        Toppled(f"pause {which}", which, signal.SIGSTOP),
    ]
