"""What lists are made of: runs and conversations in memory, bounded, in order, found without looking at the others.

A row is what a list answers with, ready to be sent, and what it is chosen and ordered by. Rows that are alike in all
that a list of runs may ask for, but for agent and conversation, are of one kind; there are a few dozen kinds. For each
kind there is one ordered list of all, of each agent's and of each conversation's, so a page is merged from the few
lists that match, from the place on where it begins: what it costs depends on its own length, and on nothing else.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any, Final, Generic, Literal, Self, TypeAlias, TypeVar, get_args

import msgspec

from runstream.schemas import ACTIVE_STATUSES, RUN_STATUSES, STOP_REASONS, ConversationRecord, RunRecord

__all__ = [
    "SCANNED_ROWS",
    "Bounds",
    "ConversationFilter",
    "ConversationOrder",
    "ConversationRow",
    "ConversationRows",
    "Position",
    "RunFilter",
    "RunRow",
    "RunRows",
    "Span",
]

Row = TypeVar("Row")

Position: TypeAlias = tuple[str, str]
"""Where a row stands in an order: what it is ordered by, then its id."""

SHORT_ROWS: Final = 8

SHARED_PARTS: Final = 1000
SHARED_BYTES: Final = 1024
"""What is kept once for all rows that have it, at most. There are a few such parts, of 400 bytes; clients could make up
more, and longer ones."""

_encoder: Final = msgspec.json.Encoder()


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of a list: at most `limit` rows after one position, or directly before the other, or both."""

    limit: int
    descending: bool = True
    after: Position | None = None
    before: Position | None = None


class Bounds(msgspec.Struct, frozen=True):
    """How much may be kept in memory."""

    rows: int
    bytes: int

    def are_exceeded(self, rows: int, size: int) -> bool:
        """Whether so many rows, of so many bytes, are too many."""
        return rows > self.rows or size > self.bytes


class _Groups(Generic[Row]):
    """Lists of rows, each in the order of one key, by name. One that is empty is not there.

    Short ones are tuples: there are as many as conversations, and the garbage collector, which stops everything, looks
    at every list again and again, and at a tuple of rows once.
    """

    def __init__(self, key: Callable[[Row], Any]) -> None:
        self._key = key
        self._lists: dict[tuple[Any, ...], list[Row] | tuple[Row, ...]] = {}

    def of(self, names: Iterable[tuple[Any, ...]]) -> list[Sequence[Row]]:
        return [found for name in names if (found := self._lists.get(name)) is not None]

    def add(self, name: tuple[Any, ...], row: Row) -> None:
        rows, key = self._lists.get(name, ()), self._key
        # At the end, almost always: it is the newest.
        is_last = not rows or key(rows[-1]) < key(row)
        at = len(rows) if is_last else bisect.bisect_left(rows, key(row), key=key)
        if isinstance(rows, list):
            rows.insert(at, row)
        elif len(rows) < SHORT_ROWS:
            self._lists[name] = (*rows[:at], row, *rows[at:])
        else:
            self._lists[name] = [*rows[:at], row, *rows[at:]]

    def remove(self, name: tuple[Any, ...], row: Row) -> None:
        rows = self._lists[name]
        at = bisect.bisect_left(rows, self._key(row), key=self._key)
        if len(rows) == 1:
            del self._lists[name]
        elif isinstance(rows, list):
            del rows[at]
        else:
            self._lists[name] = rows[:at] + rows[at + 1 :]

    def page(
        self, names: Iterable[tuple[Any, ...]], span: Span, keep: Callable[[Row], bool] | None = None
    ) -> list[Row]:
        """Merge what the lists of these names have within a span, from its own end of it."""
        # The page before a position is found by going away from it, and then turned around.
        is_backwards = span.descending != (span.before is not None)
        low, high = (span.before, span.after) if span.descending else (span.after, span.before)
        key = self._key

        def part(rows: Sequence[Row]) -> Iterator[Row]:
            start = 0 if low is None else bisect.bisect_right(rows, low, key=key)
            stop = len(rows) if high is None else bisect.bisect_left(rows, high, key=key)
            return map(rows.__getitem__, range(stop - 1, start - 1, -1) if is_backwards else range(start, stop))

        parts = [part(rows) for rows in self.of(names)]
        merged = parts[0] if len(parts) == 1 else heapq.merge(*parts, key=key, reverse=is_backwards)
        found = list(islice(merged if keep is None else filter(keep, merged), span.limit))
        if span.before is not None:
            found.reverse()
        return found


# -- runs ---------------------------------------------------------------------------------------------------------


class _Kind(msgspec.Struct, frozen=True, gc=False):
    status: str
    is_background: bool
    stop_reason: str | None
    """One of those that may be asked for; an agent may have made up another."""

    @property
    def is_active(self) -> bool:
        return self.status in ACTIVE_STATUSES


