"""What commands draw on stdout: tables, colours, panels."""

from __future__ import annotations

import sys
from typing import Final, Self

from rich.console import Console

__all__ = ["Output"]

UNBOUNDED: Final = 200
"""Columns that all of a table fits into."""


class Output(Console):
    """A console of rich's, but that whoever reads it may leave: `exits.run` tells that. rich would be exit code 1."""

    @classmethod
    def of_tables(cls) -> Self:
        """One whose tables are whole in a file or a program, which have no window that they would have to fit into."""
        return cls(width=None if sys.stdout.isatty() else UNBOUNDED)

    def on_broken_pipe(self) -> None:
        """Raise `BrokenPipeError`, as whatever else is written does."""
        raise BrokenPipeError
