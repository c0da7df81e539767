"""What is measured: each scenario drives the load processes through its rounds and gives its figures."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from runstream.schemas import new_agent_id
from tests.bench.figures import NS_PER_MS, Figure
from tests.bench.load import LoadProcess
from tests.bench.machine import CpuMeter
from tests.bench.writer import CHUNK_BYTES, CURSOR_DISTANCE

CHUNKS_PER_SECOND = 50
"""What a fast model says."""
CROWD = 100
SHORT, LONG, LONGEST = 100, 10_000, 100_000


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    rounds: int = 5
    publishes: int = 2000
    paced: int = 150
    full_resumes: int = 3
    resumes: int = 20
    claims: int = 20


QUICK = Sizes(publishes=500, paced=40, full_resumes=1, resumes=5, claims=5)


@dataclass(frozen=True)
class Bench:
    """A server, and the processes that load it."""

    pid: int
    reader: LoadProcess
    writer: LoadProcess
    sizes: Sizes
    say: Callable[[str], None]

    async def resume(self, run_id: str, cursor: int = 0, *, until_end: bool = True, chunks: int | None = None) -> Any:
        """Come back to a run; gives the nanoseconds to each step."""
        return await self.reader.call(
            "fetch",
            path=f"/v1/runs/{run_id}/stream",
            body={"starting_after": cursor},
            until_end=until_end,
            chunks=chunks,
        )

    async def post(self, chunks: int = 1) -> Any:
        """Have the demo agent answer; gives the nanoseconds to each step."""
        return await self.reader.call(
            "fetch",
            path=f"/v1/agents/{new_agent_id()}/messages/stream",
            body={"background": True, "input": f'{{"chunks": {chunks}, "interval_ms": 0}}'},
            until_end=True,
        )

    async def follow(self, run_id: str, count: int) -> None:
        """Open `count` followers of a run."""
        path = f"/v1/runs/{run_id}/stream"
        await self.reader.call("follow", path=path, body={}, count=count)

    @asynccontextmanager
    async def live_run(self, length: int) -> AsyncIterator[str]:
        """A run of that length that goes on meanwhile."""
        (run_id,) = await self.writer.call("fill", lengths=[length])
        await self.writer.call("pace", run_id=run_id, per_second=CHUNKS_PER_SECOND)
        try:
            yield run_id
        finally:
            await self.writer.call("end", run_id=run_id)


async def warm_up(bench: Bench) -> None:
    """Do each thing once, so that nobody's first time is measured."""
    bench.say("warming up")
    for _ in range(5):
        await bench.post()
    (run_id,) = await bench.writer.call("fill", lengths=[1000])
    await bench.writer.call("publish", run_id=run_id, count=200)
    await bench.writer.call("end", run_id=run_id)
    await bench.resume(run_id)


async def publishing(bench: Bench) -> AsyncIterator[Figure]:
    """Figure 1: from `publish` to its return, which is when the chunk is stored."""
    figure = Figure("publish", "publish to stored", target_ms=0.3)
    for number in range(bench.sizes.rounds):
        bench.say(f"publish to stored, round {number + 1}")
        run_id = await bench.writer.call("open")
        figure.add(await bench.writer.call("publish", run_id=run_id, count=bench.sizes.publishes))
        await bench.writer.call("end", run_id=run_id)
    figure.note = f"one at a time: {1000 / figure.p50:,.0f} chunks/s per run"
    yield figure


async def following(bench: Bench) -> AsyncIterator[Figure]:
    """Figure 2: from the writer's stamp to the follower's socket, the time it takes to store included."""
    for count, target in ((1, 2.0), (CROWD, None)):
        name = "publish to a follower's socket" if count == 1 else f"publish to the sockets of {count} followers"
        figure = Figure(f"deliver_{count}", name, target_ms=target)
        stored, used = Figure("stored", ""), 0.0
        for number in range(bench.sizes.rounds):
            bench.say(f"{name}, round {number + 1}")
            run_id = await bench.writer.call("open")
            await bench.follow(run_id, count)
            meter = CpuMeter(bench.pid)
            paced = {"count": bench.sizes.paced, "per_second": CHUNKS_PER_SECOND}
            stored.add(await bench.writer.call("publish", run_id=run_id, **paced))
            used += meter.used()[0]
            await bench.writer.call("end", run_id=run_id)
            figure.add(await bench.reader.call("followed", chunks=bench.sizes.paced))
        each = used * 1e6 / figure.samples
        figure.note = (
            f"{CHUNKS_PER_SECOND} chunks/s, stored after {stored.p50:.2f} ms; "
            f"{each:,.0f} µs of the gateway's CPU per delivery"
        )
        yield figure


