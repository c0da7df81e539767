"""Messages of a stream: as the server keeps them, and what it says of one that a consumer delivers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["STORED_AT", "Delivery", "StoredMessage", "deliveries", "delivery_of", "stream_sequence"]

STORED_AT = "Nats-Time-Stamp"
"""The header of a message given out of a stream: when it was stored, by the clock of the server that stored it."""

LONG_REPLY_TOKENS = 11


class StoredMessage(msgspec.Struct, frozen=True, gc=False):
    """One message of a stream as the server keeps it."""

    subject: str
    seq: int
    body: bytes
    headers: Mapping[str, str]
    pending: int = 0
    """Messages of the same filter that follow it, where the answer says so."""
    stored_at_ns: int = 0
    """When the server stored it, in nanoseconds since 1970 on its clock, where the answer says so."""


def deliveries(reply: str) -> int:
    """Read from a delivery's reply subject how often its message has been delivered."""
    tokens = reply.split(".")
    return int(tokens[_metadata_at(tokens)])


def stream_sequence(reply: str) -> int:
    """Read from a delivery's reply subject which of the stream's messages it is."""
    return delivery_of(reply).stream_seq


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """What a consumer says of a message with it."""

    stream_seq: int
    consumer_seq: int
    stored_at_ns: int
    pending: int


def delivery_of(reply: str) -> Delivery:
    """Read what a delivery's reply subject says of its message."""
    tokens = reply.split(".")
    at = _metadata_at(tokens)
    return Delivery(*map(int, tokens[at + 1 : at + 5]))


def _metadata_at(tokens: list[str]) -> int:
    """Find the delivery count in a reply subject.

    `$JS.ACK.<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<time>.<pending>`; the long form has a
    domain and an account hash after `$JS.ACK`, and a random token at the end.
    """
    return 4 if len(tokens) < LONG_REPLY_TOKENS else 6
