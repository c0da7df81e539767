"""What is done to a world. Each fault takes back what it did, waits until its target serves, and tells what it saw.

    Fault
    ├── Restarted        a process ends by a signal, and another is there
    ├── Rolled           all of a kind, one after the other
    ├── Paused           a process stands still, and goes on
    ├── Toppled          one of three nats-servers ends, or stands still, until another leads
    ├── Isolated         one of three nats-servers and the others do not hear of each other, until another leads
    ├── Weathered        a line is slow, dead or torn for a while
    ├── Severed          the connections of a line end
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

from tests.chaos.proxy import BOTH, FAIR, Counts, Line, Way, Weather
from tests.chaos.services import Node, Victim, paused, ready
from tests.chaos.world import HEARD_SECONDS, LOG, ROUTES, SILENCE, World
from tests.support.processes import alive
from tests.support.waiting import wait_until

Chance: TypeAlias = random.Random
Kind: TypeAlias = Literal["outage", "drain", "full", "retention"]
Role: TypeAlias = Literal["gateway", "broker", "writer", "nats"]
Which: TypeAlias = Literal["leader", "follower"]

REPLACED: Sequence[Kind] = ("drain", "outage")
"""Who is told to end gives its work away; who begins listens before it has reached NATS."""
FULL = "10077"
"""The error of a stream that has as many bytes as it may have."""
SEEN_SECONDS = 5.0
"""How long a fault may take to be seen: a link without traffic shows nothing of its weather."""
USED_SECONDS = 10.0
"""How long it may take until somebody uses a line: whoever was just started again imports for seconds."""
ELECTION_SECONDS = 60.0
"""An election takes 4 to 9 s on a machine that has nothing else to do."""
UNHEARD_SECONDS = 3 * HEARD_SECONDS
"""How long it may take until a leader is seen to miss one that it does not hear of any more."""


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

    def __init__(self, name: str, which: Which, how: signal.Signals) -> None:
        super().__init__(name, "nats")
        self._which, self._how = which, how

    async def done_to(self, world: World, chance: Chance) -> Seen:
        victim, leader = await one_of_three(world, self._which, chance)
        before, since = victim.pid, time.monotonic()
        assert before is not None, f"{victim.name} does not run"
        async with contextlib.AsyncExitStack() as stack:
            if self._how is signal.SIGSTOP:
                await stack.enter_async_context(standing_still(victim))
            else:
                await victim.stop(self._how)
                stack.push_async_callback(victim.start)
            gone = f"{before} {'stood still' if self._how is signal.SIGSTOP else f'is dead by {self._how.name}'}"
            if self._which == "leader":
                other = await another_leads(world, leader)
                evidence = f"{gone}, {other} led {LOG} in the place of {leader} after {time.monotonic() - since:.1f} s"
            else:
                await world.linger(chance.uniform(0.5, 5))
                evidence = f"{gone} while {await world.leader() or leader} led {LOG}"
        await ready(victim)
        is_another = victim.pid not in {None, before}
        return Seen(victim.name, is_another or self._how is signal.SIGSTOP, evidence)


async def one_of_three(world: World, which: Which, chance: Chance) -> tuple[Node, str]:
    """The node that leads the log, or one of those that do not; and the name of the one that does."""
    leader = await wait_until(world.leader, ELECTION_SECONDS, f"nobody leads {LOG}")
    return chance.choice([node for node in world.nodes if (node.name == leader) == (which == "leader")]), leader


async def another_leads(world: World, than: str) -> str:
    """Wait until another node leads the log; which."""

    async def led() -> str:
        name = await world.leader()
        return name if name != than else ""

    return await wait_until(led, ELECTION_SECONDS, f"nobody but {than} leads {LOG}")


class Isolated(Fault):
    """Between one of three nats-servers and both others nothing passes; if it led the log, until another does.

    Whoever connected: routes are made by either side. Its clients are not kept from it, and whoever comes to it finds a
    server that accepts everything, stores nothing and tells of nothing new. It was effective if bytes were on their way
    that did not arrive, and if the others were seen to miss it: another leads, or the leader has not heard of its copy
    for longer than it takes to hold an election.
    """

    def __init__(self, which: Which) -> None:
        super().__init__(f"isolate {which}", "nats")
        self._which: Which = which

    async def done_to(self, world: World, chance: Chance) -> Seen:
        node, leader = await one_of_three(world, self._which, chance)
        weather, since = chance.choice([dead, half_open])(chance), time.monotonic()
        with world.isolated(node, weather) as lines:
            before = sum(map(stopped, lines))
            if self._which == "leader":
                missed = f"{await another_leads(world, leader)} led {LOG} in the place of {leader}"
            else:
                missed = await self._missed(world, node)
            took = time.monotonic() - since
            await world.linger(chance.uniform(0.5, 3))
            connections, count = sum(len(line.passages) for line in lines), sum(map(stopped, lines)) - before
        evidence = f"{count} bytes of {connections} connections in {told(weather)}; "
        evidence += f"{missed} after {took:.1f} s" if missed else f"nobody missed it in {took:.1f} s"
        return Seen(node.name, count > 0 and bool(missed), evidence)

    async def _missed(self, world: World, node: Node) -> str:
        async def unheard() -> str:
            seconds = await world.unheard_seconds(node.name)
            return f"{LOG}'s leader had not heard of it for {seconds:.1f} s" if seconds > HEARD_SECONDS else ""

        with contextlib.suppress(AssertionError):
            return await wait_until(unheard, UNHEARD_SECONDS)
        return ""


def stopped(line: Line) -> int:
    """How many bytes have not arrived, or late."""
    return line.counts.held_bytes + line.counts.swallowed_bytes


# -- lines --------------------------------------------------------------------------------------------------------

Reckoning: TypeAlias = Callable[[Counts], int]


async def line_of(world: World, place: str, chance: Chance) -> Line:
    """One of the lines between two kinds that somebody uses; any of them if nobody comes to use one."""

    def used() -> list[Line]:
        return [line for line in world.lines(place) if line.passages]

    with contextlib.suppress(AssertionError):
        return chance.choice(await wait_until(used, USED_SECONDS))
    return chance.choice(world.lines(place))


class OnLine(Fault):
    """What is done to one of the lines between two kinds.

    Between two nats-servers it is done to all connections that the two have, whoever made them, and leaves each of them
    the third: with that one, either is a majority. So it is not at one time with what takes a node away.
    """

    def __init__(self, name: str, between: str) -> None:
        super().__init__(f"{name} {between}", "nats" if between == ROUTES else between)
        self.between = between


class Weathered(OnLine):
    """A line has bad weather, for as long as it takes to be seen and a while longer."""

    def __init__(
        self,
        name: str,
        between: str,
        made: Callable[[Chance], Weather],
        counted: Reckoning,
        *,
        seconds: tuple[float, float] = (0.5, 4.0),
    ) -> None:
        super().__init__(name, between)
        self._made, self._counted, self._seconds = made, counted, seconds

    async def done_to(self, world: World, chance: Chance) -> Seen:
        line, weather = await line_of(world, self.between, chance), self._made(chance)
        before, resets, since = self._counted(line.counts), line.counts.reset, time.monotonic()
        line.weather = weather
        try:
            with contextlib.suppress(AssertionError):
                await wait_until(lambda: self._counted(line.counts) > before, SEEN_SECONDS)
            await world.linger(chance.uniform(*self._seconds))
            connections = len(line.passages)
        finally:
            line.weather = FAIR
        seen, lost = self._counted(line.counts) - before, line.counts.reset - resets
        evidence = f"{seen} bytes of {connections} connections in {time.monotonic() - since:.1f} s of {told(weather)}"
        return Seen(line.name, seen > 0, f"{evidence}, {lost} reset after it" if lost else evidence)


def told(weather: Weather) -> str:
    """Say what is not fair about it."""
    pairs = ((field.name, getattr(weather, field.name)) for field in dataclasses.fields(weather))
    ways = {
        name: sorted(way.value for way in value) if isinstance(value, frozenset) else value for name, value in pairs
    }
    return ", ".join(f"{name}={value}" for name, value in ways.items() if value)


class Severed(OnLine):
    """All connections of a line end at once: cut in good order, or reset."""

    def __init__(self, name: str, between: str, severed: Callable[[Line], int]) -> None:
        super().__init__(name, between)
        self._severed = severed

    async def done_to(self, world: World, chance: Chance) -> Seen:
        line = await line_of(world, self.between, chance)
        count = self._severed(line)
        return Seen(line.name, count > 0, f"{count} connections ended")


def delayed(chance: Chance) -> Weather:
    return Weather(delay_seconds=chance.choice([0.02, 0.2, 1.5]))


def throttled(chance: Chance) -> Weather:
    return Weather(bytes_per_second=chance.choice([2_000, 20_000]))


def split(chance: Chance) -> Weather:
    # Smaller, what comes meanwhile would be as many writes as it has bytes, and all other lines would wait for them.
    return Weather(segment_bytes=chance.choice([7, 30, 100]))


def split_coarsely(chance: Chance) -> Weather:
    # For the same reason: between two nats-servers goes all that is stored, and what says that it was.
    return Weather(segment_bytes=chance.choice([100, 400]))


def dead(_: Chance) -> Weather:
    return Weather(held=BOTH)


def dead_one_way(chance: Chance) -> Weather:
    return Weather(held=frozenset([chance.choice(list(Way))]))


def dead_downwards(_: Chance) -> Weather:
    return Weather(held=frozenset([Way.DOWN]))


def half_open(_: Chance) -> Weather:
    return Weather(swallowed=BOTH)


def line_faults(between: str) -> list[Fault]:
    """Everything that can be done to the lines between two kinds."""
    splitting = split_coarsely if between == ROUTES else split
    # A reader that follows a run says nothing that could be held up.
    half_dead = dead_downwards if between == "reader-gateway" else dead_one_way
    return [
        Weathered("delay", between, delayed, lambda counts: counts.hampered_bytes),
        Weathered("throttle", between, throttled, lambda counts: counts.hampered_bytes),
        Weathered("split", between, splitting, lambda counts: counts.hampered_bytes),
        Weathered("dead", between, dead, lambda counts: counts.held_bytes),
        Weathered("dead one way", between, half_dead, lambda counts: counts.held_bytes),
        Weathered("half-open", between, half_open, lambda counts: counts.swallowed_bytes, seconds=(0.5, 12.0)),
        Severed("cut", between, Line.cut),
        Severed("reset", between, Line.reset),
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
        began_at = await self._first(world)
        # Who stands before that was passed long ago, or is gone with its process.
        cursors = sorted(cursor for cursor in world.cursors() if cursor >= began_at)
        if not cursors:
            return Seen(LOG, False, f"no reader stood where the log begins, at {began_at}, or after that")
        cursor = chance.choice(cursors[: len(cursors) // 4 + 1])
        # As retention does: everything up to there, whoever's it is.
        await world.api(f"STREAM.PURGE.{LOG}", {"seq": cursor + 1})
        first = await self._first(world)
        evidence = f"a reader stands at {cursor}, and the log begins at {first}, no longer at {began_at}"
        return Seen(LOG, first > cursor, evidence, first_seq=first)

    async def _first(self, world: World) -> int:
        return int((await world.state())["state"]["first_seq"])


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
        faults += node_faults("leader") + node_faults("follower") + line_faults(ROUTES)
    if world.disk is not None:
        faults.append(DiskFull())
    faults += [Rolled("roll gateways", "gateway"), Rolled("roll brokers", "broker"), LogFull(), Expired()]
    return faults + [fault for place in world.links for fault in line_faults(place)]


def node_faults(which: Which) -> list[Fault]:
    """Everything that can be done to one of three nats-servers."""
    return [
        Toppled(f"kill {which}", which, signal.SIGKILL),
        Toppled(f"restart {which}", which, signal.SIGTERM),
        Toppled(f"pause {which}", which, signal.SIGSTOP),
        Isolated(which),
    ]
