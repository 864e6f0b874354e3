"""What somebody would write by hand to load rows into a store, with that store's own client and in large batches.

They are the yardsticks of `syncline bench store`: no log, no versions, no cursor, nothing kept for a second time. Rows
are read from the source, and brought into the form that the client takes, before the clock runs.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psycopg
from psycopg.rows import dict_row

from syncline.bench.accounting import cpu_seconds
from syncline.bench.workload import Source

__all__ = ["Bulk", "Delta", "EdgeBulk", "GraphBulk", "HashBulk", "TableBulk"]

Row = dict[str, Any]
_COLUMNS = "id, doc::text as doc, content, tags, meta::text as meta, score, updated_at::text as updated_at"


@dataclass(frozen=True, slots=True)
class Delta:
    """What changed at the source: rows that ``where`` finds have their last state, the keys in ``gone`` none."""

    where: str
    gone: Sequence[int] = ()


class Bulk(Protocol):
    """A place that is filled by hand. ``write`` is what is timed: everything is durable when it returns, as far as the
    place's server makes it so."""

    def prepare(self, source: Source, delta: Delta) -> None:
        """Read what changed."""

    def write(self) -> None:
        """Write it."""

    def count(self) -> int:
        """Rows that are there."""

    def server_cpu_s(self) -> float:
        """Processor seconds of the server's part that works for it."""

    def close(self) -> None:
        """Let go of the place."""


def _rows(source: Source, delta: Delta) -> list[Row]:
    with psycopg.connect(source.dsn) as connection, connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute("set timezone = 'UTC'")
        return cursor.execute(f"select {_COLUMNS} from chunks where {delta.where} order by id").fetchall()


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[i : i + size] for i in range(0, len(items), size))


# --------------------------------------------------------------------------------------------------------------- graph

_MERGE = """
UNWIND $rows AS r MERGE (n:BulkChunk {id: r.id})
SET n.doc = r.doc, n.content = r.content, n.tags = r.tags, n.meta = r.meta, n.score = r.score,
    n.updated_at = datetime(r.updated_at)
"""


class GraphBulk:
    """``UNWIND ... MERGE ... SET`` in transactions of 5,000 rows over one connection. Times cross as text, which is
    quicker than the driver's own."""

    def __init__(self, uri: str, auth: tuple[str, str] | None, database: str | None, pid: int | None) -> None:
        import neo4j

        self._driver = neo4j.GraphDatabase.driver(uri, auth=auth)
        self._session = self._driver.session(database=database)
        self._session.run(
            "CREATE CONSTRAINT bulk_chunk IF NOT EXISTS FOR (n:BulkChunk) REQUIRE n.id IS UNIQUE"
        ).consume()
        self._pid = pid
        self._rows: list[Row] = []
        self._gone: Sequence[int] = ()

    def prepare(self, source: Source, delta: Delta) -> None:
        self._rows, self._gone = _rows(source, delta), delta.gone
        for row in self._rows:
            row["updated_at"] = row["updated_at"].replace(" ", "T") + ":00"

    def write(self) -> None:
        for batch in _batches(self._rows, 5_000):
            self._run(_MERGE, rows=batch)
        for keys in _batches(self._gone, 5_000):
            self._run("UNWIND $ids AS id MATCH (n:BulkChunk {id: id}) DETACH DELETE n", ids=keys)

    def _run(self, statement: str, **given: Any) -> None:
        self._session.execute_write(lambda transaction: transaction.run(statement, **given).consume())

    def count(self) -> int:
        found = self._session.run("MATCH (n:BulkChunk) RETURN count(n)").single(strict=True)
        return int(found[0])

    def server_cpu_s(self) -> float:
        return cpu_seconds(self._pid) if self._pid else 0.0

    def close(self) -> None:
        """Leave the server."""
        self._session.close()
        self._driver.close()


# ---------------------------------------------------------------------------------------------------------------- keys


class HashBulk:
    """``HSET`` in pipelines of 1,000, without MULTI."""

    def __init__(self, url: str, pid: int | None) -> None:
        import redis

        self._client: Any = redis.Redis.from_url(url)
        self._pid = pid
        self._rows: list[list[Any]] = []
        self._gone: Sequence[int] = ()

    def prepare(self, source: Source, delta: Delta) -> None:
        found = _rows(source, delta)
        names = [name.encode() for name in found[0]] if found else []
        self._rows = [
            [f"bulk:{row['id']}", *itertools.chain.from_iterable(zip(names, row.values(), strict=True))]
            for row in found
        ]
        self._gone = delta.gone

    def write(self) -> None:
        for batch in _batches(self._rows, 1_000):
            pipe = self._client.pipeline(transaction=False)
            for arguments in batch:
                pipe.execute_command("HSET", *arguments)
            pipe.execute()
        for keys in _batches(self._gone, 1_000):
            self._client.unlink(*(f"bulk:{key}" for key in keys))

    def count(self) -> int:
        return sum(1 for _ in self._client.scan_iter("bulk:*", 10_000))

    def server_cpu_s(self) -> float:
        return cpu_seconds(self._pid) if self._pid else 0.0

    def close(self) -> None:
        """Leave the server."""
        self._client.close()


