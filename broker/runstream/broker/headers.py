"""The headers of a NATS message, found in its bytes when they are asked for.

Of a run's messages two headers in six are looked at, and to take all of them apart is a fifth of what it costs to read
a log.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, TypeVar, overload

__all__ = ["DESCRIPTION", "STATUS", "Headers", "headers_of"]

T = TypeVar("T")

STATUS: Final = "Status"
"""What the server says in the place of a message, a number as HTTP has them; no message has it."""
DESCRIPTION: Final = "Description"
"""The same in words."""

_ITS_OWN: Final = frozenset({STATUS, DESCRIPTION})
CRLF: Final = b"\r\n"
STATUS_LINE: Final = b"NATS/1.0 "
"""A message's headers begin without the space behind it, which only a status follows."""
WHITE_SPACE: Final = " \t\r\n\v\f"
"""What is no part of a value: ASCII only, a value may begin with any other."""


class _Needles(dict[str, bytes]):
    """What each name that is asked for looks like where a line begins."""

    def __missing__(self, name: str) -> bytes:
        needle = self[name] = f"\r\n{name}:".encode()
        return needle


_NEEDLES = _Needles()


class Headers(Mapping[str, str]):
    """A message's headers. Of a name that is there more than once the last counts; names are as their writer has them.

    A line that calls itself a status is somebody's who would be taken for the server, and is not found.
    """

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    @overload
    def get(self, name: str, /) -> str | None: ...
    @overload
    def get(self, name: str, default: str, /) -> str: ...
    @overload
    def get(self, name: str, default: T, /) -> str | T: ...
    def get(self, name: str, default: object = None, /) -> object:
        """Return the value of a name, `default` if it is not there."""
        raw, needle = self._raw, _NEEDLES[name]
        at = raw.rfind(needle)
        if at < 0 or name in _ITS_OWN:
            return default
        begin = at + len(needle)
        return raw[begin : raw.find(CRLF, begin)].decode("utf-8", "replace").strip(WHITE_SPACE)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def __bool__(self) -> bool:
        """Whether the message has a head: to count what is in it would be to take it apart."""
        return True

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        lines = self._raw.decode(errors="replace").split("\r\n")[1:]
        names = dict.fromkeys(name for name, colon, _ in (line.partition(":") for line in lines) if colon)
        return (name for name in names if name not in _ITS_OWN)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"Headers({dict(self)!r})"


def headers_of(raw: bytes) -> Mapping[str, str] | None:
    """Read a message's headers, or what the server says in its place; None if there is nothing."""
    if not raw:
        return None
    if not raw.startswith(STATUS_LINE):
        return Headers(raw)
    line, _, rest = raw[len(STATUS_LINE) :].partition(CRLF)
    status, _, description = line.decode(errors="replace").strip().partition(" ")
    return {**Headers(CRLF + rest), STATUS: status, **({DESCRIPTION: description} if description else {})}
