"""Points on a Qdrant server, through the official client, by REST or gRPC.

Every write waits until the server has applied it (``wait=true``); how safely it is kept from then on is the server's
own affair: it acknowledges what is in its write-ahead log, which the operating system writes out a little later.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any

import grpc
import httpx
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from syncline.errors import Misconfigured, SynclineError, Unavailable
from syncline.stores.qdrant.names import DELETED, VERSION
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

if TYPE_CHECKING:
    from syncline.stores.qdrant.store import QdrantConfig

__all__ = ["OLDEST", "ServerPoints"]

# The first release with `update_filter`; an older one would take a guarded write for an unguarded one.
OLDEST = (1, 16)

# So many versions get a guard of their own in one request.
_GROUPS = 32

_DISTANCES = {
    "cosine": models.Distance.COSINE,
    "dot": models.Distance.DOT,
    "euclid": models.Distance.EUCLID,
    "manhattan": models.Distance.MANHATTAN,
}
_NAMES = {distance: name for name, distance in _DISTANCES.items()}
_WHOLE = (None, models.Datatype.FLOAT32)


class ServerPoints:
    """Collections of a server. ``place`` is what messages call it.

    The guard of :meth:`upsert` is exact for up to 32 versions in one call. Beyond that all points of the call are
    guarded by the greatest of them: a writer that was thought dead may then put back a row by as much as its own call
    spans. The engine looks first, so its own writes never depend on it.
    """

    def __init__(self, client: QdrantClient, place: str) -> None:
        self._client = client
        self._place = place

    @classmethod
    def connect(cls, config: QdrantConfig) -> ServerPoints:
        """The configured server.

        Raises:
            Unavailable: it does not answer.
            Misconfigured: it is too old, or refuses the key.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a key without TLS, which `doctor` speaks of
            client = QdrantClient(
                url=config.url,
                api_key=config.api_key.get_secret_value() if config.api_key else None,
                prefer_grpc=config.grpc,
                grpc_port=config.grpc_port,
                timeout=config.timeout_s,
                check_compatibility=False,
            )
        points = cls(client, config.place)
        try:
            points.check_version()
        except BaseException:
            points.close()
            raise
        return points

    def version(self) -> str:
        """The server's version."""
        with self._translated():
            return self._client.info().version

    def check_version(self) -> None:
        """Raise ``Misconfigured`` for a server without conditional updates."""
        version = self.version()
        if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST:
            raise Misconfigured(
                f"Qdrant at {self._place} is {version}; conditional updates, which keep old rows from replacing newer"
                f" ones, came with {OLDEST[0]}.{OLDEST[1]}.",
                remedy="Upgrade the server.",
                code="SL-QDRANT-VERSION",
            )

    def close(self) -> None:
        self._client.close()

    # ------------------------------------------------------------------------------------------ collections

    def spec(self, collection: str) -> Spec | None:
        with self._looking(collection):
            if not self._client.collection_exists(collection):
                return None
            info = self._client.get_collection(collection)
        vectors = info.config.params.vectors or {}
        named = vectors if isinstance(vectors, Mapping) else {"": vectors}
        dense = {name: _dense(params) for name, params in named.items()}
        sparse = frozenset(info.config.params.sparse_vectors or ())
        return Spec(dense, sparse, {name: str(i.data_type.value) for name, i in (info.payload_schema or {}).items()})

    def create(self, collection: str, spec: Spec) -> None:
        with self._translated():
            self._client.create_collection(
                collection,
                vectors_config={
                    n: models.VectorParams(size=d.size, distance=_DISTANCES[d.distance]) for n, d in spec.dense.items()
                },
                sparse_vectors_config={n: models.SparseVectorParams() for n in spec.sparse} or None,
            )
            self._index(collection, spec.indexes)

    def drop(self, collection: str) -> None:
        with self._translated():
            self._client.delete_collection(collection)

    def change(self, collection: str, add: Spec, remove: Sequence[str]) -> None:
        with self._translated():
            for name in remove:
                self._client.delete_vector_name(collection, name, wait=True)
            for name, dense in add.dense.items():
                made = models.DenseVectorConfig(size=dense.size, distance=_DISTANCES[dense.distance])
                self._client.create_vector_name(collection, name, models.DenseVectorNameConfig(dense=made), wait=True)
            for name in add.sparse:
                config = models.SparseVectorNameConfig(sparse=models.SparseVectorConfig())
                self._client.create_vector_name(collection, name, config, wait=True)
            self._index(collection, add.indexes)

    def _index(self, collection: str, indexes: Mapping[str, str]) -> None:
        for path, kind in indexes.items():
            self._client.create_payload_index(collection, path, models.PayloadSchemaType(kind), wait=True)

    def unindex(self, collection: str, fields: Sequence[str]) -> None:
        with self._translated():
            for name in fields:
                self._client.delete_payload_index(collection, name, wait=True)

    # ------------------------------------------------------------------------------------------ writing

    def upsert(self, collection: str, points: Sequence[Stored], versions: Sequence[int]) -> None:
        with self._translated():
            self._update(collection, list(guarded_upserts(points, versions)))

    def upserts(self, collection: str, batches: Iterable[Batch]) -> list[int]:
        return one_by_one(self, collection, batches)

    def overwrite(self, collection: str, points: Sequence[Stored], versions: Sequence[int]) -> None:
        with self._translated():
            self._update(collection, [guarded_payload(p, v) for p, v in zip(points, versions, strict=True)])

    def _update(self, collection: str, operations: list[Any]) -> None:
        results = self._client.batch_update_points(collection, operations, wait=True)
        for result in results:
            self._completed(result)

    def put(self, collection: str, points: Sequence[Stored]) -> None:
        with self._translated():
            self._completed(self._client.upsert(collection, [_struct(p) for p in points], wait=True))

    def delete(self, collection: str, ids: Sequence[PointId]) -> None:
        with self._translated():
            self._completed(self._client.delete(collection, list(ids), wait=True))

    def _completed(self, result: models.UpdateResult) -> None:
        """A write that timed out on the server is accepted but not applied: a cursor behind it would lie."""
        if result.status != models.UpdateStatus.COMPLETED:
            raise Unavailable(
                f"Qdrant at {self._place} has not applied a write in time.", remedy="It is tried again by itself."
            )

    def sync(self, collections: Sequence[str]) -> None:
        """Nothing: ``wait=true`` is all that a server promises."""

    # ------------------------------------------------------------------------------------------ reading

    def retrieve(
        self, collection: str, ids: Sequence[PointId], *, vectors: bool, only: Sequence[str] | None = None
    ) -> list[Stored]:
        if not ids:
            return []
        with self._looking(collection):
            found = self._client.retrieve(
                collection, list(ids), with_payload=True if only is None else list(only), with_vectors=vectors
            )
        return [_stored(record) for record in found]

    def page(
        self, collection: str, which: Which, after: PointId | None, *, vectors: bool, payload: bool = True
    ) -> tuple[list[Stored], PointId | None]:
        with self._looking(collection):
            found, following = self._client.scroll(
                collection, _filter(which), limit=PAGE, offset=after, with_payload=payload, with_vectors=vectors
            )
        return [_stored(record) for record in found], None if following is None else _id(following)

    def newest(self, collection: str) -> int:
        order = models.OrderBy(key=VERSION, direction=models.Direction.DESC)
        with self._looking(collection):
            found, _ = self._client.scroll(collection, limit=1, order_by=order, with_payload=[VERSION])
        return int((found[0].payload or {})[VERSION]) if found else 0

    def search(
        self, collection: str, using: str, vector: list[float] | Sparse, limit: int, where: Mapping[str, Any]
    ) -> list[Hit]:
        equal = [models.FieldCondition(key=p, match=models.MatchValue(value=v)) for p, v in where.items()]
        with self._translated():
            found = self._client.query_points(
                collection,
                query=models.SparseVector(indices=vector.indices, values=vector.values)
                if isinstance(vector, Sparse)
                else vector,
                using=using,
                query_filter=models.Filter(must=[*equal, _is_row()]),
                limit=limit,
                with_payload=True,
            )
        return [Hit(_id(p.id), p.score, p.payload or {}) for p in found.points]

    @contextmanager
    def _looking(self, collection: str) -> Iterator[None]:
        with looking(f"Qdrant at {self._place}", collection), self._translated():
            yield

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except SynclineError:
            raise
        except Exception as error:
            raise translate(error, self._place) from error


