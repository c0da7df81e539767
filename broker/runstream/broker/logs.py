"""Where the durable side logs to: structlog where a process has configured it, the standard library's logging else.

A service configures structlog, and so may a platform that has the library in its process: then events go where that
says. Where nobody has, structlog would print them on stdout, which is a program's own; a library's place is a logger of
the standard library's, named after its module, with the facts in the text.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

import structlog

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from structlog.stdlib import BoundLogger
    from structlog.typing import EventDict

__all__ = ["get_logger", "logged_with"]


class _Logger:
    """Either logger, as it is found when something is logged: a host may configure structlog after it has imported."""

    def __init__(self, name: str) -> None:
        self._structured = structlog.get_logger(name)
        self._standard = structlog.wrap_logger(
            logging.getLogger(name),
            processors=[structlog.stdlib.filter_by_level, structlog.contextvars.merge_contextvars, _as_text],
            wrapper_class=structlog.stdlib.BoundLogger,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._structured if structlog.is_configured() else self._standard, name)


def get_logger(name: str) -> BoundLogger:
    """Return a module's logger."""
    return cast("BoundLogger", _Logger(name))


def logged_with(**facts: object) -> AbstractContextManager[object]:
    """Have all that is logged within the block, and in tasks that it begins, say these facts, too."""
    return structlog.contextvars.bound_contextvars(**facts)


def _as_text(_: object, __: str, event: EventDict) -> tuple[tuple[str], dict[str, Any]]:
    exc_info = event.pop("exc_info", None)
    facts = [f"{fact}={value}" for fact, value in event.items() if fact != "event"]
    return (" ".join([str(event["event"]), *facts]),), {"exc_info": exc_info}
