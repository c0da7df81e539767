"""Every setting and every bound of the HTTP agent, each with its unit, its default and the reason for it."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from runstream.broker.settings import Duration

__all__ = ["UpstreamSettings"]

RESERVED_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-length",
        "content-type",
        "traceparent",
        "tracestate",
        "transfer-encoding",
        "via",
        "x-runstream-agent-id",
        "x-runstream-conversation-id",
        "x-runstream-run-id",
    }
)
"""What the agent says itself, of the request as it is."""

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[!-~](?:[ \t!-~]*[!-~])?|")


def _headers(headers: dict[str, str]) -> dict[str, str]:
    """Refuse what HTTP has no room for: it would fail every run. The values are not shown: they may be secret."""
    for name, value in headers.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a header")
        if name.lower() in RESERVED_HEADERS:
            raise ValueError(f"{name} is set by runstream itself")
        if not _VALUE.fullmatch(value):
            raise ValueError(f"the value of {name} has to be printable ASCII, without spaces around it")
    return headers


class UpstreamSettings(BaseSettings):
    """How the HTTP agent calls its platform. `RUNSTREAM_UPSTREAM_X_Y` sets `x_y`."""

    model_config = SettingsConfigDict(
        env_prefix="RUNSTREAM_UPSTREAM_", frozen=True, extra="ignore", env_ignore_empty=True
    )

    connect_seconds: Annotated[Duration, Field(gt=0)] = 5.0
    """Seconds one attempt to connect may take, name lookup included, and as long again for TLS: two lost SYN packets,
    three seconds."""

    patience_seconds: Annotated[Duration, Field(ge=0)] = 10.0
    """Seconds in which connecting is tried again: a platform's pod is replaced meanwhile. Only what surely was not
    sent is tried again."""

    silence_seconds: Annotated[Duration, Field(gt=0)] = 300.0
    """Seconds of waiting without a complete line from the platform, its headers included, after which it counts as
    dead, once it is connected: a model may think for minutes, and one that thinks longer sends pings."""

    event_bytes: int = Field(default=8 * 2**20, ge=2**16)
    """Bytes of an event that is not complete yet, held in memory: the most that NATS can be configured to take well.
    Looked at after each read, of 64 KiB at most. NATS's `max_payload` may allow less."""

    headers: Annotated[dict[str, str], AfterValidator(_headers)] = Field(default={}, repr=False)
    """Sent with every request; a JSON object in the environment. For what a platform wants to see of its callers."""

    auth: str | None = Field(default=None, repr=False)
    """What the platform is told of who asks: `forward`, the client's own credential, or the path of a file with a
    bearer token. Unset: nothing."""
