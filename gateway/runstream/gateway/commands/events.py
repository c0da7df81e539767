"""Server-Sent Events, cut out of the bytes of an answer, without I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["DONE", "Event", "Events"]

DONE: Final = "[DONE]"
LONGEST_BYTES: Final = 64 * 2**20
"""Bytes of an event that has not ended, beyond which this is no stream of events: no message is as large."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its name (`message` if it has none), its data, and its id if it has one."""

    name: str
    data: str
    id: str | None = None

    @property
    def sequence(self) -> int | None:
        """Its place in the log; None for a ping, which may come any number of times."""
        return int(self.id) if self.id is not None and self.id.isdecimal() else None


class Events:
    """Cuts bytes, in whatever pieces they come, into events. `retry_seconds` is what the server last asked for."""

    def __init__(self) -> None:
        self.retry_seconds: float | None = None
        self._held = b""
        self._after_cr = False

    def feed(self, piece: bytes) -> list[Event]:
        """Take the next bytes; returns the events that they complete. Raises `ValueError` for what never ends."""
        if self._after_cr and piece.startswith(b"\n"):
            piece = piece[1:]
        self._after_cr = piece.endswith(b"\r")
        *whole, self._held = (self._held + piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")).split(b"\n\n")
        if len(self._held) > LONGEST_BYTES:
            raise ValueError("An event has no end.")
        return [event for block in whole if (event := self._event(block)) is not None]

    def rest(self) -> None:
        """Take note of what stands after the last event, which is none: the time after which to come back."""
        self._event(self._held)
        self._held = b""

    def _event(self, block: bytes) -> Event | None:
        name, last_id, data = "message", None, []
        for line in block.decode(errors="replace").split("\n"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            match field:
                case "data":
                    data.append(value)
                case "event":
                    name = value
                case "id":
                    last_id = value
                case "retry" if value.isdecimal():
                    self.retry_seconds = int(value) / 1000
        return Event(name, "\n".join(data), last_id) if data else None
