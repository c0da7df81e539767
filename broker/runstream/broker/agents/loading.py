"""Which agent a broker has: `demo`, or `module:callable`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec

from runstream.broker.agents import Agent
from runstream.broker.agents.callables import callable_agent
from runstream.broker.agents.demo import demo
from runstream.broker.errors import InvalidAgent

__all__ = ["AgentSource", "agent_source"]


class AgentSource(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that was looked at and can be opened."""

    open: Callable[[str], AbstractAsyncContextManager[Agent]]
    """Open it, given the URL of NATS; leaving the context gives back what it holds."""
    forwards_credentials: bool = False
    """Whether it is to be called with what the client authenticated itself with."""


def agent_source(spec: str) -> AgentSource:
    """Find the agent that `spec` names. Raises `InvalidAgent`."""
    if spec == "demo":
        return AgentSource(open=lambda _: _ready(demo))
    if ":" in spec and "/" not in spec:
        agent = callable_agent(spec)
        return AgentSource(open=lambda _: _ready(agent))
    raise InvalidAgent(f"There is no agent {spec!r}: give demo, or module:callable.")


@asynccontextmanager
async def _ready(agent: Agent) -> AsyncIterator[Agent]:
    yield agent
