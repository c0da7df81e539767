"""Scenario 7, idle: very many open followers to whom nothing is said."""

import asyncio
from dataclasses import dataclass

from tests.bench.bench import Bench
from tests.bench.machine import CpuMeter, resident_bytes

RESIDENT_KIB = 16.0
PERCENT_OF_A_CORE = 5.0
KIB = 1024


@dataclass
class Idle:
    """A new gateway each time: memory that another crowd has left behind would not grow."""

    followers: int = 10_000
    runs: int = 100
    quiet_seconds: float = 25
    """Longer than what passes from one ping to the next: everybody has one of those."""
    name: str = "idle"
    title: str = "Idle: open followers of silent runs, on one gateway"
    seconds: float = 180
    is_fresh: bool = True

    async def prepare(self, bench: Bench) -> None:
        """Nothing is needed."""

    async def measure(self, bench: Bench) -> None:
        """What it grows by when they come, and what it does while they are there."""
        case, own, findings = f"{self.followers:,} followers", bench.runstream, bench.findings
        bench.say(f"gathering {case}")
        run_ids = await (await bench.writer()).call("open_many", count=self.runs)
        before = resident_bytes(own.gateway_pid)
        await bench.join([run_ids[at % self.runs] for at in range(self.followers)])
        bench.say("silence")
        gateway = CpuMeter([own.gateway_pid])
        await asyncio.sleep(self.quiet_seconds)  # what is measured
        busy = gateway.used() * 100 / self.quiet_seconds
        grown = (resident_bytes(own.gateway_pid) - before) / KIB / self.followers
        findings.add("runstream", case, "resident, each", "KiB", grown, at_most=RESIDENT_KIB)
        findings.add("runstream", case, "of a core", "%", busy, at_most=PERCENT_OF_A_CORE)
        await (await bench.crowd()).call("leave")
