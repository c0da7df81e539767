"""A block of a log, framed, against the plainest model of it: what follows a cursor, made anew."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runstream.broker.errors import CursorExpired
from runstream.broker.log import Entry
from runstream.broker.reader import Batch
from runstream.gateway.framing import FRAMINGS, Framing, Piece
from runstream.gateway.replay_cache import Block
from runstream.schemas import Kind

BODY = b'{"message_type":"assistant_message","content":"%b"}'


@st.composite
def entries(draw: st.DrawFn) -> list[Entry]:
    """Some of a log, of any kinds, with gaps between their sequences."""
    seq, index = draw(st.integers(1, 100)), draw(st.integers(0, 5))
    found = []
    for kind in draw(st.lists(st.sampled_from(Kind), min_size=1, max_size=12)):
        body = b"" if kind in {Kind.END, Kind.ATTEMPT} else BODY % (b"x" * draw(st.integers(0, 30)))
        found.append(Entry(seq, kind, body, index))
        seq += draw(st.integers(1, 4))
        index += 1
    return found


def made_anew(log: list[Entry], cursor: int, framing: Framing) -> Piece:
    """What follows a cursor, entry by entry."""
    rest = [entry for entry in log if entry.seq > cursor]
    return Piece.of(b"".join(framing.frame(entry) for entry in rest), rest, framing)._replace(following=7)


@given(entries(), st.sampled_from(list(FRAMINGS.values())), st.integers(0, 5))
def test_any_cursor_gets_what_follows_it(log: list[Entry], framing: Framing, before: int) -> None:
    """From where the block begins to its last entry: bytes, the newest number seen, how many, and where they lead."""
    after = max(log[0].seq - before - 1, 0)
    block = Block(after, Batch(list(log), 7), framing)
    assert (block.after, block.last_seq) == (after, log[-1].seq)
    for cursor in range(max(after - 1, 0), log[-1].seq + 2):
        assert block.reaches(cursor) == (after <= cursor < log[-1].seq)
        if block.reaches(cursor):
            before = min(entry.index for entry in log if entry.seq > cursor) - 1
            assert block.piece(cursor, None) == block.piece(cursor, before) == made_anew(log, cursor, framing)
            with pytest.raises(CursorExpired):
                block.piece(cursor, before - 1)
    assert block.size >= len(made_anew(log, after, framing).data)
