"""How runstream logs: constant event names and bound facts, on stderr, as JSON or for a person."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from typing import TYPE_CHECKING, TextIO, cast

import structlog
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError

from runstream.broker.errors import InvalidSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["configure_logs"]

LEVELS = ("debug", "info", "warning", "error", "critical")


class _Lossy(io.TextIOBase):
    """stderr, for as long as it can be written to: what nobody reads any more must not fail what it tells of."""

    def write(self, text: str) -> int:
        """Write what can be written."""
        with contextlib.suppress(OSError):
            return sys.stderr.write(text)
        return 0

    def flush(self) -> None:
        """Flush what was written."""
        with contextlib.suppress(OSError):
            sys.stderr.flush()


def configure_logs(*, level: str, as_json: bool | None, always: Mapping[str, object] | None = None) -> None:
    """Send logs to stderr; `as_json` None: for a person if stderr is a terminal, else JSON. All say the facts `always`.

    Raises `InvalidSettings` for a level there is not.
    """
    if as_json is None:
        as_json = not sys.stderr.isatty()
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise InvalidSettings(f"log_level: choose one of {', '.join(LEVELS)}, not {level!r}")
    facts = always or {}
    shared: list[structlog.typing.Processor] = [
        lambda _, __, event: {**facts, **event},
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Neither with the frames' local variables: what people and agents say to each other stands in them, and secrets.
    render: list[structlog.typing.Processor] = [
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
    ]
    if as_json:
        frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        render = [structlog.processors.ExceptionRenderer(frames), structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        # A line in one piece: several workers write to one stderr.
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _Lossy())),
        cache_logger_on_first_use=True,
    )
    _configure_libraries(max(number, logging.WARNING), shared, render)


def _configure_libraries(
    level: int, shared: list[structlog.typing.Processor], render: list[structlog.typing.Processor]
) -> None:
    """Render what libraries say through the standard library, aiohttp's and nats-py's warnings, like the rest."""
    remove = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[remove, *render]))
    handler.addFilter(_is_not_a_strangers_request)
    logging.basicConfig(handlers=[handler], level=level)


def _is_not_a_strangers_request(record: logging.LogRecord) -> bool:
    """Pass over a request that is no HTTP: answered 400, and nothing that a stranger may fill the log with."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError | RequestPayloadError)
