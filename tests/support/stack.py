"""A whole runstream in the test's own event loop: a broker with an agent, a gateway, on a nats-server that is there."""

import asyncio
import contextlib
import itertools
import json
import socket
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from runstream.broker.agents import Agent
from runstream.broker.agents.demo import demo
from runstream.broker.auth.authenticator import authenticating
from runstream.broker.auth.settings import AuthSettings
from runstream.broker.connection import Connection
from runstream.broker.errors import AgentFailed
from runstream.broker.index import Index
from runstream.broker.jetstream import JetStream
from runstream.broker.limits.settings import LimitSettings
from runstream.broker.service import Broker
from runstream.broker.settings import BrokerSettings
from runstream.gateway.app import Gateway
from runstream.gateway.fanout import Hub
from runstream.gateway.settings import GatewaySettings
from runstream.gateway.upstream import Upstream
from runstream.schemas import (
    DEFAULT_TENANT,
    AssistantMessage,
    Chunk,
    RunRecord,
    RunRequest,
    StopReason,
    last_user_text,
    new_agent_id,
)
from tests.support.http import Event, EventStream, Reply, fetch, open_stream
from tests.support.waiting import wait_until

PUPPET = "puppet"
"""What to say to an agent that then says what the test says."""

LOOK_SECONDS = 10.0
"""How long a test's own look may take: it is no part of what is tested, and a machine with one disk stalls at times."""


class Puppet:
    """An agent that says what the test makes it say, when it is addressed as PUPPET; else it is the demo agent."""

    def __init__(self) -> None:
        self._lines: defaultdict[str, asyncio.Queue[Chunk | Exception]] = defaultdict(asyncio.Queue)
        self._numbers: defaultdict[str, itertools.count[int]] = defaultdict(itertools.count)

    async def __call__(self, request: RunRequest) -> AsyncGenerator[Chunk, None]:
        if last_user_text(request.body) != PUPPET:
            async with aclosing(demo(request)) as answer:
                async for chunk in answer:
                    yield chunk
            return
        while not isinstance(said := await self._lines[request.run_id].get(), StopReason):
            if isinstance(said, Exception):
                raise said
            yield said
        yield said

    def say(self, run_id: str, count: int = 1, *, size: int = 0) -> None:
        """Let a run say its next `count` chunks: its 0, 1, 2 …, each filled up to `size` characters."""
        for _ in range(count):
            content = f"{next(self._numbers[run_id])} ".ljust(size, ".")
            self._lines[run_id].put_nowait(AssistantMessage(content=content))

    def fail(self, run_id: str, error_type: str = "llm_error") -> None:
        """Let a run fail once it has said what it was told to."""
        self.fail_with(run_id, AgentFailed(error_type))

    def fail_with(self, run_id: str, error: AgentFailed) -> None:
        """The same, with this very error."""
        self._lines[run_id].put_nowait(error)

    def finish(self, run_id: str, stop_reason: str = "end_turn") -> None:
        """Let a run end once it has said what it was told to."""
        self._lines[run_id].put_nowait(StopReason(stop_reason=stop_reason))


class CountingPuppet(Puppet):
    """A puppet that notes each time it is asked: a run that is executed twice is there twice."""

    def __init__(self) -> None:
        super().__init__()
        self.executed: list[RunRequest] = []

    async def __call__(self, request: RunRequest) -> AsyncGenerator[Chunk, None]:
        self.executed.append(request)
        async with aclosing(super().__call__(request)) as answer:
            async for chunk in answer:
                yield chunk

    def runs_of(self, addressee: str) -> list[str]:
        """The runs that it was asked for, of a conversation or of an agent."""
        return [asked.run_id for asked in self.executed if addressee in (asked.conversation_id, asked.agent_id)]


