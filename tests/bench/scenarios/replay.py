"""Scenario 4, replay: who comes when a run is over, or nearly, in a log that many runs share."""

import time
from dataclasses import dataclass, field

from tests.bench.bench import WAIT_SECONDS, Bench
from tests.bench.figures import NS_PER_MS, percentile
from tests.bench.machine import CpuMeter
from tests.bench.writer import CURSOR_DISTANCE

COMPLETE_MS = 150.0
PER_SECOND = 150_000.0
FIRST_MS = 5.0
FILLER = 100_000
"""Chunks of each of the runs that do nothing but fill the log: a run may have twice as many."""


def _lengths() -> dict[str, int]:
    return {"short": 100, "long": 10_000, "longest": 100_000}


@dataclass
class Replay:
    """The runs are behind all others in the log, spread over each other, as if written at the same time: of the
    shortest, ten chunks are among eleven thousand of the others'."""

    lengths: dict[str, int] = field(default_factory=_lengths)
    stored: int = 1_000_000
    readers: int = 50
    resumes: int = 20
    name: str = "replay"
    title: str = "Replay: finished runs, in a log that many share"
    seconds: float = 300
    is_fresh: bool = False
    _run_ids: dict[str, str] = field(default_factory=dict)
    _cursors: dict[str, int] = field(default_factory=dict)

    async def prepare(self, bench: Bench) -> None:
        """Fill the log, past the publishers: one at a time this would take most of the bench."""
        bench.say(f"filling the log with {self.stored:,} chunks")
        writer = await bench.writer()
        rest = max(self.stored - sum(self.lengths.values()), 0)
        fillers = [FILLER] * (rest // FILLER) + [rest % FILLER] * (rest % FILLER > 0)
        older = await writer.call("fill", lengths=fillers)
        run_ids = await writer.call("fill", lengths=[*self.lengths.values()])
        self._run_ids = dict(zip(self.lengths, run_ids, strict=True))
        for name, run_id in self._run_ids.items():
            self._cursors[name] = await writer.call("cursor", run_id=run_id)
        await writer.call("end_many", run_ids=[*older, *run_ids])

    async def measure(self, bench: Bench) -> None:
        """One reader of all of it, many of them at once, and readers who lack the end."""
        await self._alone(bench)
        await self._together(bench)
        for name, length in self.lengths.items():
            bench.say(f"near the end of {length:,} chunks")
            found = [
                await bench.fetch(self._run_ids[name], self._cursors[name], chunks=CURSOR_DISTANCE)
                for _ in range(self.resumes)
            ]
            first = percentile([each["event"] for each in found], 50) / NS_PER_MS
            case = f"from {CURSOR_DISTANCE} before the end of {length:,}"
            bench.findings.add("runstream", case, "first byte p50", "ms", first, at_most=FIRST_MS)

    async def _alone(self, bench: Bench) -> None:
        length, own = self.lengths["long"], bench.runstream
        bench.say(f"{length:,} chunks, one reader")
        gateway, nats = CpuMeter([own.gateway_pid]), CpuMeter([own.nats_pid])
        found = await bench.fetch(self._run_ids["long"], chunks=length)
        case = f"{length:,} chunks, one reader"
        bench.findings.add("runstream", case, "complete", "ms", found["end"] / NS_PER_MS, at_most=COMPLETE_MS)
        bench.findings.add("runstream", case, "the gateway's CPU", "ms", gateway.used() * 1000)
        bench.findings.add("nats-server", case, "CPU", "ms", nats.used() * 1000)

    async def _together(self, bench: Bench) -> None:
        length, crowd = self.lengths["long"], await bench.crowd()
        case = f"{length:,} chunks, {self.readers} readers at once"
        bench.say(case)
        requests = [bench.runstream.request(self._run_ids["long"])] * self.readers
        begun = time.monotonic_ns()
        await crowd.call("join", requests=requests, seconds=WAIT_SECONDS, headers=False)
        ended = await crowd.call("reach", number=length, seconds=WAIT_SECONDS)
        rate = self.readers * length * 1e9 / (ended - begun)
        bench.findings.add("runstream", case, "chunks", "/s", rate, at_least=PER_SECOND)
        await crowd.call("leave")
