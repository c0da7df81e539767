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

__all__ = ["told"]


@contextmanager
def told(log_level: str, log_json: bool | None) -> Iterator[None]:  # noqa: FBT001  # as typer read it
    """Configure logs; what keeps a service from starting is told in one line, with exit code 1."""
    try:
        configure_logs(level=log_level, as_json=log_json)
        yield
    except (CannotStart, BrokerError) as error:
        tell(str(error))
        raise SystemExit(Exit.FAILED) from None
