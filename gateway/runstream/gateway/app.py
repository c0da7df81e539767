"""The gateway as a service: connects to NATS, answers HTTP."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self

import structlog
from aiohttp import web

from runstream.broker.connection import Connection
from runstream.broker.http import health_routes, metrics_route, serving
from runstream.broker.index import Index
from runstream.broker.jetstream import JetStream
from runstream.broker.queue import WorkQueue
from runstream.broker.reader import LogReader
from runstream.broker.repair import Repair
from runstream.broker.rows import Bounds
from runstream.broker.service import Readiness
from runstream.broker.topology import check_server
from runstream.broker.view import View
from runstream.gateway.cancelling import Canceller
from runstream.gateway.cors import Cors
from runstream.gateway.fanout import Hub
from runstream.gateway.listing import Lists
from runstream.gateway.lookup import Lookup
from runstream.gateway.metrics import GatewayMetrics
from runstream.gateway.middleware import answer_errors, fallback
from runstream.gateway.presence import AgentPresence
from runstream.gateway.routes import agents, conversations, runs
from runstream.gateway.services import SERVICES, Services
from runstream.gateway.start import Starter

if TYPE_CHECKING:
    import socket

    from runstream.broker.settings import BrokerSettings
    from runstream.gateway.settings import GatewaySettings

__all__ = ["Gateway"]

log = structlog.get_logger(__name__)

BODY_RESERVE_BYTES = 16 * 2**10
"""What a request may carry beside its body, in the one message of the index that holds both."""
SHUTDOWN_SECONDS = 1.0
"""How long open requests may take when the gateway stops; streams that are open then are cut."""


async def _name_server(_: web.Request, response: web.StreamResponse) -> None:
    """Name the product and no versions, which aiohttp would tell to everybody."""
    response.headers["Server"] = "runstream"


class Gateway:
    """One gateway. Use as an async context manager: entered, it serves; left, it has given everything back.

    `listener` is its socket, already bound; with `metrics_listener` its metrics are there, and not on its own port. A
    broker makes what is needed in NATS; until it has, requests are answered 503.

    Raises `Unavailable`, `ServerTooOld` on entry. One that is `patient` serves at once, 503 to whoever needs NATS, and
    goes on trying; `reached` waits until it got there.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        broker_settings: BrokerSettings,
        *,
        listener: socket.socket,
        metrics_listener: socket.socket | None = None,
        patient: bool = False,
    ) -> None:
        self.metrics = GatewayMetrics()
        self._settings = settings
        self._broker_settings = broker_settings
        self._listener = listener
        self._metrics_listener = metrics_listener
        self._patient = patient
        self._connections: list[Connection] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            jetstream = await self._jetstream(stack, "gateway")
            # Reads of long logs keep their connection busy on the server; live messages must not wait behind them.
            catchup = await self._jetstream(stack, "gateway-catchup")
            if not self._patient:
                await self.reached()
            reader = LogReader(catchup, self._broker_settings)
            self.hub = Hub(jetstream, reader, self._settings, self._broker_settings, self.metrics)
            self.view = await stack.enter_async_context(self._view(catchup))
            self._watch(jetstream.connection)
            services = self._services(jetstream)
            stack.push_async_callback(services.starter.close)
            await self._serve(stack, services)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def reached(self) -> None:
        """Wait for NATS. Raises `ServerTooOld`."""
        for connection in self._connections:
            await connection.connected()
            check_server(connection.server_version)

    async def _jetstream(self, stack: AsyncExitStack, name: str) -> JetStream:
        connection = Connection(self._broker_settings.nats_url, name=name, patient=self._patient)
        self._connections.append(await stack.enter_async_context(connection))
        jetstream = JetStream(connection, timeout_seconds=self._broker_settings.request_timeout_seconds)
        stack.push_async_callback(jetstream.close)
        return jetstream

    def _view(self, jetstream: JetStream) -> View:
        settings = self._settings
        return View(
            jetstream,
            Index(jetstream),
            runs=Bounds(settings.view_runs, settings.view_bytes),
            conversations=Bounds(settings.view_conversations, settings.view_bytes),
            patience_seconds=settings.open_seconds,
            marks_seconds=self._broker_settings.retention,
        )

    def _services(self, jetstream: JetStream) -> Services:
        index = Index(jetstream)
        readiness = Readiness(jetstream, self._broker_settings)
        presence = AgentPresence(jetstream.connection, grace_seconds=self._settings.agent_grace_seconds)

        repair = Repair(jetstream, self._broker_settings, index, observe=self.metrics.repaired)

        async def unready() -> str | None:
            if self.hub.is_full:
                return "As many streams are open as may be."
            return await readiness.unready()

        return Services(
            hub=self.hub,
            index=index,
            lookup=Lookup(index, self.view),
            lists=Lists(self.view),
            starter=Starter(
                jetstream,
                self._broker_settings,
                index=index,
                queue=WorkQueue(jetstream),
                presence=presence,
                repair=repair,
            ),
            repair=repair,
            canceller=Canceller(jetstream.connection, index),
            body_limit=lambda: jetstream.connection.max_payload - BODY_RESERVE_BYTES,
            body_seconds=self._settings.body_seconds,
            unready=unready,
        )

    def _watch(self, connection: Connection) -> None:
        hub, metrics, view = self.hub, self.metrics, self.view
        metrics.watch("followers", "Open streams.", lambda: hub.followers)
        metrics.watch("live_tails", "Runs held in memory.", lambda: hub.live_tails)
        metrics.watch(
            "holes_repaired",
            "Holes in live messages, filled from the log.",
            lambda: hub.counters.holes_repaired,
        )
        metrics.watch("tip_checks", "Times a run's tip was asked of its leader.", lambda: hub.counters.tip_checks)
        metrics.watch("view_runs", "Runs in memory, for lists.", lambda: view.run_count)
        metrics.watch("view_conversations", "Conversations in memory, for lists.", lambda: view.conversation_count)
        metrics.watch(
            "view_watches", "Times that the index began to be watched, or did again.", lambda: view.feed.watches
        )
        metrics.watch("view_resets", "Times that all of it was read, the first included.", lambda: view.feed.resets)
        metrics.watch(
            "view_silent_seconds",
            "How long ago the index was heard of last; a second at most while all is well.",
            lambda: view.feed.silent_seconds,
        )
        metrics.watch(
            "nats_reconnects", "Reconnects to NATS since this process started.", lambda: connection.reconnects
        )

    async def _serve(self, stack: AsyncExitStack, services: Services) -> None:
        app = web.Application(middlewares=[answer_errors])
        app[SERVICES] = services
        metrics = [metrics_route(self.metrics.registry)]
        app.add_routes(health_routes(services.unready))
        if self._metrics_listener is None:
            app.add_routes(metrics)
        else:
            await stack.enter_async_context(serving(metrics, self._metrics_listener))
        app.add_routes([*conversations.routes, *agents.routes, *runs.routes])
        app.router.add_route("*", "/{path:.*}", fallback)
        app.on_response_prepare.append(_name_server)
        if self._settings.cors_origins is not None:
            Cors(self._settings.cors_origins).add_to(app)
        # Without handler_cancellation a handler outlives its client, and a follower of a silent run never ends.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_SECONDS)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.SockSite(runner, self._listener, backlog=1024).start()
