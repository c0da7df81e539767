"""Sessions: whoever has a credential is known for an hour by a cookie that no page can read.

A session is an entry of the index, so that any gateway knows it. It reaches what its credential reaches, and stands for
as long as that does.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Final

import msgspec

from runstream.broker.auth.principal import Principal
from runstream.broker.bucket import Bucket, Put
from runstream.broker.errors import Unauthenticated
from runstream.broker.keys import digest, ticket_key
from runstream.schemas import InvalidRecord

if TYPE_CHECKING:
    from runstream.broker.jetstream import JetStream

__all__ = ["SESSION_SECONDS", "Sessions", "is_session"]

SESSION_SECONDS: Final = 3600
"""How long one lasts: as long as a cookie may that the platform sets."""
MOST_CHARACTERS: Final = 64


class _Session(msgspec.Struct):
    """What stands under its key."""

    principal: Principal
    """Of its credential, with the session's own end as `expires_at` if that comes first."""
    is_session: bool
    v: int = 1


def _session_in(value: bytes) -> _Session:
    try:
        return msgspec.json.decode(value, type=_Session)
    except msgspec.MsgspecError as error:
        raise InvalidRecord(f"This is no session: {error}") from None


def is_session(value: bytes) -> bool:
    """Tell whether what stands where tickets stand, too, is a session that is not over."""
    try:
        return not _session_in(value).principal.has_expired
    except InvalidRecord:
        return False


def _key(session: str) -> str:
    # Longer than a ticket may be: none that is made up stands for a session.
    return ticket_key(digest(f"a session, which is known by its cookie: {session}"))


class Sessions:
    """Opens sessions, knows them and closes them. Every call raises `Unavailable`."""

    def __init__(self, jetstream: JetStream) -> None:
        self._bucket = Bucket(jetstream)

    async def open(self, who: Principal) -> str:
        """Make a session of `who`."""
        session = secrets.token_urlsafe(32)
        until = time.time() + SESSION_SECONDS
        until = until if who.expires_at is None else min(until, who.expires_at)
        value = msgspec.json.encode(_Session(msgspec.structs.replace(who, expires_at=until), is_session=True))
        await self._bucket.write([Put(_key(session), value, 0)])
        return session

    async def principal(self, session: str) -> Principal:
        """Return whose session it is, which may be over: the caller checks. Raises `Unauthenticated` if it is none."""
        stored = await self._bucket.get(_key(session), _session_in) if len(session) <= MOST_CHARACTERS else None
        if stored is None:
            raise Unauthenticated(reason="The session is over, or none.", cause="session")
        return stored.value.principal

    async def close(self, session: str) -> None:
        """Forget a session, whoever's it is: who has its secret may end it."""
        await self._bucket.write([Put(_key(session), None)])
