"""What a scenario has: runstream, the processes that load it, how much of everything, and where its figures go."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

from tests.bench import deployment
from tests.bench.deployment import Deployment, create_request, path_of
from tests.bench.figures import Figure
from tests.bench.load import Load, LoadProcess
from tests.bench.peers.contender import Entry

CHUNKS_PER_SECOND = 50
"""What a fast model says."""
WARM_UPS = 5
WAIT_SECONDS = 60.0
"""A bound on everything that is waited for and is not measured."""


@dataclass
class Findings:
    """The figures of one scenario, in the order in which they were first named, and what plots are drawn from."""

    figures: dict[str, Figure] = field(default_factory=dict)
    delays: dict[str, list[list[float]]] = field(default_factory=dict)
    """Of each case, for each run, the percentiles from 0 to 100 of the chunks' delays in ms."""
    is_judged: bool = True
    """Whether targets hold: they are for the whole form, and a small one neither meets nor misses them."""

    def add(
        self,
        who: str,
        case: str,
        what: str,
        unit: str,
        value: float,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        """Add one run's number."""
        bounds = (at_most, at_least) if self.is_judged else (None, None)
        figure = Figure(who, case, what, unit, *bounds)
        self.figures.setdefault(figure.key, figure).runs.append(value)


@dataclass
class Bench:
    """One deployment of runstream, as a scenario sees it; gone when the block ends."""

    runstream: Deployment
    load: Load
    others: tuple[Entry, ...]
    """Who is measured beside runstream, where a scenario compares."""
    say: Callable[[str], None]
    findings: Findings = field(default_factory=Findings)
    stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    """The servers that a scenario has started for all of its runs."""
    endings: list[Callable[[], Awaitable[object]]] = field(default_factory=list)
    """What ends the runs that a scenario has begun for all of its runs."""

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, others: tuple[Entry, ...], say: Callable[[str], None]) -> AsyncIterator[Self]:
        """Start runstream, and do each thing once, so that nobody's first time is measured."""
        async with Load.running() as load, deployment.serving(load) as runstream:
            bench = cls(runstream, load, others, say)
            await bench._warm_up()
            yield bench

    @contextlib.asynccontextmanager
    async def measuring(self, scenario: "Scenario", findings: Findings) -> AsyncIterator["Bench"]:
        """Prepare a scenario, whose figures go there; nothing of it goes on when the block has ended."""
        async with contextlib.AsyncExitStack() as stack:
            bench = replace(self, findings=findings, stack=stack, endings=[])
            async with asyncio.timeout(scenario.seconds):
                await scenario.prepare(bench)
            yield bench
            # Not after a failure: it would be hidden behind those of runs that nobody holds any more.
            await (await self.crowd()).call("leave")
            for ending in bench.endings:
                await ending()

    async def _warm_up(self) -> None:
        for _ in range(WARM_UPS):
            await self.create()
        run_id = await self.runstream.open()
        await (await self.writer()).call("publish", run_id=run_id, chunks=20)
        await self.runstream.close(run_id)
        await self.fetch(run_id)

    async def writer(self) -> LoadProcess:
        """The platform's process that writes runs."""
        return await self.runstream.writer()

    async def crowd(self) -> LoadProcess:
        """The process with very many readers, at runstream's gateway."""
        crowd = await self.load.process("crowd")
        await crowd.call("connect", base=self.runstream.base)
        return crowd

    async def join(self, run_ids: list[str], **given: Any) -> None:
        """Open a reader for each of the runs, in the crowd."""
        requests = [self.runstream.request(run_id) for run_id in run_ids]
        await (await self.crowd()).call("join", requests=requests, seconds=WAIT_SECONDS, **given)

    async def fetch(self, run_id: str, cursor: int = 0, *, chunks: int | None = None) -> Any:
        """Read a run from a cursor to its end; gives the nanoseconds to each step."""
        reader = await self._reader()
        body = {"starting_after": cursor}
        return await reader.call("fetch", path=path_of(run_id), body=body, until_end=True, chunks=chunks)

    async def create(self) -> Any:
        """Have the demo agent say one thing; gives the nanoseconds to each step."""
        path, body = create_request()
        return await (await self._reader()).call("fetch", path=path, body=body, until_end=True)

    async def _reader(self) -> LoadProcess:
        reader = await self.load.process("reader")
        await reader.call("connect", base=self.runstream.base)
        return reader


class Scenario(Protocol):
    """One of the nine. `prepare` is called once for all runs, or, if it `is_fresh`, for each, with a new runstream."""

    name: str
    title: str
    seconds: float
    """A bound on one run, and on the preparation."""
    is_fresh: bool

    async def prepare(self, bench: Bench) -> None:
        """Make what all runs need, and is not measured."""

    async def measure(self, bench: Bench) -> None:
        """Run once, and add a number to each figure."""
