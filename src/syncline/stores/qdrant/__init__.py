"""The Qdrant store: points in a server's collections, or in shards of Qdrant Edge in a folder of this machine.

The names are imported when first used: Edge's own process needs none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syncline.stores.qdrant.reader import open_reader
    from syncline.stores.qdrant.store import QdrantConfig, QdrantStore

__all__ = ["QdrantConfig", "QdrantStore", "open_reader"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'reader' if name == 'open_reader' else 'store'}"), name)
