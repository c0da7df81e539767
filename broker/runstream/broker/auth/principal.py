"""Whoever asks: a tenant, scopes, and the one agent, conversation or run that they may be narrowed to.

Each question "may it do this to that" is a method here, and is asked nowhere else. What a principal does not reach is
for it as if it were not there: whoever asks for it is told so in the same words.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

import msgspec

from runstream.broker.errors import Forbidden
from runstream.schemas import DEFAULT_TENANT

if TYPE_CHECKING:
    from runstream.schemas import ConversationRecord, RunRecord

__all__ = ["ANYBODY", "SCOPES", "Principal", "Scope", "is_tenant"]

Scope: TypeAlias = Literal["runs:read", "runs:write", "runs:cancel", "platform", "admin"]
"""`platform`: to be the platform, at the ingest port, or to speak to the one behind the gateway. `admin`: all."""
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)

ADMIN: Final = "admin"

TENANT: Final = re.compile(r"[-_=a-zA-Z0-9]{1,64}")
"""What a tenant may be called: one token of a key of the index, and of a subject."""


def is_tenant(name: object) -> bool:
    """Tell whether a tenant may have this name."""
    return isinstance(name, str) and TENANT.fullmatch(name) is not None


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Whoever asks. Made by authenticators only, who vouch for all of it."""

    tenant: str
    scopes: frozenset[str]
    agent_id: str | None = None
    """With it, only what is this agent's is reached; so with the next two. None: all of the tenant's."""
    conversation_id: str | None = None
    run_id: str | None = None
    expires_at: float | None = None
    """Seconds since 1970 until which it stands, what clocks may differ by included; None: for good."""
    key_id: str = ""
    """Which key or token it came by. No secret."""

    @property
    def is_narrowed(self) -> bool:
        """Whether it reaches but a part of its tenant's."""
        return not (self.agent_id is self.conversation_id is self.run_id is None)

    def has(self, scope: Scope) -> bool:
        """Whether it has a scope."""
        return scope in self.scopes or ADMIN in self.scopes

    def check(self, scope: Scope) -> None:
        """Raise `Forbidden` unless it has a scope."""
        if not self.has(scope):
            raise Forbidden(f"The scope {scope} is needed.", scope=scope)

    def check_whole(self) -> None:
        """Raise `Forbidden` if it is narrowed: what is asked for is not about one agent, conversation or run."""
        if self.is_narrowed:
            raise Forbidden("The credential is for one agent, conversation or run, and this is for more.")

    def covers(self, other: Principal) -> bool:
        """Whether another may do no more than this one: as one that was made of it by narrowing."""
        narrowed = ((self.agent_id, other.agent_id), (self.conversation_id, other.conversation_id))
        return (
            other.tenant == self.tenant
            and (ADMIN in self.scopes or other.scopes <= self.scopes)
            and all(mine in {None, its} for mine, its in (*narrowed, (self.run_id, other.run_id)))
        )

    def reaches_run(self, run: RunRecord) -> bool:
        """Whether a run is there for it."""
        return (
            run.tenant == self.tenant
            and self.run_id in {None, run.id}
            and self.conversation_id in {None, run.conversation_id}
            and self.agent_id in {None, run.agent_id}
        )

    def reaches_conversation(self, conversation: ConversationRecord) -> bool:
        """Whether a conversation is there for it; one that is narrowed to a run reaches none."""
        return (
            conversation.tenant == self.tenant
            and self.run_id is None
            and self.conversation_id in {None, conversation.id}
            and self.agent_id in {None, conversation.agent_id}
        )

    def check_opening(self, agent_id: str, conversation_id: str | None) -> None:
        """Raise `Forbidden` unless it may start a run of an agent's, in a conversation or in none."""
        if (
            self.run_id is not None
            or self.conversation_id not in {None, conversation_id}
            or self.agent_id not in {None, agent_id}
        ):
            raise Forbidden("The credential is for another agent, conversation or run.")

    def check_making(self, agent_id: str) -> None:
        """Raise `Forbidden` unless it may make a conversation of an agent's."""
        if self.conversation_id is not None:
            raise Forbidden("The credential is for another agent, conversation or run.")
        self.check_opening(agent_id, None)

    def may_adopt(self, conversation_id: str) -> bool:
        """Whether its tenant may come to have a conversation that the platform alone knows.

        The platform knows of no tenants. So who may speak to it anyway may, and who was given this very conversation.
        """
        return self.has("platform") or self.conversation_id == conversation_id


ANYBODY: Final = Principal(tenant=DEFAULT_TENANT, scopes=frozenset({ADMIN}))
"""Whoever asks while authentication is off."""
