"""What every port answers: whether its process lives, whether it is ready, what it counts, what it can be asked."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from aiohttp import HttpVersion11, hdrs, web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from runstream.broker.http_guard import guard
from runstream.broker.http_server import listening
from runstream.broker.openapi import described
from runstream.broker.operations import JSON, OPEN, TEXT, Answer, Body, Operation, Unmet

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from runstream.broker.http_server import Doors

__all__ = [
    "ASKING_SECONDS",
    "description_operation",
    "health_operations",
    "meet_expectation",
    "metrics_operation",
    "routes",
    "serving",
]


class Health(msgspec.Struct):
    """That all is well."""

    status: Literal["ok"] = "ok"


ASKING_SECONDS = 3.0
"""How long metrics wait for what must be asked of NATS. Prometheus gives up after ten."""


class Unready(msgspec.Struct):
    """Why it is not ready."""

    detail: str
    status: Literal["unavailable"] = "unavailable"


def health_operations(unready: Callable[[], Awaitable[str | None]]) -> list[Operation]:
    """Make `/livez` and `/readyz`. `unready` says in words why not, None when ready.

    `/livez` never looks at NATS: restarting a process does not bring NATS back.
    """

    async def livez(_: web.Request) -> web.Response:
        """`GET /livez`: whether the process answers; it never looks at NATS."""
        return _answer(Health())

    async def readyz(_: web.Request) -> web.Response:
        """`GET /readyz`: whether requests can be served."""
        reason = await unready()
        return _answer(Health()) if reason is None else _answer(Unready(reason), status=503)

    well = Answer("All is well.", [Body([Health])])
    return [
        Operation(method="GET", path="/livez", handler=livez, scope=OPEN, answers={200: well}),
        Operation(
            method="GET",
            path="/readyz",
            handler=readyz,
            scope=OPEN,
            answers={200: well, 503: Answer("Why not.", [Body([Unready])])},
        ),
    ]


def metrics_operation(
    registry: CollectorRegistry,
    *,
    before: Callable[[], Awaitable[object]] | None = None,
    seconds: float = ASKING_SECONDS,
) -> Operation:
    """Make `/metrics`: what `registry` counts, in Prometheus's text, once `before` has looked at what must be asked.

    That may take so many seconds: then they are shown without it.
    """

    async def metrics(_: web.Request) -> web.Response:
        """`GET /metrics`: what is counted here, in Prometheus's text."""
        if before is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await before()
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return Operation(
        method="GET",
        path="/metrics",
        handler=metrics,
        scope=OPEN,
        answers={200: Answer("The metrics.", [Body([], TEXT)])},
    )


def description_operation(operations: Sequence[Operation], *, title: str, says: str) -> Operation:
    """Make `/openapi.json`, which describes `operations` and itself."""

    async def openapi(_: web.Request) -> web.Response:
        """`GET /openapi.json`: what can be asked here, as OpenAPI describes it."""
        return web.Response(body=document, content_type=JSON)

    itself = Operation(
        method="GET",
        path="/openapi.json",
        handler=openapi,
        scope=OPEN,
        answers={200: Answer("The document.", [Body([dict[str, Any]])])},
    )
    document = msgspec.json.encode(described([*operations, itself], title=title, says=says))
    return itself


def routes(operations: Sequence[Operation]) -> list[web.RouteDef]:
    """Make the routes on which operations are served. HEAD is only for what probes ask: a stream has no head alone."""
    return [
        web.route(
            each.method,
            each.path,
            each.handler,
            expect_handler=meet_expectation,
            **({"allow_head": "/v1/" not in each.path} if each.method == "GET" else {}),
        )
        for each in operations
    ]


async def meet_expectation(request: web.Request) -> web.Response | None:
    """Tell whoever waits with the body to go on; refuse any other expectation, where aiohttp would say so in text."""
    if request.version < HttpVersion11:
        return None  # That knows of no expectations.
    if request.headers.get(hdrs.EXPECT, "").lower() != "100-continue":
        unmet = Unmet("This expectation is not met here: send Expect: 100-continue, or none.")
        return web.Response(body=msgspec.json.encode(unmet), status=417, content_type=JSON)
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # Nothing of the answer itself has been sent.
    return None


def _answer(found: Health | Unready, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(found), status=status, content_type=JSON)


@asynccontextmanager
async def serving(
    operations: Sequence[Operation], listener: socket.socket, doors: Doors, *, others: Sequence[web.RouteDef] = ()
) -> AsyncIterator[None]:
    """Serve `operations`, and what stands for others, on a bound socket while the block lasts."""
    app = web.Application()
    app.add_routes([*routes(operations), *others])
    guard(app)
    # Handlers are not cancelled when their clients leave: what was sent is dealt with all the same.
    async with listening(app, listener, doors):
        yield
