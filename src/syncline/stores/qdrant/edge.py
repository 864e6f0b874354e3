"""Points in a folder of this machine: a shard of Qdrant Edge for each collection (decision record 0017).

Shards have no write-ahead log: Syncline's own log is one. What a flush did not reach when the process died is written
again from there, and until then a row may show its new vector beside its old payload.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import qdrant_edge as edge

from syncline.errors import Gap, Misconfigured, SynclineError, Unavailable
from syncline.stores.qdrant.door import Door
from syncline.stores.qdrant.names import DELETED, VERSION, private_id
from syncline.stores.qdrant.points import (
    PAGE,
    Batch,
    Dense,
    Hit,
    PointId,
    Refused,
    Sparse,
    Spec,
    Stored,
    Which,
    looking,
    one_by_one,
)

__all__ = ["EdgePoints"]

# Edge takes no collection without any vector.
_PLACEHOLDER = "_syncline"
_DISTANCES = {
    "cosine": edge.Distance.Cosine,
    "dot": edge.Distance.Dot,
    "euclid": edge.Distance.Euclid,
    "manhattan": edge.Distance.Manhattan,
}
_NAMES = {"Cosine": "cosine", "Dot": "dot", "Euclid": "euclid", "Manhattan": "manhattan"}
_KINDS = {
    "keyword": edge.PayloadSchemaType.Keyword,
    "integer": edge.PayloadSchemaType.Integer,
    "float": edge.PayloadSchemaType.Float,
    "bool": edge.PayloadSchemaType.Bool,
    "datetime": edge.PayloadSchemaType.Datetime,
    "uuid": edge.PayloadSchemaType.Uuid,
    "text": edge.PayloadSchemaType.Text,
}


class EdgePoints:
    """The folder, counted by the stores of this process that use it; other processes are kept out by a lock.

    The guard of :meth:`upsert` is exact: versions are handed to Edge one by one, which costs nothing.
    """

    _open: ClassVar[dict[Path, EdgePoints]] = {}
    _guard: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: Path, *, door: bool, patience_s: float = 0) -> None:
        self.path = path
        self._users = 0
        self._shards: dict[str, edge.EdgeShard] = {}
        self._opening = threading.RLock()
        self._lock = _locked(path, patience_s)
        try:
            for leftover in self._folder.glob(".*"):  # half made or half removed when a process died
                shutil.rmtree(leftover)
            self._door = Door(path, self) if door else None
        except BaseException:
            os.close(self._lock)
            raise

    @classmethod
    def acquire(cls, path: Path, *, door: bool = False, patience_s: float = 0) -> EdgePoints:
        """The folder, opened if this is the first store that asks; so long is waited for who has it.

        Raises:
            Misconfigured: it can't be used, or another process has it.
        """
        path = path.expanduser().resolve()
        with cls._guard:
            found = cls._open.get(path)
            if found is None:
                found = cls._open[path] = cls(path, door=door, patience_s=patience_s)
            found._users += 1
            return found

    def close(self) -> None:
        """Flush and close all shards when the last store leaves."""
        with EdgePoints._guard:
            self._users -= 1
            if self._users:
                return
            self._open.pop(self.path, None)
            try:
                if self._door:
                    self._door.close()
                for name in list(self._shards):
                    self._let_go(name)
            finally:
                os.close(self._lock)

    @property
    def _folder(self) -> Path:
        return self.path / "collections"

    def _let_go(self, collection: str) -> None:
        shard = self._shards.pop(collection, None)
        if shard is not None:
            with translated(collection):
                shard.close()

    def _shard(self, collection: str) -> edge.EdgeShard:
        """The shard of a collection that exists.

        Raises:
            Misconfigured: it does not.
            Gap: it is damaged; it has been moved aside.
        """
        shard = self._shards.get(collection)
        if shard is not None:
            return shard
        with self._opening:
            if collection not in self._shards:
                if not self._place(collection).is_dir():
                    raise missing(collection)
                self._shards[collection] = self._load(collection)
            return self._shards[collection]

    def _load(self, collection: str) -> edge.EdgeShard:
        place = self._place(collection)
        try:
            shard = edge.EdgeShard.load(str(place))
            # What the very first operation of an opened shard wrote can be lost although it was flushed, when the
            # process dies amid the next flush (decision record 0017): let it be one that says nothing.
            shard.update(edge.UpdateOperation.delete_points([private_id("nothing")]))
            return shard
        except Exception as error:
            if _disk_is_full(error):
                raise _full(collection) from error
            refused = _REFUSED_BY_THE_SYSTEM.search(str(error))
            if refused:
                raise Unavailable(
                    f"Collection {collection} can't be opened ({refused[0]}).",
                    remedy="Mend the folder's rights, or the limits of memory and open files.",
                ) from error
            aside = self.path / f"{collection}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
            place.rename(aside)
            raise Gap(
                f"Collection {collection} is damaged; it was moved to {aside}.",
                remedy="Its table is read again from the source: run `syncline resync`.",
                code="SL-QDRANT-DAMAGED",
            ) from error

    def _place(self, collection: str) -> Path:
        return self._folder / collection

    # ------------------------------------------------------------------------------------------ collections

    def spec(self, collection: str) -> Spec | None:
        if not self._place(collection).is_dir():
            return None
        shard = self._shard(collection)
        with translated(collection):
            indexes = {name: _kind(info.data_type) for name, info in shard.info().payload_schema.items()}
        made = json.loads((self._place(collection) / "edge_config.json").read_text())
        dense = {
            name: Dense(v["size"], _NAMES[v["distance"]], v.get("datatype") in (None, "float32"))
            for name, v in made.get("vectors", {}).items()
        }
        return Spec(dense, frozenset(made.get("sparse_vectors", {})) - {_PLACEHOLDER}, indexes)

    def create(self, collection: str, spec: Spec) -> None:
        """Make it under another name first, so that no half of one is ever found."""
        unfinished = self._folder / f".{collection}"
        unfinished.mkdir(parents=True)
        config = edge.EdgeConfig(
            vectors={
                n: edge.EdgeVectorParams(size=d.size, distance=_DISTANCES[d.distance]) for n, d in spec.dense.items()
            },
            sparse_vectors={n: edge.EdgeSparseVectorParams() for n in (*spec.sparse, _PLACEHOLDER)},
            wal_enabled=False,
        )
        with translated(collection):
            shard = edge.EdgeShard.create(str(unfinished), config)
            _index(shard, spec.indexes)
            shard.close()
        unfinished.rename(self._place(collection))
        _sync_folder(self._folder)

    def drop(self, collection: str) -> None:
        place = self._place(collection)
        self._let_go(collection)
        if place.is_dir():
            doomed = self._folder / f".{collection}"
            place.rename(doomed)
            shutil.rmtree(doomed)

    def change(self, collection: str, add: Spec, remove: Sequence[str]) -> None:
        shard = self._shard(collection)
        with translated(collection):
            for name in remove:
                shard.update(edge.UpdateOperation.delete_vector_name(name))
            for name, dense in add.dense.items():
                shard.update(edge.UpdateOperation.create_dense_vector(name, dense.size, _DISTANCES[dense.distance]))
            for name in add.sparse:
                shard.update(edge.UpdateOperation.create_sparse_vector(name))
            _index(shard, add.indexes)

    def unindex(self, collection: str, fields: Sequence[str]) -> None:
        shard = self._shard(collection)
        with translated(collection):
            for name in fields:
                shard.update(edge.UpdateOperation.delete_field_index(name))

    # ------------------------------------------------------------------------------------------ writing

    def upsert(self, collection: str, points: Sequence[Stored], versions: Sequence[int]) -> None:
        shard = self._shard(collection)
        with translated(collection):
            for version, group in groupby(zip(versions, points, strict=True), key=lambda pair: pair[0]):
                made = [_point(point) for _, point in group]
                shard.update(edge.UpdateOperation.upsert_points(made, edge.Filter(must_not=[_newer_than(version)])))

    def upserts(self, collection: str, batches: Iterable[Batch]) -> list[int]:
        return one_by_one(self, collection, batches)

    def overwrite(self, collection: str, points: Sequence[Stored], versions: Sequence[int]) -> None:
        shard = self._shard(collection)
        with translated(collection):
            for point, version in zip(points, versions, strict=True):
                alone = edge.Filter(must=[edge.HasIdCondition({point.id})], must_not=[_newer_than(version)])
                shard.update(edge.UpdateOperation.overwrite_payload_by_filter(alone, point.payload))

    def put(self, collection: str, points: Sequence[Stored]) -> None:
        shard = self._shard(collection)
        with translated(collection):
            shard.update(edge.UpdateOperation.upsert_points([_point(point) for point in points]))

    def delete(self, collection: str, ids: Sequence[PointId]) -> None:
        shard = self._shard(collection)
        with translated(collection):
            shard.update(edge.UpdateOperation.delete_points(list(ids)))

    def sync(self, collections: Sequence[str]) -> None:
        """Flush side by side: each waits for the disk several times."""
        shards = [self._shard(collection) for collection in dict.fromkeys(collections)]
        with translated(", ".join(collections)):
            if len(shards) == 1:
                shards[0].flush()
                return
            with ThreadPoolExecutor(min(8, len(shards) or 1), thread_name_prefix="qdrant-flush") as pool:
                list(pool.map(lambda shard: shard.flush(), shards))

    # ------------------------------------------------------------------------------------------ reading

    def retrieve(
        self, collection: str, ids: Sequence[PointId], *, vectors: bool, only: Sequence[str] | None = None
    ) -> list[Stored]:
        if not ids:
            return []
        shard = self._shard(collection)
        with looking("Qdrant Edge", collection), translated(collection):
            found = shard.retrieve(list(ids), True if only is None else list(only), vectors)
        return [_stored(record) for record in found]

    def page(
        self, collection: str, which: Which, after: PointId | None, *, vectors: bool, payload: bool = True
    ) -> tuple[list[Stored], PointId | None]:
        request = edge.ScrollRequest(
            offset=after, limit=PAGE, filter=_filter(which), with_payload=payload, with_vector=vectors
        )
        shard = self._shard(collection)
        with looking("Qdrant Edge", collection), translated(collection):
            found, following = shard.scroll(request)
        return [_stored(record) for record in found], None if following is None else _id(following)

    def newest(self, collection: str) -> int:
        order = edge.OrderBy(VERSION, edge.Direction.Desc)
        shard = self._shard(collection)
        with looking("Qdrant Edge", collection), translated(collection):
            found, _ = shard.scroll(edge.ScrollRequest(limit=1, order_by=order, with_payload=[VERSION]))
        return int((found[0].payload or {})[VERSION]) if found else 0

    def search(
        self, collection: str, using: str, vector: list[float] | Sparse, limit: int, where: Mapping[str, Any]
    ) -> list[Hit]:
        nearest = edge.SparseVector(*vector) if isinstance(vector, Sparse) else vector
        equal = [edge.FieldCondition(key=path, match=edge.MatchValue(value)) for path, value in where.items()]
        request = edge.QueryRequest(
            query=edge.Query.Nearest(nearest, using=using),
            filter=edge.Filter(must=[*equal, _is_row()]),
            limit=limit,
            with_payload=True,
        )
        shard = self._shard(collection)
        with translated(collection):
            return [Hit(_id(p.id), p.score, dict(p.payload or {})) for p in shard.query(request)]


def _locked(path: Path, patience_s: float) -> int:
    """The folder's lock, as an open file."""
    try:
        (path / "collections").mkdir(parents=True, exist_ok=True)
        lock = os.open(path / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Misconfigured(
            f"The Qdrant folder {path} cannot be used: {error.strerror}.", remedy="Correct the target's path."
        ) from error
    try:
        _take(lock, time.monotonic() + patience_s)
    except OSError as error:
        os.close(lock)
        raise Misconfigured(
            f"The Qdrant folder {path} is open in another process.",
            remedy="End that process, or look into the folder through `open_reader` while the engine runs.",
            code="SL-QDRANT-LOCKED",
        ) from error
    return lock


def _take(lock: int, until: float) -> None:
    """Lock it; OSError if another process has it still."""
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.02)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _kind(found: edge.PayloadSchemaType) -> str:
    return next(name for name, kind in _KINDS.items() if kind == found) if found in _KINDS.values() else "other"