def guarded_upserts(points: Sequence[Stored], versions: Sequence[int]) -> Iterator[models.UpsertOperation]:
    """Upserts that leave newer points alone: one for each version, or one for all if they are many."""
    pairs = zip(versions, points, strict=True)
    if len(set(versions)) > _GROUPS:
        groups: list[tuple[int, list[Stored]]] = [(versions[-1], list(points))]
    else:
        groups = [(version, [p for _, p in group]) for version, group in groupby(pairs, key=lambda pair: pair[0])]
    for version, group in groups:
        structs = [_struct(point) for point in group]
        guard = models.Filter(must_not=[_newer_than(version)])
        yield models.UpsertOperation.model_construct(
            upsert=models.PointsList.model_construct(points=structs, update_filter=guard)
        )


def guarded_payload(point: Stored, version: int) -> models.OverwritePayloadOperation:
    """A payload in place of the one that a point has, unless it is newer or there is no such point."""
    alone = models.Filter(must=[models.HasIdCondition(has_id=[point.id])], must_not=[_newer_than(version)])
    return models.OverwritePayloadOperation(overwrite_payload=models.SetPayload(payload=point.payload, filter=alone))


def _struct(point: Stored) -> models.PointStruct:
    """Not validated number by number: the columns have been."""
    vectors: dict[str, Any] = {
        n: models.SparseVector(indices=v.indices, values=v.values) if isinstance(v, Sparse) else v
        for n, v in point.vectors.items()
    }
    return models.PointStruct.model_construct(id=point.id, vector=vectors, payload=point.payload)


