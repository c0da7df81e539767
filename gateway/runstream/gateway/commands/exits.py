"""What a command ends with: its exit codes, and the errors that stand for them, told in one line."""

from __future__ import annotations

import asyncio
import os
import sys
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, TypeVar

import typer

from runstream.gateway.commands.terminal import in_one_line

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

__all__ = [
    "OF_CLIENTS",
    "CommandError",
    "Exit",
    "Failed",
    "Missing",
    "Refused",
    "Unreachable",
    "Usage",
    "epilog",
    "run",
    "tell",
    "write_to_nobody",
]

T = TypeVar("T")


class Exit(IntEnum):
    """How a command has ended."""

    FINE = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    MISSING = 5
    INTERRUPTED = 130
    NOBODY_READS = 141


MEANINGS: Final = {
    Exit.FINE: "it did what it was asked to, and found nothing wrong",
    Exit.FAILED: "the run failed or was cancelled, a check found something, or the server could not do it",
    Exit.USAGE: "the command was called wrongly: an option, an id, an input, a setting",
    Exit.UNREACHABLE: "the server, or NATS, cannot be reached, or does not serve",
    Exit.REFUSED: "the server refused the key (401, 403), or NATS the user",
    Exit.MISSING: "there is no such run, conversation or cursor, or not any more",
    Exit.INTERRUPTED: "it was interrupted by Ctrl-C (a run that it was publishing: cancelled)",
    Exit.NOBODY_READS: "whoever read its output is gone",
}
"""One sentence for each; docs/cli.md has them as a table."""


class CommandError(Exception):
    """What keeps a command from doing its work: one line that says what, and what to do."""

    exit = Exit.FAILED


class Failed(CommandError):
    """It could not be done."""


class Usage(CommandError):
    """It was asked for in a wrong way."""

    exit = Exit.USAGE


class Unreachable(CommandError):
    """Nobody answers."""

    exit = Exit.UNREACHABLE


class Refused(CommandError):
    """Whoever asks may not."""

    exit = Exit.REFUSED


class Missing(CommandError):
    """What is asked for is not there."""

    exit = Exit.MISSING


def epilog(codes: Sequence[Exit]) -> str:
    """Say below a command's help what it ends with."""
    return "Exit codes: " + "; ".join(f"{code.value} {MEANINGS[code]}" for code in codes) + "."


OF_CLIENTS: Final = epilog([*Exit])
"""Below the help of a command that asks a server for something: it may end with any of them."""


def tell(message: str, *, err: bool = True) -> None:
    """Tell people something that is no output, in one line of stderr, whatever a server has put into it."""
    typer.echo(f"runstream: {in_one_line(message)}", err=err)


def write_to_nobody() -> None:
    """Have what is still buffered for stdout written nowhere: at exit it would be an error of its own."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(work: Coroutine[Any, Any, T]) -> T:
    """Do a command's work; what it raises ends the process, with one line and the exit code that stands for it."""
    try:
        return asyncio.run(work)
    except CommandError as error:
        tell(str(error))
        raise SystemExit(error.exit) from None
    except KeyboardInterrupt:
        raise SystemExit(Exit.INTERRUPTED) from None
    except BrokenPipeError:
        write_to_nobody()
        raise SystemExit(Exit.NOBODY_READS) from None
