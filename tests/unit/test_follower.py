"""A follower whose cursor is ahead of what its gateway knew of the run: what it is told when that comes to the end."""

from typing import cast

import pytest

from runstream.broker.log import Entry
from runstream.gateway.follower import Follower
from runstream.gateway.framing import framing_of
from runstream.gateway.response import EventResponse
from runstream.gateway.sse import Style
from runstream.gateway.window import Frame
from runstream.schemas import Kind, new_run_id

END = Frame(Entry(seq=10, kind=Kind.END, body=b"", index=2))
BEFORE = Frame(Entry(seq=9, kind=Kind.DATA, body=b'{"message_type":"assistant_message","id":"a"}', index=1))


class Written:
    """A response that keeps what is written to it."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


def told(style: Style, cursor: int) -> tuple[bytes, bool]:
    """What it is told of a chunk and the end, which come together; and whether it then has all."""
    response = Written()
    framing = framing_of(style, include_pings=True, is_chunked=True)
    follower = Follower(cast("EventResponse", response), new_run_id(), cursor, framing)
    follower.write_beyond([BEFORE, END])
    return response.data, follower.is_done


@pytest.mark.parametrize("cursor", [10, 11])
def test_an_event_source_that_has_seen_the_end_is_not_told_twice(cursor: int) -> None:
    """It was at a gateway that knew it sooner. The response ends, and when it comes back it is told by a 204."""
    assert told(Style.EVENT_SOURCE, cursor) == (b"", True)


@pytest.mark.parametrize("cursor", [9, 10, 11])
def test_everybody_else_is_told_the_end(cursor: int) -> None:
    """Whose cursor is that of a chunk, or of another run: letta-client waits for `[DONE]`."""
    data, is_done = told(Style.BACKGROUND, cursor)
    assert (data.count(b"[DONE]"), b"assistant_message" in data, is_done) == (1, False, True)


def test_an_event_source_is_told_what_it_lacks() -> None:
    """The end alone, where that is all."""
    data, is_done = told(Style.EVENT_SOURCE, 9)
    assert (data.count(b"[DONE]"), b"assistant_message" in data, is_done) == (1, False, True)
