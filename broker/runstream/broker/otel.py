"""Spans as OpenTelemetry has them, sent by OTLP over HTTP to where its own variables, `OTEL_…`, say.

Nothing waits for a collector: spans are sent by a thread of the SDK's, and those that find no place there are lost.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, Self

from opentelemetry import trace as opentelemetry
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from runstream.broker.tracing import Fact, Span, SpanKind, Tracing
from runstream.schemas import TRACEPARENT, TRACESTATE, trace_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from runstream.schemas import Trace

__all__ = ["OpenTelemetry"]

FLUSH_SECONDS: Final = 2.0
"""How long the last spans may take to be sent when a service stops: without a collector the SDK tries for ten."""

KINDS: Final[Mapping[SpanKind, opentelemetry.SpanKind]] = {
    "server": opentelemetry.SpanKind.SERVER,
    "consumer": opentelemetry.SpanKind.CONSUMER,
}
_propagator = TraceContextTextMapPropagator()


class OpenTelemetry(Tracing):
    """Makes spans that are sent. Use as an async context manager: left, it has sent the last ones, or given them up.

    It is a process's in part: what an agent in it says of itself belongs to the span that is executed, if its provider
    sends to the same place. The global provider is the platform's to set.
    """

    is_on = True

    def __init__(self, service: str) -> None:
        # The environment's name for the service wins; `Resource.create` would have it the other way round.
        said = OTELResourceDetector().detect().attributes
        own = version("runstream")
        resource = Resource.create({SERVICE_NAME: f"runstream-{service}", SERVICE_VERSION: own, **said})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("runstream", own)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        # A thread that nobody waits for: one of the loop's own would keep the process from ending.
        is_over, loop = asyncio.Event(), asyncio.get_running_loop()

        def shut_down() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # The loop is closed: nobody has waited so long.
                loop.call_soon_threadsafe(is_over.set)

        threading.Thread(target=shut_down, name="tracing-shutdown", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_SECONDS):
                await is_over.wait()

    @contextmanager
    def span(
        self,
        name: str,
        kind: SpanKind,
        /,
        *,
        within: Trace | None,
        link: Trace | None = None,
        **facts: Fact,
    ) -> Iterator[Span]:
        """Begin a span; an error that the block ends with is told by its kind alone: its text may be private."""
        links = [] if link is None else [opentelemetry.Link(_span_of(link).get_span_context())]
        with self._tracer.start_as_current_span(
            name,
            context=_context_of(within),
            kind=KINDS[kind],
            links=links,
            record_exception=False,
            set_status_on_exception=False,
        ) as made:
            span = _Recorded(made)
            span.note(**facts)
            try:
                yield span
            except asyncio.CancelledError:
                span.note(cancelled=True)
                raise
            except BaseException as error:
                made.set_attribute("error.type", type(error).__name__)
                made.set_status(opentelemetry.StatusCode.ERROR)
                raise


class _Recorded(Span):
    """A span of OpenTelemetry's."""

    def __init__(self, made: opentelemetry.Span) -> None:
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, opentelemetry.set_span_in_context(made, Context()))
        # With `OTEL_SDK_DISABLED` there is no trace, unless the request has one.
        super().__init__(trace_of(*([carrier[name]] if name in carrier else [] for name in (TRACEPARENT, TRACESTATE))))
        self.is_recorded = made.is_recording()
        self._made = made

    def note(self, **facts: Fact) -> None:
        """Say something of it, in attributes of runstream's."""
        for name, value in facts.items():
            if value is not None:
                self._made.set_attribute(f"runstream.{name}", value)

    def event(self, name: str) -> None:
        """Say that something has happened in it, now."""
        self._made.add_event(name)


def _context_of(trace: Trace | None) -> Context:
    """Give the context that a span begins in: a trace's, and never whatever this task was begun in."""
    return Context() if trace is None else _propagator.extract(trace.headers, Context())


def _span_of(trace: Trace) -> opentelemetry.Span:
    return opentelemetry.get_current_span(_context_of(trace))
