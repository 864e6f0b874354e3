"""Differences that are planted in a copy with the store's own means, past Syncline, while no engine runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from syncline.bench.places import Place
from syncline.errors import SynclineError

__all__ = ["plant"]

_BATCH = 1_000
_WRONG = "planted"


def plant(place: Place, keys: Sequence[int]) -> dict[str, int]:
    """Make the rows of these keys differ, one column of each; how many in which way. Where a copy holds more than
    columns (edges, vectors), every second difference is one of those.

    Raises:
        SynclineError: the store has not all of these rows.
    """
    planted = _PLANTED[place.kind](place.target, keys)
    if sum(planted.values()) != len(keys):
        raise SynclineError(f"{len(keys)} differences were to be planted, and {planted} were.")
    return planted


def _batches(keys: Sequence[int]) -> Iterator[list[int]]:
    return (list(keys[i : i + _BATCH]) for i in range(0, len(keys), _BATCH))


def _duckdb(target: Mapping[str, Any], keys: Sequence[int]) -> dict[str, int]:
    import duckdb

    with duckdb.connect(str(target["path"])) as connection:
        rows = connection.execute("update chunks set tags = ? where id in (select unnest(?))", [_WRONG, list(keys)])
        return {"changed": int((rows.fetchone() or (0,))[0])}


def _postgres(target: Mapping[str, Any], keys: Sequence[int]) -> dict[str, int]:
    import psycopg

    with psycopg.connect(str(target["dsn"])) as connection:
        rows = connection.execute("update public.chunks set tags = %s where id = any (%s)", [_WRONG, list(keys)])
        return {"changed": rows.rowcount}


def _redis(target: Mapping[str, Any], keys: Sequence[int]) -> dict[str, int]:
    import redis

    changed = 0
    with closing(redis.Redis.from_url(str(target["url"]))) as client:
        for batch in _batches(keys):
            pipe = client.pipeline(transaction=False)
            for key in batch:
                pipe.hset(f"public.chunks:{key}", "tags", _WRONG)
            changed += pipe.execute().count(0)  # of a field that was there; 1 is one that was not
    return {"changed": changed}


_CHANGE = "UNWIND $keys AS key MATCH (n:Chunk {id: key}) SET n.tags = $wrong RETURN count(*)"
_DROP = "UNWIND $keys AS key MATCH (:Chunk {id: key})-[e:FOLLOWS]->(:Chunk) DELETE e RETURN count(*)"


def _neo4j(target: Mapping[str, Any], keys: Sequence[int]) -> dict[str, int]:
    import neo4j

    auth = (target["user"], target["password"]) if "password" in target else None
    with (
        neo4j.GraphDatabase.driver(target["uri"], auth=auth) as driver,
        driver.session(database=target["database"]) as session,
    ):

        def written(statement: str, some: Sequence[int]) -> int:
            found = 0
            for batch in _batches(some):
                found += session.run(statement, keys=batch, wrong=_WRONG).single(strict=True)[0]
            return found

        # The first row has no edge, so properties come first.
        return {"changed": written(_CHANGE, keys[::2]), "edges_dropped": written(_DROP, keys[1::2])}


def _qdrant(target: Mapping[str, Any], keys: Sequence[int]) -> dict[str, int]:
    import qdrant_edge

    edge: Any = qdrant_edge
    change, turn = edge.UpdateOperation.set_payload, edge.UpdateOperation.update_vectors
    with closing(edge.EdgeShard.load(str(Path(target["path"]) / "collections" / "chunks"))) as shard:
        # Keys are ids. What there is of them is read first: nothing is told of points that are not there.
        changed = [point.id for batch in _batches(keys[::2]) for point in shard.retrieve(batch, [], False)]
        turned = [point for batch in _batches(keys[1::2]) for point in shard.retrieve(batch, [], True)]
        for batch in _batches(changed):
            shard.update(change(batch, {"tags": _WRONG}))
        for point in turned:
            vector = {"dense": [-number for number in point.vector["dense"]]}
            shard.update(turn([edge.PointVectors(point.id, vector)]))
        shard.flush()
    return {"changed": len(changed), "vectors_turned": len(turned)}


_PLANTED: Mapping[str, Callable[[Mapping[str, Any], Sequence[int]], dict[str, int]]] = {
    "duckdb": _duckdb,
    "postgres": _postgres,
    "redis": _redis,
    "neo4j": _neo4j,
    "qdrant": _qdrant,
}
