"""The window of a live run's newest entries, against the plainest model of it."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from runstream.broker.log import Entry
from runstream.gateway.sse import Style
from runstream.gateway.window import Frame, Window
from runstream.schemas import Kind


class WindowAgainstModel(RuleBasedStateMachine):
    """Entries are appended in any batches; every cursor is asked for after each."""

    @initialize(
        base=st.integers(0, 5), max_chunks=st.integers(1, 12), max_bytes=st.integers(1, 200), index=st.integers(0, 3)
    )
    def begin(self, base: int, max_chunks: int, max_bytes: int, index: int) -> None:
        self.window = Window(max_chunks, max_bytes)
        self.window.base = base
        self.max_chunks, self.max_bytes = max_chunks, max_bytes
        self.begin_at = base
        self.log: list[Entry] = []
        """All that was ever appended: the window is some end of it."""
        self.next_index = index

    @rule(batch=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 60)), min_size=1, max_size=20))
    def append(self, batch: list[tuple[int, int]]) -> None:
        """Append entries with gaps between their sequences, of any size."""
        last = self.log[-1].seq if self.log else self.begin_at
        entries = []
        for gap, size in batch:
            last += gap
            entries.append(Entry(last, Kind.DATA, b"x" * size, self.next_index))
            self.next_index += 1
        self.log += entries
        frames = self.window.append(entries)
        assert [frame.entry for frame in frames] == entries

    @invariant()
    def a_cursor_gets_exactly_what_follows_it(self) -> None:
        """Every cursor that the window reaches back to gets what follows it, or as much of it as it asks for."""
        newest = self.log[-1].seq if self.log else self.begin_at
        for cursor in range(self.window.base, newest + 3):
            following = [entry for entry in self.log if entry.seq > cursor]
            for limit in (1, 2, len(following) + 1):
                assert [frame.entry for frame in self.window.after(cursor, limit)] == following[:limit]

    @invariant()
    def it_is_bounded(self) -> None:
        """There are never more entries or bytes than allowed, the newest entry aside."""
        held = self._held()
        size = sum(frame.size for frame in held)
        assert len(held) <= self.max_chunks
        assert size <= self.max_bytes or len(held) == 1
        assert len(self.window) == len(held)

    @invariant()
    def the_newest_is_there(self) -> None:
        """Whatever the bounds, the newest entry is in it, and what fits is not thrown away."""
        held = self._held()
        assert [frame.entry for frame in held] == self.log[len(self.log) - len(held) :]
        if self.log:
            assert held[-1].entry == self.log[-1]
        if len(self.log) <= self.max_chunks and sum(len(entry.body) for entry in self.log) <= self.max_bytes:
            assert len(held) == len(self.log)

    @invariant()
    def it_reaches_what_it_holds(self) -> None:
        """It answers for a cursor at one of its entries, or anywhere once it holds the run's first; for no other."""
        held = self._held()
        newest = self.log[-1].seq if self.log else self.begin_at
        for cursor in range(newest + 2):
            expected = bool(held) and (held[0].entry.seq <= cursor or held[0].entry.index == 0)
            assert self.window.reaches(cursor) == expected

    def _held(self) -> list[Frame]:
        return self.window.after(self.window.base, len(self.log) + 1)


TestWindow = WindowAgainstModel.TestCase
TestWindow.settings = settings(max_examples=60, stateful_step_count=12)


def test_frames_are_made_once() -> None:
    """The event of an entry is made when the first reader needs it, and shared by all of its style."""
    frame = Frame(Entry(7, Kind.END, b"", 3))
    assert frame.chunk(Style.BACKGROUND) == b"e\r\ndata: [DONE]\n\n\r\n"
    made = {style: frame.chunk(style) for style in (Style.BACKGROUND, Style.EVENT_SOURCE)}
    assert made[Style.EVENT_SOURCE] != made[Style.BACKGROUND]
    for style in (*made, *made):
        assert frame.chunk(style) is made[style]
