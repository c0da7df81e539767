"""The data directory: one runstream at a time, and a note that says where it listens."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from runstream.broker.errors import EmbeddedServerError

__all__ = ["DataDirectory"]

LOCK_NAME = "lock"
ENDPOINTS_NAME = "endpoints.json"


class DataDirectory:
    """Exclusive use of a directory, from `open` to `close`.

    The lock is the kernel's (`flock`), so it ends with the process however that ends; the file stays, and
    only says who held it last. Raises EmbeddedServerError when another process holds it, or when the
    directory cannot be made or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self._lock: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether this object holds the directory."""
        return self._lock is not None

    def open(self) -> None:
        """Make the directory and lock it; nothing when this object holds it already."""
        if self._lock is not None:
            return
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            detail = f"{self.path} is in use by another runstream (pid {holder}): stop it, or use another one."
            raise EmbeddedServerError(detail) from error
        try:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            # A holder that was killed left its note behind.
            (self.path / ENDPOINTS_NAME).unlink(missing_ok=True)
        except OSError as error:
            os.close(lock)
            raise self._unusable(error) from error
        self._lock = lock

    def close(self) -> None:
        """Remove the note and let the directory go; idempotent."""
        if self._lock is None:
            return
        with contextlib.suppress(OSError):  # What cannot be removed now is removed by who holds the directory next.
            (self.path / ENDPOINTS_NAME).unlink(missing_ok=True)
        # The lock file is not removed: whoever opened it meanwhile would hold a lock on a name no one sees.
        os.close(self._lock)
        self._lock = None

    def write_endpoints(self, endpoints: Mapping[str, str | int]) -> Path:
        """Replace `endpoints.json` in one step, so that a reader sees the old note or the new, never half.

        Raises `EmbeddedServerError` when it cannot be written.
        """
        try:
            return self._replace_endpoints(msgspec.json.format(msgspec.json.encode(endpoints), indent=2) + b"\n")
        except OSError as error:
            raise self._unusable(error) from error

    def _replace_endpoints(self, note: bytes) -> Path:
        target = self.path / ENDPOINTS_NAME
        descriptor, draft = tempfile.mkstemp(prefix=".endpoints-", dir=self.path)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(note)
            Path(draft).replace(target)
        finally:
            Path(draft).unlink(missing_ok=True)
        return target

    def _unusable(self, error: OSError) -> EmbeddedServerError:
        return EmbeddedServerError(f"{self.path} cannot be used: {error.strerror}.")

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
