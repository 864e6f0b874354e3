"""The Qdrant store: points in a server's collections, or in shards of Qdrant Edge in a folder of this machine."""

from syncline.stores.qdrant.reader import open_reader
from syncline.stores.qdrant.store import QdrantConfig, QdrantStore

__all__ = ["QdrantConfig", "QdrantStore", "open_reader"]
