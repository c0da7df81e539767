"""What commands draw on stdout: tables, colours, panels."""

from __future__ import annotations

from rich.console import Console

__all__ = ["Output"]


class Output(Console):
    """A console of rich's, but that whoever reads it may leave: `exits.run` tells that. rich would be exit code 1."""

    def on_broken_pipe(self) -> None:
        """Raise `BrokenPipeError`, as whatever else is written does."""
        raise BrokenPipeError
