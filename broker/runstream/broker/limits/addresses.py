"""Where a request comes from, as it is counted: an address, or in IPv6 the 64 bits that one line has.

A proxy says for whom it asks in `X-Forwarded-For`, each hop behind the one before. Whoever asks may have written the
first of them, so the list is read from its end, for as long as those that wrote it are trusted.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runstream.broker.limits.settings import Network

__all__ = ["is_among", "source_of"]

Address: TypeAlias = IPv4Address | IPv6Address

LINE_BITS: Final = 64
"""Of an IPv6 address, which are given to one line: who has them has all addresses that begin with them."""
MOST_CHARACTERS: Final = 64
UNKNOWN: Final = "unknown"
"""All that have none, as on a socket of this machine's own."""


def source_of(peer: str | None, forwarded: Sequence[str], trusted: Sequence[Network]) -> str:
    """Return what a request is counted under: its peer, or whom the trusted proxies say it is from.

    What is no address ends the list: what its writer knows of is nobody else.
    """
    found = _parsed(peer or "")
    if found is None:
        return UNKNOWN
    if trusted:
        for hop in reversed(",".join(forwarded).split(",")):
            before = _parsed(hop.strip()) if _is_in(found, trusted) else None
            if before is None:
                break
            found = before
    return _counted_as(found)


def is_among(peer: str | None, networks: Sequence[Network]) -> bool:
    """Tell whether an address is in one of some networks."""
    found = _parsed(peer or "")
    return found is not None and _is_in(found, networks)


def _is_in(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _parsed(said: str) -> Address | None:
    """Read an address, with a port behind it or not. One of IPv4 in the form of IPv6 is one of IPv4."""
    return None if len(said) > MOST_CHARACTERS else _read(said)


@lru_cache(maxsize=4096)
def _read(said: str) -> Address | None:
    if said.startswith("["):
        said = said[1:].partition("]")[0]
    elif said.count(":") == 1:
        said = said.partition(":")[0]
    try:
        found = ip_address(said.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return found if mapped is None else mapped


@lru_cache(maxsize=4096)
def _counted_as(address: Address) -> str:
    if isinstance(address, IPv4Address):
        return str(address)
    return str(ip_network((address, LINE_BITS), strict=False))
