"""The gateway as a service: connects to NATS, answers HTTP."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Self

import structlog
from aiohttp import web

from runstream.broker.auth.admissions import Admissions
from runstream.broker.auth.sessions import Sessions
from runstream.broker.auth.tickets import Tickets
from runstream.broker.connection import Connection
from runstream.broker.findings import Findings
from runstream.broker.http import (
    description_operation,
    health_operations,
    meet_expectation,
    metrics_operation,
    routes,
    serving,
)
from runstream.broker.http_guard import guard
from runstream.broker.http_server import Doors, listening
from runstream.broker.index import Index
from runstream.broker.jetstream import JetStream
from runstream.broker.leaders import Leaders
from runstream.broker.limits.limiter import Limits
from runstream.broker.limits.settings import LimitSettings
from runstream.broker.queue import WorkQueue
from runstream.broker.reader import LogReader
from runstream.broker.readiness import Readiness, Ready
from runstream.broker.removal import Remover
from runstream.broker.repair import Repair
from runstream.broker.rows import Bounds
from runstream.broker.takeover import TakeOver
from runstream.broker.topology import check_server
from runstream.broker.tracing import Tracing, tracing_of
from runstream.broker.view import View
from runstream.gateway import deprecation
from runstream.gateway.admission import keep_from_caches
from runstream.gateway.answering import Answers
from runstream.gateway.awaiting import EndWaiter
from runstream.gateway.cancelling import Canceller
from runstream.gateway.checkup import Checkup
from runstream.gateway.console import console_routes
from runstream.gateway.conversations import Conversations
from runstream.gateway.cors import Cors
from runstream.gateway.errors import refused_also
from runstream.gateway.fanout import Hub
from runstream.gateway.figures import Figures
from runstream.gateway.listing import Lists
from runstream.gateway.lookup import Lookup
from runstream.gateway.metrics import GatewayMetrics
from runstream.gateway.middleware import answer_errors, fallback
from runstream.gateway.mounting import is_ours, mounted, operations
from runstream.gateway.passthrough import NOT_PASSED_ON, PassThrough
from runstream.gateway.presence import AgentPresence
from runstream.gateway.services import SERVICES, Services
from runstream.gateway.start import Starter
from runstream.gateway.transcripts import Transcripts

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from runstream.broker.auth.authenticator import Authenticator
    from runstream.broker.settings import BrokerSettings
    from runstream.gateway.settings import GatewaySettings
    from runstream.gateway.settings_shown import AnySettings
    from runstream.gateway.upstream import Upstream

__all__ = ["Gateway"]

log = structlog.get_logger(__name__)

SAYS = """
Resumable streams of agent runs, compatible with Letta's API. `PROTOCOL.md` says more than fits here: the order of a
stream's events, what a cursor means, and when a response is cut.

Beside what each operation answers: 307 to the path with, or without, its last slash, if that is there; 404 and 405 for
paths and methods that are not.
"""

SAYS_BEFORE_PLATFORM = """
This gateway is in front of a Letta-compatible platform, which answers every other method and path below `/v1`, most of
those of conversations included: method, path, query, headers and body are passed on to it, and its answers come back as
they are, whatever their status. They are not described here. What is not passed on, or gets no answer, is refused with
a `detail`, and 405 is for methods that are for proxies:

