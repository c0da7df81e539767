"""The command line for credentials: `runstream keys new`, `token` and `revoke`."""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer
import uvloop

from runstream.broker.auth.principal import SCOPES
from runstream.broker.auth.revoking import revoke
from runstream.broker.auth.settings import AuthSettings
from runstream.broker.auth.static import key_named, new_key
from runstream.broker.auth.tokens import id_of, new_token
from runstream.broker.connection import Connection
from runstream.broker.errors import BrokerError, InvalidSettings
from runstream.broker.jetstream import JetStream
from runstream.broker.settings import BrokerSettings, resolved
from runstream.gateway.commands.exits import Exit, epilog
from runstream.schemas import DEFAULT_TENANT

__all__ = ["keys"]

keys = typer.Typer(name="keys", no_args_is_help=True, rich_markup_mode=None)

Tenant = Annotated[str, typer.Option(help="Whose it is.")]
Scope = Annotated[str, typer.Option(help=f"What it may: any of {' '.join(SCOPES)}, with spaces between them.")]
AgentId = Annotated[str | None, typer.Option(help="Only what is this agent's.")]
ConversationId = Annotated[str | None, typer.Option(help="Only what is in this conversation.")]
RunId = Annotated[str | None, typer.Option(help="Only this run.")]
MOST_SECONDS = 24 * 3600
EPILOG = epilog([Exit.FINE, Exit.FAILED, Exit.USAGE])


@keys.callback()
def _keys() -> None:
    """Make and revoke keys (--auth static) and tokens (--auth jwt)."""


@keys.command("new", epilog=EPILOG)
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


@keys.command("token", epilog=EPILOG)
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


@keys.command("revoke", epilog=EPILOG)
def revoke_command(
    key_id: Annotated[
        str, typer.Argument(help="A key's id, the 12 digits after rsk_; or a token's jti, or the token itself.")
    ],
    nats_url: Annotated[str | None, typer.Option(help="Where NATS is. [nats://127.0.0.1:4222]")] = None,
) -> None:
    """Revoke a key or a token for good: it admits nobody from now on, and what it has opened ends within 2 s."""
    try:
        uvloop.run(_revoke(key_named(key_id) or id_of(key_id), resolved(BrokerSettings, {"nats_url": nats_url})))
    except BrokerError as error:
        _fail(error)
    typer.echo("revoked")


async def _revoke(key_id: str, settings: BrokerSettings) -> None:
    access = settings.nats_access("provision")
    async with Connection(settings.nats_url, name="revoke", access=access) as connection:
        await revoke(JetStream(connection, timeout_seconds=settings.request_timeout_seconds), key_id)


def _fail(error: Exception) -> NoReturn:
    typer.echo(f"runstream: {error}", err=True)
    raise SystemExit(1)
