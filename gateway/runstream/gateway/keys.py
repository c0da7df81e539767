"""The command line for credentials: `runstream keys new`, `token` and `revoke`."""

from __future__ import annotations

import re
from typing import Annotated, Final, NamedTuple, NoReturn

import typer
import uvloop

from runstream.broker.auth.principal import SCOPES
from runstream.broker.auth.revoking import revoke
from runstream.broker.auth.settings import AuthSettings
from runstream.broker.auth.static import key_named, new_key
from runstream.broker.auth.tokens import id_of, is_signed_with, names_itself, new_token, secret_in
from runstream.broker.connection import Connection
from runstream.broker.errors import BrokerError, InvalidSettings
from runstream.broker.jetstream import JetStream
from runstream.broker.settings import BrokerSettings, resolved
from runstream.gateway.commands.exits import Exit, epilog
from runstream.gateway.commands.options import PLAIN
from runstream.gateway.commands.telling import ending
from runstream.schemas import DEFAULT_TENANT, is_agent_id, is_conversation_id, is_run_id

__all__ = ["Revoked", "keys", "revoked_by"]

keys = typer.Typer(name="keys", no_args_is_help=True, **PLAIN)

Tenant = Annotated[str, typer.Option(help="Whose it is.")]
Scope = Annotated[str, typer.Option(help=f"What it may: any of {' '.join(SCOPES)}, with spaces between them.")]
AgentId = Annotated[str | None, typer.Option(help="Only what is this agent's.")]
ConversationId = Annotated[str | None, typer.Option(help="Only what is in this conversation.")]
RunId = Annotated[str | None, typer.Option(help="Only this run.")]
MOST_SECONDS = 24 * 3600
IDS = {
    "agent_id": ("agent", is_agent_id),
    "conversation_id": ("conv", is_conversation_id),
    "run_id": ("run", is_run_id),
}
KEY_ID: Final = re.compile(r"(?:rsk_)?([0-9a-f]{12})")
LIKE_A_KEY_ID: Final = re.compile(r"rsk_.*|[0-9a-f]{12}", re.IGNORECASE | re.DOTALL)
DOTS_OF_A_TOKEN: Final = 2
BEGIN_OF_A_HEAD: Final = "eyJ"
"""`{"` in base64: what a token's head begins with, and so each part of one that was cut off behind."""
MOST_OF_A_JTI: Final = 128
STDIN: Final = "-"
NOT_CHECKED: Final = "its signature was not checked: that it is the token which it says it is, nobody here can tell"
EPILOG = epilog([Exit.FINE, Exit.USAGE])


@keys.callback()
def _keys() -> None:
    """Make and revoke keys (--auth static) and tokens (--auth jwt)."""


@keys.command("new", epilog=EPILOG, short_help="Make a key.")
def new_command(
    tenant: Tenant = DEFAULT_TENANT,
    scope: Scope = "runs:read",
    agent_id: AgentId = None,
    conversation_id: ConversationId = None,
    run_id: RunId = None,
) -> None:
    """Make a key: it is on stderr, once; the line on stdout is for the file that RUNSTREAM_AUTH_KEYS_FILE names."""
    _check_ids(agent_id=agent_id, conversation_id=conversation_id, run_id=run_id)
    _check_scopes(scope)
    try:
        key, line = new_key(tenant, scope.split(), agent_id=agent_id, conversation_id=conversation_id, run_id=run_id)
    except ValueError as error:
        _refuse(error)
    typer.echo(f"The key, which is shown this once: {key}", err=True)
    typer.echo(line.decode())


@keys.command("token", epilog=EPILOG, short_help="Sign a token.")
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
    _check_ids(**narrowed)
    _check_scopes(scope)
    try:
        typer.echo(new_token(resolved(AuthSettings), tenant, scope.split(), seconds=seconds, narrowed=narrowed))
    except (ValueError, InvalidSettings) as error:
        _refuse(error)


class Revoked(NamedTuple):
    """What is revoked: a `key` or a `token`, and the id it is known by."""

    kind: str
    id: str


