"""What is served on ports besides the gateway's: whether a process lives, whether it is ready, what it counts."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

__all__ = ["health_routes", "metrics_route", "serving"]

SHUTDOWN_SECONDS = 1.0
"""How long open requests may take when their server stops: what is open for longer was told before."""


def health_routes(unready: Callable[[], Awaitable[str | None]]) -> list[web.RouteDef]:
    """Routes of `/livez` and `/readyz`. `unready` says in words why not, None when ready.

    `/livez` never looks at NATS: restarting a process does not bring NATS back.
    """

    async def livez(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        reason = await unready()
        if reason is None:
            return web.json_response({"status": "ok"})
        return web.json_response({"status": "unavailable", "detail": reason}, status=503)

    return [web.get("/livez", livez), web.get("/readyz", readyz)]


def metrics_route(registry: CollectorRegistry) -> web.RouteDef:
    """Route of `/metrics`: what `registry` counts, in Prometheus's text."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return web.get("/metrics", metrics)


@asynccontextmanager
async def serving(routes: Sequence[web.RouteDef], listener: socket.socket) -> AsyncIterator[None]:
    """Serve `routes` on a bound socket while the block lasts."""
    app = web.Application()
    app.add_routes(routes)
    # Handlers are not cancelled when their clients leave: what was sent is dealt with all the same.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        yield
    finally:
        await runner.cleanup()
