"""Real servers of our own, for ``syncline demo`` and the tests: no Docker, no installation, no root needed.

One file for each server. They listen on the loopback address alone and trust whoever may connect there, so they are
for trying and testing, not for data that matters. Each keeps all its files in one folder that its caller names, and
ends with the process that started it, even by SIGKILL.

The names below are loaded when they are asked for, as not everybody has every server.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syncline.embedded.bolt import EmbeddedBolt
    from syncline.embedded.postgres import EmbeddedPostgres
    from syncline.embedded.postgres_files import binaries_for, fetch_binaries
    from syncline.embedded.valkey import EmbeddedValkey

__all__ = ["EmbeddedBolt", "EmbeddedPostgres", "EmbeddedValkey", "binaries_for", "fetch_binaries"]

_PLACES = {
    "EmbeddedBolt": "syncline.embedded.bolt",
    "EmbeddedPostgres": "syncline.embedded.postgres",
    "EmbeddedValkey": "syncline.embedded.valkey",
    "binaries_for": "syncline.embedded.postgres_files",
    "fetch_binaries": "syncline.embedded.postgres_files",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
