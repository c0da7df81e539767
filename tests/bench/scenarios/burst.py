"""Scenario 3, a burst: one run, written as fast as its writer can."""

import time
from dataclasses import dataclass

from tests.bench.bench import Bench
from tests.bench.machine import CpuMeter, forget_peak, peak_bytes, resident_bytes

PER_SECOND = 400_000.0
MIB = 2**20
FOLLOWER_BYTES = 256 * 1024
"""`RUNSTREAM_FOLLOWER_BUFFER_BYTES`: what may wait for one follower that keeps up with the others."""
RUN_BYTES = 14 * MIB
"""What a run that somebody follows may take (docs/bounds.md)."""
ALLOCATOR = 1.25


@dataclass
class Burst:
    """A run of its own each time."""

    followers: int = 300
    chunks: int = 20_000
    name: str = "burst"
    title: str = "Burst: one run, written as fast as its writer can"
    seconds: float = 150
    is_fresh: bool = False

    async def prepare(self, bench: Bench) -> None:
        """Nothing is needed."""

    async def measure(self, bench: Bench) -> None:
        """From the first chunk to the last follower's last."""
        case, own = f"{self.chunks:,} chunks, {self.followers} followers", bench.runstream
        bench.say(case)
        crowd, writer = await bench.crowd(), await bench.writer()
        run_id = await own.open()
        await bench.join([run_id] * self.followers)
        await crowd.call("restart", timing=False)
        forget_peak(own.gateway_pid)
        before = resident_bytes(own.gateway_pid)
        gateway, begun = CpuMeter([own.gateway_pid]), time.monotonic_ns()
        await writer.call("pour", run_id=run_id, count=self.chunks)
        stored_ns = time.monotonic_ns() - begun
        ended = await crowd.call("reach", number=self.chunks, seconds=self.seconds)
        deliveries = self.chunks * self.followers
        grown = (peak_bytes(own.gateway_pid) - before) / MIB
        bound = (self.followers * FOLLOWER_BYTES + RUN_BYTES) * ALLOCATOR / MIB
        rate, findings = deliveries * 1e9 / (ended - begun), bench.findings
        findings.add("runstream", case, "chunks delivered", "/s", rate, at_least=PER_SECOND)
        findings.add("runstream", case, "chunks stored", "/s", self.chunks * 1e9 / stored_ns)
        findings.add("runstream", case, "the gateway's CPU per chunk", "µs", gateway.used() * 1e6 / deliveries)
        findings.add("runstream", case, "the gateway's memory grew by", "MiB", grown, at_most=bound)
        await crowd.call("leave")
        await own.close(run_id)
