"""What a stream of bytes says of the chunks in it: how many, which, and when each was made. Pure: no socket, no clock.

Whoever framed the chunks, runstream or a peer, each one's JSON has `"content":"<number> <stamp> …"`, and each event
ends with an empty line; that is all that is looked for. A gap is seen in every block, and costs next to nothing: of
the chunks that came in one block only the first and the last are read, and the rest are counted.
"""

import re
from typing import NamedTuple

MARK = b'"content":"'
EVENT_END = b"\n\n"
WHOLE = (b"\n\n\r\n", b"\n\n")
"""How bytes end that end with an event, in chunked encoding or without."""
PLACE_BYTES = 64
"""More than a number and a stamp take; the chunk's own text goes on behind them."""
_PLACE = re.compile(rb'"content":"(\d+) (\d+) ')
_CURSOR = re.compile(rb'"seq_id":(\d+)}')


class Lost(Exception):
    """Chunks are missing, or come twice, or out of order."""


class Block(NamedTuple):
    """What one block of bytes completed: the chunks `first` to `last`, and what is left over for the next block."""

    first: int
    last: int
    end: int
    """Where the last complete event ends."""

    @property
    def chunks(self) -> int:
        return self.last - self.first + 1


def read_block(data: bytes, expected: int) -> Block | None:
    """Find the chunks in the complete events of `data`; None when there are none. Raises `Lost`."""
    end = data.rfind(EVENT_END) + len(EVENT_END)
    if end < len(EVENT_END):
        return None
    count = data.count(MARK, 0, end)
    if not count:
        return Block(expected, expected - 1, end)
    first = number_at(data, data.find(MARK, 0, end))
    last = first if count == 1 else number_at(data, data.rfind(MARK, 0, end))
    if first != expected or last != expected + count - 1:
        raise Lost(f"{count} chunks, {first} to {last}, where {expected} was expected")
    return Block(first, last, end)


def only_chunk(data: bytes) -> tuple[int, int] | None:
    """The number and the stamp of the chunk that is all there is in `data`, None when there is less, or more.

    This is what a reader of a live run gets all the time, and has to cost it next to nothing.
    """
    at = data.find(MARK)
    begin = at + len(MARK)
    if at < 0 or not data.endswith(WHOLE) or data.find(MARK, begin) >= 0:
        return None
    number, stamp, _ = data[begin : begin + PLACE_BYTES].split(b" ", 2)
    return int(number), int(stamp)


def number_at(data: bytes, at: int) -> int:
    """The number of the chunk whose content begins at `at`."""
    begin = at + len(MARK)
    return int(data[begin : data.index(b" ", begin)])


def stamps(data: bytes, end: int) -> list[int]:
    """The moments at which the chunks in `data[:end]` were made, in their order."""
    return [int(stamp) for _, stamp in _PLACE.findall(data, 0, end)]


def newest_cursor(data: bytes) -> int:
    """The last `seq_id` in `data`, 0 without one."""
    found = _CURSOR.findall(data)
    return int(found[-1]) if found else 0
