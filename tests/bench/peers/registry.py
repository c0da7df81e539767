"""All who are measured beside runstream, the floor first: ratios are to it."""

from tests.bench.peers import durable_streams, floor, letta, resumable_stream
from tests.bench.peers.contender import Entry

FLOOR: Entry = floor.ENTRY
PEERS: tuple[Entry, ...] = (
    letta.ENTRY,
    resumable_stream.ENTRY,
    durable_streams.NODE_ENTRY,
    durable_streams.PYTHON_ENTRY,
)
