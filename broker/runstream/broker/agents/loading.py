"""Which agent a broker has: `demo`, `module:callable`, or the URL of a platform."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from runstream.broker.agents.callables import callable_agent
from runstream.broker.agents.demo import demo
from runstream.broker.agents.http import check_url, http_agent, is_letta
from runstream.broker.connection import Connection
from runstream.broker.credentials import credentials_of
from runstream.broker.errors import AgentFailed, InvalidAgent

if TYPE_CHECKING:
    from runstream.broker.agents import Agent
    from runstream.broker.agents.settings import UpstreamSettings
    from runstream.schemas import RunRequest

__all__ = ["AgentSource", "agent_source"]


class AgentSource(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that was looked at and can be opened."""

    open: Callable[[str], AbstractAsyncContextManager[Agent]]
    """Open it, given the URL of NATS; leaving the context gives back what it holds."""
    forwards_credentials: bool = False
    """Whether it is to be called with what the client authenticated itself with."""
    judges_approvals: bool = False
    """Whether it knows itself what waits for approval, and is to be asked in any case."""


def agent_source(spec: str, settings: UpstreamSettings) -> AgentSource:
    """Find the agent that `spec` names. Raises `InvalidAgent`."""
    if spec == "demo":
        return AgentSource(open=lambda _: _ready(demo))
    if spec.partition("://")[0].lower() in {"http", "https"}:
        return msgspec.structs.replace(_platform(spec, settings), judges_approvals=is_letta(spec))
    if ":" in spec and "/" not in spec:
        agent = callable_agent(spec)
        return AgentSource(open=lambda _: _ready(agent))
    raise InvalidAgent(
        f"There is no agent {spec!r}: give demo, module:callable, or a URL that begins with http:// or https://."
    )


def _platform(url: str, settings: UpstreamSettings) -> AgentSource:
    check_url(url)
    if settings.auth == "forward":
        return AgentSource(open=lambda nats_url: _forwarding(url, settings, nats_url), forwards_credentials=True)
    if settings.auth is None:
        return AgentSource(open=lambda _: http_agent(url, settings))
    secret = Path(settings.auth)
    _bearer(secret)

    async def authorized(_: RunRequest) -> Mapping[str, str]:
        try:
            return _bearer(secret)  # Read anew for each run: secrets are rotated.
        except InvalidAgent as error:
            raise AgentFailed("internal_error", detail=str(error)) from error

    return AgentSource(open=lambda _: http_agent(url, settings, authorized))


def _bearer(secret: Path) -> dict[str, str]:
    try:
        token = secret.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
        raise InvalidAgent(f"RUNSTREAM_UPSTREAM_AUTH: the file {str(secret)!r} cannot be read: {reason}.") from error
    if not token.isprintable() or not token or " " in token:
        raise InvalidAgent(f"RUNSTREAM_UPSTREAM_AUTH: the file {str(secret)!r} must hold one bearer token.")
    return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def _forwarding(url: str, settings: UpstreamSettings, nats_url: str) -> AsyncIterator[Agent]:
    async with (
        Connection(nats_url, name="credentials", patient=True) as connection,
        http_agent(url, settings, lambda request: credentials_of(request, connection)) as agent,
    ):
        yield agent


@asynccontextmanager
async def _ready(agent: Agent) -> AsyncIterator[Agent]:
    yield agent
