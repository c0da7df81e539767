"""Scenario 4, replay: who comes when a run is over, or nearly, in a log that many runs share."""

import time
from dataclasses import dataclass, field

from tests.bench.bench import WAIT_SECONDS, Bench
from tests.bench.figures import NS_PER_MS, percentile
from tests.bench.load import LoadProcess
from tests.bench.machine import CpuMeter

COMPLETE_MS = 150.0
PER_SECOND = 150_000.0
FIRST_MS = 5.0
NEAREST = 10
"""Chunks that the nearest of the cursors near an end lacks."""
FILLER = 100_000
"""Chunks of each of the runs that do nothing but fill the log: a run may have twice as many."""


def _lengths() -> dict[str, int]:
    return {"short": 100, "long": 10_000, "longest": 100_000}


@dataclass
class Replay:
    """The runs are behind all others in the log, spread over each other, as if written at the same time: of the
    shortest, ten chunks are among eleven thousand of the others'.

    The gateway has none of them in its memory, but where that is said: they are new for each measurement, those that
    are read from the beginning are others, and of the cursors near an end each lacks one chunk more than the one
    before. (The server has: it keeps what was written in the last seconds.)
    """

    lengths: dict[str, int] = field(default_factory=_lengths)
    stored: int = 1_000_000
    readers: int = 50
    resumes: int = 20
    name: str = "replay"
    title: str = "Replay: finished runs, in a log that many share"
    seconds: float = 300
    is_fresh: bool = False
    _cursors: dict[str, list[int]] = field(default_factory=dict)

    async def prepare(self, bench: Bench) -> None:
        """Fill the log, past the publishers: one at a time this would take most of the bench."""
        bench.say(f"filling the log with {self.stored:,} chunks")
        writer = await bench.writer()
        rest = self.stored % FILLER
        await self._filled(writer, [FILLER] * (self.stored // FILLER) + [rest] * (rest > 0))

    async def measure(self, bench: Bench) -> None:
        """One reader of all of it, many of them at once, and readers who lack the end."""
        bench.say("writing the runs")
        writer = await bench.writer()
        long, longest = self.lengths["long"], max(self.lengths.values())
        alone, together, _ = await self._filled(writer, [long, long, longest])
        near = await self._filled(writer, [*self.lengths.values()])
        for run_id, length in zip(near, self.lengths.values(), strict=True):
            await self._near_the_end(bench, run_id, length)
        await self._alone(bench, alone)
        await self._together(bench, together)

    async def _filled(self, writer: LoadProcess, lengths: list[int]) -> list[str]:
        """Write runs of that many chunks, spread over each other, and end them; gives their ids."""
        run_ids: list[str] = await writer.call("fill", lengths=lengths)
        distances = [*range(NEAREST, NEAREST + self.resumes)]
        for run_id, length in zip(run_ids, lengths, strict=True):
            if length > distances[-1]:
                self._cursors[run_id] = await writer.call("cursors", run_id=run_id, distances=distances)
        await writer.call("end_many", run_ids=run_ids)
        return run_ids

    async def _near_the_end(self, bench: Bench, run_id: str, length: int) -> None:
        bench.say(f"near the end of {length:,} chunks")
        near = enumerate(self._cursors[run_id], NEAREST)
        found = [await bench.fetch(run_id, cursor, chunks=distance) for distance, cursor in near]
        first = percentile([each["event"] for each in found], 50) / NS_PER_MS
        case = f"from {NEAREST} to {NEAREST + self.resumes - 1} before the end of {length:,}"
        bench.findings.add("runstream", case, "first byte p50", "ms", first, at_most=FIRST_MS)

    async def _alone(self, bench: Bench, run_id: str) -> None:
        length, own = self.lengths["long"], bench.runstream
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
        length, crowd = self.lengths["long"], await bench.crowd()
        case = f"{length:,} chunks, {self.readers} readers at once"
        bench.say(case)
        requests = [bench.runstream.request(run_id)] * self.readers
        begun = time.monotonic_ns()
        await crowd.call("join", requests=requests, seconds=WAIT_SECONDS, headers=False)
        ended = await crowd.call("reach", number=length, seconds=WAIT_SECONDS)
        rate = self.readers * length * 1e9 / (ended - begun)
        bench.findings.add("runstream", case, "chunks", "/s", rate, at_least=PER_SECOND)
        await crowd.call("leave")
