"""Rows in memory: every page of every list is what searching through all would find, and the bounds hold."""

import gc
import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runstream.broker.rows import (
    Bounds,
    ConversationFilter,
    ConversationOrder,
    ConversationRow,
    ConversationRows,
    RunFilter,
    RunRow,
    RunRows,
    Span,
)
from runstream.schemas import ACTIVE_STATUSES, ConversationRecord, RunRecord, RunStatus
from tests.support.core import record_of

ROOMY = Bounds(10_000, 2**30)
TIMES = [f"2026-11-21T04:28:{second:02}.000000Z" for second in range(6)]
AGENTS = ["a", "b", "c"]
CONVERSATIONS = [None, "x", "y"]


@st.composite
def runs(draw: st.DrawFn, number: int) -> RunRecord:
    """A run that is alike to many others; several are made at one time."""
    status: RunStatus = draw(st.sampled_from(["created", "running", "completed", "failed", "cancelled"]))
    return RunRecord(
        id=f"run-{number}",
        tenant=draw(st.sampled_from(["t", "t", "other"])),
        status=status,
        created_at=draw(st.sampled_from(TIMES)),
        agent_id=draw(st.sampled_from(AGENTS)),
        conversation_id=draw(st.sampled_from(CONVERSATIONS)),
        background=draw(st.booleans()),
        stop_reason=draw(st.sampled_from(["end_turn", "error", "made_up"])) if status not in ACTIVE_STATUSES else None,
        error=draw(st.sampled_from([None, {"message": "no"}])),
        shard=0,
    )


@st.composite
def histories(draw: st.DrawFn) -> list[RunRecord | str]:
    """Runs that are written, and written again, and ids of some that are dropped."""
    numbers = draw(st.lists(st.integers(0, 15), max_size=40))
    return [f"run-{number}" if draw(st.integers(0, 5)) == 0 else draw(runs(number)) for number in numbers]


filters = st.builds(
    RunFilter,
    tenant=st.just("t"),
    agent_ids=st.lists(st.sampled_from([*AGENTS, "nobody"]), max_size=3),
    conversation_id=st.sampled_from([*CONVERSATIONS, "nowhere"]),
    statuses=st.sampled_from([frozenset(), ACTIVE_STATUSES, {"completed"}, {"failed", "running"}]),
    background=st.sampled_from([None, True, False]),
    stop_reason=st.sampled_from([None, "end_turn", "error"]),
)
positions = st.none() | st.tuples(st.sampled_from(TIMES), st.sampled_from(["run-0", "run-3", "run-8", "run-99"]))
spans = st.builds(Span, limit=st.integers(1, 20), descending=st.booleans(), after=positions, before=positions)


def wanted_of(records: Sequence[RunRecord], wanted: RunFilter, span: Span) -> list[str]:
    """What is to be found, by looking at all there is."""
    found = sorted(
        (
            record
            for record in records
            if record.tenant == wanted.tenant
            and (not wanted.agent_ids or record.agent_id in wanted.agent_ids)
            and wanted.conversation_id in (None, record.conversation_id)
            and (not wanted.statuses or record.status in wanted.statuses)
            and wanted.background in (None, record.background)
            and wanted.stop_reason in (None, record.stop_reason)
        ),
        key=lambda record: (record.created_at, record.id),
        reverse=span.descending,
    )

    def is_behind(record: RunRecord, position: tuple[str, str]) -> bool:
        here = (record.created_at, record.id)
        return here < position if span.descending else here > position

    found = [
        record
        for record in found
        if (span.after is None or is_behind(record, span.after))
        and (
            span.before is None or not (is_behind(record, span.before) or (record.created_at, record.id) == span.before)
        )
    ]
    page = found[: span.limit] if span.before is None else found[-span.limit :]
    return [record.id for record in page]


@settings(max_examples=50)
@given(history=histories(), wanted=filters, span=spans)
def test_a_page_of_runs(history: list[RunRecord | str], wanted: RunFilter, span: Span) -> None:
    """Whatever was written before, and in whatever order, a page is what a search through all of it finds."""
    rows, now = RunRows(ROOMY), dict[tuple[str, str], RunRecord]()
    for step in history:
        if isinstance(step, str):
            rows.drop("t", step)
            now.pop(("t", step), None)
        else:
            rows.put(step)
            now[step.tenant, step.id] = step
    page = rows.page(wanted, span)
    assert [row.id for row in page] == wanted_of(list(now.values()), wanted, span)
    assert [json.loads(row.wire) for row in page] == [msgspec.to_builtins(now["t", row.id].to_wire()) for row in page]
    assert len(rows) == len(now)
    for tenant, run_id in list(now):
        rows.drop(tenant, run_id)
    assert len(rows) == 0
    assert rows._groups._lists == {}
    assert rows._bytes == 0


