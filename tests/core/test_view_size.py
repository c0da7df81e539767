"""The view at a hundred thousand runs: what a page costs, whatever is asked for, and what it costs to get there."""

import asyncio
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runstream.broker.index import Index
from runstream.broker.keys import run_key, subject_of
from runstream.broker.rows import Bounds, ConversationFilter, ConversationRows, Position, RunFilter, RunRows, Span
from runstream.broker.view import View
from runstream.schemas import (
    RUN_STATUSES,
    STOP_REASONS,
    ConversationRecord,
    RunRecord,
    RunStatus,
    encode_run,
    new_agent_id,
    new_conversation_id,
    new_run_id,
)
from tests.support.core import Core, core_running
from tests.support.nats import nats_server_running

RUNS = 100_000
PAGE_SECONDS = 0.02
"""What a page may take of the event loop, 99 times of 100."""
BATCH = 1000

CHANCE = random.Random(17)
AGENTS = [new_agent_id() for _ in range(500)]
BUSIEST = new_agent_id()
"""It has half of all the runs."""
CONVERSATIONS = [new_conversation_id() for _ in range(20_000)]


def some_runs(count: int) -> Iterator[RunRecord]:
    """Runs of all kinds; a few go on, and of some kinds there is hardly one."""
    for number in range(count):
        status: RunStatus = CHANCE.choices(RUN_STATUSES, weights=[1, 5, 900, 80, 14])[0]  # type: ignore[assignment]
        is_active = status in {"created", "running"}
        reason = "end_turn" if status == "completed" else CHANCE.choice(STOP_REASONS)
        yield RunRecord(
            id=new_run_id(),
            status=status,
            created_at=f"2026-11-21T{number // 10_000:02}:{number // 1000 % 10:02}:00.{number % 1000:06}Z",
            completed_at=None if is_active else "2026-11-21T11:11:11.111111",
            agent_id=BUSIEST if number % 2 else CHANCE.choice(AGENTS),
            conversation_id=CHANCE.choice([None, *CONVERSATIONS]),
            background=CHANCE.random() < 0.5,
            stop_reason=None if is_active else reason,
            shard=0,
            total_duration_ns=CHANCE.randrange(10**10),
        )


def questions(positions: Sequence[Position]) -> Iterator[tuple[RunFilter, Span]]:
    """Every filter, alone and with others, in both orders, at cursors anywhere, with pages of any length."""
    filters: list[dict[str, Any]] = [
        {},
        *({"statuses": [status]} for status in RUN_STATUSES),
        {"statuses": ["created", "running"]},
        {"statuses": ["failed", "completed"]},
        *({"stop_reason": reason} for reason in STOP_REASONS),
        {"background": True},
        {"background": False, "stop_reason": "insufficient_credits", "statuses": ["completed", "failed"]},
    ]
    whose: list[dict[str, Any]] = [
        {},
        {"agent_ids": [AGENTS[0]]},
        {"agent_ids": [BUSIEST]},
        {"agent_ids": AGENTS[:100]},
        {"conversation_id": CONVERSATIONS[0]},
        {"conversation_id": CONVERSATIONS[0], "agent_ids": [BUSIEST]},
    ]
    for chosen, owner in itertools.product(filters, whose):
        wanted = RunFilter(tenant="default", **chosen, **owner)
        for descending, limit in itertools.product((True, False), (1, 100, 1000)):
            cursor = CHANCE.choice(positions)
            span = Span(limit=limit, descending=descending)
            yield wanted, span
            yield wanted, msgspec.structs.replace(span, after=cursor)
            yield wanted, msgspec.structs.replace(span, before=cursor)


def p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.99)]


