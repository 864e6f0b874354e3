"""Reading from outside the engine: what a folder's door or a server shows, and searches in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from syncline.errors import Misconfigured, SynclineError
from syncline.stores.qdrant.door import DoorPoints
from syncline.stores.qdrant.names import DELETED, payload_path
from syncline.stores.qdrant.points import Hit, PointId, Readable, Refused, Sparse, Stored
from syncline.stores.qdrant.store import QdrantConfig, connect

__all__ = ["Reader", "open_reader", "readable"]


class QueryError(SynclineError):
    """A search was refused: it names no vector, or one of another size."""

    code = "SL-QUERY"


def readable(config: QdrantConfig) -> Readable:
    """Something to read from: a server, the door of the engine that has the folder open, else the folder itself.

    Raises:
        Misconfigured: there is no such folder, or the process that has it open has no door.
        Unavailable: the server does not answer.
    """
    if config.path is None:
        return connect(config)
    path = config.path.expanduser().resolve()
    door = DoorPoints.knock(path)
    if door is not None:
        return door
    if not (path / "collections").is_dir():
        raise Misconfigured(f"There is no Qdrant folder {path}.", remedy="Correct the path, or start the engine first.")
    from syncline.stores.qdrant.edge import EdgePoints
    from syncline.stores.qdrant.process import ProcessPoints

    return ProcessPoints.share(path) or EdgePoints.acquire(path)


class Reader:
    """Points of an embedded Qdrant, whether or not an engine writes to it. A context manager."""

    def __init__(self, points: Readable) -> None:
        self._points = points

    def search(
        self,
        collection: str,
        vector: Sequence[float] | Sparse,
        *,
        using: str,
        limit: int = 10,
        where: Mapping[str, str | int] | None = None,
    ) -> list[Hit]:
        """The points nearest to ``vector`` among those whose payload columns equal ``where``; no tombstones.

        Raises:
            QueryError: there is no such vector, or it has another size.
            Misconfigured: there is no such collection.
        """
        wanted = {payload_path(column): value for column, value in (where or {}).items()}
        nearest = vector if isinstance(vector, Sparse) else list(vector)
        try:
            return self._points.search(collection, using, nearest, limit, wanted)
        except Refused as error:
            raise QueryError(f"Vector {using} of collection {collection} can't be searched like that.") from error

    def points(self, collection: str, ids: Sequence[PointId], *, vectors: bool = False) -> list[Stored]:
        """The points of these ids that exist and are no tombstones."""
        found = self._points.retrieve(collection, ids, vectors=vectors)
        return [point for point in found if not point.payload.get(DELETED)]

    def close(self) -> None:
        """Let go of the folder, so that an engine can open it. Idempotent."""
        self._points.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_reader(path: Path | str) -> Reader:
    """A reader of the embedded Qdrant in the folder ``path``: through the engine's door while one runs.

    Close it soon when there is no engine: while the folder is open for reading, an engine can't start.

    Raises:
        Misconfigured: there is no such folder, or its engine runs without a door.
    """
    return Reader(readable(QdrantConfig(path=Path(path))))
