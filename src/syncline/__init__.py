"""Syncline keeps copies of PostgreSQL provably in step: capture, log, apply, verify.

The public names are those of ``__all__``; they are imported when first used, so that ``import syncline`` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syncline.config import Config, load_config
    from syncline.errors import Damaged, Gap, Misconfigured, Rejected, SynclineError, Unavailable
    from syncline.pipeline import SyncService
    from syncline.verify import run_consistency_check

__all__ = [
    "Config",
    "Damaged",
    "Gap",
    "Misconfigured",
    "Rejected",
    "SyncService",
    "SynclineError",
    "Unavailable",
    "load_config",
    "run_consistency_check",
]

__version__ = "0.1.0"

_HOMES = {"Config": "config", "load_config": "config", "SyncService": "pipeline", "run_consistency_check": "verify"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
