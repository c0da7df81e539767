"""The ingest API's endpoints: what was sent is read and checked, and whatever comes of it is answered in JSON."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from functools import wraps
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from aiohttp import web
from pydantic import BaseModel, ValidationError

from runstream.broker.ending import Outcome, failed
from runstream.broker.errors import BrokerError, Forbidden, Unauthenticated
from runstream.broker.http import meet_expectation
from runstream.broker.http_auth import PRINCIPAL, admit, cause_of
from runstream.broker.http_body import BadBody, parse_body, pieces_of, read_body
from runstream.broker.ingest.errors import STATUSES, IngestError, not_usable, refusals, translated
from runstream.broker.logs import get_logger
from runstream.broker.operations import Answer, Body, Header, Operation
from runstream.broker.recording import outcome_of_stop
from runstream.schemas import (
    TRACEPARENT,
    TRACESTATE,
    EndRunRequest,
    FailRunRequest,
    FinalStatus,
    OpenRunRequest,
    is_run_id,
    trace_of,
)

if TYPE_CHECKING:
    from runstream.broker.auth.admissions import Admissions
    from runstream.broker.ingest.service import Ingest

__all__ = ["ingest_operations", "unknown_route"]

log = get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Object = dict[str, Any]
Model = TypeVar("Model", bound=BaseModel)

EXPECTED_INDEX: Final = "Expected-Index"
MOST_DIGITS: Final = 9
MOST_COMPLAINTS: Final = 12
"""What is told of one body that is wrong: who mends these will see the rest."""
JSON: Final = "application/json"
INDEX_HEADER: Final = Header(
    EXPECTED_INDEX,
    "How many chunks of the run are stored before this request's: sent again with it, nothing is stored twice.",
    MappingProxyType({"type": "integer", "minimum": 0}),
)
OF_BODIES: Final = ("invalid_request", "unsupported_media_type", "body_too_large", "too_slow")
SCOPE: Final = "platform"
"""Of all of it: who writes what an agent says is the platform."""
OF_ALL: Final = ("unauthorized", "forbidden", "limit_reached", "store_unavailable", "internal_error")
OF_RUNS: Final = ("run_not_found", "not_ingested", "run_ended", "run_cancelled")
OF_THE_STORE: Final = ("store_full", "unsettled", "broker_busy", "broker_stopping")
OF_CLAIMS: Final = frozenset({"conflict", "conversation_deleted", "record_too_large", "wrong_agent"})
FOR_GOOD: Final = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.GONE})
LINES: Final = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})


class Opened(msgspec.Struct):
    """A run that is open, and the sequence of its first message."""

    run_id: str
    last_seq_id: int


class Appended(msgspec.Struct):
    """How many chunks of the request are in the log, the sequence of the last one, and the next `Expected-Index`."""

    stored: int
    last_seq_id: int
    index: int


class Kept(msgspec.Struct):
    """How long the run may do without another sign of life, in seconds."""

    run_id: str
    lease_seconds: float


class Ended(msgspec.Struct):
    """What a run came to, and the sequence of its end; null if retention has removed it."""

    run_id: str
    status: FinalStatus
    stop_reason: str
    last_seq_id: int | None


def ingest_operations(ingest: Ingest, admissions: Admissions) -> list[Operation]:
    """Make the ingest API, for whoever is admitted."""
    routes = _Routes(ingest, admissions)
    run = "/ingest/v1/runs/{run_id}"
    return [
        Operation(
            method="POST",
            path="/ingest/v1/runs",
            handler=routes.answering("open", routes.open),
            scope=SCOPE,
            bodies=[Body([OpenRunRequest])],
            is_body_required=True,
            answers={
                201: Answer("The run.", [Body([Opened])]),
                **refusals(*OF_ALL, *OF_BODIES, *OF_THE_STORE, *OF_CLAIMS),
            },
        ),
        Operation(
            method="POST",
            path=f"{run}/chunks",
            handler=routes.answering("append", routes.append),
            scope=SCOPE,
            bodies=[Body([Object, list[Object]]), *(Body([Object], media) for media in sorted(LINES))],
            is_body_required=True,
            headers=[INDEX_HEADER],
            answers={200: Answer("What is stored.", [Body([Appended])]), **refusals(*STATUSES.keys() - OF_CLAIMS)},
        ),
        Operation(
            method="POST",
            path=f"{run}/lease",
            handler=routes.answering("lease", routes.keep_alive),
            scope=SCOPE,
            answers={
                200: Answer("How long it lasts.", [Body([Kept])]),
                **refusals(*OF_ALL, *OF_RUNS, *OF_THE_STORE, "invalid_request", "fenced", "expired"),
            },
        ),
        *(
            Operation(
                method="POST",
                path=f"{run}/{name}",
                handler=routes.answering(name, handle),
                scope=SCOPE,
                bodies=[Body([model])],
                is_body_required=True,
                headers=[INDEX_HEADER],
                answers={
                    200: Answer("What the run came to.", [Body([Ended])]),
                    **refusals(*OF_ALL, *OF_BODIES, *OF_RUNS, *OF_THE_STORE, "wrong_index", "fenced", "expired"),
                },
            )
            for name, handle, model in (("end", routes.end, EndRunRequest), ("fail", routes.fail, FailRunRequest))
        ),
    ]


def unknown_route(ingest: Ingest, admissions: Admissions) -> web.RouteDef:
    """Make the route of whatever else is asked; strangers are not told what there is."""
    routes = _Routes(ingest, admissions)
    unknown = routes.answering("unknown", routes.unknown)
    return web.route("*", "/{path:(?s:.*)}", unknown, expect_handler=meet_expectation)


class _Routes:
    def __init__(self, ingest: Ingest, admissions: Admissions) -> None:
        self._ingest = ingest
        self._admissions = admissions
        self._settings = ingest.settings

    def answering(self, operation: str, handle: Handler) -> Handler:
        """Answer whoever may ask, in JSON whatever goes wrong, and count what came of it."""

        @wraps(handle)
        async def handler(request: web.Request) -> web.StreamResponse:
            is_upload = operation == "append" and _media_type(request) in LINES
            try:
                who = await admit(request, self._admissions, self._ingest.limits, SCOPE)
                with self._ingest.seat(who, is_upload=is_upload):
                    response = await handle(request)
            except ConnectionError:
                self._ingest.metrics.ingest_request(operation, "hung_up")
                log.info("ingest_hung_up", operation=operation, run_id=request.match_info.get("run_id"))
                # Nobody is there to get it; raised, aiohttp would log a defect.
                response = web.Response(status=HTTPStatus.BAD_REQUEST)
            except Exception as error:  # noqa: BLE001  # a defect is answered, too
                refused = await self._refused_for_good(_refused(error, request), request)
                cause = refused.__cause__ or error
                if isinstance(cause, Unauthenticated | Forbidden):
                    self._ingest.metrics.credential_refused(cause_of(cause))
                if isinstance(cause, BrokerError) and refused.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                    # What NATS said is for the log; the writer gets what it can act on.
                    log.warning("request_failed", operation=operation, path=request.path, error=str(cause))
                self._ingest.metrics.ingest_request(operation, refused.error_type)
                response = _json(refused.body, status=refused.status)
                response.headers.update(refused.headers)
            else:
                self._ingest.metrics.ingest_request(operation, "ok")
            if not request.content.is_eof():
                # Nobody reads the rest of it, and the next request would come after it.
                response.force_close()
            return response

        return handler

    async def _refused_for_good(self, refused: IngestError, request: web.Request) -> IngestError:
        """Give a refusal back that rests on what is stored, or not, if leaders have said so; else another."""
        if refused.status in FOR_GOOD and refused.error_type != "not_found":  # Of paths nothing is stored.
            try:
                await self._ingest.runs.leaders.confirm()
            except BrokerError as doubt:
                return _refused(doubt, request)
        return refused

    async def open(self, request: web.Request) -> web.Response:
        """`POST /ingest/v1/runs`: open a run, which any gateway serves from then on."""
        wanted = _valid(OpenRunRequest, await self._parsed(request))
        sent = request.headers
        trace = trace_of(sent.getall(TRACEPARENT, ()), sent.getall(TRACESTATE, ()))
        return _json(await self._ingest.open(request[PRINCIPAL], wanted, trace), status=201)

    async def append(self, request: web.Request) -> web.Response:
        """`POST /ingest/v1/runs/{run_id}/chunks`: store chunks."""
        run_id, expected_index, who = _run_id(request), _expected_index(request), request[PRINCIPAL]
        self._ingest.limits.check_ingest(who)
        if _media_type(request) in LINES:
            revoked = asyncio.Event()
            with self._admissions.over(who, revoked.set):
                return _json(await self._ingest.upload(who, run_id, pieces_of(request), expected_index, revoked))
        if _media_type(request) != JSON:
            raise _unsupported(request, [JSON, *sorted(LINES)])
        return _json(await self._ingest.append(who, run_id, await self._read(request), expected_index))

    async def keep_alive(self, request: web.Request) -> web.Response:
        """`POST /ingest/v1/runs/{run_id}/lease`: give a sign of life."""
        return _json(await self._ingest.keep_alive(request[PRINCIPAL], _run_id(request)))

    async def end(self, request: web.Request) -> web.Response:
        """`POST /ingest/v1/runs/{run_id}/end`: end a run."""
        run_id, expected_index = _run_id(request), _expected_index(request)
        said = _valid(EndRunRequest, await self._parsed(request))
        usage = None if said.usage is None else said.usage.to_chunk()
        outcome = outcome_of_stop(said.stop_reason, usage, run_id)
        return _json(await self._ingest.end(request[PRINCIPAL], run_id, outcome, expected_index))

    async def fail(self, request: web.Request) -> web.Response:
        """`POST /ingest/v1/runs/{run_id}/fail`: end a run with an error."""
        run_id, expected_index = _run_id(request), _expected_index(request)
        said = _valid(FailRunRequest, await self._parsed(request))
        outcome: Outcome = failed(run_id, said.error_type, message=said.message, detail=said.detail)
        return _json(await self._ingest.end(request[PRINCIPAL], run_id, outcome, expected_index))

    async def unknown(self, request: web.Request) -> web.Response:
        """Answer what no route took."""
        raise IngestError("not_found", f"There is no {request.method} {request.path}: PROTOCOL.md has what there is.")

    async def _parsed(self, request: web.Request) -> Any:
        if _media_type(request) != JSON:
            raise _unsupported(request, [JSON])
        return parse_body(await self._read(request), limit=self._settings.ingest_body_bytes)

    async def _read(self, request: web.Request) -> bytes:
        return await read_body(request, limit=self._settings.ingest_body_bytes, seconds=self._settings.body_seconds)


def _refused(error: Exception, request: web.Request) -> IngestError:
    match error:
        case IngestError():
            return error
        case BadBody():
            return not_usable(error)
        case BrokerError():
            refused = translated(error)
        case _:
            refused = IngestError("internal_error", "An unknown error occurred.")
    if refused.error_type == "internal_error":
        reference = uuid.uuid4().hex
        refused.facts["reference"] = reference
        log.error("request_crashed", method=request.method, path=request.path, reference=reference, exc_info=error)
    return refused


def _json(body: object, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type=JSON)


def _media_type(request: web.Request) -> str:
    """Read what a body is; one that does not say is JSON, as at the gateway."""
    return request.content_type.lower() if "Content-Type" in request.headers else JSON


def _unsupported(request: web.Request, accepted: list[str]) -> IngestError:
    return IngestError(
        "unsupported_media_type",
        f"Content-Type {request.content_type} is not read here: send {' or '.join(accepted)}.",
    )


def _run_id(request: web.Request) -> str:
    run_id = request.match_info["run_id"]
    if not is_run_id(run_id):
        raise IngestError("invalid_request", f"A run's id is run-<uuid4>, in lower case, and not {run_id!r}.")
    return run_id


def _expected_index(request: web.Request) -> int | None:
    values = request.headers.getall(EXPECTED_INDEX, [])
    if not values:
        return None
    value = ", ".join(values)
    if not (value.isascii() and value.isdigit() and len(value) <= MOST_DIGITS):
        raise IngestError("invalid_request", f"{EXPECTED_INDEX} is how many chunks are stored, and not {value!r}.")
    return int(value)


def _valid(kind: type[Model], body: Any) -> Model:
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        complaints = [
            # pydantic begins with words of its own what a validator of ours says.
            f"{'.'.join(map(str, found['loc'])) or 'the body'}: {found['msg'].removeprefix('Value error, ')}"
            for found in error.errors(include_url=False, include_input=False)[:MOST_COMPLAINTS]
        ]
        if (more := error.error_count() - len(complaints)) > 0:
            complaints.append(f"and {more} more")
        raise IngestError("invalid_request", "; ".join(complaints)) from None
