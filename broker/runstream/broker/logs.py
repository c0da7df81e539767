"""Where the durable side logs to: structlog where a process has configured it, the standard library's logging else.

A service configures structlog, and so may a platform that has the library in its process: then events go where that
says. Where nobody has, structlog would print them on stdout, which is a program's own; a library's place is a logger of
the standard library's, named after its module, with the facts in the text.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, Final, cast

import structlog

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from contextvars import Token

    from structlog.stdlib import BoundLogger
    from structlog.typing import EventDict

__all__ = ["get_logger", "logged_with", "without_names"]

MADE_UP: Final = re.compile(r"[0-9a-fA-F]{16,}")


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


def without_names(text: str) -> str:
    """Return a text without the names in it that were made up for one attempt: the next one may say the same."""
    return MADE_UP.sub("*", text)


def logged_with(**facts: object) -> AbstractContextManager[object]:
    """Have all that is logged within the block, and in tasks that it begins, say these facts, too."""
    return _Bound(facts)


class _Bound:
    """structlog's `bound_contextvars`, without the generator, of which each request that is open has one."""

    __slots__ = ("_facts", "_tokens")

    def __init__(self, facts: Mapping[str, object]) -> None:
        self._facts = facts
        self._tokens: Mapping[str, Token[Any]] = {}

    def __enter__(self) -> None:
        self._tokens = structlog.contextvars.bind_contextvars(**self._facts)

    def __exit__(self, *_: object) -> None:
        structlog.contextvars.reset_contextvars(**self._tokens)


def _as_text(_: object, __: str, event: EventDict) -> tuple[tuple[str], dict[str, Any]]:
    exc_info = event.pop("exc_info", None)
    facts = [f"{fact}={value}" for fact, value in event.items() if fact != "event"]
    return (" ".join([str(event["event"]), *facts]),), {"exc_info": exc_info}
