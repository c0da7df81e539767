"""What commands that serve, or work on NATS, tell: logs on stderr, and what keeps them from it in one line."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from runstream.broker.connection import WHERE_NATS_IS
from runstream.broker.errors import BrokerError, InvalidAgent, InvalidSettings, Refused, Unavailable
from runstream.gateway.commands.exits import Exit, tell
from runstream.gateway.logs import configure_logs
from runstream.gateway.process import CannotStart, WronglyAsked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runstream.gateway.place import Place

__all__ = ["ending", "told"]


def ending(error: CannotStart | BrokerError) -> tuple[str, Exit]:
    """Return what people are told of what keeps a command from its work, and the exit code that stands for it."""
    match error:
        case InvalidSettings() | InvalidAgent() | WronglyAsked():
            return str(error), Exit.USAGE
        case Refused():
            return str(error), Exit.REFUSED
        case Unavailable():
            return f"{str(error).rstrip('.')}. {WHERE_NATS_IS}.", Exit.UNREACHABLE
    return str(error), Exit.FAILED


@contextmanager
def told(  # as typer read them
    log_level: str,
    log_json: bool | None,  # noqa: FBT001
    place: Place | None = None,
) -> Iterator[None]:
    """Configure logs; what keeps a command from its work is told in one line, with the exit code that stands for it.

    A worker, which has a place, tells its parent, on stdout: what keeps one of them from it keeps all, and people are
    told once.
    """
    try:
        configure_logs(level=log_level, as_json=log_json, always={} if place is None else {"worker": place.number})
        yield
    except (CannotStart, BrokerError) as error:
        said, code = ending(error)
        tell(said, err=place is None)
        raise SystemExit(code) from None
