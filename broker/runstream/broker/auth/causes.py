"""Why a credential is refused, as it is counted: few words, none of which says anything of whose it was."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, get_args

__all__ = ["CAUSES", "Cause"]

Cause: TypeAlias = Literal[
    "missing",
    "malformed",
    "unknown_key",
    "bad_signature",
    "expired",
    "not_yet_valid",
    "audience",
    "issuer",
    "claims",
    "revoked",
    "ticket",
    "cookie",
    "session",
    "scope",
    "narrowed",
]
CAUSES: Final[tuple[Cause, ...]] = get_args(Cause)
