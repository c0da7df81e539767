"""What aiohttp keeps of requests that were read, kept small: a gateway has ten thousand connections, which mostly wait.

A deque takes 760 bytes when there is nothing in it: each connection has one for what waits behind its request, and each
body one for what was not read yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from aiohttp import EMPTY_PAYLOAD

if TYPE_CHECKING:
    from collections import deque

    from aiohttp import StreamReader

__all__ = ["Pipeline", "let_go_of"]


class Pipeline(list[Any]):
    """The requests that wait on a connection: a few at most."""

    __slots__ = ()

    def popleft(self) -> Any:
        """Take the one that came first."""
        return self.pop(0)


def let_go_of(content: StreamReader) -> None:
    """Keep of a body that was read to its end no more than that it was."""
    if content is not EMPTY_PAYLOAD and content.at_eof():
        content._buffer = cast("deque[bytes]", ())  # noqa: SLF001  # it is looked into, and nothing is put there any more
