"""Tickets: who may read a run lets somebody in who can send no header, once, and soon.

A ticket is an entry of the index, so that any gateway takes it; whoever deletes the entry was let in. It lets in who
asked for it, narrowed to reading that run, and for as long as what they were admitted by stands.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from runstream.broker.auth.principal import Principal
from runstream.broker.bucket import Bucket, Put
from runstream.broker.errors import Unauthenticated, WrongLastSequence
from runstream.broker.keys import digest, ticket_key
from runstream.schemas import InvalidRecord

if TYPE_CHECKING:
    from runstream.broker.jetstream import JetStream

__all__ = ["TICKET_SECONDS", "Tickets"]

TICKET_SECONDS: Final = 30
"""How long a page may take to use one: it is in a URL, and URLs are written down."""
MOST_CHARACTERS: Final = 64


class _Ticket(msgspec.Struct):
    """What stands under its key."""

    principal: Principal
    until: float
    v: int = 1


class Found(NamedTuple):
    """A ticket that is not spent yet."""

    principal: Principal
    """Whom it lets in."""
    key: str
    revision: int


def _ticket_in(value: bytes) -> _Ticket:
    try:
        return msgspec.json.decode(value, type=_Ticket)
    except msgspec.MsgspecError as error:
        raise InvalidRecord(f"This is no ticket: {error}") from None


class Tickets:
    """Makes tickets, finds and spends them. Every call raises `Unavailable`."""

    def __init__(self, jetstream: JetStream) -> None:
        self._bucket = Bucket(jetstream)

    async def make(self, who: Principal, run_id: str) -> str:
        """Make a ticket for a run that `who` reaches."""
        ticket = secrets.token_urlsafe(32)
        narrowed = msgspec.structs.replace(who, run_id=run_id, scopes=frozenset({"runs:read"}))
        value = msgspec.json.encode(_Ticket(narrowed, time.time() + TICKET_SECONDS))
        await self._bucket.write([Put(ticket_key(digest(ticket)), value, 0)])
        return ticket

    async def find(self, ticket: str, run_id: str) -> Found:
        """Return a ticket to this run, which is left as it is. Raises `Unauthenticated`."""
        if len(ticket) > MOST_CHARACTERS:
            raise _refused()
        key = ticket_key(digest(ticket))
        stored = await self._bucket.get(key, _ticket_in)
        if stored is None or stored.value.principal.run_id != run_id or stored.value.until < time.time():
            raise _refused()
        return Found(stored.value.principal, key, stored.revision)

    async def spend(self, found: Found) -> None:
        """Let in whom a ticket lets in: once, whichever gateways are asked. Raises `Unauthenticated`."""
        try:
            await self._bucket.write([Put(found.key, None, found.revision)])
        except WrongLastSequence:
            raise _refused() from None


def _refused() -> Unauthenticated:
    return Unauthenticated(reason="The ticket is used, too old, or none.", cause="ticket")