class RunRow(msgspec.Struct, frozen=True, gc=False):
    """One run as lists show it. Its JSON is in three parts: most runs have what is between the others in common."""

    tenant: str
    id: str
    created_at: str
    agent_id: str
    conversation_id: str | None
    kind: _Kind
    head: bytes
    shared: bytes
    tail: bytes

    @property
    def wire(self) -> bytes:
        """The Run object that clients get, as JSON."""
        return self.head + self.shared + self.tail

    @property
    def size(self) -> int:
        """Bytes of JSON that are this run's alone."""
        return len(self.head) + len(self.tail)


class RunFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which runs; what is empty or None matches all."""

    tenant: str
    agent_ids: Sequence[str] = ()
    conversation_id: str | None = None
    statuses: Collection[str] = ()
    background: bool | None = None
    stop_reason: str | None = None

    def takes(self, kind: _Kind) -> bool:
        """Whether runs of a kind are wanted."""
        return (
            (not self.statuses or kind.status in self.statuses)
            and (self.background is None or kind.is_background == self.background)
            and (self.stop_reason is None or kind.stop_reason == self.stop_reason)
        )


_run_position: Callable[[RunRow], Position] = attrgetter("created_at", "id")


class RunRows:
    """The runs in memory, by the time they were made. Beyond the bounds the oldest falls out that has ended."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._bytes = 0
        self._rows: dict[tuple[str, str], RunRow] = {}
        self._groups: _Groups[RunRow] = _Groups(_run_position)
        self._kinds: dict[_Kind, _Kind] = {}
        self._parts: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def by_status(self) -> dict[str, int]:
        """How many there are of each status."""
        found = dict.fromkeys(RUN_STATUSES, 0)
        for kind in self._kinds:
            found[kind.status] += sum(map(len, self._groups.of([(kind,)])))
        return found

    def put(self, record: RunRecord) -> None:
        """Add a run, or show it as it is now."""
        self.drop(record.tenant, record.id)
        row = self._row(record)
        self._rows[row.tenant, row.id] = row
        self._bytes += row.size
        for name in _run_groups(row):
            self._groups.add(name, row)
        while self._bounds.are_exceeded(len(self._rows), self._bytes):
            ended = self._groups.of((kind,) for kind in self._kinds if not kind.is_active)
            if not ended:
                return  # All of them go on.
            oldest = min((rows[0] for rows in ended), key=_run_position)
            self.drop(oldest.tenant, oldest.id)

    def drop(self, tenant: str, run_id: str) -> None:
        """Forget a run."""
        row = self._rows.pop((tenant, run_id), None)
        if row is not None:
            self._bytes -= row.size
            for name in _run_groups(row):
                self._groups.remove(name, row)

    def position(self, tenant: str, run_id: str) -> Position | None:
        """Return where a run stands; None if it is not there."""
        row = self._rows.get((tenant, run_id))
        return None if row is None else _run_position(row)

    def page(self, wanted: RunFilter, span: Span) -> list[RunRow]:
        """Return a part of the list of the runs that are wanted."""
        kinds = [kind for kind in self._kinds if wanted.takes(kind)]
        agents = frozenset(wanted.agent_ids)
        keep: Callable[[RunRow], bool] | None = None
        names: list[tuple[Any, ...]]
        if wanted.conversation_id is not None:
            names = [(kind, wanted.tenant, "conversation", wanted.conversation_id) for kind in kinds]
            if agents:
                keep = lambda row: row.agent_id in agents  # noqa: E731  # said where it is decided
        elif agents:
            names = [(kind, wanted.tenant, "agent", agent_id) for kind in kinds for agent_id in agents]
        else:
            names = [(kind, wanted.tenant) for kind in kinds]
        return self._groups.page(names, span, keep)

    def _row(self, record: RunRecord) -> RunRow:
        stop_reason = record.stop_reason if record.stop_reason in STOP_REASONS else None
        kind = _Kind(record.status, record.background, stop_reason)
        return RunRow(
            record.tenant,
            record.id,
            record.created_at,
            record.agent_id,
            record.conversation_id,
            self._kinds.setdefault(kind, kind),
            *self._cut(_encoder.encode(record.to_wire()), has_error=record.error is not None),
        )

    def _cut(self, wire: bytes, *, has_error: bool) -> tuple[bytes, bytes, bytes]:
        """Cut out what most runs have in common. Wherever the cuts are, the parts together are the whole."""
        head, mark, rest = wire.partition(b',"base_template_id":')
        shared, last_mark, tail = (mark + rest).rpartition(b',"ttft_ns":')
        if has_error or len(shared) > SHARED_BYTES:
            return wire, b"", b""
        if len(self._parts) >= SHARED_PARTS:
            self._parts.clear()
        return head, self._parts.setdefault(shared, shared), last_mark + tail


def _run_groups(row: RunRow) -> Iterator[tuple[Any, ...]]:
    yield (row.kind,)
    yield row.kind, row.tenant
    yield row.kind, row.tenant, "agent", row.agent_id
    if row.conversation_id is not None:
        yield row.kind, row.tenant, "conversation", row.conversation_id


# -- conversations ------------------------------------------------------------------------------------------------

ConversationOrder = Literal["created_at", "last_run_completion", "last_message_at"]