@dataclass(frozen=True)
class Stack:
    """A runstream that serves."""

    base: str
    broker_base: str
    gateway: Gateway
    hub: Hub
    index: Index
    jetstream: JetStream
    """A connection of the test's own: what the parts are doing is looked at from outside."""
    agent: Agent
    settings: BrokerSettings

    @property
    def puppet(self) -> Puppet:
        assert isinstance(self.agent, Puppet)
        return self.agent

    async def fetch(self, method: str, path: str, **options: Any) -> Reply:
        """Send one request to the gateway."""
        return await fetch(self.base, method, path, **options)

    def create(
        self, said: str | Mapping[str, Any] = PUPPET, *, agent_id: str | None = None, **body: Any
    ) -> open_stream:
        """Open the stream of a new run, in the background unless told otherwise; a mapping is the demo's knobs."""
        path = f"/v1/agents/{agent_id or new_agent_id()}/messages/stream"
        return open_stream(self.base, path, message(said, **body))

    def say_in(self, conversation_id: str, said: str | Mapping[str, Any] = PUPPET, **body: Any) -> open_stream:
        """Open the stream of a new run in a conversation."""
        return open_stream(self.base, f"/v1/conversations/{conversation_id}/messages", message(said, **body))

    def resume(
        self, run_id: str, starting_after: int | None = None, *, receive_buffer: int | None = None, **body: Any
    ) -> open_stream:
        """Open the stream of a run that is there, from a cursor on; `receive_buffer` as for `Connection.open`."""
        cursor = {} if starting_after is None else {"starting_after": starting_after}
        path = f"/v1/runs/{run_id}/stream"
        return open_stream(self.base, path, {**cursor, **body}, receive_buffer=receive_buffer)

    async def conversation(self) -> str:
        """Make a conversation; returns its id."""
        made = await self.fetch("POST", f"/v1/conversations/?agent_id={new_agent_id()}", json={})
        assert made.status == 200, made
        return str(made.json["id"])

    async def record(self, run_id: str) -> RunRecord:
        """What the index knows of a run."""
        stored = await self.index.run(DEFAULT_TENANT, run_id)
        assert stored is not None, f"{run_id} is not in the index"
        return stored.value

    async def run_of(self, otid: str) -> str | None:
        """The run that a request with this otid started, None if there is none yet."""
        stored = await self.index.run_with_otid(DEFAULT_TENANT, otid)
        return None if stored is None else stored.value.id

    async def finished(self, said: Mapping[str, Any], **body: Any) -> tuple[str, list[Event]]:
        """Run the demo agent to its end; returns the run's id and all its events."""
        async with self.create(said, **body) as stream:
            events = await stream.rest()
        return str(events[0].json["run_id"]), events

    @contextlib.asynccontextmanager
    async def live(self, chunks: int = 0, *, size: int = 0, **body: Any) -> AsyncIterator[tuple[str, EventStream]]:
        """A run of the puppet's that has said `chunks` chunks and waits, with a follower that has seen them."""
        async with self.create(**body) as stream:
            (ping,) = await stream.take(1)
            run_id = str(ping.json["run_id"])
            try:
                self.puppet.say(run_id, chunks, size=size)
                await stream.take(chunks)
                yield run_id, stream
            finally:
                self.puppet.finish(run_id)

    async def tip(self, record: RunRecord) -> int:
        """The sequence of the last message of a run's log."""
        last = await self.jetstream.last_message(f"RUNS_{record.shard}", f"runs.{record.shard}.{record.id}")
        assert last is not None, f"{record.id} has no log"
        return last.seq

    async def newest_sequence(self, record: RunRecord) -> int:
        """The last sequence that the run's stream has issued."""
        info = await self.api(f"STREAM.INFO.RUNS_{record.shard}")
        return int(info["state"]["last_seq"])

    async def advance(self, record: RunRecord) -> int:
        """Let other runs store messages in the same stream; the last sequence it has issued then."""
        while True:
            run_id, _ = await self.finished({"chunks": 1})
            if (await self.record(run_id)).shard == record.shard:
                return await self.newest_sequence(record)

    async def api(self, call: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Call the JetStream API."""
        return await self.jetstream.api(call, body)

    async def purge_up_to(self, record: RunRecord, seq: int) -> None:
        """Remove all messages up to sequence `seq`, that one included, from the run's stream, as retention does."""
        await self.api(f"STREAM.PURGE.RUNS_{record.shard}", {"seq": seq + 1})

    async def consumers(self) -> int:
        """How many consumers there are on the log's streams."""
        infos = [await self.api(f"STREAM.INFO.RUNS_{shard}") for shard in range(self.settings.shards)]
        return sum(int(info["state"]["consumer_count"]) for info in infos)

    async def nobody_follows(self) -> None:
        """Wait until the gateway holds no follower and no tail."""
        hub = self.hub
        await wait_until(lambda: not hub.seats.taken and not hub.live_tails, 10, "somebody still follows")

    async def is_back(self) -> None:
        """Wait until the gateway, and the test's own connection, have NATS again."""

        async def is_ready() -> bool:
            return self.jetstream.connection.is_connected and (await self.fetch("GET", "/readyz")).status == 200

        await wait_until(is_ready, 20, "the gateway does not become ready again")


def message(said: str | Mapping[str, Any], **body: Any) -> dict[str, Any]:
    """A request body: `said` to an agent, in the background unless told otherwise."""
    text = said if isinstance(said, str) else json.dumps(said)
    if "messages" not in body:
        body["input"] = text
    return {"background": True, **body}


def listener() -> socket.socket:
    """A loopback socket on a free port."""
    bound = socket.create_server(("127.0.0.1", 0))
    bound.setblocking(False)
    return bound


def url_of(bound: socket.socket) -> str:
    return f"http://127.0.0.1:{bound.getsockname()[1]}"


@contextlib.asynccontextmanager
async def stack_running(
    nats_url: str,
    *,
    agent: Agent | None = None,
    broker: Mapping[str, Any] | None = None,
    gateway: Mapping[str, Any] | None = None,
    judges_approvals: bool = False,
    upstream: Upstream | None = None,
    auth: AuthSettings | None = None,
    limits: Mapping[str, Any] | None = None,
) -> AsyncIterator[Stack]:
    """A broker and a gateway with the given settings, serving; nothing is left of them when the block ends."""
    chosen = agent or Puppet()
    settings = BrokerSettings(nats_url=nats_url, **(broker or {}))
    async with contextlib.AsyncExitStack() as stack:
        broker_socket = stack.enter_context(listener())
        gateway_socket = stack.enter_context(listener())
        authenticator = None if auth is None else await stack.enter_async_context(authenticating(auth))
        await stack.enter_async_context(
            Broker(
                settings,
                agent=chosen,
                judges_approvals=judges_approvals,
                listener=broker_socket,
                authenticator=authenticator,
                limits=LimitSettings(**(limits or {})),
            )
        )
        edge = Gateway(
            GatewaySettings(**(gateway or {})),
            settings,
            listener=gateway_socket,
            upstream=upstream,
            authenticator=authenticator,
            limits=LimitSettings(**(limits or {})),
        )
        await stack.enter_async_context(edge)
        connection = await stack.enter_async_context(Connection(nats_url, name="test"))
        made = stack_of(broker_socket, gateway_socket, edge, connection, agent=chosen, settings=settings)
        stack.push_async_callback(made.jetstream.close)
        yield made


def stack_of(
    broker_socket: socket.socket,
    gateway_socket: socket.socket,
    gateway: Gateway,
    connection: Connection,
    *,
    agent: Agent,
    settings: BrokerSettings,
) -> Stack:
    """What serves at these sockets, looked at over a connection of the test's own; its `jetstream` is to be closed."""
    jetstream = JetStream(connection, timeout_seconds=LOOK_SECONDS)
    return Stack(
        base=url_of(gateway_socket),
        broker_base=url_of(broker_socket),
        gateway=gateway,
        hub=gateway.hub,
        index=Index(jetstream),
        jetstream=jetstream,
        agent=agent,
        settings=settings,
    )
