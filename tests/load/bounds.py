"""What docs/bounds.md says that a process may hold, in bytes, as functions of its settings."""

from runstream.broker.jetstream import DIRECT_GET_BYTES
from runstream.broker.settings import BrokerSettings
from runstream.gateway.settings import GatewaySettings

ALLOCATOR = 1.25
"""A buffer that grows is given an eighth more than it needs, and freed pieces lie between those that are used."""
FRAME_BYTES = 2**10
"""What a chunk in memory costs beside its bytes."""
STYLES = 2
"""Framings that one run's readers may ask for: Letta's, and an EventSource's."""


def follower_bytes(gateway: GatewaySettings, broker: BrokerSettings, max_payload: int) -> int:
    """What waits for one reader that takes nothing: a buffer up to its mark, and what was written onto that at once."""
    return gateway.follower_buffer_bytes + _written_at_once(broker, max_payload)


def slow_follower_bytes(gateway: GatewaySettings, broker: BrokerSettings, max_payload: int) -> int:
    """The same of one that takes a little: what was written before is held as well, until all of it is sent."""
    return gateway.follower_buffer_bytes + 2 * _written_at_once(broker, max_payload)


def _written_at_once(broker: BrokerSettings, max_payload: int) -> int:
    return max(broker.catchup_bytes, DIRECT_GET_BYTES + max_payload)


def tail_bytes(gateway: GatewaySettings, max_payload: int) -> int:
    """What is held of one run that somebody follows: its newest chunks as stored, and in each framing."""
    return (1 + STYLES) * max(gateway.tail_bytes, max_payload) + gateway.tail_chunks * FRAME_BYTES


def upload_bytes(broker: BrokerSettings, max_payload: int) -> int:
    """What is held of one upload: what waits to be stored, a line that is not complete, and what was read of it."""
    return broker.writer_queue_bytes + 2 * max_payload
