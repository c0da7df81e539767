"""The view: the runs and the conversations of the index in memory, as lists show them, so that no request searches it.

One `Feed` fills it, and a list waits until the feed has all that was stored when it was asked for (`caught_up`): a
client that has made or ended something, at whichever gateway, finds it so in every list. The view is bounded: there are
no more rows than `RUNSTREAM_VIEW_RUNS` and `RUNSTREAM_VIEW_CONVERSATIONS`, but those that go on.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self, TypeVar

import msgspec

from runstream.broker.errors import ViewBehind
from runstream.broker.feed import Feed
from runstream.broker.keys import conversation_key, run_key, subject_of
from runstream.broker.rows import SCANNED_ROWS, ConversationRow, ConversationRows, RunFilter, RunRows, Span
from runstream.schemas import (
    ConversationRecord,
    InvalidRecord,
    RunRecord,
    decode_conversation,
    decode_run,
    is_conversation_id,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from runstream.broker.feed import KeyWrite
    from runstream.broker.index import Index
    from runstream.broker.jetstream import JetStream
    from runstream.broker.rows import Bounds, ConversationFilter, ConversationOrder, Position, RunRow

__all__ = ["View"]

Record = TypeVar("Record", RunRecord, ConversationRecord)


class View:
    """Lists of runs and conversations. Use as an async context manager; it is filled while others use the process.

    Every question raises `ViewBehind` when what was stored before it is not there after `patience_seconds`, and
    `Unavailable`, `NotStored`. `on_removed` is told of each run that it hears is no more, `on_reset`
    that it begins anew, and may not have heard of some.
    """

    def __init__(
        self,
        jetstream: JetStream,
        index: Index,
        *,
        runs: Bounds,
        conversations: Bounds,
        patience_seconds: float,
        marks_seconds: float,
        on_removed: Callable[[str], None] = lambda _: None,
        on_reset: Callable[[], None] = lambda: None,
    ) -> None:
        self._index = index
        self._on_removed = on_removed
        self._on_reset = on_reset
        self._findings = jetstream.findings
        self._run_bounds = runs
        self._conversation_bounds = conversations
        self._patience_seconds = patience_seconds
        self._reset()
        self.feed = Feed(
            jetstream,
            [run_key("*", "*"), conversation_key("*", "*")],
            apply=self._apply,
            reset=self._reset,
            marks_seconds=marks_seconds,
        )

    async def __aenter__(self) -> Self:
        await self.feed.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.feed.__aexit__(*error)

    @property
    def run_count(self) -> int:
        """Runs in memory."""
        return len(self._runs)

    @property
    def conversation_count(self) -> int:
        """Conversations in memory."""
        return len(self._conversations)

    @property
    def runs_by_status(self) -> dict[str, int]:
        """Runs in memory, all tenants' together."""
        return self._runs.by_status

    # -- questions ----------------------------------------------------------------------------------------------

    async def runs(self, wanted: RunFilter, span: Span) -> list[RunRow]:
        """Return a part of the list of runs, by the time they were made."""
        await self._caught_up(run_key(wanted.tenant, "*"))
        return self._runs.page(wanted, span)

    async def run_position(self, tenant: str, run_id: str) -> Position | None:
        """Return where a run stands in the list, None if there is none. Also one that has fallen out of memory."""
        found = self._runs.position(tenant, run_id)
        if found is None and (stored := await self._index.run(tenant, run_id)) is not None:
            found = stored.value.created_at, run_id
        return found

    async def runs_of_agent(
        self,
        tenant: str,
        agent_id: str,
        *,
        conversation_id: str | None = None,
        limit: int,
        statuses: Collection[str] = (),
    ) -> list[str]:
        """Return the newest runs of an agent's, in one conversation or in all, with one of these statuses or any."""
        wanted = RunFilter(tenant=tenant, agent_ids=[agent_id], conversation_id=conversation_id, statuses=statuses)
        return [row.id for row in await self.runs(wanted, Span(limit=limit))]

    async def conversations(
        self, wanted: ConversationFilter, order_by: ConversationOrder, span: Span
    ) -> list[ConversationRow]:
        """Return a part of the list of conversations, in the order of one of their times."""
        await self._caught_up(conversation_key(wanted.tenant, "*"))
        rows = self._conversations  # These, also if the feed begins anew meanwhile: a list of half of them would end.
        found: list[ConversationRow] = []
        looked_at = span.limit
        while True:
            part = rows.candidates(wanted, order_by, msgspec.structs.replace(span, limit=looked_at))
            found += filter(wanted.takes, part)
            if len(found) >= span.limit or len(part) < looked_at:
                return found[: span.limit]
            # What is searched for is rare: the others are looked at a few at a time, and may change meanwhile.
            await asyncio.sleep(0)
            last = part[-1].position(order_by, descending=span.descending)
            span, looked_at = msgspec.structs.replace(span, after=last), SCANNED_ROWS

    async def conversation_position(
        self, tenant: str, conversation_id: str, order_by: ConversationOrder, *, descending: bool
    ) -> Position | None:
        """Return where a conversation stands in an order, None if there is none. Also one that was deleted."""
        found = self._conversations.row(tenant, conversation_id)
        if found is None and (stored := await self._index.conversation(tenant, conversation_id)) is not None:
            found = ConversationRow.of(stored.value)
        return None if found is None else found.position(order_by, descending=descending)

    async def _caught_up(self, pattern: str) -> None:
        try:
            async with asyncio.timeout(self._patience_seconds):
                await self.feed.caught_up(pattern)
        except TimeoutError as error:
            raise ViewBehind(position=self.feed.position, is_loaded=self.feed.is_loaded) from error

    # -- what the feed says -------------------------------------------------------------------------------------

    def _reset(self) -> None:
        self._on_reset()
        self._runs = RunRows(self._run_bounds)
        self._conversations = ConversationRows(self._conversation_bounds)

    def _apply(self, write: KeyWrite) -> None:
        kind, _, rest = write.key.partition(".")
        tenant, _, named = rest.partition(".")
        try:
            if kind == "run":
                self._apply_run(tenant, named, write)
            elif is_conversation_id(named):  # Else it is an agent's default one, which no list shows.
                self._apply_conversation(tenant, named, write)
        except InvalidRecord as error:
            self._findings.note(kind, subject_of(write.key), write.revision, str(error))
            rows = self._runs if kind == "run" else self._conversations
            rows.drop(tenant, named)  # As it was before it is no more.

    def _apply_run(self, tenant: str, run_id: str, write: KeyWrite) -> None:
        if write.value is None:
            self._runs.drop(tenant, run_id)
            self._on_removed(run_id)
        else:
            self._runs.put(_checked(decode_run(write.value), tenant, run_id))

    def _apply_conversation(self, tenant: str, conversation_id: str, write: KeyWrite) -> None:
        record = None if write.value is None else decode_conversation(write.value)
        if record is None or record.deleted:
            self._conversations.drop(tenant, conversation_id)
        else:
            self._conversations.put(_checked(record, tenant, conversation_id), write.revision)


def _checked(record: Record, tenant: str, named: str) -> Record:
    """Return a record that is its key's. Raises `InvalidRecord` for another's: it would be in another's lists."""
    if (record.tenant, record.id) != (tenant, named):
        raise InvalidRecord("It is not the record of its key.")
    return record
