"""Scenario 4, replay: who comes when a run is over, or nearly, in a log that many runs share."""

import time
from dataclasses import dataclass, field

from tests.bench.bench import WAIT_SECONDS, Bench
from tests.bench.figures import NS_PER_MS, percentile
from tests.bench.machine import CpuMeter

COMPLETE_MS = 150.0
PER_SECOND = 150_000.0
FIRST_MS = 5.0
NEAREST = 10
"""Chunks that the nearest of the cursors near an end lacks."""
WHOLE = ("alone", "together")
"""The runs that are read from their beginning, by one and by many."""
FILLER = 100_000
"""Chunks of each of the runs that do nothing but fill the log: a run may have twice as many."""


def _lengths() -> dict[str, int]:
    return {"long": 10_000, "short": 100, "longest": 100_000, "alone": 10_000, "together": 10_000}


@dataclass
class Replay:
    """The runs are behind all others in the log, spread over each other, as if written at the same time: of the
    shortest, ten chunks are among eleven thousand of the others'.

    Each is read from the log and not from what the gateway has kept of it: they are new for each measurement, and of
    the cursors near an end each lacks one chunk more than the one before. What is read from memory says so.
    """

    lengths: dict[str, int] = field(default_factory=_lengths)
    stored: int = 1_000_000
    readers: int = 50
    resumes: int = 20
    name: str = "replay"
    title: str = "Replay: finished runs, in a log that many share"
    seconds: float = 300
    is_fresh: bool = False

    async def prepare(self, bench: Bench) -> None:
        """Fill the log, past the publishers: one at a time this would take most of the bench."""
        bench.say(f"filling the log with {self.stored:,} chunks")
        writer = await bench.writer()
        older = await writer.call("fill", lengths=[FILLER] * (self.stored // FILLER) + [self.stored % FILLER])
        await writer.call("end_many", run_ids=older)

    async def measure(self, bench: Bench) -> None:
        """One reader of all of it, many of them at once, and readers who lack the end."""
        bench.say("writing the runs")
        writer = await bench.writer()
        runs: dict[str, str] = {}
        for names in ([name for name in self.lengths if name not in WHOLE], WHOLE):
            filled = await writer.call("fill", lengths=[self.lengths[name] for name in names])
            runs |= dict(zip(names, filled, strict=True))
        near = range(NEAREST, NEAREST + self.resumes)
        cursors = {
            name: await writer.call("cursors", run_id=runs[name], distances=[*near])
            for name in self.lengths
            if name not in WHOLE
        }
        await writer.call("end_many", run_ids=[*runs.values()])
        await self._near_the_end(bench, {runs[name]: (self.lengths[name], each) for name, each in cursors.items()})
        await self._alone(bench, runs["alone"])
        await self._together(bench, runs["together"])

    async def _near_the_end(self, bench: Bench, runs: dict[str, tuple[int, list[int]]]) -> None:
        for run_id, (length, cursors) in runs.items():
            bench.say(f"near the end of {length:,} chunks")
            found = [
                await bench.fetch(run_id, cursor, chunks=distance) for distance, cursor in enumerate(cursors, NEAREST)
            ]
            first = percentile([each["event"] for each in found], 50) / NS_PER_MS
            case = f"from {NEAREST} or a few more before the end of {length:,}"
            bench.findings.add("runstream", case, "first byte p50", "ms", first, at_most=FIRST_MS)

    async def _alone(self, bench: Bench, run_id: str) -> None:
        length, own = self.lengths["alone"], bench.runstream
        case = f"{length:,} chunks, one reader"
        bench.say(case)
        gateway, nats = CpuMeter([own.gateway_pid]), CpuMeter([own.nats_pid])
        found = await bench.fetch(run_id, chunks=length)
        bench.findings.add("runstream", case, "complete", "ms", found["end"] / NS_PER_MS, at_most=COMPLETE_MS)
        bench.findings.add("runstream", case, "the gateway's CPU", "ms", gateway.used() * 1000)
        bench.findings.add("nats-server", case, "CPU", "ms", nats.used() * 1000)
        again = await bench.fetch(run_id, chunks=length)
        bench.findings.add("runstream", case, "complete, once it is in memory", "ms", again["end"] / NS_PER_MS)

    async def _together(self, bench: Bench, run_id: str) -> None:
        length, crowd = self.lengths["together"], await bench.crowd()
        case = f"{length:,} chunks, {self.readers} readers at once"
        bench.say(case)
        requests = [bench.runstream.request(run_id)] * self.readers
        begun = time.monotonic_ns()
        await crowd.call("join", requests=requests, seconds=WAIT_SECONDS, headers=False)
        ended = await crowd.call("reach", number=length, seconds=WAIT_SECONDS)
        rate = self.readers * length * 1e9 / (ended - begun)
        bench.findings.add("runstream", case, "chunks", "/s", rate, at_least=PER_SECOND)
        await crowd.call("leave")