# ---------------------------------------------------------------------------------------------------------------- rows

_STAGING = "create temp table staging (like bulk_chunks)"
_NAMES = ("doc", "content", "tags", "meta", "score", "updated_at")
_MERGE_ROWS = f"""
insert into bulk_chunks select * from staging
on conflict (id) do update set {", ".join(f"{name} = excluded.{name}" for name in _NAMES)}
"""
_CREATE = """
create table bulk_chunks (
  id bigint primary key, doc uuid not null, content text not null, tags text not null, meta jsonb not null,
  score double precision not null, updated_at timestamptz not null
)
"""


class TableBulk:
    """Binary ``COPY`` into a staging table and one ``INSERT ... ON CONFLICT``, in transactions of 50,000 rows."""

    _PER_TRANSACTION = 50_000

    def __init__(self, dsn: str) -> None:
        self._connection = psycopg.connect(dsn, autocommit=True)
        self._connection.execute(_CREATE)
        self._connection.execute(_STAGING)
        self._blocks: list[list[bytes]] = []
        self._gone: Sequence[int] = ()

    def prepare(self, source: Source, delta: Delta) -> None:
        """The blocks that the source's own binary ``COPY`` gives."""
        with psycopg.connect(source.dsn) as connection:
            row = connection.execute(f"select min(id), max(id) from chunks where {delta.where}").fetchone()
            keys = connection.execute(f"select id from chunks where {delta.where} order by id").fetchall()
            assert row is not None
            cuts = [key for (key,) in keys[:: self._PER_TRANSACTION]]
            ends = [*cuts[1:], (row[1] or 0) + 1]
            self._blocks = [
                self._block(connection, f"({delta.where}) and id >= {first} and id < {end}")
                for first, end in zip(cuts, ends, strict=False)
            ]
        self._gone = delta.gone

    def _block(self, connection: psycopg.Connection[Any], where: str) -> list[bytes]:
        statement = f"copy (select * from chunks where {where}) to stdout (format binary)"
        with connection.cursor() as cursor, cursor.copy(statement) as copy:
            joined = b"".join(bytes(part) for part in copy)
        return [joined[i : i + 262_144] for i in range(0, len(joined), 262_144)]

    def write(self) -> None:
        for block in self._blocks:
            with self._connection.transaction(), self._connection.cursor() as cursor:
                cursor.execute("truncate staging")
                with cursor.copy("copy staging from stdin (format binary)") as copy:
                    for part in block:
                        copy.write(part)
                cursor.execute(_MERGE_ROWS)
        if self._gone:
            self._connection.execute("delete from bulk_chunks where id = any (%s)", [list(self._gone)])

    def count(self) -> int:
        row = self._connection.execute("select count(*) from bulk_chunks").fetchone()
        assert row is not None
        return int(row[0])

    def server_cpu_s(self) -> float:
        return cpu_seconds(self._connection.info.backend_pid)

    def close(self) -> None:
        """Leave the server."""
        self._connection.close()


# ------------------------------------------------------------------------------------------------------------- vectors


class EdgeBulk:
    """Upserts of 1,000 points into a shard of Qdrant Edge without its log, and a flush at the end."""

    def __init__(self, folder: Path, dimensions: int) -> None:
        import qdrant_edge as edge

        self._edge = edge
        folder.mkdir()
        config = edge.EdgeConfig(
            vectors={"dense": edge.EdgeVectorParams(size=dimensions, distance=edge.Distance.Cosine)}, wal_enabled=False
        )
        self._shard = edge.EdgeShard.create(str(folder), config)
        self._rows: list[Row] = []
        self._vectors = np.empty((0, dimensions), np.float32)
        self._gone: Sequence[int] = ()

    def prepare(self, source: Source, delta: Delta) -> None:
        """Payloads, and the vectors as the matrix that a model gives."""
        self._rows, self._gone = _rows(source, delta), delta.gone
        for row in self._rows:
            row["meta"] = json.loads(row["meta"])
        with psycopg.connect(source.dsn) as connection:
            found = connection.execute(
                f"select array_send(embedding) from chunks where {delta.where} order by id"
            ).fetchall()
        size = self._vectors.shape[1]
        layout = np.dtype([("length", ">i4"), ("value", ">f4")])
        self._vectors = np.array(
            [np.frombuffer(data, layout, size, offset=20)["value"] for (data,) in found], np.float32
        ).reshape(-1, size)

    def write(self) -> None:
        point, upsert = self._edge.Point, self._edge.UpdateOperation.upsert_points
        for begin in range(0, len(self._rows), 1_000):
            vectors = self._vectors[begin : begin + 1_000].tolist()
            rows = self._rows[begin : begin + 1_000]
            points = [point(row["id"], {"dense": vector}, row) for row, vector in zip(rows, vectors, strict=True)]
            self._shard.update(upsert(points))
        if self._gone:
            self._shard.update(self._edge.UpdateOperation.delete_points(list(self._gone)))
        self._shard.flush()

    def count(self) -> int:
        return int(self._shard.count(self._edge.CountRequest(exact=True)))

    def server_cpu_s(self) -> float:
        return 0.0  # it has none: Edge works in this process

    def close(self) -> None:
        """Close the shard."""
        self._shard.close()
