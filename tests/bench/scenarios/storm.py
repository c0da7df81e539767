"""Scenario 5, a storm: all followers of a run are cut at once, and come back with their cursors."""

import asyncio
from dataclasses import dataclass
from functools import partial

from tests.bench.bench import WAIT_SECONDS, Bench
from tests.bench.deployment import path_of
from tests.bench.machine import CpuMeter

PER_SECOND = 20
"""Chunks: to 2,000 followers, 40,000 a second. With fifty, two cores would have no calm to compare a storm with."""
CAUGHT_UP_SECONDS = 3.0
PAUSE_MS = 250.0
WITHIN_SECONDS = 1.0
READ_FROM_THE_LOG = 128.0
"""Chunks that one new tail reads (`RUNSTREAM_TAIL_FILL_CHUNKS`): what may be read, however many come back."""
CAUGHT_UP_CHUNKS = "runstream_catchup_chunks_total"


@dataclass
class Storm:
    """The run, and who follows it, go on from one storm to the next."""

    followers: int = 2000
    others: int = 50
    calm_seconds: float = 3
    name: str = "storm"
    title: str = "Storm: all followers of a live run cut at once, and back within a second with their cursors"
    seconds: float = 120
    is_fresh: bool = False
    _run_id: str = ""

    async def prepare(self, bench: Bench) -> None:
        """Have a run that goes on followed by those who will be cut, and by others who will not."""
        bench.say("gathering followers")
        self._run_id = await bench.runstream.open()
        bench.endings.append(partial(bench.runstream.close, self._run_id))
        await bench.join([self._run_id] * self.others, group="others")
        await bench.join([self._run_id] * self.followers, group="storm")
        # Not before: who comes to a run that is under way is written all of it.
        await (await bench.writer()).call("pace", run_id=self._run_id, per_second=PER_SECOND)

    async def measure(self, bench: Bench) -> None:
        """From the cut to the moment at which everybody has a chunk that was made after it had come back."""
        bench.say("calm")
        await asyncio.sleep(self.calm_seconds)  # everybody follows live
        bench.say("storm")
        crowd, own = await bench.crowd(), bench.runstream
        for group in ("others", "storm"):
            await crowd.call("restart", group=group)
        read = await own.metric(CAUGHT_UP_CHUNKS)
        gateway = CpuMeter([own.gateway_pid])
        back = {"path": path_of(self._run_id), "within": WITHIN_SECONDS, "seconds": WAIT_SECONDS}
        took = await crowd.call("come_back", **back, group="storm")
        told, back_told = [await crowd.call("told", group=group) for group in ("others", "storm")]
        read = await own.metric(CAUGHT_UP_CHUNKS) - read
        case, findings = f"{self.followers:,} followers", bench.findings
        findings.add("runstream", case, "all caught up", "s", took["last"], at_most=CAUGHT_UP_SECONDS)
        findings.add("runstream", case, "half of them caught up", "s", took["median"])
        findings.add("runstream", case, "turned away for a moment", "", back_told["turned_away"])
        findings.add("runstream", case, "chunks read from the log", "", read, at_most=READ_FROM_THE_LOG)
        gap = told["longest_gap"]
        findings.add("runstream", case, "longest pause of the others", "ms", gap, at_most=PAUSE_MS)
        findings.add("runstream", case, "the gateway's CPU per comer", "ms", gateway.used() * 1000 / self.followers)
