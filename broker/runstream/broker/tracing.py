"""Traces of what becomes of a run, where they are on: a span for each create, execution and stream, none for a chunk.

Off, nothing of OpenTelemetry is imported, and a trace that a request came with goes on as it is. `otel.py` is the other
way, and the only one who imports it.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Literal, TypeAlias

from runstream.broker.errors import InvalidSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractContextManager

    from runstream.broker.settings import BrokerSettings
    from runstream.schemas import Trace

__all__ = ["Fact", "Span", "SpanKind", "Tracing", "tracing_of"]

Fact: TypeAlias = str | int | bool | None
"""What is said of a span; None: nothing."""
SpanKind: TypeAlias = Literal["server", "consumer"]


class Span:
    """What is being done, within a trace. This one is recorded nowhere."""

    __slots__ = ("trace",)

    is_recorded = False

    def __init__(self, trace: Trace | None) -> None:
        self.trace = trace
        """What this causes belongs to it."""

    def note(self, **facts: Fact) -> None:
        """Say something of it."""

    def event(self, name: str) -> None:
        """Say that something has happened in it, now."""


class Tracing:
    """Makes spans. This one has none recorded."""

    is_on = False

    def span(
        self,
        name: str,
        kind: SpanKind,
        /,
        *,
        within: Trace | None,
        link: Trace | None = None,
        **facts: Fact,
    ) -> AbstractContextManager[Span]:
        """Begin what the block does, as a part of the trace `within`, or of a new one; and linked to another."""
        del name, kind, link, facts
        return nullcontext(Span(within))


@asynccontextmanager
async def tracing_of(settings: BrokerSettings, service: str) -> AsyncIterator[Tracing]:
    """Give what makes a service's spans while the block lasts. Raises `InvalidSettings`."""
    if not settings.tracing:
        yield Tracing()
        return
    try:
        from runstream.broker.otel import OpenTelemetry  # noqa: PLC0415  # whoever traces nothing need not have it
    except ImportError as error:
        raise InvalidSettings("tracing: OpenTelemetry is not installed: pip install 'runstream[otel]'") from error
    try:
        made = OpenTelemetry(service)
    except ValueError as error:  # It reads variables of its own.
        raise InvalidSettings(f"tracing: OpenTelemetry cannot do as its variables say: {error}") from error
    async with made as tracing:
        yield tracing
