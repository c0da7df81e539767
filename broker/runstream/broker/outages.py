"""Why NATS cannot be reached: what nats-py raises, in words that say what to do."""

from __future__ import annotations

import asyncio
import re
import ssl
from typing import Final

import nats.errors

__all__ = ["NOT_LET_IN", "TRANSLATED", "WHERE_NATS_IS", "reason_of"]

TRANSLATED: Final = (nats.errors.Error, asyncio.TimeoutError, OSError, EOFError)
"""What nats-py raises when the server is away, closing or refusing; other exceptions are defects and pass."""

NOT_LET_IN: Final = (
    "it does not let this user in: check RUNSTREAM_NATS_CREDENTIALS, RUNSTREAM_NATS_NKEY, or the password in the URL"
)
WHERE_NATS_IS: Final = (
    "--nats-url or RUNSTREAM_NATS_URL says where NATS is; runstream up brings one along, whose address is in "
    "endpoints.json, in its data directory (.runstream)"
)
OF_THE_SYSTEM: Final = re.compile(r"\[Errno -?\d+\] ")
"""What Python puts before the words of the system, which say it without, once or several times."""


def reason_of(error: BaseException) -> str:
    """Return what keeps NATS from being reached, or from answering, without a full stop."""
    text = OF_THE_SYSTEM.sub("", str(error)) or type(error).__name__
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate cannot be trusted, {error.verify_message}: check RUNSTREAM_NATS_CA"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, TimeoutError | nats.errors.TimeoutError):
        return "it does not answer"
    return NOT_LET_IN if "authorization violation" in text.lower() else text
