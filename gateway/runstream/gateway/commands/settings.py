"""What a client's command takes from its surroundings: the key, which no option has."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from runstream.gateway.commands.exits import Usage

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BROKER_URL", "GATEWAY_URL", "KEY", "key_for"]

GATEWAY_URL: Final = "http://127.0.0.1:8283"
BROKER_URL: Final = "http://127.0.0.1:8284"
KEY: Final = "RUNSTREAM_KEY"
"""The variable that has the key. There is no `--key`: what stands on a command line is in the shell's history, and in
the list of processes for everybody on the machine."""


def key_for(key_file: Path | None) -> str | None:
    """Return the key or token to be shown, from the file if there is one; None: none is. Raises `Usage`."""
    if key_file is None:
        key = os.environ.get(KEY, "").strip()
        where = KEY
    else:
        where = str(key_file)
        try:
            key = key_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not ASCII"
            raise Usage(f"The key in {where} cannot be read: {reason}.") from error
        if not key:
            raise Usage(f"There is no key in {where}: write it there, alone on one line.")
    if any(not 33 <= ord(character) <= 126 for character in key):  # noqa: PLR2004  # what a header's value may have
        raise Usage(f"What is in {where} is no key: it has white space or other characters that no key has.")
    return key or None
