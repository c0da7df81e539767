"""What a platform is told of who asks: the client's own credential, or a token of an operator's.

A worker learns what a run's client authenticated itself with by asking the gateway that has it in memory.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec

from runstream.broker.errors import AgentFailed, InvalidSettings, Unavailable
from runstream.broker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from runstream.broker.connection import Connection
    from runstream.schemas import RunRequest

__all__ = ["CREDENTIALS", "CREDENTIAL_HEADERS", "NONE_SENT", "bearer_in", "credentials_of", "encode_credentials"]

log = get_logger(__name__)

CREDENTIALS: Final = "credentials"
"""The first word of the subject on which a gateway is asked; the second one is its own."""

NONE_SENT: Final = ""
"""In place of that subject: the client sent no credential. None says that no gateway has looked."""

CREDENTIAL_HEADERS: Final = ("Authorization", "X-BARE-PASSWORD", "user_id")
"""What a Letta platform authenticates a request by, and whom it then acts for."""

ANSWER_SECONDS = 2.0
PATIENCE_SECONDS = 10.0
"""How long a gateway is asked that does not answer: after an outage of NATS it may be back later than this worker."""
RETRY_SECONDS = 0.2


def bearer_in(secret: Path) -> dict[str, str]:
    """Read the header that a file with a bearer token stands for. Raises `InvalidSettings`, which shows no token."""
    try:
        token = secret.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
        raise InvalidSettings(f"RUNSTREAM_UPSTREAM_AUTH: the file {str(secret)!r} cannot be read: {reason}.") from error
    if not token.isprintable() or not token or " " in token:
        raise InvalidSettings(f"RUNSTREAM_UPSTREAM_AUTH: the file {str(secret)!r} must hold one bearer token.")
    return {"Authorization": f"Bearer {token}"}


def encode_credentials(found: Mapping[str, str]) -> bytes:
    """Encode what a client sent, an empty object if that is no longer known."""
    return msgspec.json.encode(found)


async def credentials_of(request: RunRequest, connection: Connection) -> Mapping[str, str]:
    """Return the headers that a run's client authenticated itself with; none if it sent none.

    Raises `AgentFailed` when nobody knows them any more, or nobody ever did: then it must not be asked for as nobody.
    """
    if request.credentials_from is None:
        raise AgentFailed("credential_lost", detail="It was taken before there was a broker that forwards credentials.")
    if request.credentials_from == NONE_SENT:
        return {}
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            found = await _asked(connection, request.credentials_from, request.run_id)
    except TimeoutError:
        found = {}
    if not found:
        # Without the subject: who knows it can ask there.
        log.warning("credential_lost", run_id=request.run_id)
        raise AgentFailed("credential_lost")
    return found


async def _asked(connection: Connection, subject: str, run_id: str) -> Mapping[str, str]:
    """Ask until there is an answer; one that cannot be read has nothing in it."""
    while True:
        await connection.connected()
        try:
            answer = await connection.request(subject, run_id.encode(), seconds=ANSWER_SECONDS)
            return msgspec.json.decode(answer.data, type=dict[str, str])
        except Unavailable:
            await asyncio.sleep(RETRY_SECONDS)
        except msgspec.MsgspecError:
            return {}