NEVER_FIRST: Final = ""
NEVER_LAST: Final = "~"
"""What stands for a time that has not come, below and above all times: such a conversation is last either way."""

SCANNED_ROWS: Final = 2000
"""Conversations that are looked at in one turn of the event loop, a millisecond: where text is searched, and where an
agent has too many to put them in order."""


class ConversationRow(msgspec.Struct, frozen=True, gc=False):
    """One conversation as lists show it."""

    tenant: str
    id: str
    agent_id: str
    created_at: str
    last_run_completion: str | None
    last_message_at: str | None
    summary: str | None
    is_archived: bool
    is_busy: bool
    revision: int
    """Of the write that it was read from: the greater, the later it was used."""
    wire: bytes
    """The Conversation object that clients get, as JSON."""

    @classmethod
    def of(cls, record: ConversationRecord, revision: int = 0) -> Self:
        """Make a row of a record."""
        return cls(
            record.tenant,
            record.id,
            record.agent_id,
            record.created_at,
            record.last_run_completion,
            record.last_message_at,
            record.summary,
            bool(record.archived),
            record.active_run is not None,
            revision,
            _encoder.encode(record.to_wire()),
        )

    def position(self, order_by: ConversationOrder, *, descending: bool) -> Position:
        """Return where it stands in an order."""
        return _conversation_positions[order_by, descending](self)


def _position_by(order_by: ConversationOrder, never: str) -> Callable[[ConversationRow], Position]:
    time_of: Callable[[ConversationRow], str | None] = attrgetter(order_by)
    return lambda row: (time_of(row) or never, row.id)


_conversation_positions: Final = {
    (order_by, descending): _position_by(order_by, NEVER_FIRST if descending else NEVER_LAST)
    for order_by in get_args(ConversationOrder)
    for descending in (True, False)
}


class ConversationFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which conversations; None matches all."""

    tenant: str
    agent_id: str | None = None
    archived: bool | None = None
    summary: str | None = None
    """Text in the summary."""

    def takes(self, row: ConversationRow) -> bool:
        """Whether a conversation is wanted."""
        return (
            (self.agent_id is None or row.agent_id == self.agent_id)
            and (self.archived is None or row.is_archived == self.archived)
            and (not self.summary or (row.summary is not None and self.summary in row.summary))
        )


class ConversationRows:
    """The conversations in memory, in each order. Beyond the bounds falls out which has not been written for longest.

    One that is busy stays.
    """

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._bytes = 0
        self._rows: dict[tuple[str, str], ConversationRow] = {}
        self._orders = {name: _Groups(key) for name, key in _conversation_positions.items()}
        self._agents: _Groups[ConversationRow] = _Groups(_conversation_positions["created_at", True])
        self._idle: _Groups[ConversationRow] = _Groups(attrgetter("revision"))

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, record: ConversationRecord, revision: int) -> None:
        """Add a conversation, or show it as it is now; `revision` is greater than any before."""
        self.drop(record.tenant, record.id)
        row = ConversationRow.of(record, revision)
        self._rows[row.tenant, row.id] = row
        self._bytes += len(row.wire)
        for groups, name in self._places(row):
            groups.add(name, row)
        while self._bounds.are_exceeded(len(self._rows), self._bytes):
            idle = self._idle.of([()])
            if not idle:
                return  # All of them are busy.
            self.drop(idle[0][0].tenant, idle[0][0].id)

    def drop(self, tenant: str, conversation_id: str) -> None:
        """Forget a conversation."""
        row = self._rows.pop((tenant, conversation_id), None)
        if row is not None:
            self._bytes -= len(row.wire)
            for groups, name in self._places(row):
                groups.remove(name, row)

    def row(self, tenant: str, conversation_id: str) -> ConversationRow | None:
        """Return a conversation; None if it is not there."""
        return self._rows.get((tenant, conversation_id))

    def candidates(self, wanted: ConversationFilter, order_by: ConversationOrder, span: Span) -> list[ConversationRow]:
        """Return a part of a list that has all conversations that are wanted, and maybe some that are not."""
        flags = (False, True) if wanted.archived is None else (wanted.archived,)
        groups = self._orders[order_by, span.descending]
        if wanted.agent_id is None:
            return groups.page([(wanted.tenant, flag) for flag in flags], span)
        names = [(wanted.tenant, flag, wanted.agent_id) for flag in flags]
        if order_by == "created_at":
            return self._agents.page(names, span)
        if sum(map(len, self._agents.of(names))) > SCANNED_ROWS:
            return groups.page([(wanted.tenant, flag) for flag in flags], span)
        own: _Groups[ConversationRow] = _Groups(_conversation_positions[order_by, span.descending])
        for rows in self._agents.of(names):
            for row in rows:
                own.add((), row)
        return own.page([()], span)

    def _places(self, row: ConversationRow) -> Iterator[tuple[_Groups[ConversationRow], tuple[Any, ...]]]:
        for groups in self._orders.values():
            yield groups, (row.tenant, row.is_archived)
        yield self._agents, (row.tenant, row.is_archived, row.agent_id)
        if not row.is_busy:
            yield self._idle, ()
