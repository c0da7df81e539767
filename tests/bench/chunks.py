"""The chunk that everybody is given to carry. Imports nothing: writers in foreign environments make it, too."""

import time

CHUNK_BYTES = 250


def chunk(number: int, stamp_ns: int) -> bytes:
    """A chunk of 250 bytes that carries its number and the moment at which it was made, by the machine's one clock."""
    head = b'{"id":"message-00000000-0000-4000-8000-000000000000","message_type":"assistant_message","content":"'
    return (head + f"{number} {stamp_ns} ".encode()).ljust(CHUNK_BYTES - 2, b".") + b'"}'


def fresh(number: int) -> bytes:
    """A chunk that is made now."""
    return chunk(number, time.monotonic_ns())


def due(begun: float, number: int, per_second: float) -> float:
    """How many seconds from now the chunk with that number, counted from 0, is to be written."""
    return max(begun + number / per_second - time.monotonic(), 0.0)
