"""Whether anybody would execute a run: each broker with an agent answers for itself, on one subject of core NATS.

Nothing of it is stored: a broker that is gone does not answer, and one that comes back does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from runstream.broker.errors import NoResponders, Unavailable

if TYPE_CHECKING:
    from runstream.broker.connection import Connection, Message, Subscription

__all__ = ["Presence", "announce", "anybody_there"]

SUBJECT = "brokers.with-agent"
ANSWER_SECONDS = 5.0
"""How long this broker's own question may take."""


class Presence(msgspec.Struct, frozen=True):
    """What a broker says of the agent it has."""

    forwards_credentials: bool = False
    """Whether its agent is to be called with what the client authenticated itself with."""
    is_demo: bool = False
    """Whether its agent is the demo agent, which does as it is told."""


async def announce(connection: Connection, presence: Presence) -> Subscription:
    """Answer whoever asks, from the return on and until the subscription is closed. Raises `Unavailable`."""
    answer = msgspec.json.encode(presence)

    async def asked(message: Message) -> None:
        await connection.publish(message.reply, answer)

    # All answer, not one chosen by the server: a broker that hangs must not stand for those that live.
    subscription = await connection.subscribe(SUBJECT, asked)
    try:
        # The subscription is sent a moment later. A server that answers this has it: what is asked from now on reaches
        # this broker, which somebody who waited for it to be ready may ask at once.
        await anybody_there(connection, seconds=ANSWER_SECONDS)
    except BaseException:
        await subscription.close()
        raise
    return subscription


async def anybody_there(connection: Connection, *, seconds: float) -> Presence | None:
    """Ask for a broker with an agent; None when there is none. Raises `Unavailable` when NATS is away."""
    try:
        answer = await connection.request(SUBJECT, b"", seconds=seconds)
        return msgspec.json.decode(answer.data, type=Presence)
    except NoResponders:
        return None
    except msgspec.MsgspecError as error:
        raise Unavailable(f"A broker's answer cannot be read: {error}") from error
