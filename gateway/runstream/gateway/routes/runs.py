"""Runs: read, what they said and used, and streamed again."""

from __future__ import annotations

from aiohttp import web

from runstream.gateway.eventsource import follow
from runstream.gateway.paging import page_of
from runstream.gateway.resuming import resume_and_stream
from runstream.gateway.services import SERVICES, json_response
from runstream.gateway.validation import query_of, run_path
from runstream.schemas import RunMessagesQuery

__all__ = ["routes"]


async def retrieve(request: web.Request) -> web.Response:
    """`GET /v1/runs/{run_id}`."""
    record = await request.app[SERVICES].lookup.by_id(run_path(request))
    return json_response(record.to_wire())


async def stream(request: web.Request) -> web.StreamResponse:
    """`POST /v1/runs/{run_id}/stream`: resume one run; the body's own run_id, otid and agent_id are not looked at."""
    run_id = run_path(request)
    lookup = request.app[SERVICES].lookup
    return await resume_and_stream(request, lambda _: lookup.to_resume(run_id))


async def event_source(request: web.Request) -> web.StreamResponse:
    """`GET /v1/runs/{run_id}/stream`: follow one run, for a browser's EventSource, which can send nothing else."""
    return await follow(request, run_path(request))


async def messages(request: web.Request) -> web.StreamResponse:
    """`GET /v1/runs/{run_id}/messages`: what a run has said so far, whether or not it has ended."""
    services = request.app[SERVICES]
    run_id = run_path(request)
    wanted = query_of(RunMessagesQuery, request, *RunMessagesQuery.model_fields)
    record = await services.lookup.by_id(run_id)
    said = await services.transcripts.of(record)
    return await services.answers.messages(request, page_of(said, wanted))


async def usage(request: web.Request) -> web.Response:
    """`GET /v1/runs/{run_id}/usage`: what a run has used; zeros until it has ended."""
    record = await request.app[SERVICES].lookup.by_id(run_path(request))
    return json_response(record.usage_to_wire())


routes = [
    web.get("/v1/runs/{run_id}", retrieve, allow_head=False),
    web.get("/v1/runs/{run_id}/messages", messages, allow_head=False),
    web.get("/v1/runs/{run_id}/usage", usage, allow_head=False),
    web.post("/v1/runs/{run_id}/stream", stream),
    web.get("/v1/runs/{run_id}/stream", event_source, allow_head=False),
]
