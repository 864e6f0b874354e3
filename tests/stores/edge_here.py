"""A Qdrant store whose Edge is in the test's own process, so that its shards can be looked at as they are."""

from __future__ import annotations

from syncline.stores.qdrant import QdrantStore
from syncline.stores.qdrant.edge import EdgePoints
from syncline.stores.qdrant.points import Points

__all__ = ["EdgeHere"]


class EdgeHere(QdrantStore):
    def _connect(self) -> Points:
        assert self.config.path is not None
        return EdgePoints.acquire(self.config.path, door=self.config.door)
