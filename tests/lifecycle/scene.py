"""One NATS with brokers and gateways on it, each a process of its own, and what must hold of every run there."""

import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from runstream.broker.topology import INDEX_STREAM, WORK_STREAM, LogAddress
from runstream.schemas import DEFAULT_TENANT, Kind, RunRecord, new_agent_id, new_otid
from tests.lifecycle.processes import Asked, Options, Peer, Spoken, forked, read_journal
from tests.support.core import Core, core_running, kinds, texts
from tests.support.http import Event, EventStream, Reply, fetch, open_stream
from tests.support.runs import over, queue_empty
from tests.support.stack import message
from tests.support.waiting import wait_until

LEASE_SECONDS = 1.0
LOOK_SECONDS = 2.0
"""What may pass between the lapse of a lease and the end of its run."""


@dataclass(frozen=True)
class Say:
    """One request of a client, which may be repeated."""

    conversation_id: str
    asked: Asked
    otid: str = field(default_factory=new_otid)
    background: bool = True

    @property
    def path(self) -> str:
        return f"/v1/conversations/{self.conversation_id}/messages"

    @property
    def body(self) -> dict[str, Any]:
        text = msgspec.json.encode(self.asked).decode()
        said = {"role": "user", "content": text, "otid": self.otid}
        return message("", messages=[said], background=self.background)


class Scene:
    """Brokers and gateways that a test starts, kills and asks."""

    def __init__(self, core: Core, directory: Path, stack: contextlib.AsyncExitStack) -> None:
        self.core = core
        self.directory = directory
        self._stack = stack
        self._numbers = itertools.count()

    async def broker(self, **options: Any) -> Peer:
        """Start a broker."""
        return await self._start("broker", options)

    async def gateway(self, **options: Any) -> Peer:
        """Start a gateway."""
        return await self._start("gateway", options)

    async def _start(self, role: str, options: dict[str, Any]) -> Peer:
        chosen = Options(self.core.settings.nats_url, str(self.directory), **options)
        name = f"{role}-{next(self._numbers)}"
        return await self._stack.enter_async_context(forked(role, chosen, name))

    async def sweep(self) -> None:
        """Remove all runs there are."""
        for stream in (WORK_STREAM, INDEX_STREAM, "RUNS_0"):
            await self.core.jetstream.api(f"STREAM.PURGE.{stream}", {})

    def journal(self, what: str = "", run_id: str = "") -> list[Spoken]:
        """What agents have noted, of one kind and one run if those are named."""
        return [
            line for line in read_journal(self.directory) if line.what.startswith(what) and run_id in {"", line.run_id}
        ]

    async def conversation(self, gateway: Peer) -> str:
        """Make a conversation; returns its id."""
        made = await fetch(gateway.url, "POST", f"/v1/conversations/?agent_id={new_agent_id()}", json={})
        assert made.status == 200, made
        return str(made.json["id"])

    async def say(self, gateway: Peer, **asked: Any) -> Say:
        """Make a request for a new conversation."""
        return Say(await self.conversation(gateway), Asked(**asked))

    async def record(self, run_id: str) -> RunRecord:
        """What the index knows of a run."""
        stored = await self.core.index.run(DEFAULT_TENANT, run_id)
        assert stored is not None, f"{run_id} is not in the index"
        return stored.value

    async def texts(self, run: RunRecord) -> list[str]:
        """What the agent said, as it is stored."""
        return texts(await self.core.stored(LogAddress(run.id, run.shard)))

    async def metric(self, peers: Sequence[Peer], name: str) -> float:
        """A counter's value, over several processes."""
        total = 0.0
        for peer in peers:
            lines = (await fetch(peer.url, "GET", "/metrics")).body.decode().splitlines()
            total += sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))
        return total

    async def counted(self, peers: Sequence[Peer], name: str, value: int) -> None:
        """Wait until a counter has a value, over several processes: what is done is counted a moment later."""

        async def has_value() -> bool:
            return await self.metric(peers, name) == value

        await wait_until(has_value, 5, f"{name} is not {value}")


