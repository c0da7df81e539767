"""How a worker learns what a run's client authenticated itself with: by asking the gateway that has it in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from runstream.broker.errors import AgentFailed, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runstream.broker.connection import Connection
    from runstream.schemas import RunRequest

__all__ = ["CREDENTIALS", "CREDENTIAL_HEADERS", "credentials_of", "encode_credentials"]

CREDENTIALS: Final = "credentials"
"""The first word of the subject on which a gateway is asked; the second one is its own."""

CREDENTIAL_HEADERS: Final = ("Authorization", "X-BARE-PASSWORD", "user_id")
"""What a Letta platform authenticates a request by, and whom it then acts for."""

ANSWER_SECONDS = 2.0


def encode_credentials(found: Mapping[str, str]) -> bytes:
    """Encode what a client sent; nothing, if it is no longer known."""
    return msgspec.json.encode(found)


async def credentials_of(request: RunRequest, connection: Connection) -> Mapping[str, str]:
    """Return the headers that a run's client authenticated itself with; none if it sent none.

    Raises `AgentFailed` when nobody knows them any more.
    """
    if request.credentials_from is None:
        return {}
    try:
        answer = await connection.request(request.credentials_from, request.run_id.encode(), seconds=ANSWER_SECONDS)
        found = msgspec.json.decode(answer.data, type=dict[str, str])
    except (Unavailable, msgspec.MsgspecError) as error:
        raise AgentFailed("credential_lost", detail=str(error)) from error
    if not found:
        raise AgentFailed("credential_lost")
    return found
