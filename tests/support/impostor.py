"""A small server of the same API that is not runstream, in memory, and as broken as a test wants it."""

import asyncio
import contextlib
import itertools
import json
import re
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from aiohttp import web

from tests.support.stack import listener, url_of

ENDED = {"completed", "failed", "cancelled"}
FLAWS = (
    "begins without a ping",
    "pings always",
    "cursors repeat the last event",
    "cursors lose an event",
    "cursors do not grow",
    "has no cursors",
    "resumes from the beginning",
    "hangs at the end",
    "takes any cursor",
    "never says done",
    "says done before it is",
    "two stop reasons",
    "errors are messages",
    "otids mean nothing",
    "otids are forgotten",
    "is never busy",
    "names no run when busy",
    "cancels nothing",
    "cancels without a stop reason",
    "keeps the conversation after a cancel",
    "stops when a client hangs up",
    "lists nothing",
    "knows every run",
    "finds what has ended",
    "resumes the foreground",
)
"""What may be wrong with it, one thing each."""


@dataclass
class Run:
    """What a run has said so far, as it goes out; `None` is no cursor of it."""

    agent_id: str
    conversation_id: str | None
    background: bool
    id: str = field(default_factory=lambda: f"run-{uuid4()}")
    status: str = "running"
    events: list[tuple[str, dict[str, Any] | None]] = field(default_factory=list)
    news: asyncio.Condition = field(default_factory=asyncio.Condition)
    task: asyncio.Task[None] | None = None

    async def add(self, *events: tuple[str, dict[str, Any] | None]) -> None:
        async with self.news:
            self.events += events
            self.news.notify_all()


