"""What a platform streams, seen without I/O: its bytes as whole events, and an event's data as a chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from runstream.broker.errors import AgentFailed
from runstream.broker.raw_chunks import is_text, raw_chunk, text_of
from runstream.schemas import InvalidChunk

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DONE", "WholeEvents", "chunk_in", "error_in", "run_in"]

DONE: Final = "[DONE]"
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
SHOWN_CHARACTERS: Final = 200
"""How much of what is no chunk is shown: enough to know it again."""


class WholeEvents:
    """Cuts bytes, in whatever pieces they come, into whole events, ready for httpx_sse's decoder.

    The decoder itself would hold a half event however long it gets, would not see the end of an event whose lines
    end in CR before the next one begins, and would take a byte order mark for the first field's name. So it gets
    whole events, lines that end in LF, and no mark.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._after_cr = False
        self._at_start = True

    @property
    def held_bytes(self) -> int:
        """How long the event is that is not complete yet."""
        return len(self._held)

    @property
    def half(self) -> str:
        """The lines of the event that is not complete yet, comments aside."""
        lines = self._held.decode(errors="replace").split("\n")
        return "\n".join(line for line in lines if line and not line.startswith(":"))

    def feed(self, piece: bytes) -> bytes:
        """Take the next bytes; returns the events that they complete, nothing if there is none."""
        is_one_line_end = self._after_cr and piece.startswith(b"\n")
        self._after_cr = piece.endswith(b"\r")
        if is_one_line_end:
            piece = piece[1:]
        if b"\r" in piece:
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        searched = max(0, len(self._held) - 1)
        self._held += piece
        if self._at_start:
            self._drop_mark()
        end = self._held.rfind(b"\n\n", searched) + 2
        if end < 2:  # noqa: PLR2004  # rfind's -1
            return b""
        whole = bytes(self._held[:end])
        del self._held[:end]
        return whole

    def _drop_mark(self) -> None:
        if len(self._held) < len(BYTE_ORDER_MARK) and BYTE_ORDER_MARK.startswith(self._held):
            return  # It may still become one.
        self._at_start = False
        if self._held.startswith(BYTE_ORDER_MARK):
            del self._held[: len(BYTE_ORDER_MARK)]


def chunk_in(data: str) -> dict[str, object]:
    """Read an event's data as a chunk whose values are still as the platform wrote them, but for `message_type`.

    Raises `AgentFailed` for what is not a JSON object with a key besides `seq_id`, and for a stop reason that is none.
    """
    try:
        chunk = raw_chunk(data)
    except InvalidChunk as error:
        raise _invalid(f"An event is {error}", data) from error
    if chunk.get("message_type") == "stop_reason" and not is_text(chunk.get("stop_reason")):
        raise _invalid("A stop_reason gives no reason", data)
    return chunk


def run_in(chunk: Mapping[str, object]) -> str | None:
    """Return the platform's own run id, which a chunk of `chunk_in` may carry."""
    return text_of(run_id) if is_text(run_id := chunk.get("run_id")) else None


def error_in(data: str) -> dict[str, object]:
    """Read the data of an `event: error` as an error_message. Raises `AgentFailed` with whatever else it says."""
    try:
        chunk = chunk_in(data)
    except AgentFailed:
        chunk = {}
    if chunk.get("message_type") != "error_message":
        raise AgentFailed("internal_error", detail=data)
    return chunk


def _invalid(what: str, data: str) -> AgentFailed:
    shown = data if len(data) <= SHOWN_CHARACTERS else f"{data[:SHOWN_CHARACTERS]}…"
    return AgentFailed("upstream_invalid", detail=f"{what}: {shown}")
