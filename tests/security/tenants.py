"""Two tenants at one runstream who share all names there are, and what each of them says, hears and tries.

Each lane is an agent, a conversation and a row of otids: in all of them both tenants write run after run, over HTTP or
by asking the agent, follow them in every way, and cancel some. What was said and shown is a history, for the checker of
`tests/chaos`. Meanwhile each tries what the other has: whatever it gets that it should not is a trespass.
"""

import asyncio
import contextlib
import random
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from runstream.schemas import new_agent_id, new_conversation_id, new_otid
from tests.chaos.agent import Asked
from tests.chaos.content import content_of, digest_of, read
from tests.chaos.history import (
    Cancelling,
    Connected,
    Disconnected,
    Ended,
    Ending,
    EventKind,
    GaveUp,
    Got,
    Joined,
    Opened,
    Opening,
    Recorder,
    Said,
    Stored,
    now,
)
from tests.support.auth import Client
from tests.support.eventsource import open_source
from tests.support.http import Event, EventStream, Reply

CHUNKS = 12
READERS = 4
NEWEST = 50
"""Runs, cursors and tickets of each tenant that the other tries."""
KINDS: dict[str | None, EventKind] = {
    "ping": "ping",
    "stop_reason": "stop",
    "usage_statistics": "usage",
    "error_message": "error",
    None: "done",
}


@dataclass(frozen=True)
class Lane:
    """What both tenants call the same."""

    number: int
    otids: Sequence[str]
    agent_id: str = field(default_factory=new_agent_id)
    conversation_id: str = field(default_factory=new_conversation_id)


def lanes(count: int, rounds: int) -> list[Lane]:
    """Make so many, for so many runs each."""
    return [Lane(number, [new_otid() for _ in range(rounds)]) for number in range(count)]


@dataclass(frozen=True)
class Play:
    """One run, as its tenant knows it."""

    token: str
    lane: Lane
    otid: str
    is_cancelled: bool


def got(reader: str, event: Event) -> Got:
    """An event as a reader has it."""
    kind = KINDS.get(event.message_type, "chunk")
    if kind == "done":
        return Got(at=now(), reader=reader, kind="done")
    if kind == "chunk":
        shown = read(event.json.get("content"))
        return Got(
            at=now(), reader=reader, seq=event.seq_id, token=shown.token, index=shown.number, digest=shown.digest
        )
    digest = 0 if kind == "ping" else digest_of(event.data)
    text = str(event.json.get("stop_reason") or event.json.get("error_type") or "")
    return Got(at=now(), reader=reader, kind=kind, seq=event.seq_id, text=text, digest=digest)


def foreign(reply: Reply, run_id: str) -> set[str]:
    """The runs but for this one that an answer names."""
    return {*re.findall(r"run-[0-9a-f-]{36}", reply.body.decode())} - {run_id}


