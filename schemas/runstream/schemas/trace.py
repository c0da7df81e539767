"""The trace that a request belongs to: W3C's `traceparent` and `tracestate`, as they are taken, stored and passed on.

Nothing here makes a trace, or a span. What is malformed is as if it were absent, and never a reason to refuse anything.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["TRACEPARENT", "TRACESTATE", "Trace", "trace_of"]

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"

VALID_PARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
VALID_MEMBER: Final = re.compile(r"([a-z0-9][a-z0-9_*/@-]{0,255})=[ -+\--<>-~]{0,255}[!-+\--<>-~]")
"""A vendor's key and value: printable ASCII without `,` and `=`, and no space at the end."""
MOST_MEMBERS: Final = 32
MOST_CHARACTERS: Final = 512
"""What has to be passed on at least; it is stored with every run, so it is also what is passed on at most."""
LONG_MEMBER: Final = 128
"""Longer ones are left out first where something has to be."""


class Trace(msgspec.Struct, frozen=True):
    """A trace, made by `trace_of`: which one, and what those it has passed have to say to each other."""

    parent: str
    state: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The headers that say so."""
        return {TRACEPARENT: self.parent, **({} if self.state is None else {TRACESTATE: self.state})}


def trace_of(parents: Sequence[str], states: Sequence[str] = ()) -> Trace | None:
    """Read a trace from the values of its two headers, in order; None if they name none.

    A state that is malformed is left out, whole. One that is too long is shortened by whole members.
    """
    if len(parents) != 1 or not VALID_PARENT.fullmatch(parents[0]):
        return None
    return Trace(parents[0], _state_of(states))


def _state_of(states: Sequence[str]) -> str | None:
    members = [member for state in states for part in state.split(",") if (member := part.strip(" \t"))]
    found = [VALID_MEMBER.fullmatch(member) for member in members[: MOST_MEMBERS + 1]]
    keys = {match[1] for match in found if match is not None}
    if not members or len(members) > MOST_MEMBERS or len(keys) < len(members):
        return None  # One is none, or two are one vendor's.
    if _length(members) > MOST_CHARACTERS:
        members = [member for member in members if len(member) <= LONG_MEMBER]
    while _length(members) > MOST_CHARACTERS:
        members.pop()
    return ",".join(members) or None


def _length(members: Sequence[str]) -> int:
    return sum(map(len, members)) + len(members) - 1
