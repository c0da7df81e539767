"""The command line, `runstream`: what commands there are. The one that is asked for is imported, and no other.

Help, completion and the commands of clients would wait a second for all that a broker imports.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from runstream.gateway.commands.exits import Exit, tell, write_to_nobody

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["COMMANDS", "app", "main"]


UNWRITABLE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""Why a file takes no more: whoever has sent output there is told so, and not shown where it was written."""


class Command(NamedTuple):
    """Where a command is, and what it does: what its own help says, in its first sentence."""

    where: str
    says: str


def _own(module: str, says: str, name: str = "command") -> Command:
    return Command(f"runstream.gateway.commands.{module}:{name}", says)


COMMANDS: Final[Mapping[str, Command]] = {
    "up": _own(
        "services", "Run everything in one process: an embedded nats-server, a broker with an agent, a gateway.", "up"
    ),
    "gateway": _own("services", "Run a gateway: HTTP in, streams out.", "gateway"),
    "broker": _own("services", "Run a broker: it makes the streams in NATS and executes runs.", "broker"),
    "provision": _own("provision", "Make the streams in NATS that are absent, say what differs, and end."),
    "doctor": _own("doctor", "Look for what is wrong with NATS, and say what to do about it."),
    "nats-keys": _own("nats_keys", "Make a key for each role's user of NATS, for deploy/nats/nats-server.conf."),
    "keys": Command("runstream.gateway.keys:keys", "Make and revoke keys (--auth static) and tokens (--auth jwt)."),
    "runs": _own("runs", "List runs, the newest first."),
    "tail": _own("tail", "Follow a run to its end, through cuts and restarts."),
    "replay": _own("replay", "Show a run again as it went, in its own time."),
    "publish": _own("publish", "Make a run of what comes on stdin: any program becomes a resumable stream."),
    "cancel": _own("cancel", "Cancel a run."),
    "bench": _own(
        "bench", "Measure a deployment from outside: what it takes to store, deliver, come back and read again."
    ),
    "conformance": _own("conformance", "Check whether a server keeps to the API."),
}


@contextmanager
def _told_in_one_line() -> Iterator[None]:
    """Tell what is wrong with options as every other error is told: typer would first show how the command is used."""
    try:
        yield
    except TyperException as error:
        said, context = error.format_message(), getattr(error, "ctx", None)
        if "\n" in said:  # It is the help itself, of a group that was called by its name alone.
            raise
        command = "runstream" if context is None else context.command_path
        tell(f"{said.rstrip('.')}. `{command} --help` says what there is.")
        raise typer.Exit(Exit.USAGE) from None


class _Commands(TyperGroup):
    """The commands of the table, each made when it is asked for."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _told_in_one_line():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _told_in_one_line():
            return super().invoke(ctx)

    def list_commands(self, ctx: Any) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        del ctx
        found = COMMANDS.get(cmd_name)
        if found is None:
            return None
        module, _, name = found.where.partition(":")
        command = typer.main.get_command(getattr(import_module(module), name))
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List them without making them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.says) for name, command in COMMANDS.items()])


# Without markup: a default in brackets would be taken for a style.
app = typer.Typer(cls=_Commands, rich_markup_mode=None, no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:  # noqa: FBT001  # typer's way
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415  # a tenth of what the help takes

        typer.echo(f"runstream {version('runstream')}")
        raise typer.Exit


@app.callback()
def runstream(
    _: Annotated[  # noqa: FBT002  # typer's way
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Run the durable stream broker for agent runs, and work with what is in it."""


def _have_outputs() -> None:
    """Have nobody listen where whoever started this has closed stdout or stderr."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  # until the end


def main() -> None:
    """Run the command line."""
    _have_outputs()
    try:
        app()
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        tell(f"What there was to write could not be written: {error.strerror}.")
        write_to_nobody()
        raise SystemExit(Exit.FAILED) from None
