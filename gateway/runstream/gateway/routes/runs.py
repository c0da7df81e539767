"""Runs: listed, read, what they said and used, streamed again, and removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from runstream.broker.auth.tickets import TICKET_SECONDS
from runstream.broker.http_auth import PRINCIPAL
from runstream.broker.operations import Answer, Body, Operation
from runstream.gateway.described import EVENTS, LAST_EVENT_ID, MESSAGES, NOTHING_FOLLOWS, RUN, RUNS, USAGE
from runstream.gateway.errors import (
    NOT_AGAIN,
    BadStatus,
    Busy,
    Gone,
    Invalid,
    NotFound,
    TryLater,
    refusals,
)
from runstream.gateway.eventsource import follow
from runstream.gateway.resuming import resume_and_stream
from runstream.gateway.services import SERVICES, json_response, raw_json_response
from runstream.gateway.transcripts import TooLong
from runstream.gateway.validation import OF_BODIES, query_of, run_path
from runstream.schemas import (
    FollowRequest,
    ListActiveRunsRequest,
    ListRunMessagesRequest,
    ListRunsRequest,
    RetrieveStreamRequest,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from aiohttp import web

__all__ = ["operations"]


async def list_runs(request: web.Request) -> web.Response:
    """`GET /v1/runs/`: a page of runs, by the time they were made."""
    wanted = query_of(ListRunsRequest, request)
    return raw_json_response(await request.app[SERVICES].lists(request[PRINCIPAL]).runs(wanted))


async def list_active_runs(request: web.Request) -> web.Response:
    """`GET /v1/runs/active`: the runs that go on; deprecated for `?active=true`, which has pages."""
    wanted = query_of(ListActiveRunsRequest, request)
    return raw_json_response(await request.app[SERVICES].lists(request[PRINCIPAL]).active_runs(wanted))


async def retrieve(request: web.Request) -> web.Response:
    """`GET /v1/runs/{run_id}`: read a run."""
    record = await request.app[SERVICES].lookup(request[PRINCIPAL]).by_id(run_path(request))
    return json_response(record.to_wire())


# No coroutine of its own, as of all that resume: each costs 400 bytes for as long as its stream is open.
def stream(request: web.Request) -> Awaitable[web.StreamResponse]:
    """`POST /v1/runs/{run_id}/stream`: resume one run; the body's own run_id, otid and agent_id are not looked at."""
    run_id = run_path(request)
    lookup = request.app[SERVICES].lookup(request[PRINCIPAL])
    return resume_and_stream(request, lambda _: lookup.to_resume(run_id))


def event_source(request: web.Request) -> Awaitable[web.StreamResponse]:
    """`GET /v1/runs/{run_id}/stream`: follow one run, for a browser's EventSource, which can send nothing else."""
    return follow(request, run_path(request))


async def make_ticket(request: web.Request) -> web.Response:
    """`POST /v1/runs/{run_id}/tickets`: let a browser's EventSource follow this run once, that can send no header."""
    services, who = request.app[SERVICES], request[PRINCIPAL]
    record = await services.lookup(who).to_resume(run_path(request))
    return json_response(Ticket(await services.tickets.make(who, record.id), TICKET_SECONDS))


async def delete(request: web.Request) -> web.Response:
    """`DELETE /v1/runs/{run_id}`: remove an ended run, its log and what the index knows of it. Answers with the run."""
    services = request.app[SERVICES]
    record = await services.lookup(request[PRINCIPAL]).by_id(run_path(request))
    if not await services.remover.remove(record):
        raise Busy(f"CONFLICT: Run {record.id} is going on: cancel it, or wait for its end.", headers=NOT_AGAIN)
    return json_response(record.to_wire())


async def messages(request: web.Request) -> web.StreamResponse:
    """`GET /v1/runs/{run_id}/messages`: what a run has said so far, whether or not it has ended."""
    services = request.app[SERVICES]
    run_id = run_path(request)
    wanted = query_of(ListRunMessagesRequest, request)
    with services.seat(request[PRINCIPAL]):
        record = await services.lookup(request[PRINCIPAL]).by_id(run_id)
        return await services.answers.messages(request, record, wanted)


async def usage(request: web.Request) -> web.Response:
    """`GET /v1/runs/{run_id}/usage`: what a run has used; zeros until it has ended."""
    record = await request.app[SERVICES].lookup(request[PRINCIPAL]).by_id(run_path(request))
    return json_response(record.usage_to_wire())


class Ticket(msgspec.Struct):
    """What stands in the query of an EventSource's URL, `?ticket=`, and for how many seconds it may be used."""

    ticket: str
    expires_in: int


operations = [
    Operation(
        method="GET",
        path="/v1/runs/",
        handler=list_runs,
        scope="runs:read",
        query=ListRunsRequest,
        answers={200: RUNS, **refusals(Invalid, BadStatus, NotFound, TryLater)},
    ),
    Operation(
        method="GET",
        path="/v1/runs/active",
        handler=list_active_runs,
        scope="runs:read",
        query=ListActiveRunsRequest,
        answers={200: RUNS, **refusals(Invalid, TryLater)},
        is_deprecated=True,
    ),
    Operation(
        method="GET",
        path="/v1/runs/{run_id}/messages",
        handler=messages,
        scope="runs:read",
        query=ListRunMessagesRequest,
        answers={200: MESSAGES, **refusals(Invalid, NotFound, Gone, TooLong, TryLater)},
    ),
    Operation(
        method="GET",
        path="/v1/runs/{run_id}/usage",
        handler=usage,
        scope="runs:read",
        answers={200: USAGE, **refusals(NotFound, TryLater)},
    ),
    Operation(
        method="GET",
        path="/v1/runs/{run_id}",
        handler=retrieve,
        scope="runs:read",
        answers={200: RUN, **refusals(NotFound, TryLater)},
    ),
    Operation(
        method="POST",
        path="/v1/runs/{run_id}/stream",
        handler=stream,
        scope="runs:read",
        bodies=[Body([RetrieveStreamRequest])],
        answers={200: EVENTS, **refusals(*OF_BODIES, NotFound, Gone, TryLater)},
    ),
    Operation(
        method="GET",
        path="/v1/runs/{run_id}/stream",
        handler=event_source,
        scope="runs:read",
        is_for_browsers=True,
        query=FollowRequest,
        query_names=("starting_after", "include_pings", "ticket"),
        headers=[LAST_EVENT_ID],
        answers={200: EVENTS, 204: NOTHING_FOLLOWS, **refusals(Invalid, NotFound, Gone)},
    ),
    Operation(
        method="POST",
        path="/v1/runs/{run_id}/tickets",
        handler=make_ticket,
        scope="runs:read",
        answers={200: Answer("The ticket.", [Body([Ticket])]), **refusals(NotFound, TryLater)},
    ),
    Operation(
        method="DELETE",
        path="/v1/runs/{run_id}",
        handler=delete,
        scope="runs:write",
        answers={200: RUN, **refusals(NotFound, Busy, TryLater)},
    ),
]
