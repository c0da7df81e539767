"""Options that several commands have, so that they are called the same and mean the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import typer

__all__ = ["PLAIN", "AsJson", "IngestUrl", "Key", "LogJson", "LogLevel", "NatsUrl", "Patience", "Url", "given_again"]

PLAIN: Final[dict[str, Any]] = {"rich_markup_mode": None, "add_completion": False, "pretty_exceptions_enable": False}
"""A command as this command line has it. Without markup: a default in brackets would be taken for a style."""

Url: TypeAlias = Annotated[
    str, typer.Option("--url", envvar="RUNSTREAM_URL", help="Where the gateway is.", metavar="URL")
]
IngestUrl: TypeAlias = Annotated[
    str, typer.Option("--ingest-url", envvar="RUNSTREAM_INGEST_URL", help="Where a broker is.", metavar="URL")
]
Key: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        envvar="RUNSTREAM_KEY_FILE",
        help="A file with the key or token to show; else RUNSTREAM_KEY has it. No option does: others could read it.",
        metavar="FILE",
    ),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Write JSON, for programs.")]
Patience: TypeAlias = Annotated[
    float,
    typer.Option("--patience", min=0, metavar="SECONDS", help="How long to go on trying when nobody answers."),
]
NatsUrl: TypeAlias = Annotated[
    str | None, typer.Option(help="Where NATS is; several servers with commas. [nats://127.0.0.1:4222]")
]
LogLevel: TypeAlias = Annotated[
    str, typer.Option(envvar="RUNSTREAM_LOG_LEVEL", help="What is logged: debug, info, warning, error or critical.")
]
LogJson: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--log-json/--log-text",
        envvar="RUNSTREAM_LOG_JSON",
        help="How logs look, on stderr. [text on a terminal, else JSON]",
    ),
]


def given_again(context: typer.Context, *names: str) -> list[str]:
    """Return those of these parameters that stood on the command line, as they would stand on another.

    What the environment says, it says to the next command, too.
    """
    words: list[str] = []
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name in names and source is not None and source.name == "COMMANDLINE":
            value = context.params[option.name]
            words += [option.opts[0], *([] if value is True else [str(value)])]
    return words
