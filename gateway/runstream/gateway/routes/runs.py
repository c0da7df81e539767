"""Runs: read, and streamed again."""

from __future__ import annotations

from aiohttp import web

from runstream.gateway.services import SERVICES, json_response
from runstream.gateway.streaming import check_room, stream_run
from runstream.gateway.validation import body_of, model_of, run_path
from runstream.schemas import RetrieveStreamRequest

__all__ = ["routes"]


async def retrieve(request: web.Request) -> web.Response:
    """`GET /v1/runs/{run_id}`."""
    record = await request.app[SERVICES].lookup.by_id(run_path(request))
    return json_response(record.to_wire())


async def stream(request: web.Request) -> web.StreamResponse:
    """`POST /v1/runs/{run_id}/stream`: resume one run; the body's own run_id, otid and agent_id are not looked at."""
    services = request.app[SERVICES]
    run_id = run_path(request)
    body = await body_of(request, limit=services.body_limit)
    wanted = model_of(RetrieveStreamRequest, body, required=False)
    check_room(services.hub)
    record = await services.lookup.to_resume(run_id)
    return await stream_run(
        request,
        services.hub,
        record,
        starting_after=wanted.cursor,
        include_pings=wanted.include_pings,
        kind="resume",
    )


routes = [
    web.get("/v1/runs/{run_id}", retrieve, allow_head=False),
    web.post("/v1/runs/{run_id}/stream", stream),
]
