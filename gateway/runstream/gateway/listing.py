"""The lists of runs and of conversations, page by page: which part of them a client means, and what it is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from runstream.broker.rows import ConversationFilter, RunFilter, Span
from runstream.gateway.errors import BadStatus, NotFound
from runstream.gateway.validation import check_conversation_id, check_run_id
from runstream.schemas import ACTIVE_STATUSES, RUN_STATUSES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runstream.broker.auth.principal import Principal
    from runstream.broker.rows import ConversationRow, Position, RunRow
    from runstream.broker.view import View
    from runstream.gateway.lookup import Lookup
    from runstream.schemas import ListActiveRunsRequest, ListConversationsRequest, ListRunsRequest

__all__ = ["Lists"]

ACTIVE_RUNS = 1000
"""Runs that `runs/active` shows: it has no pages, and is as long as one may be."""


class Lists:
    """Lists of what `who` may reach, as JSON. Whoever is narrowed to less than what a list is of gets none.

    Every call raises `Forbidden`, `Unavailable`; `ViewBehind` while there is nothing to list.
    """

    def __init__(self, view: View, lookup: Lookup, who: Principal) -> None:
        self._view = view
        self._lookup = lookup
        self._who = who
        self._tenant = who.tenant

    async def runs(self, wanted: ListRunsRequest) -> bytes:
        """Return a page of runs. Raises `BadRequest` for a malformed cursor, `NotFound`, `BadStatus`."""
        for status in wanted.statuses:
            if status not in RUN_STATUSES:
                raise BadStatus(status)
        chosen = self._reached(
            RunFilter(
                tenant=self._tenant,
                agent_ids=wanted.agents,
                conversation_id=wanted.conversation_id,
                statuses=wanted.wanted_statuses,
                background=wanted.background,
                stop_reason=wanted.stop_reason,
            )
        )
        span = Span(
            limit=wanted.limit,
            descending=wanted.is_descending,
            after=await self._run_position(wanted.after),
            before=await self._run_position(wanted.before),
        )
        return _array([] if chosen is None else await self._view.runs(chosen, span))

    async def active_runs(self, wanted: ListActiveRunsRequest) -> bytes:
        """Return the runs that go on, the newest first."""
        chosen = self._reached(
            RunFilter(
                tenant=self._tenant, agent_ids=wanted.agents, statuses=ACTIVE_STATUSES, background=wanted.background
            )
        )
        return _array([] if chosen is None else await self._view.runs(chosen, Span(limit=ACTIVE_RUNS)))

    async def conversations(self, wanted: ListConversationsRequest) -> bytes:
        """Return a page of conversations. Raises `BadRequest` for a malformed cursor, `NotFound`."""
        who = self._who
        if who.run_id is not None or who.conversation_id is not None:
            who.check_whole()
        if who.agent_id is not None and wanted.agent_id not in {None, who.agent_id}:
            return _array([])
        chosen = ConversationFilter(
            tenant=self._tenant,
            agent_id=wanted.agent_id or who.agent_id,
            archived=wanted.archived,
            summary=wanted.summary_search,
        )
        is_descending = wanted.order == "desc"
        after: Position | None = None
        if wanted.after is not None:
            after = await self._view.conversation_position(
                self._tenant, check_conversation_id(wanted.after), wanted.order_by, descending=is_descending
            )
            if after is None:
                raise NotFound.conversation(wanted.after)
        span = Span(limit=wanted.limit, descending=is_descending, after=after)
        return _array(await self._view.conversations(chosen, wanted.order_by, span))

    async def _run_position(self, cursor: str | None) -> Position | None:
        if cursor is None:
            return None
        if self._who.is_narrowed:
            await self._lookup.by_id(cursor)
        position = await self._view.run_position(self._tenant, check_run_id(cursor))
        if position is None:
            raise NotFound.run(cursor)
        return position

    def _reached(self, wanted: RunFilter) -> RunFilter | None:
        """Narrow what is wanted to what is reached; None if that is nothing."""
        who = self._who
        if who.run_id is not None:
            who.check_whole()
        if who.agent_id is not None:
            if wanted.agent_ids and who.agent_id not in wanted.agent_ids:
                return None
            wanted = msgspec.structs.replace(wanted, agent_ids=[who.agent_id])
        if who.conversation_id is not None:
            if wanted.conversation_id not in {None, who.conversation_id}:
                return None
            wanted = msgspec.structs.replace(wanted, conversation_id=who.conversation_id)
        return wanted


def _array(rows: Sequence[RunRow | ConversationRow]) -> bytes:
    return b"[" + b",".join([row.wire for row in rows]) + b"]"
