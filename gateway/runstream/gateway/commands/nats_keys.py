"""`runstream nats-keys`: makes the keys of NATS's users."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runstream.gateway.commands.exits import Exit, epilog
from runstream.gateway.commands.options import PLAIN
from runstream.gateway.commands.telling import told
from runstream.gateway.natskeys import make_keys

__all__ = ["command"]

command = typer.Typer(**PLAIN)


@command.command(epilog=epilog([Exit.FINE, Exit.FAILED, Exit.USAGE]))
def nats_keys(directory: Annotated[Path, typer.Argument(help="Where to; it is made if it is not there.")]) -> None:
    """Make a key for each role's user of NATS, for deploy/nats/nats-server.conf."""
    with told("info", None):
        make_keys(directory, tell=typer.echo)