def _dense(params: models.VectorParams) -> Dense:
    plain = params.datatype in _WHOLE and params.multivector_config is None
    return Dense(params.size, _NAMES[params.distance], plain)


def _id(found: Any) -> PointId:
    return found if isinstance(found, int) else str(found)


def _stored(record: models.Record) -> Stored:
    vectors: Any = record.vector
    named = vectors if isinstance(vectors, Mapping) else {"": vectors} if vectors else {}
    read = {
        n: Sparse(list(v.indices), list(v.values)) if isinstance(v, models.SparseVector) else v
        for n, v in named.items()
    }
    return Stored(_id(record.id), record.payload or {}, read)


def _newer_than(version: int) -> models.FieldCondition:
    return models.FieldCondition(key=VERSION, range=models.Range(gt=version))


def _is_row() -> models.IsEmptyCondition:
    """Neither a tombstone nor a note of ours."""
    return models.IsEmptyCondition(is_empty=models.PayloadField(key=DELETED))


def _filter(which: Which) -> models.Filter | None:
    must: list[Any] = [_is_row()] if which.buried is False else []
    must_not: list[Any] = [_is_row()] if which.buried else []
    if which.since is not None:
        must.append(models.FieldCondition(key=VERSION, range=models.Range(gte=which.since)))
    if which.through is not None:
        must_not.append(_newer_than(which.through))
    return models.Filter(must=must, must_not=must_not) if must or must_not else None


# -------------------------------------------------------------------------------------------------------------- errors

_AWAY_HTTP = {408, 429, 502, 503, 504, 507}
_REFUSED_HTTP = {400, 413, 422}
_AWAY_GRPC = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
}
_REFUSED_GRPC = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE}


def translate(error: Exception, place: str) -> Exception:
    """The client's error as one of ours, or as :class:`Refused`. Its text may quote values, and is not repeated."""
    match error:
        case UnexpectedResponse(status_code=code):
            return _by_status(f"HTTP {code}", place, code in _AWAY_HTTP, code in _REFUSED_HTTP, code in (401, 403))
        case ResponseHandlingException(source=httpx.TransportError()) | ResourceExhaustedResponse():
            return _by_status(type(getattr(error, "source", error)).__name__, place, True, False, False)
        case grpc.RpcError():
            code = error.code()
            denied = code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
            return _by_status(code.name, place, code in _AWAY_GRPC, code in _REFUSED_GRPC, denied)
        case ValueError() | TypeError():
            return Refused(f"the client does not take a value ({type(error).__name__})")
    return _by_status(type(error).__name__, place, False, False, False)


def _by_status(what: str, place: str, away: bool, refused: bool, denied: bool) -> Exception:
    if away:
        return Unavailable(f"Qdrant at {place} does not answer ({what}).", remedy="It is tried again by itself.")
    if refused:
        return Refused(f"the server does not take the request ({what})")
    if denied:
        return Misconfigured(
            f"Qdrant at {place} refuses the key ({what}).", remedy="Correct the target's api_key, and its rights."
        )
    return Misconfigured(
        f"Qdrant at {place} failed ({what}).",
        remedy="Look into the server's log; a collection that was removed is made again by `syncline resync`.",
    )
