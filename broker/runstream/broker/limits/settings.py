"""Every limit on what one client may have, with its unit, its default and the reason for it."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, TypeAlias

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from runstream.broker.settings import Duration

__all__ = ["LimitSettings", "Network"]

Network: TypeAlias = IPv4Network | IPv6Network


def _networks(value: object) -> object:
    """Split networks at commas; an address is a network of one."""
    if not isinstance(value, str):
        return value
    try:
        return tuple(ip_network(part.strip()) for part in value.split(","))
    except ValueError:
        message = "write addresses and networks as 10.0.0.0/8,fd00::/8, without bits beyond the prefix"
        raise ValueError(message) from None


Networks = Annotated[tuple[Network, ...] | None, NoDecode, BeforeValidator(_networks)]
"""Addresses and networks, written with commas between them."""

PerMinute = Annotated[int, Field(ge=0)]


class LimitSettings(BaseSettings):
    """How much one client may have of one process. `RUNSTREAM_X_Y` sets `x_y`; 0: as much as it likes.

    What is counted in a minute may come all at once.
    """

    model_config = SettingsConfigDict(env_prefix="RUNSTREAM_", frozen=True, extra="ignore", env_ignore_empty=True)

    tenant_streams: int = Field(default=0, ge=0)
    """Streams and whole answers that a tenant may have open at one gateway, and uploads at one broker."""

    key_streams: int = Field(default=0, ge=0)
    """The same of one key, or of one subject's tokens."""

    tenant_runs_per_minute: PerMinute = 0
    """Runs that a tenant may start at one gateway, and open at one broker."""

    key_runs_per_minute: PerMinute = 0
    """The same of one key, or of one subject's tokens."""

    tenant_ingest_bytes_per_minute: PerMinute = 0
    """Bytes of chunks that a tenant may send to one broker, unpacked. One body may pass what is left of them, and is
    waited for afterwards: none is too large to be ever taken."""

    key_ingest_bytes_per_minute: PerMinute = 0
    """The same of one key, or of one subject's tokens."""

    address_requests_per_minute: PerMinute = 0
    """Requests of one address, whoever sends them. None by default: behind one address there may be a whole company,
    or a proxy that is not named in `trusted_proxies`, and everybody behind it."""

    address_failures_per_minute: PerMinute = 600
    """Credentials of one address that are not good, before whatever it sends is refused unseen: ten a second. Nobody
    guesses a key; each guess costs some ten microseconds, and a line in somebody's log."""

    address_connections: int = Field(default=0, ge=0)
    """Connections of one address, but for trusted proxies. None by default, for the same reason."""

    trusted_proxies: Networks = None
    """Whose `X-Forwarded-For` is believed: addresses and networks, separated by commas. Unset: nobody's."""

    max_connections: int = Field(default=20_000, ge=1)
    """Connections of one port: twice as many as a gateway has streams, each a file descriptor, and no more than the
    process may have of those (`ulimit -Hn`), less 64. Beyond, they are closed at once, so that a balancer tries another
    process."""

    head_seconds: Annotated[Duration, Field(gt=0)] = 10.0
    """Seconds from when a connection is made, or the first byte of a further request came, until all of its head has
    come: a few packets, the worst of which is sent again for some seconds."""

    idle_seconds: Annotated[Duration, Field(gt=0)] = 75.0
    """Seconds that a connection may be kept for a further request: longer than the minute for which most load balancers
    keep theirs, since one that is closed under a request is an error there. Some keep them for ten minutes."""

    answer_seconds: Annotated[Duration, Field(gt=0)] = 30.0
    """Seconds a client may take to read an answer that is no stream, and one more for each 64 KiB of it."""
