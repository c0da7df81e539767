"""Which agent a broker has: `demo`, `module:callable`, or the URL of a platform."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from runstream.broker.agents.callables import callable_agent
from runstream.broker.agents.demo import demo
from runstream.broker.agents.http import http_agent
from runstream.broker.agents.http_platform import Platform
from runstream.broker.connection import Connection
from runstream.broker.credentials import bearer_in, credentials_of
from runstream.broker.errors import AgentFailed, InvalidAgent, InvalidSettings
from runstream.broker.logs import get_logger
from runstream.broker.settings import BrokerSettings

if TYPE_CHECKING:
    from runstream.broker.agents import Agent
    from runstream.broker.agents.settings import UpstreamSettings
    from runstream.schemas import RunRequest

__all__ = ["AgentSource", "agent_source"]

log = get_logger(__name__)

CALLABLE = re.compile(r"[\w.]+:[\w.]+")
ADDRESS = re.compile(r"[\w.-]+:\d+")


class AgentSource(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that was looked at and can be opened."""

    open: Callable[[BrokerSettings], AbstractAsyncContextManager[Agent]]
    """Open it, given where NATS is; leaving the context gives back what it holds."""
    forwards_credentials: bool = False
    """Whether it is to be called with what the client authenticated itself with."""
    platform: Platform | None = None
    """Whom it asks over HTTP, if it asks anybody."""

    @property
    def letta(self) -> Platform | None:
        """The Letta-compatible platform that it asks, if it asks one."""
        return self.platform if self.platform is not None and self.platform.is_letta else None

    @property
    def judges_approvals(self) -> bool:
        """Whether it knows itself what waits for approval, and is to be asked in any case."""
        return self.letta is not None


def agent_source(spec: str, settings: UpstreamSettings) -> AgentSource:
    """Find the agent that `spec` names. Raises `InvalidAgent`, `InvalidSettings`."""
    if spec == "demo":
        return AgentSource(open=lambda _: _ready(demo))
    if re.match(r"https?:", spec, re.IGNORECASE):
        platform = Platform(spec)
        return msgspec.structs.replace(_platform(platform, settings), platform=platform)
    if ADDRESS.fullmatch(spec):
        raise InvalidAgent(f"There is no agent {spec!r}: is it a platform? Then write http://{spec}.")
    if CALLABLE.fullmatch(spec):
        agent = callable_agent(spec)
        return AgentSource(open=lambda _: _ready(agent))
    # What is no name may be a URL that was mistyped, with a password in it.
    which = repr(spec) if re.fullmatch(r"[\w.-]*", spec) else "of this form"
    raise InvalidAgent(
        f"There is no agent {which}: give demo, module:callable, or a URL that begins with http:// or https://."
    )


def _platform(platform: Platform, settings: UpstreamSettings) -> AgentSource:
    if settings.auth == "forward":
        return AgentSource(open=lambda nats: _forwarding(platform, settings, nats), forwards_credentials=True)
    if settings.auth is None:
        return AgentSource(open=lambda _: http_agent(platform, settings))
    secret = Path(settings.auth)
    bearer_in(secret)

    async def authorized(_: RunRequest) -> Mapping[str, str]:
        try:
            return bearer_in(secret)  # Read anew for each run: secrets are rotated.
        except InvalidSettings as error:
            log.error("upstream_auth_unreadable", error=str(error))  # noqa: TRY400  # No defect: no traceback.
            raise AgentFailed("internal_error", detail="The platform's credential cannot be read.") from error

    return AgentSource(open=lambda _: http_agent(platform, settings, authorized))


@asynccontextmanager
async def _forwarding(platform: Platform, settings: UpstreamSettings, nats: BrokerSettings) -> AsyncIterator[Agent]:
    access = nats.nats_access("broker")
    async with (
        Connection(nats.nats_url, name="credentials", patient=True, access=access) as connection,
        http_agent(platform, settings, lambda request: credentials_of(request, connection)) as agent,
    ):
        yield agent


@asynccontextmanager
async def _ready(agent: Agent) -> AsyncIterator[Agent]:
    yield agent
