"""Tickets: who may read a run lets somebody in who can send no header, once, and soon.

A ticket is an entry of the index, so that any gateway takes it; whoever deletes the entry was let in. It lets in who
asked for it, narrowed to reading that run, and for as long as what they were admitted by stands.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Final

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


def _ticket_in(value: bytes) -> _Ticket:
    try:
        return msgspec.json.decode(value, type=_Ticket)
    except msgspec.MsgspecError as error:
        raise InvalidRecord(f"This is no ticket: {error}") from None


class Tickets:
    """Makes tickets and takes them. Every call raises `Unavailable`."""

    def __init__(self, jetstream: JetStream) -> None:
        self._bucket = Bucket(jetstream)

    async def make(self, who: Principal, run_id: str) -> str:
        """Make a ticket for a run that `who` reaches."""
        ticket = secrets.token_urlsafe(32)
        narrowed = msgspec.structs.replace(who, run_id=run_id, scopes=frozenset({"runs:read"}))
        value = msgspec.json.encode(_Ticket(narrowed, time.time() + TICKET_SECONDS))
        await self._bucket.write([Put(ticket_key(digest(ticket)), value, 0)])
        return ticket

    async def take(self, ticket: str, run_id: str) -> Principal:
        """Return whom a ticket lets in, to this run: once, whichever gateways are asked. Raises `Unauthenticated`."""
        refused = Unauthenticated(reason="The ticket is used, too old, or none.", cause="ticket")
        if len(ticket) > MOST_CHARACTERS:
            raise refused
        key = ticket_key(digest(ticket))
        stored = await self._bucket.get(key, _ticket_in)
        if stored is None or stored.value.principal.run_id != run_id:
            raise refused
        try:
            await self._bucket.write([Put(key, None, stored.revision)])
        except WrongLastSequence:
            raise refused from None
        if stored.value.until < time.time():
            raise refused
        return stored.value.principal
