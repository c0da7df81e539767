"""Scenario 2, many runs: each with a reader of its own, and all of them written at once."""

from dataclasses import dataclass, field
from functools import partial

from tests.bench.bench import WAIT_SECONDS, Bench
from tests.bench.figures import US_PER_SECOND
from tests.bench.machine import CpuMeter

P99_MS = 50.0
STORE_US = 25.0


@dataclass
class ManyRuns:
    """The runs go on from one measurement to the next."""

    runs: int = 2000
    per_second: float = 10_000
    load_seconds: float = 30
    name: str = "many-runs"
    title: str = "Many runs: all of them live, with a follower each"
    seconds: float = 240
    is_fresh: bool = False
    _run_ids: list[str] = field(default_factory=list)
    _written: int = 0

    async def prepare(self, bench: Bench) -> None:
        """Begin the runs, and have each followed."""
        bench.say("beginning the runs")
        writer = await bench.writer()
        self._run_ids = await writer.call("open_many", count=self.runs)
        bench.endings.append(partial(writer.call, "end_many", run_ids=self._run_ids))
        await bench.join(self._run_ids)

    async def measure(self, bench: Bench) -> None:
        """Write for as long as told; the readers see that nothing is lost."""
        bench.say(f"{self.runs} runs, {self.per_second:,} chunks/s")
        crowd, writer, own = await bench.crowd(), await bench.writer(), bench.runstream
        each = int(self.per_second * self.load_seconds / self.runs)
        await crowd.call("restart")
        gateway, nats = CpuMeter([own.gateway_pid]), CpuMeter([own.nats_pid])
        chunks = each * self.runs
        took = await writer.call("publish_over", run_ids=self._run_ids, count=chunks, per_second=self.per_second)
        self._written += each
        await crowd.call("reach", number=self._written, seconds=WAIT_SECONDS)
        told = await crowd.call("told")
        case, findings = f"{self.runs:,} runs, {self.per_second:,.0f} chunks/s", bench.findings
        # What does not keep the pace is not what was asked for, whatever its delays.
        findings.add("runstream", case, "chunks stored", "/s", chunks / took, at_least=0.98 * self.per_second)
        findings.add("runstream", case, "delay p50", "ms", told["percentiles"][50])
        findings.add("runstream", case, "delay p99", "ms", told["percentiles"][99], at_most=P99_MS)
        per_chunk = US_PER_SECOND / chunks
        findings.add("nats-server", case, "CPU per chunk", "µs", nats.used() * per_chunk, at_most=STORE_US)
        findings.add("runstream", case, "the gateway's CPU per chunk", "µs", gateway.used() * per_chunk)
        findings.delays.setdefault(f"runstream / {case}", []).append(told["percentiles"])