async def resuming(bench: Bench) -> AsyncIterator[Figure]:
    """Figures 3 and 4: a client that comes back, to the beginning or near the end, of runs of every length."""
    bench.say("filling runs")
    # The longest run shares its stretch of the stream with one of ten thousand, as it would in production.
    runs: dict[str, str] = {}
    cursors: dict[str, int] = {}
    for lengths in ({"short": SHORT}, {"long": LONG}, {"longest": LONGEST, "spread": LONG}):
        filled = await bench.writer.call("fill", lengths=list(lengths.values()))
        for name, run_id in zip(lengths, filled, strict=True):
            runs[name] = run_id
            cursors[name] = await bench.writer.call("cursor", run_id=run_id)
            # At once: an end far behind its run's last chunk is nothing that happens.
            await bench.writer.call("end", run_id=run_id)

    full = Figure("full", f"resume {LONG:,} chunks from 0 to [DONE]", target_ms=300.0)
    yield await _from_the_beginning(bench, full, runs["long"])
    full = Figure("full_spread", f"resume {LONG:,} chunks that are spread over {LONG + LONGEST:,}")
    yield await _from_the_beginning(bench, full, runs["spread"])
    near = f"resume {CURSOR_DISTANCE} before the end"
    rows = (
        ("short", f"{near} of {SHORT:,} chunks", 10.0),
        ("long", f"{near} of {LONG:,} chunks", 10.0),
        ("longest", f"{near} of {LONGEST:,} chunks", 10.0),
        ("spread", f"{near} of {LONG:,} chunks, spread", None),
    )
    for key, name, target in rows:
        figure = Figure(f"near_end_{key}", name, target_ms=target)
        yield await _near_the_end(bench, figure, runs[key], cursors[key])


async def _from_the_beginning(bench: Bench, figure: Figure, run_id: str) -> Figure:
    size = 0
    meter = CpuMeter(bench.pid)
    for number in range(bench.sizes.rounds):
        bench.say(f"{figure.name}, round {number + 1}")
        found = [await bench.resume(run_id, chunks=LONG) for _ in range(bench.sizes.full_resumes)]
        figure.add(each["end"] for each in found)
        size = found[0]["bytes"]
    gateway, nats = (seconds * 1000 / figure.samples for seconds in meter.used())
    figure.note = (
        f"{size / 1e6 / (figure.p50 / 1000):.1f} MB/s, {LONG / figure.p50 * 1000:,.0f} chunks/s; "
        f"CPU: gateway {gateway:.0f} ms, nats-server {nats:.0f} ms"
    )
    return figure


async def _near_the_end(bench: Bench, figure: Figure, run_id: str, cursor: int) -> Figure:
    ends = []
    for number in range(bench.sizes.rounds):
        bench.say(f"{figure.name}, round {number + 1}")
        found = [await bench.resume(run_id, cursor, chunks=CURSOR_DISTANCE) for _ in range(bench.sizes.resumes)]
        figure.add(each["event"] for each in found)
        ends += [each["end"] / NS_PER_MS for each in found]
    figure.note = f"to the first event; [DONE] after {sorted(ends)[len(ends) // 2]:.1f} ms"
    return figure


async def resuming_live(bench: Bench) -> AsyncIterator[Figure]:
    """Figure 4 for a run that goes on: nobody else follows it, or somebody does."""
    async with bench.live_run(LONG) as run_id:
        for key, others in (("alone", 0), ("shared", 1)):
            name = f"resume {CURSOR_DISTANCE} before the tip of a live run, {'followed' if others else 'not followed'}"
            figure = Figure(f"near_end_live_{key}", name, target_ms=10.0)
            if others:
                await bench.follow(run_id, others)
            for number in range(bench.sizes.rounds):
                bench.say(f"{name}, round {number + 1}")
                found = []
                for _ in range(bench.sizes.resumes):
                    cursor = await bench.writer.call("cursor", run_id=run_id)
                    found.append(await bench.resume(run_id, cursor, until_end=False))
                figure.add(each["event"] for each in found)
            await bench.reader.call("leave")
            yield figure


async def claiming(bench: Bench) -> AsyncIterator[Figure]:
    """Figure 5: from the request to the headers, the first event and the agent's first chunk."""
    figures = {
        "headers": Figure("claim_headers", "new run to its headers"),
        "event": Figure("claim_event", "new run to its first event"),
        "chunk": Figure("claim_chunk", "new run to the agent's first chunk"),
        "end": Figure("claim_end", "new run of one chunk to [DONE]"),
    }
    for number in range(bench.sizes.rounds):
        bench.say(f"new runs, round {number + 1}")
        found = [await bench.post() for _ in range(bench.sizes.claims)]
        for step, figure in figures.items():
            figure.add(each[step] for each in found)
    for figure in figures.values():
        yield figure


SCENARIOS = (publishing, following, resuming, resuming_live, claiming)
FACTS = {"chunk_bytes": CHUNK_BYTES}
