"""Runs: listed, read, and streamed again."""

from __future__ import annotations

from aiohttp import web

from runstream.gateway.eventsource import follow
from runstream.gateway.resuming import resume_and_stream
from runstream.gateway.services import SERVICES, json_response, raw_json_response
from runstream.gateway.validation import query_of, run_path
from runstream.schemas import ListActiveRunsRequest, ListRunsRequest

__all__ = ["routes"]


async def list_runs(request: web.Request) -> web.Response:
    """`GET /v1/runs/`: a page of runs, by the time they were made."""
    wanted = query_of(ListRunsRequest, request)
    return raw_json_response(await request.app[SERVICES].lists.runs(wanted))


async def list_active_runs(request: web.Request) -> web.Response:
    """`GET /v1/runs/active`: the runs that go on; deprecated for `?active=true`, which has pages."""
    wanted = query_of(ListActiveRunsRequest, request)
    return raw_json_response(await request.app[SERVICES].lists.active_runs(wanted))


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


routes = [
    web.get("/v1/runs/", list_runs, allow_head=False),
    web.get("/v1/runs/active", list_active_runs, allow_head=False),
    web.get("/v1/runs/{run_id}", retrieve, allow_head=False),
    web.post("/v1/runs/{run_id}/stream", stream),
    web.get("/v1/runs/{run_id}/stream", event_source, allow_head=False),
]
