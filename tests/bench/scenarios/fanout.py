"""Scenario 1, live fan-out: many followers of one run, side by side with all who do the same, and with the floor."""

from dataclasses import dataclass, field
from typing import NamedTuple

from tests.bench import deployment
from tests.bench.bench import CHUNKS_PER_SECOND, WAIT_SECONDS, Bench
from tests.bench.figures import RATIO, US_PER_SECOND, times
from tests.bench.machine import CpuMeter
from tests.bench.peers import registry
from tests.bench.peers.contender import Contender, Entry

P50_MS = {1: 2.0, 100: 3.0, 300: 6.0, 1000: 15.0}
"""What the median delay may be, by the number of followers."""
TO_THE_FLOOR = 1.5
TO_A_PEER = 0.25
WARM_CHUNKS = 25
"""Chunks before those that are counted: they show that everybody follows."""


class Cost(NamedTuple):
    """What one delivered chunk costs the server and what it stores in, in µs of CPU."""

    server: float
    store: float


def followers(count: int) -> str:
    """How a case is called."""
    return "1 follower" if count == 1 else f"{count:,} followers"


@dataclass
class Fanout:
    """Runstream and the floor with each number of followers, the peers with the one that is compared."""

    followers: tuple[int, ...] = (1, 100, 300, 1000)
    compared: int = 300
    load_seconds: float = 10
    name: str = "fanout"
    title: str = "Live fan-out: one run, 50 chunks/s of 250 bytes, every chunk to every follower"
    seconds: float = 600
    is_fresh: bool = False
    _contenders: dict[str, Contender] = field(default_factory=dict)

    async def prepare(self, bench: Bench) -> None:
        """Start them all: who is not measured at the moment does nothing."""
        self._contenders = {deployment.ENTRY.name: bench.runstream}
        for entry in (registry.FLOOR, *bench.others):
            bench.say(f"starting {entry.name}")
            self._contenders[entry.name] = await bench.stack.enter_async_context(entry.serving(bench.load))

    async def measure(self, bench: Bench) -> None:
        """One after the other, so that what changes on the machine in the meantime changes for all."""
        own = {count: await self._cost(bench, deployment.ENTRY, count) for count in self.followers}
        floor = {count: await self._cost(bench, registry.FLOOR, count) for count in self.followers}
        for count in self.followers:
            if not floor[count].server and count != self.compared:
                continue  # Less than the clock of a process tells: of a few chunks there is no ratio.
            at_most = TO_THE_FLOOR if count == self.compared else None
            ratio = times(own[count].server, floor[count].server)
            case = followers(count)
            bench.findings.add("runstream", case, "CPU per chunk, to the floor", RATIO, ratio, at_most=at_most)
        for entry in bench.others:
            count = min(entry.followers, self.compared)
            peer = await self._cost(bench, entry, count)
            what = f"CPU per chunk, to {entry.title}" + (f" with {count}" if count != self.compared else "")
            ratio = times(own[self.compared].server, peer.server)
            case = followers(self.compared)
            bench.findings.add("runstream", case, what, RATIO, ratio, at_most=TO_A_PEER)

    async def _cost(self, bench: Bench, entry: Entry, count: int) -> Cost:
        """Measure one of them with so many followers."""
        case, contender = followers(count), self._contenders[entry.name]
        bench.say(f"{entry.name}, {case}")
        chunks = int(self.load_seconds * CHUNKS_PER_SECOND)
        run = await contender.open()
        crowd = await bench.load.process("crowd")
        await crowd.call("connect", base=contender.base)
        requests = [contender.request(run)] * count
        await crowd.call("join", requests=requests, seconds=WAIT_SECONDS, headers=False)
        await contender.write(run, WARM_CHUNKS, CHUNKS_PER_SECOND)
        await crowd.call("reach", number=WARM_CHUNKS, seconds=WAIT_SECONDS)
        await crowd.call("restart")
        server, store = (CpuMeter(pids) for pids in contender.processes)
        await contender.write(run, chunks, CHUNKS_PER_SECOND)
        await crowd.call("reach", number=WARM_CHUNKS + chunks, seconds=WAIT_SECONDS)
        cost = Cost(*(meter.used() * US_PER_SECOND / (chunks * count) for meter in (server, store)))
        told = await crowd.call("told")
        await crowd.call("leave")
        await contender.close(run)
        self._add(bench, entry, count, cost, told["percentiles"])
        return cost

    @staticmethod
    def _add(bench: Bench, entry: Entry, count: int, cost: Cost, percentiles: list[float]) -> None:
        findings, who, case = bench.findings, entry.title, followers(count)
        findings.add(who, case, "CPU per chunk", "µs", cost.server)
        findings.add(who, case, "CPU per chunk of what it stores in", "µs", cost.store)
        at_most = P50_MS.get(count) if entry is deployment.ENTRY else None
        findings.add(who, case, "delay p50", "ms", percentiles[50], at_most=at_most)
        findings.add(who, case, "delay p99", "ms", percentiles[99])
        findings.delays.setdefault(f"{who} / {case}", []).append(percentiles)
