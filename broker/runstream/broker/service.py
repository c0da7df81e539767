"""The broker as a service: connects, provisions, looks after runs, executes requests, takes those of other writers."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self, TypeVar

from runstream.broker.agents.demo import demo
from runstream.broker.auth.admissions import Admissions
from runstream.broker.connection import Connection, Subscription
from runstream.broker.errors import Refused, Unavailable
from runstream.broker.findings import Findings
from runstream.broker.http import description_operation, health_operations, metrics_operation, serving
from runstream.broker.http_server import Doors
from runstream.broker.index import Index
from runstream.broker.ingest.routes import ingest_operations, unknown_route
from runstream.broker.ingest.service import Ingest
from runstream.broker.jetstream import JetStream
from runstream.broker.limits.limiter import Limits
from runstream.broker.limits.settings import LimitSettings
from runstream.broker.logs import get_logger
from runstream.broker.metrics import BrokerMetrics
from runstream.broker.presence import Presence, announce
from runstream.broker.queue import WorkQueue
from runstream.broker.readiness import Draining, Readiness, Ready
from runstream.broker.sweep import Sweeper
from runstream.broker.topology import check_server, provision
from runstream.broker.tracing import Tracing, tracing_of
from runstream.broker.watchdog import Watchdog
from runstream.broker.worker import Worker

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from runstream.broker.agents import Agent
    from runstream.broker.auth.authenticator import Authenticator
    from runstream.broker.settings import BrokerSettings

__all__ = ["Broker"]

T = TypeVar("T")

log = get_logger(__name__)

SAYS = """
The broker's own port: the ingest API, for writers that are not Python, and what operators ask. Part 4 of `PROTOCOL.md`
says what may be sent again, and how a run is kept alive.
"""
RETRY_SECONDS = 1.0
"""How long a patient broker waits before it asks NATS again."""


class Broker:
    """One broker. Use as an async context manager: entered, it serves; left, it has given everything back.

    `listener` is the socket of its own port, already bound: whoever starts it chose the port; with `metrics_listener`
    its metrics are there, and not on its own port. `authenticator` says who asks at the ingest API, and is entered and
    left by whoever gave it; None: anybody may do everything. `limits` None: those that the environment sets. `agent`
    None: this broker looks after runs, and executes none. `forwards_credentials`: the agent wants what clients
    authenticated themselves with. `judges_approvals`: it knows itself what waits for approval, and is asked in any
    case. `owns_nats`: nobody else uses this NATS, so a change of the settings is applied to the streams that exist.

    Raises `Unavailable`, `TopologyError`, `InvalidSettings` on entry. One that is `patient` waits for NATS instead,
    without end, and says meanwhile on its port that it is not ready.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        agent: Agent | None,
        listener: socket.socket | None = None,
        authenticator: Authenticator | None = None,
        limits: LimitSettings | None = None,
        metrics_listener: socket.socket | None = None,
        forwards_credentials: bool = False,
        judges_approvals: bool = False,
        owns_nats: bool = False,
        patient: bool = False,
    ) -> None:
        self.metrics = BrokerMetrics(settings.metrics_tenants)
        self.worker: Worker | None = None
        """Who executes runs here, None without an agent."""
        self._settings = settings
        self._agent = agent
        self._judges_approvals = judges_approvals
        self._listener = listener
        self._authenticator = authenticator
        self._limits = limits or LimitSettings()
        self._metrics_listener = metrics_listener
        self._announced: Subscription | None = None
        self._draining = Draining(settings.drain_seconds)
        self._ingest: Ingest | None = None
        self._presence = Presence(forwards_credentials=forwards_credentials, is_demo=agent is demo)
        self._owns_nats = owns_nats
        self._patient = patient
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            tracing = await stack.enter_async_context(tracing_of(self._settings, "broker"))
            connection = Connection(
                self._settings.nats_url,
                name="broker",
                patient=self._patient,
                access=self._settings.nats_access("broker"),
            )
            jetstream = JetStream(
                connection,
                timeout_seconds=self._settings.request_timeout_seconds,
                findings=Findings(self.metrics.broken),
            )
            admissions = Admissions.by(self._authenticator, jetstream, restores=True)
            limits = Limits(self._limits, self.metrics.limit_reached)
            ingest = Ingest(jetstream, self._settings, self.metrics, limits)
            self.metrics.watch_uploads(lambda: ingest.uploads)
            self.metrics.watch_nats(jetstream)
            self._ingest = ingest
            await self._serve(stack, jetstream, ingest, admissions)
            await stack.enter_async_context(connection)
            stack.push_async_callback(jetstream.close)
            await connection.connected()
            check_server(connection.server_version)
            await self._reached(lambda: self._provisioned(jetstream))
            await stack.enter_async_context(admissions)
            watchdog = self._watchdog(jetstream)
            await self._reached(lambda: stack.enter_async_context(watchdog))
            await stack.enter_async_context(Sweeper(jetstream, self._settings, self.metrics))
            if self._agent is not None:
                worker = self._worker(jetstream, self._agent, watchdog, tracing)
                self.worker = await self._reached(lambda: stack.enter_async_context(worker))
                self._announced = await self._reached(lambda: announce(connection, self._presence))
                stack.push_async_callback(self._announced.close)
            # Last, so that it is the first to be left: who has an upload open is told before NATS is given up.
            await stack.enter_async_context(ingest)
            self._stack = stack.pop_all()
        return self

    async def _provisioned(self, jetstream: JetStream) -> None:
        try:
            done = await provision(jetstream, self._settings, apply=self._owns_nats)
        except Refused as error:
            raise Refused(f"{error.detail} Run `runstream provision` first, as a user who may make streams.") from error
        for difference in done.differing:
            log.warning("topology_changed" if self._owns_nats else "topology_drift", difference=str(difference))

    async def _serve(self, stack: AsyncExitStack, jetstream: JetStream, ingest: Ingest, admissions: Admissions) -> None:
        """Answer on the broker's port, before NATS is there: who asks is told what is being waited for."""
        readiness, doors = Readiness(jetstream, self._settings), self._doors()

        async def unready() -> str | None:
            if self._draining.has_begun:
                return "This broker stops."
            if doors.is_full:
                return "As many connections are open as may be."
            return admissions.unready or await readiness.unready()

        ready = Ready(unready)
        self.metrics.watch_service(ready=ready, draining=self._draining)
        self.metrics.watch_streams(lambda: readiness.found)
        health = health_operations(unready)
        operations = [*health]
        metrics = metrics_operation(self.metrics.registry, before=ready.look)
        if self._metrics_listener is None:
            operations.append(metrics)
        else:
            await stack.enter_async_context(serving([metrics, *health], self._metrics_listener, self._doors()))
        if self._listener is not None:
            operations = [*ingest_operations(ingest, admissions), *operations]
            operations.append(description_operation(operations, title="runstream broker", says=SAYS))
            others = [unknown_route(ingest, admissions)]
            await stack.enter_async_context(serving(operations, self._listener, doors, others=others))

    def _doors(self) -> Doors:
        return Doors(self._limits, self.metrics.limit_reached)

    async def _reached(self, action: Callable[[], Awaitable[T]]) -> T:
        """Do what needs NATS; a patient broker does it again until NATS is there for it, and says once what lacks."""
        told = ""
        while True:
            try:
                return await action()
            except Unavailable as error:
                if not self._patient:
                    raise
                if (says := str(error)) != told:
                    log.warning("nats_awaited", error=says)
                told = says
                await asyncio.sleep(RETRY_SECONDS)

    async def drain(self) -> None:
        """Take no further run, and give those that are executed here `drain_seconds` to end by themselves.

        Those of other writers go on at another broker, and their writers are told so at once. It looks after all runs
        until it is left.
        """
        self._draining.begin()
        if self._ingest is not None:
            self._ingest.stop()
        if self.worker is None:
            return
        log.info("draining", runs=self.worker.count(), seconds=self._settings.drain_seconds)
        if self._announced is not None:
            await self._announced.close()
        await self.worker.drain(self._settings.drain_seconds)
        log.info("drained", runs=self.worker.count())

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def _watchdog(self, jetstream: JetStream) -> Watchdog:
        queue = WorkQueue(jetstream)
        return Watchdog(jetstream, self._settings, index=Index(jetstream), queue=queue, metrics=self.metrics)

    def _worker(self, jetstream: JetStream, agent: Agent, watchdog: Watchdog, tracing: Tracing) -> Worker:
        worker = Worker(
            jetstream,
            self._settings,
            index=Index(jetstream),
            queue=WorkQueue(jetstream),
            watchdog=watchdog,
            agent=agent,
            judges_approvals=self._judges_approvals,
            metrics=self.metrics,
            tracing=tracing,
        )
        self.metrics.watch_runs(live=worker.count, limit=self._settings.worker_concurrency)
        return worker
