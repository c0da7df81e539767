"""Scenario 6, slow readers: some take a kilobyte a second, and nobody else notices."""

from dataclasses import dataclass

from tests.bench.bench import WAIT_SECONDS, Bench
from tests.bench.figures import RATIO
from tests.bench.machine import forget_peak, peak_bytes, resident_bytes
from tests.bench.scenarios.burst import ALLOCATOR, MIB, RUN_BYTES

TO_WITHOUT = 1.2
PER_SECOND = 150
"""Chunks: what the slow leave to the gateway has to be more than what the kernel takes for them."""
SLOW_BYTES_PER_SECOND = 1000
SLOW_BYTES = 2.75 * MIB
"""What a stream may take whose reader takes too little (docs/bounds.md)."""


@dataclass
class SlowReaders:
    """The same twice, on a run each: with readers who are all fast, and with some who are slow."""

    followers: int = 300
    slow: int = 50
    load_seconds: float = 10
    name: str = "slow-readers"
    title: str = "Slow readers: some read 1 kB/s of 150 chunks/s"
    seconds: float = 180
    is_fresh: bool = False

    async def prepare(self, bench: Bench) -> None:
        """Nothing is needed."""

    async def measure(self, bench: Bench) -> None:
        """Compare what the fast ones see, then let the slow ones read to the end."""
        own = bench.runstream
        without, _ = await self._p99(bench, per_second=0)
        forget_peak(own.gateway_pid)
        before = resident_bytes(own.gateway_pid)
        with_slow, peak = await self._p99(bench, per_second=SLOW_BYTES_PER_SECOND)
        bound = (self.slow * SLOW_BYTES + RUN_BYTES) * ALLOCATOR / MIB
        case, findings = f"{self.slow} slow of {self.followers}", bench.findings
        ratio = with_slow / max(without, 1e-9)
        findings.add("runstream", case, "p99 of the others, to without", RATIO, ratio, at_most=TO_WITHOUT)
        findings.add("runstream", case, "delay p99 of the others", "ms", with_slow)
        findings.add("runstream", case, "delay p99 without", "ms", without)
        findings.add("runstream", case, "the gateway's memory grew by", "MiB", (peak - before) / MIB, at_most=bound)

    async def _p99(self, bench: Bench, *, per_second: int) -> tuple[float, int]:
        """What the fast see in ms, and the gateway's peak, on a new run whose slow readers have that pace."""
        bench.say(f"{self.slow} at {per_second} B/s" if per_second else "all of them fast")
        crowd, own = await bench.crowd(), bench.runstream
        chunks = int(self.load_seconds * PER_SECOND)
        run_id = await own.open()
        await bench.join([run_id] * (self.followers - self.slow), group="fast")
        await bench.join([run_id] * self.slow, group="slow", per_second=per_second)
        await crowd.call("restart", group="fast")
        await own.write(run_id, chunks, PER_SECOND)
        await crowd.call("reach", number=chunks, seconds=WAIT_SECONDS, group="fast")
        told = await crowd.call("told", group="fast")
        peak = peak_bytes(own.gateway_pid)
        await crowd.call("hurry", group="slow")
        await crowd.call("reach", number=chunks, seconds=WAIT_SECONDS, group="slow")
        await crowd.call("leave")
        await own.close(run_id)
        return told["percentiles"][99], peak