class Impostor:
    """The server. It answers as Letta's does, but for its `flaws`."""

    def __init__(self, flaws: Collection[str]) -> None:
        assert set(flaws) <= set(FLAWS)
        self.flaws = flaws
        self.runs: dict[str, Run] = {}
        self.otids: dict[str, Run] = {}

    # -- runs ---------------------------------------------------------------------------------------------------------

    def start(self, body: dict[str, Any], agent_id: str, conversation_id: str | None) -> Run:
        run = Run(agent_id, conversation_id, bool(body.get("background")))
        self.runs[run.id] = run
        if "begins without a ping" not in self.flaws:
            run.events.append(("message", {"message_type": "ping", "run_id": run.id, "seq_id": 1}))
        said = body["messages"][0]
        try:
            knobs = json.loads(said["content"])
        except ValueError:
            knobs = {}
        run.task = asyncio.create_task(self.execute(run, knobs))
        return run

    async def execute(self, run: Run, knobs: dict[str, Any]) -> None:
        for number in range(int(knobs.get("chunks", 5))):
            if number == knobs.get("error_after"):
                await self.end(run, "failed", "error")
                return
            await asyncio.sleep(min(int(knobs.get("interval_ms", 0)), 5) / 1000)
            seq = 2 if "cursors do not grow" in self.flaws else number + 2
            chunk = {"message_type": "assistant_message", "content": str(number), "run_id": run.id, "seq_id": seq}
            await run.add(("message", chunk))
        await self.end(run, "completed", "end_turn")

    async def end(self, run: Run, status: str, reason: str) -> None:
        stop: tuple[str, dict[str, Any]] = ("message", {"message_type": "stop_reason", "stop_reason": reason})
        events: list[tuple[str, dict[str, Any] | None]] = [stop]
        if "two stop reasons" in self.flaws:
            events.append(stop)
        if status == "completed":
            events.append(("message", {"message_type": "usage_statistics", "total_tokens": 1}))
        if status == "failed":
            error = {"message_type": "error_message", "error_type": "llm_error", "run_id": run.id, "seq_id": 99}
            events.append(("message" if "errors are messages" in self.flaws else "error", error))
        if status == "cancelled" and "cancels without a stop reason" in self.flaws:
            events = []
        if "says done before it is" not in self.flaws:
            run.status = status
        await run.add(*events, ("done", None))

    def of_conversation(self, conversation_id: str) -> Run | None:
        return next((run for run in reversed(self.runs.values()) if run.conversation_id == conversation_id), None)

    # -- routes -------------------------------------------------------------------------------------------------------

    async def message(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        otid = body["messages"][0].get("otid")
        agent_id, conversation_id = request.match_info.get("agent_id", ""), request.match_info.get("conversation_id")
        known = self.otids.get(otid) if otid else None
        if known is not None and not ("otids are forgotten" in self.flaws and known.status in ENDED):
            return await self.stream(request, known, 0)
        active = self.of_conversation(conversation_id) if conversation_id else None
        if active is not None and active.status not in ENDED and "is never busy" not in self.flaws:
            named = {} if "names no run when busy" in self.flaws else {"run_id": active.id}
            return web.json_response({"detail": "busy", **named}, status=409)
        run = self.start(body, agent_id, conversation_id)
        if otid and "otids mean nothing" not in self.flaws:
            self.otids[otid] = run
        try:
            return await self.stream(request, run, 0)
        finally:
            if "stops when a client hangs up" in self.flaws and run.task is not None:
                run.task.cancel()
                run.status = "cancelled"

    async def resume(self, request: web.Request) -> web.StreamResponse:
        body = await request.json() if request.can_read_body else {}
        run = self.runs.get(request.match_info["run_id"])
        if not re.fullmatch("run-[0-9a-f-]{36}", request.match_info["run_id"]):
            return web.json_response({"detail": "malformed"}, status=400)
        if run is None and "knows every run" in self.flaws:
            run = next(iter(self.runs.values()), None)
        if run is None:
            return web.json_response({"detail": "unknown"}, status=404)
        cursor = body.get("starting_after", 0)
        if not isinstance(cursor, int):
            if "takes any cursor" not in self.flaws:
                return web.json_response({"detail": "no cursor"}, status=422)
            cursor = 0
        if not run.background and "resumes the foreground" not in self.flaws:
            return web.json_response({"detail": "foreground"}, status=400)
        return await self.stream(request, run, cursor, pings=body.get("include_pings", True))

    async def resume_conversation(self, request: web.Request) -> web.StreamResponse:
        body = await request.json() if request.can_read_body else {}
        if "otid" in body:
            run = self.otids.get(body["otid"])
            return (
                await self.stream(request, run, 0)
                if run is not None
                else web.json_response({"detail": "unknown"}, status=404)
            )
        run = self.of_conversation(request.match_info["conversation_id"])
        if run is None or (run.status in ENDED and "finds what has ended" not in self.flaws):
            return web.json_response({"detail": "No active runs found for this conversation."}, status=400)
        return await self.stream(request, run, 0)

    async def cancel(self, request: web.Request) -> web.Response:
        run = self.of_conversation(request.match_info["conversation_id"])
        if run is None or run.status in ENDED:
            return web.json_response({"detail": "nothing goes on"}, status=409)
        await self.stop(run)
        return web.json_response({run.id: "cancelled"})

    async def cancel_runs(self, request: web.Request) -> web.Response:
        named = [self.runs[run_id] for run_id in (await request.json())["run_ids"] if run_id in self.runs]
        for run in named:
            if run.status not in ENDED:
                await self.stop(run)
        return web.json_response({run.id: "cancelled" for run in named})

    async def stop(self, run: Run) -> None:
        if "cancels nothing" in self.flaws or run.task is None:
            return
        run.task.cancel()
        await asyncio.wait([run.task])
        await self.end(run, "cancelled", "cancelled")
        if "keeps the conversation after a cancel" in self.flaws:
            run.status = "running"

    async def retrieve(self, request: web.Request) -> web.Response:
        run = self.runs.get(request.match_info["run_id"])
        found = {} if run is None else {"id": run.id, "status": run.status}
        return web.json_response(found, status=200 if found else 404)

    async def listed(self, request: web.Request) -> web.Response:
        agent_id = request.query.get("agent_id")
        runs = [] if "lists nothing" in self.flaws else self.runs.values()
        return web.json_response([{"id": run.id} for run in runs if run.agent_id == agent_id])

    async def converse(self, _: web.Request) -> web.Response:
        return web.json_response({"id": f"conv-{uuid4()}"})

    # -- streams ------------------------------------------------------------------------------------------------------

    async def stream(self, request: web.Request, run: Run, cursor: int, *, pings: bool = True) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            async for name, chunk in self.following(run, cursor):
                if (
                    chunk is not None
                    and chunk["message_type"] == "ping"
                    and not (pings or "pings always" in self.flaws)
                ):
                    continue
                shown = "[DONE]" if chunk is None else json.dumps(self.worded(run, chunk))
                if chunk is None and "never says done" in self.flaws:
                    break
                head = "event: error\n" if name == "error" else ""
                await response.write(f"{head}data: {shown}\n\n".encode())
        return response

    def worded(self, run: Run, chunk: dict[str, Any]) -> dict[str, Any]:
        is_shown = run.background and "has no cursors" not in self.flaws
        return chunk if is_shown or "seq_id" not in chunk else {**chunk, "seq_id": None}

    async def following(self, run: Run, cursor: int) -> AsyncIterator[tuple[str, dict[str, Any] | None]]:
        if "resumes from the beginning" in self.flaws:
            cursor = 0
        if "cursors repeat the last event" in self.flaws and cursor:
            cursor -= 1
        skipping = "cursors lose an event" in self.flaws and cursor > 0
        if "hangs at the end" in self.flaws and run.status in ENDED and cursor:
            await asyncio.sleep(3600)
        for place in itertools.count():
            async with run.news:
                while len(run.events) <= place:
                    await run.news.wait()
            name, chunk = run.events[place]
            seq = None if chunk is None else chunk.get("seq_id")
            if seq is None or seq > cursor:
                if skipping and seq is not None:
                    skipping = False
                    continue
                yield name, chunk
            if chunk is None:
                return


@contextlib.asynccontextmanager
async def impostor_running(*flaws: str) -> AsyncIterator[str]:
    """One of these servers, at the URL that this gives."""
    server = Impostor(flaws)
    app = web.Application()
    conversation = "/v1/conversations/{conversation_id}"
    app.add_routes(
        [
            web.post("/v1/agents/{agent_id}/messages/stream", server.message),
            web.post("/v1/agents/{agent_id}/messages/cancel", server.cancel_runs),
            web.post("/v1/conversations/", server.converse),
            web.post(f"{conversation}/messages", server.message),
            web.post(f"{conversation}/stream", server.resume_conversation),
            web.post(f"{conversation}/cancel", server.cancel),
            web.get("/v1/runs/", server.listed),
            web.get("/v1/runs/{run_id}", server.retrieve),
            web.post("/v1/runs/{run_id}/stream", server.resume),
        ]
    )
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    bound = listener()
    await web.SockSite(runner, bound).start()
    try:
        yield url_of(bound)
    finally:
        tasks = [run.task for run in server.runs.values() if run.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await runner.cleanup()
