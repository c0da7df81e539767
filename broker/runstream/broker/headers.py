"""The head of a NATS message, in which headers are found when they are asked for.

Of a run's messages two headers in six are looked at, and to take all of them apart is a fifth of what it costs to read
a log.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final, TypeVar, overload

__all__ = ["NO_HEADERS", "Headers"]

T = TypeVar("T")

CRLF: Final = b"\r\n"
VERSION: Final = b"NATS/1.0"
WHITE_SPACE: Final = " \t\r\n\v\f"
"""What is no part of a value: ASCII only, a value may begin with any other."""


@lru_cache(maxsize=256)
def _needle(name: str) -> bytes:
    """Give what a name looks like where its line begins."""
    return f"\r\n{name}:".encode()


class Headers(Mapping[str, str]):
    """A message's headers. Of a name that is there more than once the last counts.

    A name is found as it is written, with no white space before the colon, as nats-server and every client write it.
    The first line may have a status, with which the server says something in the place of a message. Whoever writes a
    message may write one as well: it is the server's only where no other message can come from.
    """

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    @property
    def status(self) -> str | None:
        """The number in the first line, None if there is none."""
        status, _ = self._first_line()
        return status if status.isdecimal() else None

    @property
    def description(self) -> str:
        """The words behind that number."""
        return self._first_line()[1]

    def _first_line(self) -> tuple[str, str]:
        line = self._raw[len(VERSION) :].partition(CRLF)[0].decode("utf-8", "replace").strip()
        status, _, description = line.partition(" ")
        return status, description

    @overload
    def get(self, name: str, /) -> str | None: ...
    @overload
    def get(self, name: str, default: str, /) -> str: ...
    @overload
    def get(self, name: str, default: T, /) -> str | T: ...
    def get(self, name: str, default: object = None, /) -> object:
        """Return the value of a name, `default` if it is not there."""
        raw, needle = self._raw, _needle(name)
        at = raw.rfind(needle)
        if at < 0:
            return default
        begin = at + len(needle)
        end = raw.find(CRLF, begin)
        return raw[begin : end if end >= 0 else None].decode("utf-8", "replace").strip(WHITE_SPACE)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _needle(name) in self._raw

    def __bool__(self) -> bool:
        """Whether the message has a head: to count what is in it would be to take it apart."""
        return bool(self._raw)

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        lines = self._raw.decode("utf-8", "surrogateescape").split("\r\n")[1:]
        names = (name for name, colon, _ in (line.partition(":") for line in lines) if colon)
        return iter(dict.fromkeys(name for name in names if name.isascii()))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"Headers({self._raw!r})"


NO_HEADERS: Final = Headers(b"")
