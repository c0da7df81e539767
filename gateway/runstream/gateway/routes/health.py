"""The reference's own question whether its server is there; operators ask `/readyz`."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

import msgspec

from runstream.broker.operations import OPEN, Answer, Body, Operation
from runstream.gateway.errors import refusals
from runstream.gateway.services import json_response

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["operations"]


class Healthy(msgspec.Struct):
    """That the server is there, and its version."""

    version: str
    status: Literal["ok"] = "ok"


async def health(_: web.Request) -> web.Response:
    """`GET /v1/health/`: that this gateway is there, as a client asks it; says nothing of NATS."""
    return json_response(Healthy(version("runstream")))


operations = [
    Operation(
        method="GET",
        path="/v1/health/",
        handler=health,
        scope=OPEN,
        answers={200: Answer("It is there.", [Body([Healthy])]), **refusals()},
    ),
]
