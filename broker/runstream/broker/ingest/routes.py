"""The ingest API's endpoints: what was sent is read and checked, and whatever comes of it is answered in JSON."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from aiohttp import web
from pydantic import BaseModel, ValidationError

from runstream.broker.ending import Outcome, failed
from runstream.broker.errors import BrokerError
from runstream.broker.http_body import BadBody, parse_body, pieces_of, read_body
from runstream.broker.ingest.errors import IngestError, not_usable, translated
from runstream.broker.logs import get_logger
from runstream.broker.recording import outcome_of_stop
from runstream.schemas import EndRunRequest, FailRunRequest, OpenRunRequest, is_run_id

if TYPE_CHECKING:
    from runstream.broker.ingest.service import Ingest

__all__ = ["ingest_routes"]

log = get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Model = TypeVar("Model", bound=BaseModel)

EXPECTED_INDEX: Final = "Expected-Index"
MOST_DIGITS: Final = 9
JSON: Final = "application/json"
LINES: Final = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})


def ingest_routes(ingest: Ingest) -> list[web.RouteDef]:
    """Routes of the ingest API, and one for whatever else is asked below `/ingest`."""
    routes = _Routes(ingest)
    run = "/ingest/v1/runs/{run_id}"
    return [
        web.post("/ingest/v1/runs", routes.answering("open", routes.open)),
        web.post(f"{run}/chunks", routes.answering("append", routes.append)),
        web.post(f"{run}/lease", routes.answering("lease", routes.keep_alive)),
        web.post(f"{run}/end", routes.answering("end", routes.end)),
        web.post(f"{run}/fail", routes.answering("fail", routes.fail)),
        web.route("*", "/ingest/{path:.*}", routes.answering("unknown", routes.unknown)),
    ]


class _Routes:
    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest
        self._settings = ingest.settings

    def answering(self, operation: str, handle: Handler) -> Handler:
        """Answer in JSON whatever goes wrong, and count what came of it."""

        async def handler(request: web.Request) -> web.StreamResponse:
            try:
                response = await handle(request)
            except ConnectionError:
                self._ingest.metrics.ingest_request(operation, "hung_up")
                raise
            except Exception as error:  # noqa: BLE001  # a defect is answered, too
                refused = _refused(error, request)
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

    async def open(self, request: web.Request) -> web.Response:
        """`POST /ingest/v1/runs`: open a run."""
        wanted = _valid(OpenRunRequest, await self._parsed(request))
        return _json(await self._ingest.open(wanted), status=201)

    async def append(self, request: web.Request) -> web.Response:
        """`POST /ingest/v1/runs/{run_id}/chunks`: store chunks."""
        run_id, expected_index = _run_id(request), _expected_index(request)
        if _media_type(request) in LINES:
            return _json(await self._ingest.upload(run_id, pieces_of(request), expected_index))
        if _media_type(request) != JSON:
            raise _unsupported(request, [JSON, *sorted(LINES)])
        return _json(await self._ingest.append(run_id, await self._read(request), expected_index))

    async def keep_alive(self, request: web.Request) -> web.Response:
        """`POST /ingest/v1/runs/{run_id}/lease`: give a sign of life."""
        return _json(await self._ingest.keep_alive(_run_id(request)))

    async def end(self, request: web.Request) -> web.Response:
        """`POST /ingest/v1/runs/{run_id}/end`: end a run."""
        run_id, expected_index = _run_id(request), _expected_index(request)
        said = _valid(EndRunRequest, await self._parsed(request))
        usage = None if said.usage is None else said.usage.to_chunk()
        return _json(await self._ingest.end(run_id, outcome_of_stop(said.stop_reason, usage, run_id), expected_index))

    async def fail(self, request: web.Request) -> web.Response:
        """`POST /ingest/v1/runs/{run_id}/fail`: end a run with an error."""
        run_id, expected_index = _run_id(request), _expected_index(request)
        said = _valid(FailRunRequest, await self._parsed(request))
        outcome: Outcome = failed(run_id, said.error_type, message=said.message, detail=said.detail)
        return _json(await self._ingest.end(run_id, outcome, expected_index))

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
    value = request.headers.get(EXPECTED_INDEX)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= MOST_DIGITS):
        raise IngestError("invalid_request", f"{EXPECTED_INDEX} is how many chunks are stored, and not {value!r}.")
    return int(value)


def _valid(kind: type[Model], body: Any) -> Model:
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        complaints = [
            f"{'.'.join(map(str, found['loc'])) or 'the body'}: {found['msg']}"
            for found in error.errors(include_url=False, include_input=False)
        ]
        raise IngestError("invalid_request", "; ".join(complaints)) from None
