"""A file that is read again when it changes: what cannot be used leaves in force what was read before."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from runstream.broker.errors import InvalidSettings
from runstream.broker.logs import get_logger
from runstream.broker.tasks import end_task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["WatchedFile"]

T = TypeVar("T")

LOOK_SECONDS = 0.5
"""How often it is looked at. A change counts at the second look that finds it, so within a second."""

log = get_logger(__name__)


class WatchedFile(Generic[T]):
    """What a file says, as `parse` reads it. Use as an async context manager: while it is entered, it is kept up.

    `parse` raises `ValueError`, whose text is shown. Raises `InvalidSettings` when it is made and cannot be read.
    """

    def __init__(self, path: Path, parse: Callable[[bytes], T], *, setting: str) -> None:
        self._path = path
        self._parse = parse
        self._setting = setting
        self._seen = self._mark()
        self._loaded = self._seen
        self.value = self._read()
        self.changes = 0
        """How often another value was read."""
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._watch(), name=f"watch-{self._path.name}")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watching is not None:
            await end_task(self._watching)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                self.look()
            except Exception:
                # A defect: it is looked at all the same, as nobody else would notice that a key has left it.
                log.exception("auth_file_crashed", setting=self._setting)

    def look(self) -> None:
        """Take over a change, once it has stood for two looks: who writes a file in place has it empty for a moment."""
        mark = self._mark()
        if mark == self._seen and mark != self._loaded:
            self._loaded = mark
            try:
                self.value = self._read()
            except InvalidSettings as error:
                log.error("auth_file_unusable", setting=self._setting, error=str(error))  # noqa: TRY400  # No defect.
            else:
                self.changes += 1
                log.info("auth_file_read", setting=self._setting, path=str(self._path))
        self._seen = mark

    def _mark(self) -> tuple[int, int, int] | None:
        """Return what changes whenever the file does; None if it is not there."""
        try:
            found = self._path.stat()  # Of what a link leads to: a mounted secret is replaced by another link.
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _read(self) -> T:
        try:
            return self._parse(self._path.read_bytes())
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InvalidSettings(f"{self._setting}: the file {str(self._path)!r} cannot be used: {reason}") from None
