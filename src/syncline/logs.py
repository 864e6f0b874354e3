"""The logger of the engine: the process's own structlog where it was set up, else the caller's ``logging``.

structlog prints to stdout when nobody has set it up, and a library has no business there.
"""

from __future__ import annotations

import logging
from typing import Any

import structlog

__all__ = ["logger"]


class _Logger:
    def __init__(self) -> None:
        self._plain = structlog.wrap_logger(
            logging.getLogger("syncline"),
            processors=[structlog.processors.KeyValueRenderer(key_order=["event"])],
            wrapper_class=structlog.stdlib.BoundLogger,
        )

    def __getattr__(self, name: str) -> Any:
        # Asked at every call: the command line sets structlog up after this module was loaded.
        return getattr(structlog.get_logger() if structlog.is_configured() else self._plain, name)


def logger() -> Any:
    """A logger with structlog's methods; where that was not set up, its events go to the logger ``syncline`` of
    ``logging``."""
    return _Logger()
