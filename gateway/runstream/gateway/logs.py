"""How runstream logs: constant event names and bound facts, on stderr, as JSON or for a person."""

from __future__ import annotations

import logging
import sys

import structlog

from runstream.broker.errors import InvalidSettings

__all__ = ["configure_logs"]

LEVELS = ("debug", "info", "warning", "error", "critical")


def configure_logs(*, level: str, as_json: bool | None) -> None:
    """Send logs to stderr; `as_json` None: for a person if stderr is a terminal, else JSON.

    Raises `InvalidSettings` for a level there is not.
    """
    if as_json is None:
        as_json = not sys.stderr.isatty()
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise InvalidSettings(f"log_level: choose one of {', '.join(LEVELS)}, not {level!r}")
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if as_json:
        shared += [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    else:
        shared.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # What libraries say through the standard library: aiohttp's and nats-py's warnings and errors.
    logging.basicConfig(
        stream=sys.stderr, level=max(number, logging.WARNING), format="%(levelname)s %(name)s %(message)s"
    )
