"""Runs as somebody watches them who wants to know how they are: figures, followers, and the outline of a log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runstream.broker.http_auth import PRINCIPAL
from runstream.broker.operations import Answer, Body, Operation
from runstream.gateway.described import RUN
from runstream.gateway.errors import Gone, Invalid, NotFound, TryLater, refusals
from runstream.gateway.figures import Outline, RunFigures, RunFollowers
from runstream.gateway.services import SERVICES, json_response
from runstream.gateway.validation import query_of, run_path
from runstream.schemas import FiguresRequest, FindRunRequest, OutlineRequest

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["operations"]


async def figures(request: web.Request) -> web.Response:
    """`GET /v1/runstream/figures`: how far the logs of some runs have come, and who follows them here."""
    services = request.app[SERVICES]
    wanted = query_of(FiguresRequest, request)
    records = await services.lookup(request[PRINCIPAL]).several(wanted.run_ids)
    return json_response(await services.figures.of(records))


async def find(request: web.Request) -> web.Response:
    """`GET /v1/runstream/run`: the run that was asked for with an otid."""
    wanted = query_of(FindRunRequest, request)
    record = await request.app[SERVICES].lookup(request[PRINCIPAL]).with_otid(wanted.otid)
    return json_response(record.to_wire())


async def followers(request: web.Request) -> web.Response:
    """`GET /v1/runstream/runs/{run_id}/followers`: who follows a run at this gateway, and how far each has come."""
    services = request.app[SERVICES]
    record = await services.lookup(request[PRINCIPAL]).by_id(run_path(request))
    return json_response(services.figures.followers(record))


async def outline(request: web.Request) -> web.Response:
    """`GET /v1/runstream/runs/{run_id}/outline`: a part of a run's log, without bodies: when each was stored."""
    services = request.app[SERVICES]
    run_id = run_path(request)
    wanted = query_of(OutlineRequest, request)
    record = await services.lookup(request[PRINCIPAL]).by_id(run_id)
    return json_response(await services.figures.outline(record, wanted.starting_after, limit=wanted.limit))


operations = [
    Operation(
        method="GET",
        path="/v1/runstream/figures",
        handler=figures,
        scope="runs:read",
        query=FiguresRequest,
        answers={
            200: Answer("The figures of those that there are.", [Body([list[RunFigures]])]),
            **refusals(Invalid, TryLater),
        },
    ),
    Operation(
        method="GET",
        path="/v1/runstream/run",
        handler=find,
        scope="runs:read",
        query=FindRunRequest,
        answers={200: RUN, **refusals(Invalid, NotFound, TryLater)},
    ),
    Operation(
        method="GET",
        path="/v1/runstream/runs/{run_id}/followers",
        handler=followers,
        scope="runs:read",
        answers={200: Answer("The followers.", [Body([RunFollowers])]), **refusals(NotFound, TryLater)},
    ),
    Operation(
        method="GET",
        path="/v1/runstream/runs/{run_id}/outline",
        handler=outline,
        scope="runs:read",
        query=OutlineRequest,
        answers={
            200: Answer("The messages, in order.", [Body([Outline])]),
            **refusals(Invalid, NotFound, Gone, TryLater),
        },
    ),
]
