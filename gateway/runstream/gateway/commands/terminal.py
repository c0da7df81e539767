"""What others say, as a terminal may have it."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["harmless", "in_one_line"]

CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What makes a terminal do something: an agent's text is anybody's."""


def harmless(text: str) -> str:
    """Return the text with a mark in place of each character that would make a terminal do something."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def in_one_line(text: str) -> str:
    """Return the text as one line of its own, and harmless."""
    return harmless(" ".join(text.splitlines()))
