"""Tables in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["WRITTEN", "cell", "table"]

WRITTEN = "<!-- Written by `python -m deploy.reference` from the source: change that. -->"


def cell(text: str) -> str:
    """Put a text on one line, and keep what would end the cell."""
    return " ".join(text.split()).replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Draw a table; nothing, if it has no rows."""
    lines = ["| " + " | ".join(map(cell, row)) + " |" for row in rows]
    # A cell with nothing in it has one space.
    lines = [line.replace("|  |", "| |").replace("|  |", "| |") for line in lines]
    if not lines:
        return ""
    return "\n".join([f"| {' | '.join(head)} |".replace("|  |", "| |"), "|" + "---|" * len(head), *lines, ""])