def run(number: int, status: RunStatus = "completed", **facts: Any) -> RunRecord:
    stop_reason = None if status in ACTIVE_STATUSES else "end_turn"
    made = f"2026-11-21T04:28:06.{number:06}Z"
    return record_of(f"run-{number}", created_at=made, status=status, stop_reason=stop_reason, **facts)


def ids(rows: RunRows, tenant: str = "default") -> list[int]:
    """The numbers of all runs there are, the oldest first."""
    page = rows.page(RunFilter(tenant=tenant), Span(limit=1000, descending=False))
    return [int(row.id.removeprefix("run-")) for row in page]


def test_the_oldest_ended_run_falls_out() -> None:
    """Beyond the bound the oldest goes that has ended, in whatever order they came, and no run that goes on."""
    rows = RunRows(Bounds(3, 2**30))
    for made in (run(5), run(1, "running"), run(7, "failed"), run(3, "cancelled"), run(9)):
        rows.put(made)
    assert ids(rows) == [1, 7, 9]
    rows.put(run(2))
    assert ids(rows) == [1, 7, 9]
    rows.put(run(1))
    assert ids(rows) == [1, 7, 9]
    rows.put(run(10))
    assert ids(rows) == [7, 9, 10]


def test_runs_that_go_on_may_be_more_than_the_bound() -> None:
    """They are all there, and room is made again as they end."""
    rows = RunRows(Bounds(3, 2**30))
    for number in range(10):
        rows.put(run(number, "running"))
    assert ids(rows) == list(range(10))
    for number in range(10):
        rows.put(run(number))
    assert ids(rows) == [7, 8, 9]


def test_large_runs_are_fewer() -> None:
    """What they have in common is not counted; what is their own is bounded in bytes, too."""
    rows = RunRows(Bounds(1000, 20_000))
    for number in range(50):
        rows.put(run(number))
    assert ids(rows) == list(range(50))
    for number in range(50, 60):
        rows.put(run(number, "failed", error={"message": "x" * 5000}))
    assert ids(rows) == [57, 58, 59]


def test_parts_that_a_client_makes_up_are_not_kept_for_ever() -> None:
    """What rows have in common is kept once; what no other has is not kept beside the row, nor what is long."""
    rows = RunRows(ROOMY)
    for number in range(3000):
        record = run(number)
        record.request_config.assistant_message_tool_name = f"tool {number}"
        rows.put(record)
    assert len(rows._parts) <= 1000
    long = run(3000)
    long.request_config.assistant_message_tool_name = "x" * 2000
    rows.put(long)
    assert not any(len(part) > 1024 for part in rows._parts)
    page = rows.page(RunFilter(tenant="default"), Span(limit=1))
    assert json.loads(page[0].wire) == msgspec.to_builtins(long.to_wire())


def test_a_run_of_another_tenant_is_not_there() -> None:
    """Neither in a list nor as a place in one."""
    rows = RunRows(ROOMY)
    rows.put(run(1, tenant="a"))
    assert ids(rows, "b") == []
    assert rows.position("b", "run-1") is None
    assert rows.position("a", "run-1") == ("2026-11-21T04:28:06.000001Z", "run-1")


# -- conversations ------------------------------------------------------------------------------------------------


@st.composite
def conversations(draw: st.DrawFn, number: int) -> ConversationRecord:
    time = st.sampled_from(TIMES)
    return ConversationRecord(
        id=f"conv-{number}",
        tenant=draw(st.sampled_from(["t", "t", "other"])),
        agent_id=draw(st.sampled_from(AGENTS)),
        created_at=draw(time),
        last_message_at=draw(st.none() | time),
        last_run_completion=draw(st.none() | time),
        archived=draw(st.sampled_from([None, True, False])),
        summary=draw(st.sampled_from([None, "the sea", "The Sea", ""])),
        active_run=draw(st.sampled_from([None, "run-1"])),
    )


@st.composite
def conversation_histories(draw: st.DrawFn) -> list[ConversationRecord | str]:
    numbers = draw(st.lists(st.integers(0, 12), max_size=30))
    return [f"conv-{number}" if draw(st.integers(0, 5)) == 0 else draw(conversations(number)) for number in numbers]


