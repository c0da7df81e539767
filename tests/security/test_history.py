"""Two tenants hammer the same otids and conversation ids: the checker of histories proves that nothing crosses."""

import asyncio
from pathlib import Path

import pytest

from runstream.schemas import new_agent_id, new_conversation_id, new_otid
from tests.chaos.checker import Checker, Rule, Verdict
from tests.chaos.content import content_of, digest_of, read
from tests.chaos.history import (
    Connected,
    Disconnected,
    Ended,
    Ending,
    EventKind,
    Got,
    Joined,
    Opened,
    Opening,
    Recorder,
    Said,
    Stored,
    now,
)
from tests.support.auth import Client, Issuer
from tests.support.http import Event
from tests.support.stack import Stack

TENANTS = ("acme", "other")
ROUNDS = 8
CHUNKS = 12
READERS = 2
KINDS: dict[str | None, EventKind] = {"ping": "ping", "stop_reason": "stop", "usage_statistics": "usage", None: "done"}


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
    text = str(event.json.get("stop_reason") or "")
    return Got(at=now(), reader=reader, kind=kind, seq=event.seq_id, text=text, digest=digest)


class Tenant:
    """One tenant's writer and readers, who record what they say and what they are shown."""

    def __init__(self, stack: Stack, issuer: Issuer, name: str, writes: Recorder, reads: Recorder) -> None:
        self.name = name
        self.writer = Client(stack.broker_base, issuer.token(tenant=name, scope="platform"))
        self.reader = Client(stack.base, issuer.token(tenant=name, scope="runs:read"))
        self.writes, self.reads = writes, reads

    async def play(self, agent_id: str, conversation_id: str, otids: list[str]) -> None:
        """Write one run after the other, each in that conversation, and follow each by its otid meanwhile."""
        for number, otid in enumerate(otids):
            token = f"{self.name}{number}"
            self.writes.write(Opening(at=now(), token=token, mode="ingest"))
            body = {"agent_id": agent_id, "conversation_id": conversation_id, "otids": [otid]}
            opened = await self.writer.fetch("POST", "/ingest/v1/runs", json=body)
            assert opened.status == 201, opened
            self.writes.write(Opened(at=now(), token=token, run_id=opened.json["run_id"]))
            readers = [self.follow(token, f"r-{token}x{each}", conversation_id, otid) for each in range(READERS)]
            await asyncio.gather(self.write(token, opened.json["run_id"]), *readers)

    async def write(self, token: str, run_id: str) -> None:
        """Say all that there is to be said, and end the run."""
        path = f"/ingest/v1/runs/{run_id}"
        for index in range(CHUNKS):
            text = content_of(token, index)
            sent = now()
            self.writes.write(Said(at=sent, token=token, index=index, digests=[digest_of(text)]))
            chunk = {"message_type": "assistant_message", "id": "message-1", "content": text}
            stored = await self.writer.fetch("POST", f"{path}/chunks", json=chunk)
            assert stored.status == 200, stored
            seq = stored.json["last_seq_id"]
            self.writes.write(Stored(at=now(), token=token, index=index, count=1, sent=sent, last_seq=seq))
        self.writes.write(Ending(at=now(), token=token, stop_reason="end_turn"))
        assert (await self.writer.fetch("POST", f"{path}/end", json={"stop_reason": "end_turn"})).status == 200
        self.writes.write(Ended(at=now(), token=token, stop_reason="end_turn"))

    async def follow(self, token: str, name: str, conversation_id: str, otid: str) -> None:
        """Follow the run that the otid stands for, to its end."""
        self.reads.write(Joined(at=now(), reader=name, token=token, kind="letta"))
        async with self.reader.stream(f"/v1/conversations/{conversation_id}/stream", {"otid": otid}) as stream:
            self.reads.write(Connected(at=now(), reader=name, gateway="g"))
            while (event := await stream.next()) is not None:
                self.reads.write(got(name, event))
        self.reads.write(Disconnected(at=now(), reader=name, gateway="g", how="done"))


async def played(stack: Stack, issuer: Issuer, directory: Path, *tenants: str) -> Verdict:
    """Let these tenants play at once, and check what they have recorded."""
    agent_id, conversation_id, otids = new_agent_id(), new_conversation_id(), [new_otid() for _ in range(ROUNDS)]
    with Recorder(directory, "writer", "w") as writes, Recorder(directory, "reader", "r") as reads:
        all_tenants = [Tenant(stack, issuer, name, writes, reads) for name in tenants]
        await asyncio.gather(*(tenant.play(agent_id, conversation_id, otids) for tenant in all_tenants))
    return Checker().check(directory)


async def test_nothing_crosses(stack: Stack, issuer: Issuer, tmp_path: Path) -> None:
    """Each reader is shown all that its own tenant's writer said, in order, and nothing else."""
    verdict = await played(stack, issuer, tmp_path, *TENANTS)
    assert not verdict.violations, verdict.violations
    figures = verdict.figures
    assert (figures.runs, figures.acknowledged) == (2 * ROUNDS, 2 * ROUNDS * CHUNKS)
    assert figures.readers_to_the_end == 2 * ROUNDS * READERS


@pytest.mark.parametrize("shown", ["other0", "acme1"])
async def test_the_checker_would_notice(tmp_path: Path, shown: str) -> None:
    """A reader that is shown a single chunk of another's run is a violation."""
    with Recorder(tmp_path, "writer", "w") as writes, Recorder(tmp_path, "reader", "r") as reads:
        for token in ("acme0", shown):
            writes.write(Opening(at=now(), token=token, mode="ingest"), Opened(at=now(), token=token, run_id=token))
            writes.write(Said(at=now(), token=token, index=0, digests=[digest_of(content_of(token, 0))]))
            writes.write(Stored(at=now(), token=token, index=0, count=1, sent=now(), last_seq=1))
        reads.write(Joined(at=now(), reader="r-1", token="acme0", kind="letta"))
        reads.write(Connected(at=now(), reader="r-1", gateway="g"))
        seen = read(content_of(shown, 0))
        reads.write(Got(at=now(), reader="r-1", seq=1, token=seen.token, index=0, digest=seen.digest))
    assert Checker().check(tmp_path).count[Rule.FOREIGN] == 1
