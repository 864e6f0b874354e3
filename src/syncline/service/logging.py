"""Logs on stderr: structlog, ISO times in UTC, ``key=value`` or JSON, never a secret (Guarantee 11)."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any

import structlog
from pydantic import SecretStr

from syncline.config import LoggingConfig

__all__ = ["configure_logging", "speaks_json", "without_secrets"]

Event = MutableMapping[str, Any]

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_SECRET_KEY = re.compile(r"dsn|passw|secret|token|api_?key|credential", re.IGNORECASE)
# The login of a URL, up to the last @ for what is not encoded may hold one, and the password of a libpq keyword string.
_SECRET_TEXT = (
    (re.compile(r"(\w://)(?!user:password@host:port)\S*@"), r"\1***@"),  # but for how our own messages explain one
    (re.compile(r"(passw(?:or)?d\s*=\s*)('(?:[^'\\]|\\.)*'|\S+)", re.IGNORECASE), r"\1***"),
)


def configure_logging(config: LoggingConfig, *, debug: bool = False) -> None:
    """Send what this process logs to stderr. Tracebacks are shown when ``debug`` is on."""
    level = logging.DEBUG if debug else _LEVELS[config.level]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info if debug else _name_of_exception,
        _hide_secrets,
    ]
    final = _renderer(config.json_lines)
    structlog.configure(
        processors=[*shared, final],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Stderr(),
        cache_logger_on_first_use=False,
    )
    _route_libraries(shared, final, level)


def _renderer(json_lines: bool) -> structlog.typing.Processor:
    if json_lines:
        return structlog.processors.JSONRenderer(default=str)
    return structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"], drop_missing=True)


def _route_libraries(shared: list[structlog.typing.Processor], final: Any, level: int) -> None:
    """Whatever libraries log by the standard library, from warning on, in the same form and place."""
    handler = _StderrHandler()
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=final, foreign_pre_chain=shared))
    root = logging.getLogger()
    root.handlers = [h for h in root.handlers if not isinstance(h, _StderrHandler)] + [handler]
    root.setLevel(max(level, logging.WARNING))


def speaks_json() -> bool:
    """Whether what is said on stderr shall be JSON, line by line."""
    processors = structlog.get_config()["processors"]
    return structlog.is_configured() and isinstance(processors[-1], structlog.processors.JSONRenderer)


class _Stderr:
    """Prints to whatever stderr is at that moment: a live view replaces it while it is drawn."""

    def msg(self, message: str) -> None:
        _say(message)

    log = debug = info = warning = error = critical = exception = msg


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _say(self.format(record))


def _say(line: str) -> None:
    """A line on stderr; lost if that can't be written, for the thread that logs has other things to do."""
    with suppress(OSError):
        sys.stderr.write(f"{line}\n")  # in one piece: print() writes the end of the line by itself, and threads mix
        sys.stderr.flush()


def _name_of_exception(_: Any, __: str, event: Event) -> Event:
    """The class of an exception, without its message: a driver's may hold row values."""
    error = event.pop("exc_info", None)
    if error:
        kind = error[0] if isinstance(error, tuple) else type(error) if isinstance(error, BaseException) else None
        kind = kind or sys.exc_info()[0]
        event["exception"] = kind.__name__ if kind else "unknown"
    return event


def _hide_secrets(_: Any, __: str, event: Event) -> Event:
    for key, value in event.items():
        event[key] = "***" if _SECRET_KEY.search(key) or isinstance(value, SecretStr) else _cleaned(value)
    return event


def _cleaned(value: Any) -> Any:
    return without_secrets(value) if isinstance(value, str) else value


def without_secrets(text: str) -> str:
    """``text`` with the logins of URLs and the passwords of connection strings replaced by ``***``."""
    for pattern, replacement in _SECRET_TEXT:
        text = pattern.sub(replacement, text)
    return text