conversation_filters = st.builds(
    ConversationFilter,
    tenant=st.just("t"),
    agent_id=st.sampled_from([None, *AGENTS]),
    archived=st.sampled_from([None, True, False]),
    summary=st.sampled_from([None, "", "sea"]),
)


def in_order(record: ConversationRecord, order_by: ConversationOrder, *, descending: bool) -> Any:
    """What to sort by, ascending or descending: those whose time has not come are last."""
    value = getattr(record, order_by)
    return ((value is not None) == descending, value or "", record.id)


@settings(max_examples=50)
@given(
    history=conversation_histories(),
    wanted=conversation_filters,
    order_by=st.sampled_from(["created_at", "last_run_completion", "last_message_at"]),
    descending=st.booleans(),
    after=st.none() | st.integers(0, 12),
)
def test_a_page_of_conversations(
    history: list[ConversationRecord | str],
    wanted: ConversationFilter,
    order_by: ConversationOrder,
    *,
    descending: bool,
    after: int | None,
) -> None:
    """What is wanted is among the candidates, in order, from the cursor on; a time that has not come is last."""
    rows, now = ConversationRows(ROOMY), dict[tuple[str, str], ConversationRecord]()
    for revision, step in enumerate(history, start=1):
        if isinstance(step, str):
            rows.drop("t", step)
            now.pop(("t", step), None)
        else:
            rows.put(step, revision)
            now[step.tenant, step.id] = step
    expected = sorted(
        (record for record in now.values() if record.tenant == "t"),
        key=lambda record: in_order(record, order_by, descending=descending),
        reverse=descending,
    )
    cursor = rows.row("t", f"conv-{after}")
    if cursor is not None:
        expected = expected[[record.id for record in expected].index(cursor.id) + 1 :]
    position = None if cursor is None else cursor.position(order_by, descending=descending)
    found = rows.candidates(wanted, order_by, Span(limit=1000, descending=descending, after=position))
    assert [row.id for row in found if wanted.takes(row)] == [
        record.id for record in expected if wanted.takes(ConversationRow.of(record))
    ]
    assert [json.loads(row.wire) for row in found] == [now["t", row.id].to_wire() for row in found]
    for tenant, conversation_id in list(now):
        rows.drop(tenant, conversation_id)
    assert rows._bytes == 0
    assert not any(groups._lists for groups in (*rows._orders.values(), rows._agents, rows._idle))


def test_the_conversation_that_was_not_used_for_longest_falls_out() -> None:
    """However old it is: one that is used stays, and one that is busy."""
    rows = ConversationRows(Bounds(3, 2**30))
    records = {number: ConversationRecord(id=f"conv-{number}", agent_id="a") for number in range(6)}
    for revision, number in enumerate((0, 1, 2, 0), start=1):
        rows.put(records[number], revision)
    rows.put(msgspec.structs.replace(records[2], active_run="run-1"), 5)
    for revision, number in enumerate((3, 4), start=6):
        rows.put(records[number], revision)
    there = rows.candidates(ConversationFilter(tenant="default"), "created_at", Span(limit=9, descending=False))
    assert {row.id for row in there} == {"conv-2", "conv-3", "conv-4"}


@pytest.mark.parametrize("count", [1, 3])
def test_an_agent_with_too_many_conversations_to_order_them(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked for among all."""
    monkeypatch.setattr("runstream.broker.rows.SCANNED_ROWS", 2)
    rows = ConversationRows(ROOMY)
    for number in range(5):
        owner = "a" if number < count else "b"
        rows.put(ConversationRecord(id=f"conv-{number}", agent_id=owner, last_message_at=TIMES[number]), number + 1)
    wanted = ConversationFilter(tenant="default", agent_id="a")
    found = rows.candidates(wanted, "last_message_at", Span(limit=9))
    assert [row.id for row in found if wanted.takes(row)] == [f"conv-{number}" for number in reversed(range(count))]
    assert len(found) == (count if count <= 2 else 5)


def test_a_row_is_not_looked_at_by_the_garbage_collector() -> None:
    """A hundred thousand of them must not slow down the whole process now and then."""
    rows = RunRows(ROOMY)
    for number in range(100):
        rows.put(run(number, conversation_id=f"conv-{number}"))
    (row,) = rows.page(RunFilter(tenant="default"), Span(limit=1))
    assert isinstance(row, RunRow)
    assert not gc.is_tracked(row)
    gc.collect()
    tracked = [rows for rows in rows._groups._lists.values() if gc.is_tracked(rows)]
    assert len(tracked) == 2  # All runs, of all tenants and of this one.
    assert not any(gc.is_tracked(name) for name in rows._groups._lists)
