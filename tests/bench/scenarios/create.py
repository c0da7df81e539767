"""Scenario 9, create: from a client's request to the first byte of an answer."""

from dataclasses import dataclass

from tests.bench.bench import Bench
from tests.bench.figures import NS_PER_MS, percentile

FIRST_MS = 8.0
STEPS = {"event": "first byte", "chunk": "the agent's first chunk", "end": "[DONE], after one chunk"}


@dataclass
class Create:
    """The demo agent answers at once."""

    creates: int = 50
    name: str = "create"
    title: str = "Create: a message to the demo agent, streamed"
    seconds: float = 60
    is_fresh: bool = False

    async def prepare(self, bench: Bench) -> None:
        """Nothing is needed."""

    async def measure(self, bench: Bench) -> None:
        """One after the other."""
        bench.say(f"{self.creates} messages")
        found = [await bench.create() for _ in range(self.creates)]
        for step, name in STEPS.items():
            took = percentile([each[step] for each in found], 50) / NS_PER_MS
            at_most = FIRST_MS if step == "event" else None
            bench.findings.add("runstream", "a new run", f"{name}, p50", "ms", took, at_most=at_most)