@contextlib.asynccontextmanager
async def scene_running(url: str, directory: Path, **settings: Any) -> AsyncIterator[Scene]:
    """A scene without actors; those that a test starts are gone when the block ends."""
    directory.mkdir(parents=True, exist_ok=True)
    patient = {
        "request_timeout_seconds": 10.0,
        **settings,
    }  # The core only looks on: no test is about its own patience.
    async with core_running(url, **patient) as core, contextlib.AsyncExitStack() as stack:
        yield Scene(core, directory, stack)


def opened(gateway: Peer, say: Say) -> open_stream:
    """The stream of a run that this request starts, or has started."""
    return open_stream(gateway.url, say.path, say.body)


async def answered(gateway: Peer, say: Say) -> list[Event]:
    """All events of the run that answers a request."""
    async with opened(gateway, say) as stream:
        return await stream.rest(deadline=20)


async def post(gateway: Peer, path: str, **options: Any) -> Reply:
    """Ask for something that is no stream."""
    return await fetch(gateway.url, "POST", f"/v1/{path}", **options)


async def run_of(stream: EventStream) -> str:
    """The id of the run that is streamed, from its first ping."""
    return str((await stream.take(1))[0].json["run_id"])


def ending_of(events: Sequence[Event]) -> str:
    """How a follower saw its run end: its stop reason, or the type of its error. Everything in it is in order, once."""
    assert events[-1].is_done
    assert [event.is_done for event in events].count(True) == 1
    types = [event.message_type for event in events[:-1]]
    assert types.count("stop_reason") == 1, types
    stop = str(events[types.index("stop_reason")].json["stop_reason"])
    after = types[types.index("stop_reason") + 1 :]
    errors = [event for event in events if event.event == "error"]
    if errors:
        assert (stop, after) == ("error", ["error_message"])
        return str(errors[0].json["error_type"])
    assert after == ([] if stop == "cancelled" else ["usage_statistics"])
    return stop


def said_by(events: Sequence[Event]) -> list[str]:
    """What a follower saw the agent say."""
    return [event.json["content"] for event in events[:-1] if event.message_type == "assistant_message"]


def check_said(scene: Scene, run_id: str, said: Sequence[str]) -> None:
    """What was said is from one execution, whole from its beginning, and there was none after it."""
    begun = [line.what.split()[1] for line in scene.journal("begun", run_id)]
    assert len(begun) == len(set(begun))
    if said:
        signature = said[0].partition(":")[0]
        assert list(said) == [f"{signature}:{number}" for number in range(len(said))]
        assert begun[-1] == signature, "it was executed again after its first chunk"


async def check_life(scene: Scene, run_id: str, events: Sequence[Event]) -> RunRecord:
    """A run that is over has left nothing but log and record, which agree with each other and with the follower."""
    record = await over(scene.core, await scene.record(run_id))
    await queue_empty(scene.core)
    stored = await scene.core.stored(LogAddress(record.id, record.shard))
    assert kinds(stored).count(Kind.END) == 1
    assert kinds(stored)[-1] == Kind.END
    assert said_by(events) == texts(stored)
    check_said(scene, run_id, said_by(events))
    ending = ending_of(events)
    assert record.stop_reason == {message.headers.get("Rs-Ending") for message in stored[-2:]}.pop()
    expected = {"end_turn": "completed", "cancelled": "cancelled"}.get(ending, "failed")
    assert (record.status, record.error is None) == (expected, expected != "failed")
    assert record.error is None or record.error["error_type"] == ending
    conversation = await scene.core.index.conversation(record.tenant, record.conversation_id or "")
    assert conversation is not None
    assert (conversation.value.active_run, conversation.value.latest_run) == (None, run_id)
    return record


async def check_repeated(gateway: Peer, say: Say, events: Sequence[Event]) -> None:
    """The same request finds the same run, and all of it."""
    assert [event.data for event in await answered(gateway, say)] == [event.data for event in events]


async def check_free(scene: Scene, gateway: Peer, conversation_id: str) -> None:
    """The conversation takes the next message, and answers it."""
    events = await answered(gateway, Say(conversation_id, Asked(chunks=1)))
    assert ending_of(events) == "end_turn"
    await check_life(scene, str(events[0].json["run_id"]), events)


async def begun(scene: Scene, run_id: str) -> None:
    """Wait until an agent was handed the run."""
    await wait_until(lambda: scene.journal("begun", run_id), message="no agent has begun")
