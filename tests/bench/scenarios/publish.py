"""Scenario 8, publish: what it takes until a chunk is stored, through the library and over HTTP."""

from dataclasses import dataclass

from runstream.schemas import new_agent_id
from tests.bench.bench import Bench
from tests.bench.figures import NS_PER_MS, US_PER_SECOND, percentile
from tests.bench.machine import CpuMeter

STORED_MS = 0.2
PER_SECOND = 20_000.0
INGEST_PER_SECOND = 15_000.0
BATCH = 100


@dataclass
class Publish:
    """The library's writer is a process of its own, as it is within a broker."""

    singly: int = 2000
    runs: int = 500
    chunks: int = 100
    uploads: int = 50
    batches: int = 20
    name: str = "publish"
    title: str = "Publish: until a chunk is stored"
    seconds: float = 120
    is_fresh: bool = False

    async def prepare(self, bench: Bench) -> None:
        """Nothing is needed."""

    async def measure(self, bench: Bench) -> None:
        """One at a time, over many runs at once, and in batches over HTTP."""
        await self._singly(bench)
        await self._over_many(bench)
        await self._ingest(bench)

    async def _singly(self, bench: Bench) -> None:
        bench.say("one at a time")
        run_id = await bench.runstream.open()
        took = await (await bench.writer()).call("publish", run_id=run_id, chunks=self.singly)
        await bench.runstream.close(run_id)
        stored = (percentile(took, at) / NS_PER_MS for at in (50, 99))
        for name, value, at_most in zip(("p50", "p99"), stored, (STORED_MS, None), strict=True):
            bench.findings.add("runstream", "one run", f"stored after, {name}", "ms", value, at_most=at_most)

    async def _over_many(self, bench: Bench) -> None:
        case, writer = f"{self.runs} runs at once", await bench.writer()
        bench.say(case)
        run_ids = await writer.call("open_many", count=self.runs)
        nats = CpuMeter([bench.runstream.nats_pid])
        took = await writer.call("publish_at_once", run_ids=run_ids, count=self.chunks)
        chunks = self.runs * self.chunks
        bench.findings.add("runstream", case, "chunks stored", "/s", chunks / took, at_least=PER_SECOND)
        bench.findings.add("nats-server", case, "CPU per chunk", "µs", nats.used() * US_PER_SECOND / chunks)
        await writer.call("end_many", run_ids=run_ids)

    async def _ingest(self, bench: Bench) -> None:
        case = f"HTTP, {self.uploads} runs at once, {BATCH} lines a request"
        bench.say(case)
        sender = await bench.load.process("sender")
        await sender.call("connect", base=bench.runstream.broker_base)
        broker = CpuMeter([bench.runstream.broker_pid])
        agent_ids = [new_agent_id() for _ in range(self.uploads)]
        took = await sender.call("ingest", agent_ids=agent_ids, batches=self.batches, batch=BATCH)
        chunks = self.uploads * self.batches * BATCH
        bench.findings.add("runstream", case, "chunks stored", "/s", chunks / took, at_least=INGEST_PER_SECOND)
        cpu = broker.used() * US_PER_SECOND / chunks
        bench.findings.add("runstream", case, "the broker's CPU per chunk", "µs", cpu)
