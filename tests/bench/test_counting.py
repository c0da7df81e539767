"""What the crowd sees in its bytes: every chunk, once and in order, however they were cut up."""

import pytest

from tests.bench.chunks import CHUNK_BYTES, chunk
from tests.bench.counting import Lost, newest_cursor, only_chunk, read_block, stamps
from tests.bench.peers.servers.floor import FIRST_SEQ, frame


def event(number: int) -> bytes:
    return b'data: %b,"seq_id":%d}\n\n' % (chunk(number, 1000 + number)[:-1], 7000 + number)


def test_a_chunk_has_its_size_whatever_its_number() -> None:
    """Everybody carries the same bytes."""
    assert {len(chunk(number, stamp)) for number in (0, 99_999) for stamp in (1, 10**15)} == {CHUNK_BYTES}


def test_a_block_gives_its_chunks_and_where_they_end() -> None:
    """What follows the last complete event is left for the next block."""
    data = event(5) + event(6) + event(7)[:40]
    block = read_block(data, 5)
    assert block is not None
    assert (block.first, block.last, block.chunks) == (5, 6, 2)
    assert data[block.end :] == event(7)[:40]
    assert stamps(data, block.end) == [1005, 1006]


def test_framing_and_other_events_are_passed_over() -> None:
    """Chunk sizes, pings and a peer's control events are no chunks."""
    data = b'\r\n1a\r\ndata: {"message_type":"ping"}\n\n' + frame(0) + b'event: control\ndata:{"offset":"9"}\n\n'
    block = read_block(data, 0)
    assert block is not None
    assert block.chunks == 1
    assert newest_cursor(data) == FIRST_SEQ


@pytest.mark.parametrize("cut", [1, 6, 100, 140, 260])
def test_an_event_that_is_not_complete_is_no_event(cut: int) -> None:
    """Wherever it is cut off."""
    assert read_block(event(0)[:cut], 0) is None


@pytest.mark.parametrize("numbers", [(1,), (0, 2), (0, 0), (0, 1, 1), (1, 0)])
def test_a_chunk_that_is_missing_or_doubled_or_swapped_is_noticed(numbers: tuple[int, ...]) -> None:
    """A bench that loses chunks measures nothing."""
    with pytest.raises(Lost):
        read_block(b"".join(map(event, numbers)), 0)


def test_the_newest_cursor_is_the_last_one() -> None:
    """And none where there is none."""
    assert newest_cursor(event(1) + event(2)) == 7002
    assert newest_cursor(b"data: [DONE]\n\n") == 0


def test_the_only_chunk_is_read_without_a_search_for_others() -> None:
    """And where there is another, or less than one, it is not taken for the only one."""
    assert only_chunk(event(3)) == (3, 1003)
    assert only_chunk(b"\r\n150\r\n" + event(3) + b"\r\n") == (3, 1003)
    assert [only_chunk(data) for data in (event(3) + event(4), event(3)[:-1], b"data: [DONE]\n\n")] == [None] * 3
