"""A runstream in front of a platform: one that a test writes byte by byte, or a toy of Letta's."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Any

from aiohttp import web

from runstream.broker.agents import Agent
from runstream.broker.agents.http import http_agent
from runstream.broker.agents.http_platform import Platform
from runstream.broker.agents.settings import UpstreamSettings
from runstream.broker.auth.settings import AuthSettings
from runstream.gateway.upstream import Upstream
from runstream.schemas import new_agent_id, new_conversation_id
from tests.support.stack import Stack, stack_running
from tests.support.upstream import Script, upstream_running
from tests.support.upstream import Upstream as Scripted


@contextlib.asynccontextmanager
async def in_front_of(
    nats_url: str,
    url: str,
    *,
    gateway: Mapping[str, Any] | None = None,
    agent: Agent | None = None,
    admission: AuthSettings | None = None,
    **settings: Any,
) -> AsyncIterator[Stack]:
    """A runstream that passes on to the platform at `url`; the settings are those of `RUNSTREAM_UPSTREAM_…`."""
    upstream = Upstream(Platform(url), UpstreamSettings(**{"silence_seconds": 5, **settings}))
    async with stack_running(nats_url, agent=agent, gateway=gateway, upstream=upstream, auth=admission) as stack:
        yield stack


@contextlib.asynccontextmanager
async def scripted(
    nats_url: str, script: Script, path: str = "", **options: Any
) -> AsyncIterator[tuple[Scripted, Stack]]:
    """A platform that does what the script says, and a runstream in front of it."""
    async with upstream_running(script) as platform, in_front_of(nats_url, platform.url + path, **options) as stack:
        yield platform, stack


@contextlib.asynccontextmanager
async def serving(routes: list[web.RouteDef], port: int = 0) -> AsyncIterator[str]:
    """An aiohttp server with these routes; gives its URL."""
    app = web.Application(client_max_size=2**30)
    app.add_routes(routes)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1, auto_decompress=False)
    await runner.setup()
    bound = socket.create_server(("127.0.0.1", port))
    try:
        await web.SockSite(runner, bound).start()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        await runner.cleanup()
        bound.close()


class ToyLetta:
    """A platform with agents, conversations and messages, as Letta's client knows them. It notes what it is asked."""

    def __init__(self) -> None:
        self.agent_id = new_agent_id()
        self.conversations: dict[str, str] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.password: str | None = None
        self.stop_reason = "end_turn"
        self.hold = asyncio.Event()
        self.hold.set()

    def conversation(self) -> str:
        """Make one that only the platform knows."""
        conversation_id = new_conversation_id()
        self.conversations[conversation_id] = self.agent_id
        return conversation_id

    def count(self, method: str, path: str) -> int:
        """How often this was asked."""
        return sum((method, path) == asked[:2] for asked in self.asked)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Serve while the block lasts."""
        async with serving([web.route("*", "/v1/{path:.*}", self._answer)]) as url:
            yield url

    @contextlib.asynccontextmanager
    async def agent(self, url: str, **settings: Any) -> AsyncIterator[Agent]:
        """The agent that asks this platform."""
        async with http_agent(Platform(url), UpstreamSettings(**{"patience_seconds": 0.5, **settings})) as agent:
            yield agent

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.method, request.path, dict(request.headers)))
        if self.password is not None and request.headers.get("Authorization") != f"Bearer {self.password}":
            return web.json_response({"detail": "Unauthorized"}, status=401)
        match request.method, request.path.split("/")[2:]:
            case "GET", ["agents", ""]:
                said: Any = [self._agent()]
            case "GET", ["agents", agent_id] if agent_id == self.agent_id:
                said = self._agent()
            case "POST", ["conversations", ""]:
                said = self._conversation(self.conversation())
            case "GET", ["conversations", conversation_id] if conversation_id in self.conversations:
                said = self._conversation(conversation_id)
            case "DELETE", ["conversations", conversation_id] if conversation_id in self.conversations:
                del self.conversations[conversation_id]
                said = None
            case "GET", ["conversations", conversation_id, "messages"] if conversation_id in self.conversations:
                said = []
            case "POST", ["conversations", _, "messages"]:
                return await self._stream(request)
            case "POST", [*_, "cancel"]:
                said = {}
            case _:
                return web.json_response({"detail": "the platform knows nothing of this"}, status=404)
        return web.json_response(said)

    def _agent(self) -> dict[str, Any]:
        return {"id": self.agent_id, "name": "toy", "agent_type": "letta_v1_agent", "blocks": [], "tools": []}

    def _conversation(self, conversation_id: str) -> dict[str, Any]:
        return {"id": conversation_id, "agent_id": self.conversations[conversation_id], "summary": "the platform's"}

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for word in ("one ", "two "):
            await response.write(b'data: {"message_type":"assistant_message","content":"%b"}\n\n' % word.encode())
        await self.hold.wait()
        stop = b'data: {"message_type":"stop_reason","stop_reason":"%b"}\n\ndata: [DONE]\n\n'
        await response.write(stop % self.stop_reason.encode())
        return response
