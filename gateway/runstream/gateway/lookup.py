"""Which run a client means: by run id, else by otid, else the one that is active (PROTOCOL.md)."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from runstream.broker.topology import shard_of_cursor
from runstream.gateway.errors import BadRequest, NoActiveRun, NotFound
from runstream.gateway.validation import check_conversation_id, check_run_id
from runstream.schemas import ACTIVE_STATUSES, DEFAULT_CONVERSATION, is_agent_id, is_run_id

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from runstream.broker.auth.principal import Principal
    from runstream.broker.bucket import Stored
    from runstream.broker.index import Index
    from runstream.broker.leaders import Leaders
    from runstream.broker.view import View
    from runstream.schemas import ConversationRecord, RetrieveStreamRequest, RunRecord

__all__ = ["Lookup"]

ENDED_MEANWHILE = 10
"""Runs of an agent's that may end between the list of those that go on and a look at them, before there is none."""
NOT_BACKGROUND = "Run was not created in background mode, so it cannot be retrieved."


class Lookup:
    """Finds the runs and conversations that `who` may reach. Every call raises `Unavailable`."""

    def __init__(self, index: Index, view: View, leaders: Leaders, who: Principal) -> None:
        self._index = index
        self._view = view
        self._leaders = leaders
        self._who = who
        self._tenant = who.tenant

    async def by_id(self, run_id: str) -> RunRecord:
        """Return a run. Raises `BadRequest` for a malformed id, `NotFound`."""
        return await self._leaders.sure(partial(self._by_id, check_run_id(run_id)), NotFound)

    async def _by_id(self, run_id: str) -> RunRecord:
        run = self._reached(await self._index.run(self._tenant, run_id))
        if run is None:
            raise NotFound.run(run_id)
        return run

    async def conversation(self, conversation_id: str) -> ConversationRecord:
        """Return a conversation, also one that was deleted. Raises `BadRequest` for a malformed id, `NotFound`."""
        return await self._leaders.sure(partial(self._conversation, check_conversation_id(conversation_id)), NotFound)

    async def _conversation(self, conversation_id: str) -> ConversationRecord:
        stored = await self._index.conversation(self._tenant, conversation_id)
        if stored is None or not self._who.reaches_conversation(stored.value):
            raise NotFound.conversation(conversation_id)
        return stored.value

    async def several(self, run_ids: Sequence[str]) -> list[RunRecord]:
        """Return those of several runs that there are."""
        asked = [self._index.run(self._tenant, run_id) for run_id in dict.fromkeys(run_ids) if is_run_id(run_id)]
        return [run for stored in await asyncio.gather(*asked) if (run := self._reached(stored)) is not None]

    async def with_otid(self, otid: str) -> RunRecord:
        """Return the newest run that was asked for with an otid. Raises `NotFound`."""
        return await self._leaders.sure(partial(self._with_otid, otid), NotFound)

    async def _with_otid(self, otid: str) -> RunRecord:
        found = self._reached(await self._index.run_with_otid(self._tenant, otid))
        if found is None:
            raise NotFound(f"No run found for otid={otid}. The run may have expired or never existed.")
        return found

    async def to_resume(self, run_id: str) -> RunRecord:
        """Return a run that can be streamed again. Raises `BadRequest` when it was made in the foreground."""
        return _resumable(await self.by_id(run_id))

    async def of_stream(self, conversation_id: str, wanted: RetrieveStreamRequest) -> RunRecord:
        """Return the run that a resume asks for. Raises `BadRequest`, `NotFound`."""
        if wanted.run_id:
            return await self.to_resume(wanted.run_id)
        if wanted.otid:
            return _resumable(await self.with_otid(wanted.otid))
        return _resumable(await self._leaders.sure(partial(self._to_follow, conversation_id, wanted), NoActiveRun))

    async def _to_follow(self, conversation_id: str, wanted: RetrieveStreamRequest) -> RunRecord:
        latest = await self._latest(conversation_id, wanted.agent_id)
        if latest is None or not (_is_followed(latest, wanted.cursor) or not latest.is_terminal):
            raise NoActiveRun
        return latest

    async def latest_of_agent(self, agent_id: str) -> RunRecord | None:
        """Return the run that was started last for an agent, in whichever conversation."""
        if not is_agent_id(agent_id):
            return None
        for run_id in await self._runs_of_agent(agent_id, limit=1):
            if (found := await self.of_agent(agent_id, run_id)) is not None:
                return found
        # One that fell out of memory is the agent's latest all the same.
        if self._who.conversation_id is None:
            return self._reached(await self._index.latest_run_of_agent(self._tenant, agent_id))
        latest = await self._latest_in(self._who.conversation_id)
        return latest if latest is not None and latest.agent_id == agent_id else None

    async def of_agent(self, agent_id: str, run_id: str) -> RunRecord | None:
        """Return a run of an agent's; None for another's, and for what is no run's id."""
        stored = await self._index.run(self._tenant, run_id) if is_run_id(run_id) else None
        run = self._reached(stored)
        return run if run is not None and run.agent_id == agent_id else None

    async def to_cancel_of_agent(self, agent_id: str) -> RunRecord | None:
        """Return the newest of an agent's runs that go on, or else the one that waits for approval outside of any."""
        return await self._active_of_agent(agent_id) or await self._waiting_for_approval(agent_id)

    async def to_cancel_in(self, conversation: ConversationRecord) -> RunRecord | None:
        """Return the run that a conversation is busy with, or that waits for approval there: there is one at most."""
        return await self._active(conversation) or await self._waiting_for_approval(conversation.id)

    async def _active_of_agent(self, agent_id: str) -> RunRecord | None:
        """Return the newest of an agent's runs that go on, in whichever conversation."""
        for run_id in await self._runs_of_agent(agent_id, limit=ENDED_MEANWHILE, statuses=ACTIVE_STATUSES):
            run = await self.of_agent(agent_id, run_id)
            if run is not None and not run.is_terminal:
                return run
        return None

    async def _runs_of_agent(self, agent_id: str, *, limit: int, statuses: Collection[str] = ()) -> list[str]:
        """Return the newest runs of an agent's that whoever asks may reach: others do not count for the limit."""
        who = self._who
        if who.run_id is not None:
            return [who.run_id]  # Whosever it is, and whether it goes on, is asked of its record.
        return await self._view.runs_of_agent(
            self._tenant, agent_id, conversation_id=who.conversation_id, limit=limit, statuses=statuses
        )

    async def _active(self, conversation: ConversationRecord) -> RunRecord | None:
        if conversation.active_run is None:
            return None
        run = self._reached(await self._index.run(self._tenant, conversation.active_run))
        return None if run is None or run.is_terminal else run

    async def _waiting_for_approval(self, scope: str) -> RunRecord | None:
        waiting = await self._index.waiting_for_approval(self._tenant, scope)
        return None if waiting is None else self._reached(await self._index.run(self._tenant, waiting))

    async def _latest(self, conversation_id: str, agent_id: str | None) -> RunRecord | None:
        """Return the latest run of a conversation; of an agent the newest that goes on, if one does."""
        if conversation_id == DEFAULT_CONVERSATION:
            agent = agent_id
        else:
            agent = conversation_id if is_agent_id(conversation_id) else None
        if agent is not None:
            return await self._active_of_agent(agent) or await self.latest_of_agent(agent)
        if conversation_id == DEFAULT_CONVERSATION:
            return None
        return await self._latest_in(conversation_id)

    async def _latest_in(self, conversation_id: str) -> RunRecord | None:
        """Return the run that was started last in a conversation."""
        stored = await self._index.conversation(self._tenant, conversation_id)
        if stored is None or stored.value.latest_run is None:
            return None
        return self._reached(await self._index.run(self._tenant, stored.value.latest_run))

    def _reached(self, stored: Stored[RunRecord] | None) -> RunRecord | None:
        """Return a run if it is there for whoever asks."""
        return stored.value if stored is not None and self._who.reaches_run(stored.value) else None


def _is_followed(run: RunRecord, cursor: int) -> bool:
    """Tell whether a client with this cursor was following `run`, and so gets the rest of it after its end.

    A cursor of another shard, however large, is an earlier run's.
    """
    return run.first_seq is not None and cursor >= run.first_seq and shard_of_cursor(cursor) == run.shard


def _resumable(run: RunRecord) -> RunRecord:
    if not run.background:
        raise BadRequest(NOT_BACKGROUND)
    return run
