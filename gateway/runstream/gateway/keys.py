"""The command line for credentials: `runstream keys new` makes a key, `runstream keys token` signs a token."""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer

from runstream.broker.auth.principal import SCOPES
from runstream.broker.auth.settings import AuthSettings
from runstream.broker.auth.static import new_key
from runstream.broker.auth.tokens import new_token
from runstream.broker.errors import InvalidSettings
from runstream.broker.settings import resolved
from runstream.schemas import DEFAULT_TENANT

__all__ = ["keys"]

keys = typer.Typer(name="keys", no_args_is_help=True, rich_markup_mode=None)

Tenant = Annotated[str, typer.Option(help="Whose it is.")]
Scope = Annotated[str, typer.Option(help=f"What it may: any of {' '.join(SCOPES)}, with spaces between them.")]
AgentId = Annotated[str | None, typer.Option(help="Only what is this agent's.")]
ConversationId = Annotated[str | None, typer.Option(help="Only what is in this conversation.")]
RunId = Annotated[str | None, typer.Option(help="Only this run.")]
MOST_SECONDS = 24 * 3600


@keys.callback()
def _keys() -> None:
    """Make keys of clients (--auth static), and tokens (--auth jwt)."""


@keys.command("new")
def new_command(
    tenant: Tenant = DEFAULT_TENANT,
    scope: Scope = "runs:read",
    agent_id: AgentId = None,
    conversation_id: ConversationId = None,
    run_id: RunId = None,
) -> None:
    """Make a key: it is on stderr, once; the line on stdout is for the file that RUNSTREAM_AUTH_KEYS_FILE names."""
    try:
        key, line = new_key(tenant, scope.split(), agent_id=agent_id, conversation_id=conversation_id, run_id=run_id)
    except ValueError as error:
        _fail(error)
    typer.echo(f"The key, which is shown this once: {key}", err=True)
    typer.echo(line.decode())


@keys.command("token")
def token_command(  # noqa: PLR0917  # typer reads options off the parameters
    tenant: Tenant = DEFAULT_TENANT,
    scope: Scope = "runs:read",
    agent_id: AgentId = None,
    conversation_id: ConversationId = None,
    run_id: RunId = None,
    seconds: Annotated[int, typer.Option(min=1, max=MOST_SECONDS, help="How long it stands.")] = 600,
) -> None:
    """Sign a token with the secret that RUNSTREAM_AUTH_SECRET_FILE names, as the gateway's settings have it."""
    narrowed = {"agent_id": agent_id, "conversation_id": conversation_id, "run_id": run_id}
    try:
        typer.echo(new_token(resolved(AuthSettings), tenant, scope.split(), seconds=seconds, narrowed=narrowed))
    except (ValueError, InvalidSettings) as error:
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    typer.echo(f"runstream: {error}", err=True)
    raise SystemExit(1)
