"""What NATS does not let a connection's user do, which it says beside everything else, and once.

Whoever publishes what is refused waits for an answer in vain; whoever subscribes hears nothing, which looks like
silence. So a refusal is kept until an answer shows that it no longer holds, or the connection is made anew. A server
whose permissions change may keep the connection, and says nothing of what it would allow now.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from runstream.broker.logs import get_logger, without_names

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Refusals"]

log = get_logger(__name__)

REFUSAL: Final = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"', re.IGNORECASE)
MOST_KEPT: Final = 1000
"""A run has a subject of its own, so that there may be any number: beyond, all that matters was said."""


class Refusals:
    """What was refused since the connection was made. nats-py tells of subjects in lower case."""

    def __init__(self, connection: str) -> None:
        self._connection = connection
        self._publishing: set[str] = set()
        self._hearing: set[str] = set()
        self._told: set[tuple[str, str]] = set()
        """What was logged, and is not known to be over: who is refused a consumer tries another, of another name."""

    def note(self, error: str, known: Iterable[str]) -> str | None:
        """Note what an error says was refused, and log it once; returns the subject, None if it says nothing of it.

        `known` are subjects in use, which tell how it is written.
        """
        found = REFUSAL.search(error)
        if found is None:
            return None
        is_publish, lowered = found[1].lower() == "publish", found[2].lower()
        subject = next((each for each in known if each.lower() == lowered), found[2])
        kept = self._publishing if is_publish else self._hearing
        if lowered not in kept and len(kept) < MOST_KEPT:
            kept.add(lowered)
            self._tell("publish" if is_publish else "subscribe", subject)
        return subject

    def _tell(self, action: str, subject: str) -> None:
        told = _nameless(action, subject)
        if told not in self._told and len(self._told) < MOST_KEPT:
            self._told.add(told)
            log.error("nats_refused", connection=self._connection, action=action, subject=subject)

    def publishing(self, subject: str) -> bool:
        """Tell whether `subject` may not be published to."""
        return bool(self._publishing) and subject.lower() in self._publishing

    def hearing(self, prefix: str = "") -> bool:
        """Tell whether something was refused that this process wanted to hear, below `prefix`."""
        return any(subject.startswith(prefix.lower()) for subject in self._hearing)

    def is_deaf_to(self, subject: str) -> bool:
        """Tell whether `subject` may not be heard."""
        return subject.lower() in self._hearing

    def answered(self, subject: str, inbox_prefix: str) -> None:
        """Forget what an answer to a request to `subject` disproves: it was let through, and so was the answer."""
        if self.publishing(subject):
            self._publishing.remove(subject.lower())
            self._told.discard(_nameless("publish", subject))
        for heard in [each for each in self._hearing if each.startswith(inbox_prefix.lower())]:
            self._hearing.remove(heard)
            self._told.discard(_nameless("subscribe", heard))

    def forget(self, subject: str) -> None:
        """Forget that a subject could not be heard: nobody wants to any more, or it is tried again."""
        self._hearing.discard(subject.lower())

    def heard(self, subject: str) -> None:
        """Note that a subject which could not be heard can be: should it be refused again, that is news."""
        self._told.discard(_nameless("subscribe", subject))

    def clear(self) -> None:
        """Forget everything: what is still refused is refused anew."""
        self._publishing.clear()
        self._hearing.clear()
        self._told.clear()


def _nameless(action: str, subject: str) -> tuple[str, str]:
    return action, without_names(subject.lower())