def _index(shard: edge.EdgeShard, indexes: Mapping[str, str]) -> None:
    for path, kind in indexes.items():
        shard.update(edge.UpdateOperation.create_field_index(path, _KINDS[kind]))


def _point(point: Stored) -> edge.Point:
    vectors: dict[str, Any] = {
        n: edge.SparseVector(*v) if isinstance(v, Sparse) else v for n, v in point.vectors.items()
    }
    return edge.Point(point.id, vectors, point.payload)


def _id(found: Any) -> PointId:
    return found if isinstance(found, int) else str(found)


def _stored(record: edge.Record) -> Stored:
    vectors: Any = record.vector
    named = vectors if isinstance(vectors, dict) else {"": vectors} if vectors else {}
    read = {
        n: Sparse(v.indices, v.values) if isinstance(v, edge.SparseVector) else v
        for n, v in named.items()
        if n != _PLACEHOLDER
    }
    return Stored(_id(record.id), record.payload or {}, read)


def _newer_than(version: int) -> edge.FieldCondition:
    return edge.FieldCondition(key=VERSION, range=edge.RangeFloat(gt=version))


def _is_row() -> edge.IsEmptyCondition:
    """Neither a tombstone nor a note of ours. (Edge takes a Boolean to be matched for a number, and finds nothing.)"""
    return edge.IsEmptyCondition(DELETED)


