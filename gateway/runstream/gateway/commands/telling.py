"""What commands that serve, or work on NATS, tell: logs on stderr, and what keeps them from it in one line."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from runstream.broker.errors import BrokerError
from runstream.gateway.commands.exits import Exit, tell
from runstream.gateway.logs import configure_logs
from runstream.gateway.process import CannotStart

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runstream.gateway.place import Place

__all__ = ["told"]


@contextmanager
def told(  # as typer read them
    log_level: str,
    log_json: bool | None,  # noqa: FBT001
    place: Place | None = None,
) -> Iterator[None]:
    """Configure logs; what keeps a service from starting is told in one line, with exit code 1.

    A worker, which has a place, tells its parent, on stdout: what keeps one of them from it keeps all, and people are
    told once.
    """
    try:
        configure_logs(level=log_level, as_json=log_json, always={} if place is None else {"worker": place.number})
        yield
    except (CannotStart, BrokerError) as error:
        tell(str(error), err=place is None)
        raise SystemExit(Exit.FAILED) from None
