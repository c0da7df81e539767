"""`runstream nats-keys`: makes the keys of all roles, and tells the server's side of them in one file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from runstream.broker.access import new_key
from runstream.gateway.process import CannotStart

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["ROLES", "make_keys"]

ROLES: Final = ("provision", "broker", "gateway", "writer")
ENVIRONMENT: Final = "nats.env"


def make_keys(directory: Path, *, tell: Callable[[str], None]) -> None:
    """Make a key for each role, and the environment of `deploy/nats/nats-server.conf`, which has the public ones.

    What is there is left as it is: a key that is replaced is one that nobody may use any more. Raises `CannotStart`.
    """
    public: list[str] = []
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        taken = [name for name in (*map(_file, ROLES), ENVIRONMENT) if (directory / name).exists()]
        if taken:
            raise CannotStart(f"{directory} has {', '.join(taken)} already: choose another directory, or remove them.")
        for role in ROLES:
            seed, public_key = new_key()
            _write(directory / _file(role), f"{seed}\n")
            public.append(f"NATS_{role.upper()}_NKEY={public_key}\n")
            tell(f"{directory / _file(role)}: RUNSTREAM_NATS_NKEY of the {role}, secret")
        _write(directory / ENVIRONMENT, "".join(public))
    except OSError as error:
        raise CannotStart(f"The keys cannot be written to {directory}: {error.strerror}.") from error
    tell(f"{directory / ENVIRONMENT}: the environment of nats-server, public")


def _file(role: str) -> str:
    return f"{role}.nk"


def _write(path: Path, text: str) -> None:
    """Write a file that only its owner may read, and that was not there."""
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(text, encoding="ascii")
