"""What commands that serve, or work on NATS, tell: logs on stderr, and what keeps them from it in one line."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from runstream.broker.errors import (
    BrokerError,
    InvalidAgent,
    InvalidSettings,
    NoResponders,
    NotLetIn,
    Refused,
    Unavailable,
)
from runstream.broker.outages import WHERE_NATS_IS
from runstream.gateway.commands.exits import Exit, tell
from runstream.gateway.logs import configure_logs
from runstream.gateway.process import CannotStart, WronglyAsked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runstream.gateway.place import Place

__all__ = ["Outage", "ending", "outage", "told"]

OF_JETSTREAM: Final = "$JS.API."


class Outage(NamedTuple):
    """What is in the way of NATS, and what to do about it: sentences, without their last full stop."""

    says: str
    do: str


def outage(error: Unavailable) -> Outage:
    """Say what is in the way of NATS, and what to do about that."""
    match error:
        case NotLetIn():
            return Outage(
                error.detail,
                "Name a user that it knows: RUNSTREAM_NATS_CREDENTIALS, RUNSTREAM_NATS_NKEY, or in the URL",
            )
        case NoResponders() if error.detail.startswith(OF_JETSTREAM):
            return Outage(
                "JetStream is off in this NATS, or for this account",
                "Switch it on: `nats-server -js`, or `jetstream {}` in its configuration and the account's",
            )
        case NoResponders():
            return Outage("What runstream needs is not in this NATS", "Run `runstream provision` first, which makes it")
        case Refused():
            return Outage(
                f"NATS does not let this user do that: {error.detail.rstrip('.')}",
                "Run it as a user of NATS who may, which is that of the role provision: deploy/nats/nats-server.conf "
                "has what each role needs",
            )
        case _ if error.detail.startswith("Cannot reach NATS"):
            return Outage(error.detail.rstrip("."), WHERE_NATS_IS)
    return Outage(str(error).rstrip("."), "Try again; `runstream doctor` looks for what is wrong")


def ending(error: CannotStart | BrokerError) -> tuple[str, Exit]:
    """Return what people are told of what keeps a command from its work, and the exit code that stands for it."""
    match error:
        case InvalidSettings() | InvalidAgent() | WronglyAsked():
            return str(error), Exit.USAGE
        case Unavailable():
            code = Exit.REFUSED if isinstance(error, Refused) else Exit.UNREACHABLE
            return "{}. {}.".format(*outage(error)), code
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