def revoked_by(said: str) -> Revoked:
    """Read what somebody wants revoked: a key or its id, a token or its `jti`. Raises `ValueError` for anything else.

    Whether anybody has a key or a token of an id cannot be looked up. So what looks like a damaged one is not taken for
    an id of its own: it would be revoked in its place, and what was meant would go on.
    """
    said = said.strip()
    match = KEY_ID.fullmatch(said)
    key_id = key_named(said) if match is None else match[1]
    if key_id is not None:
        return Revoked("key", key_id)
    if LIKE_A_KEY_ID.fullmatch(said):
        raise ValueError("this is no key, and no key's id, which is 12 digits, 0 to 9 and a to f, after rsk_")
    token_id = id_of(said)
    if token_id == said and (not said or _is_like_a_token(said)):
        raise ValueError("this is no token, and no token's jti: say the whole token, as it was issued")
    return Revoked("token", token_id)


def _is_like_a_token(said: str) -> bool:
    is_a_part = said.startswith(BEGIN_OF_A_HEAD) or said.count(".") == DOTS_OF_A_TOKEN
    return is_a_part or len(said) > MOST_OF_A_JTI or not said.isprintable() or any(map(str.isspace, said))


@keys.command(
    "revoke",
    epilog=epilog([each for each in Exit if each not in {Exit.MISSING, Exit.NOBODY_READS}]),
    short_help="Revoke a key or a token for good.",
)
def revoke_command(
    key_id: Annotated[
        str,
        typer.Argument(
            help="A key, or its id, the 12 digits after rsk_; a token, or its jti. - reads it from stdin: what stands "
            "on a command line others can read.",
            show_default=False,
        ),
    ],
    nats_url: Annotated[str | None, typer.Option(help="Where NATS is. [nats://127.0.0.1:4222]")] = None,
) -> None:
    """Revoke a key or a token for good: it admits nobody from now on, and what it has opened ends within 2 s."""
    said = (typer.get_text_stream("stdin").readline() if key_id == STDIN else key_id).strip()
    try:
        revoked = revoked_by(said)
        warning = _doubt_of(said, revoked, resolved(AuthSettings))
    except (ValueError, InvalidSettings) as error:
        _refuse(error)
    try:
        uvloop.run(_revoke(revoked.id, resolved(BrokerSettings, {"nats_url": nats_url})))
    except BrokerError as error:
        _end(*ending(error))
    shown = revoked.id if revoked.id.isprintable() else repr(revoked.id)
    typer.echo(f"revoked the {revoked.kind} {shown}")
    if warning:
        typer.echo(f"runstream: {warning}", err=True)


def _doubt_of(said: str, revoked: Revoked, settings: AuthSettings) -> str:
    """Say what was not checked of what is revoked. Raises `ValueError` for a token that is forged.

    Whoever hands in a token of his own making with the id of somebody else's would have that one revoked.
    """
    if revoked.kind == "key":
        return ""
    if said == revoked.id:
        return "it was taken as it is: nobody can look up whether there is a token of that jti"
    if not names_itself(said):
        return ""
    path = settings.auth_secret_file
    is_signed = None if path is None else is_signed_with(said, secret_in(path).value)
    if is_signed is False:
        raise ValueError(
            f"this token was not signed with the secret in {path}, and may name somebody else's: "
            "to revoke that one, say its jti"
        )
    return NOT_CHECKED if is_signed is None else ""


async def _revoke(key_id: str, settings: BrokerSettings) -> None:
    access = settings.nats_access("provision")
    async with Connection(settings.nats_url, name="revoke", access=access) as connection:
        await revoke(JetStream(connection, timeout_seconds=settings.request_timeout_seconds), key_id)


def _check_ids(**given: str | None) -> None:
    """Refuse what is no id: what is narrowed to it would reach nothing."""
    for name, value in given.items():
        prefix, is_one = IDS[name]
        if value is not None and not is_one(value):
            _refuse(f"--{name.replace('_', '-')} is {prefix}-<uuid4>, in lower case, and not {value!r}.")


def _check_scopes(said: str) -> None:
    known = f"there are {', '.join(SCOPES)}"
    if not said.split():
        _refuse(f"--scope is empty, and who has none may do nothing: {known}.")
    if unknown := [scope for scope in said.split() if scope not in SCOPES]:
        _refuse(f"{unknown[0]!r} is no scope: {known}.")


def _refuse(error: Exception | str) -> NoReturn:
    _end(error, Exit.USAGE)


def _end(error: Exception | str, code: Exit) -> NoReturn:
    typer.echo(f"runstream: {error}", err=True)
    raise SystemExit(code)
