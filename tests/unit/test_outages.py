"""Why NATS cannot be reached, in words that people read."""

import errno
import socket

import nats.errors
import pytest

from runstream.broker.outages import NOT_LET_IN, reason_of


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 4222)"), "connection refused"),
        (TimeoutError(), "it does not answer"),
        (nats.errors.TimeoutError(), "it does not answer"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (
            OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 1), [Errno 113] No route to host"),
            "Multiple exceptions: Connect call failed ('::1', 1), No route to host",
        ),
        (nats.errors.Error("nats: 'Authorization Violation'"), NOT_LET_IN),
        (EOFError(), "EOFError"),
    ],
)
def test_why_nats_cannot_be_reached_is_said_in_words(error: Exception, said: str) -> None:
    """Not with the numbers that the system has for it, nor as Python calls what has words."""
    assert reason_of(error) == said
