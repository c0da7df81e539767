"""How this gateway is, for operators: NATS, streams, load, versions, configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runstream.broker.http_auth import PRINCIPAL
from runstream.broker.operations import Answer, Body, Operation
from runstream.gateway.checkup import Findings
from runstream.gateway.errors import refusals
from runstream.gateway.services import SERVICES, json_response

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["operations"]


async def checkup(request: web.Request) -> web.Response:
    """`GET /v1/runstream/health`: how this gateway and what it needs are; it answers also while NATS is away."""
    request[PRINCIPAL].check_whole()
    return json_response(await request.app[SERVICES].checkup.findings())


operations = [
    Operation(
        method="GET",
        path="/v1/runstream/health",
        handler=checkup,
        scope="admin",
        answers={200: Answer("How it is.", [Body([Findings])]), **refusals()},
    ),
]
