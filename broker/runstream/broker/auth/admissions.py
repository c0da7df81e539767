"""Who is let in, and for how long: what goes on in somebody's name ends when what they were admitted by does.

It expires, is revoked, or is taken out of its file. Whatever it is, who holds a stream open is told within two seconds.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Final, Self

from runstream.broker.auth.authenticator import Anybody
from runstream.broker.auth.revoking import Revocations
from runstream.broker.errors import Unauthenticated
from runstream.broker.logs import get_logger
from runstream.broker.tasks import end_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from runstream.broker.auth.authenticator import Authenticator
    from runstream.broker.auth.principal import Principal
    from runstream.broker.jetstream import JetStream

__all__ = ["Admissions"]

log = get_logger(__name__)

LOOK_SECONDS = 0.25
"""How often it is looked whether anything has changed; if not, that is all."""
LONGEST_SECONDS = 30 * 24 * 3600.0
"""As far ahead as a timer is set: no stream is that old."""
FOR_EVER: Final = nullcontext()
"""For whom nothing could be revoked; one for all."""


class Admissions:
    """Lets people in, and looks after what goes on in their names. Use as an async context manager.

    `revocations` None: nobody has anything that could be revoked.
    """

    def __init__(self, authenticator: Authenticator, revocations: Revocations | None) -> None:
        self._authenticator = authenticator
        self._revocations = revocations
        self._ends: dict[Principal, dict[int, Callable[[], None]]] = {}
        self._looking: asyncio.Task[None] | None = None

    @classmethod
    def by(cls, authenticator: Authenticator | None, jetstream: JetStream, *, restores: bool = False) -> Self:
        """Let in whoever `authenticator` knows, and anybody if that is what it says; None: anybody.

        With `restores` revocations that the store has lost are written again.
        """
        if authenticator is None or isinstance(authenticator, Anybody):
            return cls(Anybody(), None)  # Nobody is kept waiting for what was revoked, where nobody is asked.
        return cls(authenticator, Revocations(jetstream, restores=restores))

    async def __aenter__(self) -> Self:
        if self._revocations is not None:
            await self._revocations.__aenter__()
            self._looking = asyncio.create_task(self._look(self._changes), name="admissions")
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._looking is not None:
            await end_task(self._looking)
        if self._revocations is not None:
            await self._revocations.__aexit__(*error)

    async def principal(self, credential: str | None) -> Principal:
        """Return whoever has a credential. Raises `Unauthenticated`, `Unavailable`."""
        who = await self._authenticator.principal(credential)
        await self.check(who)
        return who

    @property
    def unready(self) -> str | None:
        """Why nobody can be let in yet, in words; None once somebody can."""
        return self._authenticator.unready

    @property
    def asks_nobody(self) -> bool:
        """Whether anybody may do everything."""
        return self._revocations is None

    async def check(self, who: Principal) -> None:
        """Raise `Unauthenticated` unless whoever was let in before still would be, `Unavailable` if nobody can say."""
        if self._revocations is not None:
            await self._revocations.known()
        if self._is_revoked(who):
            raise Unauthenticated(reason="The credential was revoked.", cause="revoked")
        if who.has_expired:
            raise Unauthenticated(reason="The credential has expired.", cause="expired")
        if not self._authenticator.stands(who):
            raise Unauthenticated(reason="The key is not known.", cause="unknown_key")

    def over(self, who: Principal, end: Callable[[], None]) -> AbstractContextManager[None]:
        """Call `end`, once at most, when `who` stands no longer while the block lasts."""
        return FOR_EVER if self._revocations is None else self._over(who, end)

    @contextmanager
    def _over(self, who: Principal, end: Callable[[], None]) -> Iterator[None]:
        has_ended = False

        def once() -> None:
            nonlocal has_ended
            if not has_ended:
                has_ended = True
                end()

        loop = asyncio.get_running_loop()
        timer = None
        if not self._stands(who):
            loop.call_soon(once)  # It was revoked after it was let in.
        elif who.expires_at is not None:
            timer = loop.call_later(min(LONGEST_SECONDS, who.expires_at - time.time()), once)
        ends = self._ends.setdefault(who, {})
        ends[id(once)] = once
        try:
            yield
        finally:
            has_ended = True
            if timer is not None:
                timer.cancel()
            del ends[id(once)]
            if not ends:
                self._ends.pop(who, None)

    def _is_revoked(self, who: Principal) -> bool:
        return self._revocations is not None and self._revocations.has(who.key_id)

    def _stands(self, who: Principal) -> bool:
        return not who.has_expired and not self._is_revoked(who) and self._authenticator.stands(who)

    @property
    def _changes(self) -> int:
        return self._authenticator.changes + (0 if self._revocations is None else self._revocations.changes)

    async def _look(self, seen: int) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._changes == seen:
                continue
            seen = self._changes
            for who in [*self._ends]:
                self._look_at(who)

    def _look_at(self, who: Principal) -> None:
        """End what goes on in the name of somebody who stands no longer. A defect is of one: the others end as well."""
        try:
            stands = self._stands(who)
        except Exception:
            # Nobody can say that he does.
            log.exception("admission_not_judged")
            stands = False
        for end in [] if stands else [*self._ends.get(who, {}).values()]:
            try:
                end()
            except Exception:
                log.exception("admission_not_ended")