@pytest.mark.long
def test_any_page_of_runs_is_short_work() -> None:
    """With its JSON: the processor's time, as this machine's has other work. Beside it, writes are short work, too."""
    rows = RunRows(Bounds(RUNS, 2**40))
    records = list(some_runs(RUNS))
    for record in records:
        rows.put(record)
    positions = [(record.created_at, record.id) for record in CHANCE.sample(records, 500)]
    taken: list[float] = []
    for wanted, span in questions(positions):
        began = time.thread_time()
        page = b",".join([row.wire for row in rows.page(wanted, span)])
        taken.append(time.thread_time() - began)
        assert len(page) < 2**21
    assert p99(taken) < PAGE_SECONDS
    written: list[float] = []
    for record in some_runs(2000):
        began = time.thread_time()
        rows.put(record)
        written.append(time.thread_time() - began)
    assert len(rows) == RUNS
    assert p99(written) < PAGE_SECONDS / 10
    print(f"{len(taken)} pages, p99 {p99(taken) * 1e3:.2f} ms, longest {max(taken) * 1e3:.2f} ms; ", end="")
    print(f"writes p99 {p99(written) * 1e3:.3f} ms")


@pytest.mark.long
def test_any_page_of_conversations_is_short_work() -> None:
    """Each turn of the event loop that is taken for one: also where text is searched that nobody has written."""
    rows = ConversationRows(Bounds(RUNS, 2**40))
    for revision in range(1, RUNS + 1):
        at = f"2026-11-21T{revision // 10_000:02}:{revision // 1000 % 10:02}:00.{revision % 1000:06}Z"
        used = at if revision % 3 else None
        rows.put(
            ConversationRecord(
                id=new_conversation_id(),
                agent_id=BUSIEST if revision % 2 else CHANCE.choice(AGENTS),
                created_at=at,
                last_message_at=used,
                last_run_completion=used,
                summary=f"Talk {revision} about the sea",
            ),
            revision,
        )
    orders: list[Any] = ["created_at", "last_message_at", "last_run_completion"]
    taken: list[float] = []
    for order_by, descending, owner, limit in itertools.product(
        orders, (True, False), (None, BUSIEST, AGENTS[0]), (1, 100, 2000)
    ):
        wanted = ConversationFilter(tenant="default", agent_id=owner, archived=False, summary="ocean")
        for _ in range(3):
            began = time.thread_time()
            part = rows.candidates(wanted, order_by, Span(limit=limit, descending=descending))
            found = [row.wire for row in part if wanted.takes(row)]
            taken.append(time.thread_time() - began)
            assert found == []
    assert p99(taken) < PAGE_SECONDS
    print(f"{len(taken)} turns, p99 {p99(taken) * 1e3:.2f} ms")


def memory() -> int:
    """Bytes that this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def fill(core: Core, records: Sequence[RunRecord]) -> None:
    """Store records, fast: only some of the answers are waited for."""
    for number, record in enumerate(records, start=1):
        subject, value = subject_of(run_key("default", record.id)), encode_run(record)
        if number % BATCH:
            await core.connection.publish(subject, value)
        else:
            await core.jetstream.publish(subject, value, {})


@pytest.mark.long
async def test_the_view_is_filled_beside_other_work(tmp_path: Path) -> None:
    """A hundred thousand runs are read in seconds, at a kilobyte or two each, and nobody waits for that meanwhile."""
    async with nats_server_running(tmp_path) as server, core_running(server.url) as core:
        records = list(some_runs(RUNS))
        await fill(core, records)
        held: list[float] = []

        async def other_work() -> None:
            while True:
                began = time.thread_time()
                await asyncio.sleep(0)
                held.append(time.thread_time() - began)

        bounds = Bounds(RUNS, 2**40)
        before, began, used = memory(), time.monotonic(), time.process_time()
        async with View(
            core.jetstream,
            Index(core.jetstream),
            runs=bounds,
            conversations=bounds,
            patience_seconds=60,
            marks_seconds=3600,
        ) as view:
            working = asyncio.create_task(other_work())
            page = await view.runs(RunFilter(tenant="default"), Span(limit=1000))
            seconds, used = time.monotonic() - began, time.process_time() - used
            working.cancel()
            assert [row.id for row in page] == [record.id for record in records[:-1001:-1]]
            assert view.run_count == RUNS
            each = (memory() - before) / RUNS
            print(f"{seconds:.1f} s, {used:.1f} s of processor; {each:.0f} bytes each; ", end="")
            print(f"held the event loop p99 {p99(held) * 1e3:.1f} ms, longest {max(held) * 1e3:.1f} ms")
            assert each < 2000
            assert p99(held) < PAGE_SECONDS