def _filter(which: Which) -> edge.Filter | None:
    must: list[Any] = [_is_row()] if which.buried is False else []
    must_not: list[Any] = [_is_row()] if which.buried else []
    if which.since is not None:
        must.append(edge.FieldCondition(key=VERSION, range=edge.RangeFloat(gte=which.since)))
    if which.through is not None:
        must_not.append(_newer_than(which.through))
    return edge.Filter(must=must, must_not=must_not) if must or must_not else None


# -------------------------------------------------------------------------------------------------------------- errors


def missing(collection: str) -> Misconfigured:
    """A collection of ours that somebody removed."""
    return Misconfigured(
        f"Collection {collection} is gone.", remedy="Run `syncline resync`: its table is read again from the source."
    )


def _full(collection: str) -> Unavailable:
    return Unavailable(f"The disk of collection {collection} is full.", remedy="Free space; work goes on by itself.")


# No memory, no right, too many open files: nothing is damaged.
_REFUSED_BY_THE_SYSTEM = re.compile(r"os error (1|12|13|23|24|30)\b")


def _disk_is_full(error: Exception) -> bool:
    return any(word in str(error) for word in ("No space left", "os error 28", "disk is full"))


# How Edge begins its messages about what a write holds; what follows may quote it, and is not repeated (Guarantee 11).
_REFUSALS = ("Vector dimension error", "Not existing vector name", "Wrong input", "Validation", "Type error")


@contextmanager
def translated(collection: str) -> Iterator[None]:
    """Edge's errors as ours. It raises plain ``Exception`` for its own, TypeError and ValueError for values.

    Raises:
        Refused: the values of this write are to blame.
        Unavailable: the disk is full.
        Misconfigured: anything else.
    """
    try:
        yield
    except SynclineError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise Refused(f"Qdrant does not take a value ({type(error).__name__})") from error
    except Exception as error:
        if _disk_is_full(error):
            raise _full(collection) from error
        if str(error).startswith(_REFUSALS):
            raise Refused("Qdrant does not take a value") from error
        raise Misconfigured(
            f"Qdrant Edge failed on collection {collection}.",
            remedy="Undo what was changed by hand, or remove the collection's folder and run `syncline resync`.",
        ) from error