class Tenant:
    """One tenant, with a credential that may do everything in it, at some gateways and a broker."""

    def __init__(
        self, name: str, token: str, gateways: Sequence[str], broker: str, recorders: tuple[Recorder, Recorder]
    ) -> None:
        self.name = name
        self.runs: list[str] = []
        """All that it has."""
        self.cursors: list[int] = []
        self.trespasses: list[str] = []
        """What it was told of the other's."""
        self.tries = 0
        self._token, self._gateways = token, gateways
        self._broker = Client(broker, token)
        self._writes, self._reads = recorders
        self._made = 0
        self._lanes: set[int] = set()
        """Where it has made the conversation, by opening a run in it."""

    def gateway(self, chance: random.Random) -> Client:
        """Itself at any of them."""
        return Client(chance.choice(self._gateways), self._token)

    # -- what it says, and hears -----------------------------------------------------------------------------------

    async def play(self, lane: Lane, other: "Tenant", chance: random.Random) -> None:
        """Have one run after the other, each followed by some meanwhile."""
        for number, otid in enumerate(lane.otids):
            play = Play(f"{self.name}{lane.number}n{number}", lane, otid, chance.random() < 0.2)
            await (self._ingest if chance.random() < 0.6 else self._capture)(play, other, chance)

    async def _look_back(
        self, play: Play, run_id: str, cursor: int, chance: random.Random, *, in_conversation: bool
    ) -> None:
        """Look whether it is what this tenant's names lead to, now that it is over and the next has not begun."""
        for name in [play.lane.agent_id, *([play.lane.conversation_id] if in_conversation else [])]:
            path, body = f"/v1/conversations/{name}/stream", {"starting_after": cursor}
            reply = await self.gateway(chance).fetch("POST", path, json=body)
            if reply.status != 200 or b"[DONE]" not in reply.body or foreign(reply, run_id):
                self._trespassed(f"{path} did not lead to {run_id}, but to", reply)

    async def _ingest(self, play: Play, other: "Tenant", chance: random.Random) -> None:
        self._writes.write(Opening(at=now(), token=play.token, mode="ingest"))
        lane = play.lane
        body = {"agent_id": lane.agent_id, "conversation_id": lane.conversation_id, "otids": [play.otid]}
        opened = await self._broker.fetch("POST", "/ingest/v1/runs", json=body)
        assert opened.status == 201, opened
        run_id = str(opened.json["run_id"])
        self._opened(play, run_id)
        readers = self._readers(play, run_id, other, chance)
        self._lanes.add(lane.number)
        cursor, *_ = await asyncio.gather(self._write(play, run_id, chance), *readers)
        await self._look_back(play, run_id, cursor, chance, in_conversation=True)

    async def _write(self, play: Play, run_id: str, chance: random.Random) -> int:
        path, seq = f"/ingest/v1/runs/{run_id}", 0
        for index in range(CHUNKS):
            text = content_of(play.token, index)
            sent = now()
            self._writes.write(Said(at=sent, token=play.token, index=index, digests=[digest_of(text)]))
            chunk = {"message_type": "assistant_message", "id": "message-1", "content": text}
            stored = await self._broker.fetch("POST", f"{path}/chunks", json=chunk)
            if play.is_cancelled and stored.status == 409:
                self._writes.write(GaveUp(at=now(), token=play.token, why=stored.json["error_type"], place="broker"))
                return seq
            assert stored.status == 200, stored
            seq = stored.json["last_seq_id"]
            self.cursors.append(seq)
            self._writes.write(Stored(at=now(), token=play.token, index=index, count=1, sent=sent, last_seq=seq))
            if play.is_cancelled and index == CHUNKS // 2:
                await self._cancel(play, run_id, chance, in_conversation=True)
        assert not play.is_cancelled, f"{run_id} was cancelled, and went on"
        self._writes.write(Ending(at=now(), token=play.token, stop_reason="end_turn"))
        ended = await self._broker.fetch("POST", f"{path}/end", json={"stop_reason": "end_turn"})
        assert ended.status == 200, ended
        self._writes.write(Ended(at=now(), token=play.token, stop_reason="end_turn"))
        return seq

    async def _capture(self, play: Play, other: "Tenant", chance: random.Random) -> None:
        """Ask the agent for a run, and read its answer; the broker writes it."""
        self._writes.write(Opening(at=now(), token=play.token, mode="capture"))
        texts = [content_of(play.token, index) for index in range(CHUNKS)]
        self._writes.write(Said(at=now(), token=play.token, index=0, digests=[*map(digest_of, texts)]))
        asked = msgspec.json.encode(Asked(play.token, CHUNKS, 0.03 if play.is_cancelled else 0.005)).decode()
        body = {"background": True, "messages": [{"role": "user", "content": asked, "otid": play.otid}]}
        where = f"/v1/conversations/{play.lane.conversation_id}/messages"
        client = self.gateway(chance)
        in_conversation = play.lane.number in self._lanes
        if not in_conversation:
            where = f"/v1/agents/{play.lane.agent_id}/messages/stream"  # Nobody of this tenant has made it yet.
        name = self._joined(play.token, "letta")
        async with client.stream(where, body) as stream:
            self._reads.write(Connected(at=now(), reader=name, gateway="g"))
            first = await stream.next()
            assert first is not None
            run_id = str(first.json["run_id"])
            self._opened(play, run_id)
            self._reads.write(got(name, first))
            cancel = partial(self._cancel, play, run_id, chance, in_conversation=in_conversation)
            readers = self._readers(play, run_id, other, chance)
            await asyncio.gather(self._hear(name, stream), *([cancel()] if play.is_cancelled else []), *readers)
        self._reads.write(Disconnected(at=now(), reader=name, gateway="g", how="done"))
        again = await self.gateway(chance).fetch("POST", where, json=body)
        if again.status != 200 or foreign(again, run_id):
            self._trespassed(f"{play.otid} said again was not answered by {run_id}, but by", again)
        await self._look_back(play, run_id, stream.cursor, chance, in_conversation=in_conversation)

    def _opened(self, play: Play, run_id: str) -> None:
        self._writes.write(Opened(at=now(), token=play.token, run_id=run_id))
        self.runs.append(run_id)

    async def _cancel(self, play: Play, run_id: str, chance: random.Random, *, in_conversation: bool) -> None:
        """Cancel by a name that both tenants use, or by the run's."""
        self._writes.write(Cancelling(at=now(), token=play.token))
        of_agent = f"/v1/agents/{play.lane.agent_id}/messages/cancel"
        of_conversation = f"/v1/conversations/{play.lane.conversation_id}/cancel"
        ways: list[tuple[str, dict[str, Any]]] = [(of_agent, {"run_ids": [run_id]}), (of_agent, {})]
        if in_conversation:
            ways.append((of_conversation, {}))
        path, body = chance.choice(ways)
        cancelled = await self.gateway(chance).fetch("POST", path, json=body)
        assert cancelled.status in {200, 409}, cancelled  # The agent may be through.
        if cancelled.status == 409:
            return
        assert {*cancelled.json} <= {run_id, *self.runs}, cancelled

    def _readers(self, play: Play, run_id: str, other: "Tenant", chance: random.Random) -> list[Any]:
        """Follow it by its otid, by its id in both places, by a ticket; one with a cursor of the other's."""
        of_conversation = f"/v1/conversations/{play.lane.conversation_id}/stream"
        of_run = f"/v1/runs/{run_id}/stream"
        cursor = other.cursors[-1] if other.cursors else 0
        return [
            self._follow(play, chance, of_conversation, {"otid": play.otid}),
            self._follow(play, chance, of_run, {}, leaves_after=chance.randrange(2, CHUNKS)),
            self._follow(play, chance, *chance.choice([(of_run, {}), (of_conversation, {"run_id": run_id})]), cursor),
            self._follow_by_ticket(play, run_id, chance),
        ]

    def _joined(self, token: str, kind: Any, after: int = 0) -> str:
        self._made += 1
        name = f"r-{self.name}{self._made}"
        self._reads.write(Joined(at=now(), reader=name, token=token, kind=kind, after=after))
        return name

    async def _follow(
        self,
        play: Play,
        chance: random.Random,
        path: str,
        body: Mapping[str, Any],
        after: int = 0,
        *,
        leaves_after: int | None = None,
    ) -> None:
        """Read to the end; whoever leaves meanwhile comes back with its own cursor, at any gateway."""
        name = self._joined(play.token, "letta", after)
        for leaves in (leaves_after, None):
            async with self.gateway(chance).stream(path, {**body, "starting_after": after}) as stream:
                self._reads.write(Connected(at=now(), reader=name, gateway="g", after=after))
                if await self._hear(name, stream, leaves):
                    self._reads.write(Disconnected(at=now(), reader=name, gateway="g", how="done"))
                    return
                after = stream.cursor

    async def _follow_by_ticket(self, play: Play, run_id: str, chance: random.Random) -> None:
        """As a page does that can send no header."""
        made = await self.gateway(chance).fetch("POST", f"/v1/runs/{run_id}/tickets")
        assert made.status == 200, made
        name = self._joined(play.token, "event_source")
        path = f"/v1/runs/{run_id}/stream?ticket={made.json['ticket']}"
        async with open_source(chance.choice(self._gateways), path) as stream:
            self._reads.write(Connected(at=now(), reader=name, gateway="g"))
            await self._hear(name, stream)
        self._reads.write(Disconnected(at=now(), reader=name, gateway="g", how="done"))

    async def _hear(self, name: str, stream: EventStream, most: int | None = None) -> bool:
        """Note what is shown, and whether that was all."""
        while most is None or len(stream.seen) < most:
            event = await stream.next()
            if event is None:
                return True
            self._reads.write(got(name, event))
        return False

    # -- what it tries ---------------------------------------------------------------------------------------------

    async def trespass(self, other: "Tenant", all_lanes: Sequence[Lane], chance: random.Random) -> None:
        """Try something of the other's, or look whether anything of it is among its own."""
        self.tries += 1
        lane = chance.choice(all_lanes)
        if not other.runs or chance.random() < 0.3:
            await self._look(other, lane, chance)
            return
        run_id = chance.choice(other.runs[-NEWEST:])
        tried = chance.choice([self._try_gateway, self._try_broker, self._try_cancel, self._try_tickets])
        await tried(run_id, lane, chance)

    def _expect(self, what: str, reply: Reply, status: int) -> None:
        if reply.status != status:
            self._trespassed(what, reply)

    def _trespassed(self, what: str, reply: Reply) -> None:
        self.trespasses.append(f"{self.name}: {what} {reply.status} {reply.body[:300]!r}")

    async def _look(self, other: "Tenant", lane: Lane, chance: random.Random) -> None:
        client = self.gateway(chance)
        queries = ["limit=1000", f"agent_id={lane.agent_id}", f"conversation_id={lane.conversation_id}"]
        for path in (f"/v1/runs/?{chance.choice(queries)}", "/v1/runs/active?limit=100"):
            found = {each["id"] for each in (await client.fetch("GET", path)).json}
            if found & {*other.runs}:
                self.trespasses.append(f"{self.name}: {path} has runs of {other.name}'s")
        if lane.number in self._lanes:
            path = f"/v1/conversations/{lane.conversation_id}"
            changed = await client.fetch("PATCH", path, json={"summary": self.name})
            seen = await client.fetch("GET", path)
            for reply in (changed, seen):
                if reply.status != 200 or reply.json["summary"] != self.name:
                    self._trespassed(f"its own {path} is", reply)

    async def _try_gateway(self, run_id: str, lane: Lane, chance: random.Random) -> None:
        client, path = self.gateway(chance), f"/v1/runs/{run_id}"
        method, what, body = chance.choice(
            [
                ("GET", "", None),
                ("GET", "/messages", None),
                ("GET", "/usage", None),
                ("DELETE", "", None),
                ("GET", "/stream", None),
                ("POST", "/stream", {"starting_after": chance.choice([0, *self.cursors[-NEWEST:]])}),
            ]
        )
        options: dict[str, Any] = {} if body is None else {"json": body}
        self._expect(f"{method} {path}{what}", await client.fetch(method, path + what, **options), 404)
        named = {"run_id": run_id, "agent_id": lane.agent_id}
        resumed = await client.fetch("POST", f"/v1/conversations/{lane.conversation_id}/stream", json=named)
        self._expect(f"resuming {run_id} by its id", resumed, 404)
        self._expect(f"a list after {run_id}", await client.fetch("GET", f"/v1/runs/?after={run_id}"), 404)

    async def _try_broker(self, run_id: str, _: Lane, chance: random.Random) -> None:
        chunk = {"message_type": "assistant_message", "content": content_of(self.name, 0)}
        ended = {"stop_reason": "end_turn"}
        tried = [("chunks", chunk), ("lease", {}), ("end", ended), ("fail", {"error_type": "llm_error"})]
        what, body = chance.choice(tried)
        written = await self._broker.fetch("POST", f"/ingest/v1/runs/{run_id}/{what}", json=body)
        self._expect(f"writing {what} to {run_id}", written, 404)

    async def _try_cancel(self, run_id: str, lane: Lane, chance: random.Random) -> None:
        path = f"/v1/agents/{lane.agent_id}/messages/cancel"
        cancelled = await self.gateway(chance).fetch("POST", path, json={"run_ids": [run_id]})
        if cancelled.json.get(run_id) not in {None, "failed"}:
            self.trespasses.append(f"{self.name}: cancelling {run_id} was answered {cancelled.json}")

    async def _try_tickets(self, run_id: str, _: Lane, chance: random.Random) -> None:
        client = self.gateway(chance)
        self._expect(f"a ticket for {run_id}", await client.fetch("POST", f"/v1/runs/{run_id}/tickets"), 404)
        if self.runs:
            own = (await client.fetch("POST", f"/v1/runs/{self.runs[-1]}/tickets")).json["ticket"]
            shown = await Client(client.base, None).fetch("GET", f"/v1/runs/{run_id}/stream?ticket={own}")
            self._expect(f"{run_id} with a ticket for another", shown, 401)


@contextlib.asynccontextmanager
async def trespassing(
    tenants: tuple[Tenant, Tenant], all_lanes: Sequence[Lane], chance: random.Random
) -> AsyncIterator[None]:
    """Have both try what the other has, all the time, while the block lasts."""

    async def keep_trying(who: Tenant, whose: Tenant) -> None:
        while True:
            await who.trespass(whose, all_lanes, chance)
            await asyncio.sleep(0)

    one, other = tenants
    async with asyncio.TaskGroup() as group:
        trying = [group.create_task(keep_trying(*each)) for each in ((one, other), (other, one))]
        try:
            yield
        finally:
            for task in trying:
                task.cancel()


async def hammer(tenants: tuple[Tenant, Tenant], all_lanes: Sequence[Lane], chance: random.Random) -> None:
    """Let both play in all lanes at once, and trespass meanwhile."""
    one, other = tenants
    seeds = iter([random.Random(chance.random()) for _ in range(2 * len(all_lanes))])
    async with trespassing(tenants, all_lanes, random.Random(chance.random())):
        plays = [
            who.play(lane, whose, next(seeds)) for lane in all_lanes for who, whose in ((one, other), (other, one))
        ]
        await asyncio.gather(*plays)
