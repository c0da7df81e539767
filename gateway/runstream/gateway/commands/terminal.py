"""What a terminal is told: what others say without what would move its cursor, and numbers of things."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["counted", "harmless", "in_one_line"]

CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What makes a terminal do something, or show what is written in another order: an agent's text is anybody's. Marks of
direction, U+200E and U+200F, turn only what is beside them, and languages need them."""


def harmless(text: str) -> str:
    """Return the text with a mark in place of each character that would make a terminal do something."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def in_one_line(text: str) -> str:
    """Return the text as one line of its own, and harmless."""
    return harmless(" ".join(text.splitlines()))


def counted(number: int, thing: str) -> str:
    """Say how many there are of a thing, whose plural has an `s`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"
