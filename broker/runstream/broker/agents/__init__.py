"""Agents: what answers a run request, chunk by chunk."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TypeAlias

from runstream.schemas import Chunk, RunRequest

__all__ = ["Agent"]

Agent: TypeAlias = Callable[[RunRequest], AsyncGenerator[Chunk | Mapping[str, object], None]]
"""An async generator function is one. Its last chunks are the stop reason and, if it succeeded, the usage; it
fails by raising `runstream.broker.errors.AgentFailed`. It may be stopped at any chunk, and is closed then."""