"""

BODY_RESERVE_BYTES = 16 * 2**10
"""What a request may carry beside its body, in the one message of the index that holds both."""


def says(*, before_platform: bool) -> str:
    """Say what a gateway is, and what it does beside its operations."""
    if not before_platform:
        return SAYS
    refused = "".join(
        f"- {status}: {answer.says}\n" for status, answer in sorted(refused_also({}, *NOT_PASSED_ON).items())
    )
    return f"{SAYS}{SAYS_BEFORE_PLATFORM}{refused}"


class Gateway:
    """One gateway. Use as an async context manager: entered, it serves; left, it has given everything back.

    `listener` is its socket, already bound; with `metrics_listener` its metrics are there, and not on its own port. A
    broker makes what is needed in NATS; until it has, requests are answered 503. What `upstream` is given to answer is
    passed on to it. `authenticator` says who asks, and is entered and left by whoever gave it; None: anybody may do
    everything. `limits` None: those that the environment sets. `configuration` is shown to operators beside what is
    used here.

    Raises `Unavailable`, `ServerTooOld`, `InvalidSettings` on entry. One that is `patient` serves at once, 503 to
    whoever needs NATS, and goes on trying; `reached` waits until it got there.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        broker_settings: BrokerSettings,
        *,
        listener: socket.socket,
        metrics_listener: socket.socket | None = None,
        patient: bool = False,
        upstream: Upstream | None = None,
        authenticator: Authenticator | None = None,
        limits: LimitSettings | None = None,
        configuration: Sequence[AnySettings] = (),
    ) -> None:
        self.metrics = GatewayMetrics(broker_settings.metrics_tenants)
        self._settings = settings
        self._broker_settings = broker_settings
        self._listener = listener
        self._metrics_listener = metrics_listener
        self._patient = patient
        self._upstream = upstream
        self._authenticator = authenticator
        self._limits = limits or LimitSettings()
        self._also = [*configuration, self._limits]
        self._doors = Doors(self._limits, self.metrics.limit_reached)
        self._passthrough: PassThrough | None = None
        self._tracing = Tracing()
        self._findings = Findings(self.metrics.broken)
        self._connections: list[Connection] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        # What has a port of its own is left last: whoever watches sees a gateway that does not come to its end.
        async with AsyncExitStack() as last, AsyncExitStack() as stack:
            # First, as the last to be left: what ends with the gateway is told, too.
            self._tracing = await stack.enter_async_context(tracing_of(self._broker_settings, "gateway"))
            jetstream = await self._jetstream(stack, "gateway")
            # Reads of long logs keep their connection busy on the server; live messages must not wait behind them.
            catchup = await self._jetstream(stack, "gateway-catchup")
            if not self._patient:
                await self.reached()
            leaders = Leaders.of_all(self._broker_settings, jetstream, catchup)
            reader = LogReader(catchup, self._broker_settings, leaders)
            self.hub = Hub(jetstream, reader, self._settings, self._broker_settings, self.metrics)
            for each in (jetstream, catchup):
                # A server that comes back may have lost the newest of what was read before.
                each.connection.on_reconnect(self.hub.replays.clear)
            self.view = await stack.enter_async_context(self._view(catchup))
            self.metrics.watch_hub(self.hub)
            self.metrics.watch_view(self.view)
            self.metrics.watch_nats(jetstream, catchup)
            if self._upstream is not None:
                await stack.enter_async_context(self._upstream)
            services = self._services(
                jetstream, await stack.enter_async_context(Admissions.by(self._authenticator, catchup))
            )
            stack.push_async_callback(_finished, services)
            await self._serve(stack, last, services)
            last.push_async_exit(stack.pop_all())
            self._stack = last.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def drain(self) -> None:
        """Take no new streams and send away those that are open, then return: leaving it is then no loss to anybody.

        Each is cut at a moment of its own within `drain_seconds`, and written to until then. What else goes on has
        all of that time: whole answers, and what the platform is asked for. Requests are answered meanwhile, each as
        the last of its connection.
        """
        seats, seconds = self.hub.seats, self._broker_settings.drain_seconds
        log.info("draining", streams=seats.taken, seconds=seconds)
        seats.drain(seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await seats.emptied()
                if self._passthrough is not None:
                    await self._passthrough.places.emptied()
        log.info("drained", streams=seats.taken)
        seats.close()

    async def reached(self) -> None:
        """Wait for NATS. Raises `ServerTooOld`."""
        for connection in self._connections:
            await connection.connected()
            check_server(connection.server_version)

    async def _jetstream(self, stack: AsyncExitStack, name: str) -> JetStream:
        settings = self._broker_settings
        access = settings.nats_access("gateway")
        connection = Connection(settings.nats_url, name=name, patient=self._patient, access=access)
        self._connections.append(await stack.enter_async_context(connection))
        seconds = min(settings.request_timeout_seconds, self._settings.open_seconds)
        jetstream = JetStream(connection, timeout_seconds=seconds, findings=self._findings)
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
            on_removed=self.hub.replays.forget,
            on_reset=self.hub.replays.clear,
        )

    def _services(self, jetstream: JetStream, admissions: Admissions) -> Services:
        limits = Limits(self._limits, self.metrics.limit_reached)
        # The last attempt begins by then, and has `open_seconds` itself: so all of it takes less than two.
        index = Index(jetstream, patience_seconds=self._settings.open_seconds / 4)
        leaders = self.hub.reader.leaders
        lookup = partial(Lookup, index, self.view, leaders)
        conversations = partial(Conversations, index, self._upstream, leaders)
        if self._upstream is not None:
            self._passthrough = PassThrough(
                self._upstream,
                self._settings,
                self.metrics,
                admissions,
                is_ours=is_ours,
                heard=lambda who, *answer: conversations(who).platform_answered(*answer),
            )
        presence = AgentPresence(jetstream.connection, grace_seconds=self._settings.agent_grace_seconds)

        repair = Repair(jetstream, self._broker_settings, index, observe=self.metrics.repaired)
        waiter = EndWaiter(jetstream.connection, index, self.hub.reader, self._broker_settings, self.hub.stuck)
        transcripts = Transcripts(self.hub.reader, self._settings, self._broker_settings)
        answers = Answers(index, waiter, transcripts, self._settings)
        unready = partial(self._unready, Readiness(jetstream, self._broker_settings), admissions)
        return Services(
            hub=self.hub,
            index=index,
            admissions=admissions,
            limits=limits,
            lookup=lookup,
            lists=lambda who: Lists(self.view, lookup(who), who),
            conversations=conversations,
            tickets=Tickets(jetstream),
            sessions=Sessions(jetstream),
            has_console=self._settings.console,
            figures=Figures(jetstream, self.hub),
            checkup=Checkup(jetstream, self.hub, self.view, presence, self._settings, also=self._also, unready=unready),
            starter=Starter(
                jetstream,
                self._broker_settings,
                index=index,
                queue=WorkQueue(jetstream),
                presence=presence,
                repair=repair,
                limits=limits,
                patience_seconds=self._settings.open_seconds,
                always_background=self._settings.background == "always",
            ),
            repair=repair,
            canceller=Canceller(jetstream.connection, index),
            remover=Remover(jetstream, index, TakeOver(jetstream, self._broker_settings, index)),
            answers=answers,
            tracing=self._tracing,
            passthrough=self._passthrough,
            body_limit=lambda: jetstream.connection.max_payload - BODY_RESERVE_BYTES,
            body_seconds=self._settings.body_seconds,
            unready=unready,
            leaders=leaders,
        )

    async def _unready(self, readiness: Readiness, admissions: Admissions) -> str | None:
        """Say why no client should be sent here, None if they may."""
        if self.hub.seats.is_draining:
            return "This gateway stops."
        return self._full() or admissions.unready or await readiness.unready()

    def _full(self) -> str | None:
        """Say in words what there are as many of as may be, None while whoever comes is let in."""
        if self.hub.seats.is_full:
            return "As many streams are open as may be."
        return "As many connections are open as may be." if self._doors.is_full else None

    async def _leave(self, app: web.Application) -> None:
        """Let nobody wait for what will not come any more."""
        self.hub.seats.close()
        app[SERVICES].answers.leave()

    async def _close_when_draining(self, _: web.Request, response: web.StreamResponse) -> None:
        """Make an answer the last of its connection: the client's next one leads to a gateway that stays."""
        if self.hub.seats.is_draining:
            response.force_close()
            response.headers["Connection"] = "close"

    async def _serve(self, stack: AsyncExitStack, last: AsyncExitStack, services: Services) -> None:
        app = web.Application(middlewares=[answer_errors])
        app[SERVICES] = services
        ready, answers = Ready(services.unready), services.answers
        self.metrics.watch_service(ready=ready, held_bytes=lambda: answers.held_bytes)
        metrics = metrics_operation(self.metrics.registry, before=ready.look)
        before_platform = services.passthrough is not None
        served = operations(before_platform=before_platform)
        health = health_operations(services.unready)
        for_operators = [*health]
        if self._metrics_listener is None:
            for_operators.append(metrics)
        else:
            doors = Doors(self._limits, self.metrics.limit_reached)
            await last.enter_async_context(serving([metrics, *health], self._metrics_listener, doors))
        described = [*served, *for_operators]
        for_operators.append(
            description_operation(described, title="runstream", says=says(before_platform=before_platform))
        )
        app.add_routes([*mounted(served), *routes(for_operators)])
        if self._settings.console:
            app.add_routes(console_routes())
        app.router.add_route("*", "/{path:(?s:.*)}", fallback, expect_handler=meet_expectation)
        app.on_response_prepare.append(self._close_when_draining)
        app.on_response_prepare.append(keep_from_caches)
        app.on_shutdown.append(self._leave)
        deprecation.add_to(app)
        if self._settings.cors_origins is not None:
            Cors(self._settings.cors_origins).add_to(app)
        guard(app)
        # Without handler_cancellation a handler outlives its client, and a follower of a silent run never ends.
        await stack.enter_async_context(listening(app, self._listener, self._doors, handler_cancellation=True))


async def _finished(services: Services) -> None:
    """Wait for what goes on though its clients may have left."""
    await asyncio.gather(services.starter.close(), services.remover.close())
