"""The rows that are measured: a table of seven columns and 400 bytes, its server, and the changes made to it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import psycopg

from syncline.embedded import EmbeddedPostgres

__all__ = ["COLUMNS", "TABLE", "Digest", "Filled", "Source", "digest_of_copy"]

TABLE = "public.chunks"
COLUMNS = ("id", "doc", "content", "tags", "meta", "score", "updated_at")
PUBLICATION = SLOT = "bench"
PER_TRANSACTION = 1_000

_CREATE = """
create table chunks (
  id bigint primary key, doc uuid not null, content text not null, tags text not null, meta jsonb not null,
  score double precision not null, updated_at timestamptz not null
)
"""
_VALUES = """gen_random_uuid(), repeat(md5(g::text), 6), 'a,b,c',
  jsonb_build_object('n', g, 'lang', 'en', 'src', 'doc-' || g), random() * 100, clock_timestamp()"""
# With vectors: of length 1, as models give them, out of a pool that is larger than what a compressor sees at once.
_POOL = 5_000
_MORE_COLUMNS = """
alter table chunks add column embedding real[] not null;
create table vectors (n int primary key, v real[] not null)
"""
_EMBEDDED = "(select v from vectors where n = g % {pool})"
# With edges: each row but the first refers to the one before.
_REFERRING = "alter table chunks add column previous bigint references chunks"
_PREVIOUS = "nullif(g, 0) - 1"
_UPDATE = """
update chunks set content = repeat(md5(id::text || 'u'), 6), score = random() * 100, updated_at = clock_timestamp()
where id = any (array(select (random() * %s)::bigint from generate_series(1, %s)))
"""
_DELETE = """
delete from chunks where id = any (array(select (random() * %s)::bigint from generate_series(1, %s)))
"""
# Both sides print these the same way. The digest is a sum, so it doesn't depend on the order of the rows.
_PRINTED = "id::text || doc::text || content || tags || meta::text || floor(score * 1000000)::bigint::text"
_SOURCE_DIGEST = f"""
select count(*), coalesce(sum(('x' || substr(md5({_PRINTED}
  || (extract(epoch from updated_at) * 1000000)::bigint::text), 1, 8))::bit(32)::bigint), 0)::bigint from chunks
"""
_COPY_DIGEST = f"""
select count(*), coalesce(sum(('0x' || substr(md5({_PRINTED}
  || epoch_us(updated_at)::varchar), 1, 8))::bigint), 0)::bigint from chunks
"""


@dataclass(frozen=True, slots=True)
class Digest:
    """Number of rows and a sum over the contents of all columns: equal on both sides, the copy is right."""

    rows: int
    contents: int


@dataclass(frozen=True, slots=True)
class Filled:
    """Changes that wait in the slot: how many, and a place inside the last transaction (before its commit)."""

    changes: int
    place: int


class Source:
    """A PostgreSQL of our own with the table, in ``folder``, which also holds whatever a run writes.

    The server has its default settings (fsync and synchronous commit on) but for those that logical decoding requires.
    ``dimensions``: the table has one more column of so many float32s; 0 for none. ``edges``: one more that refers to
    another row, the one before.
    """

    def __init__(
        self,
        server: EmbeddedPostgres,
        folder: Path,
        database: str = "postgres",
        dimensions: int = 0,
        *,
        edges: bool = False,
    ) -> None:
        self.server = server
        self.folder = folder
        self.dsn = server.dsn(database)
        self._connection = psycopg.connect(self.dsn, autocommit=True)
        self.dimensions = dimensions
        self.execute(_CREATE)
        self.edges = edges
        if dimensions:
            self._add_vectors()
        if edges:
            self.execute(_REFERRING)

    @staticmethod
    @contextmanager
    def started(folder: Path | None = None, dimensions: int = 0, *, edges: bool = False) -> Iterator[Source]:
        """A fresh server in a folder of its own below ``folder`` (default: the system's), gone afterwards."""
        own = Path(tempfile.mkdtemp(prefix="syncline-bench-", dir=folder))
        try:
            with EmbeddedPostgres.start(own / "postgres") as server:
                source = Source(server, own, dimensions=dimensions, edges=edges)
                try:
                    yield source
                finally:
                    source.close()
        finally:
            shutil.rmtree(own, ignore_errors=True)

    @contextmanager
    def another(self, database: str) -> Iterator[Source]:
        """The same, empty, in another database of the server and a folder of its own."""
        self.server.create_database(database)
        folder = self.folder / database
        folder.mkdir()
        source = Source(self.server, folder, database)
        try:
            yield source
        finally:
            source.close()
            self.server.drop_database(database)

    @property
    def connection(self) -> psycopg.Connection[tuple[Any, ...]]:
        """The source's own connection, in autocommit."""
        return self._connection

    def _add_vectors(self) -> None:
        self.execute(_MORE_COLUMNS)
        found = np.random.default_rng(4).normal(size=(_POOL, self.dimensions))
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        with self._connection.cursor() as cursor, cursor.copy("copy vectors from stdin") as copy:
            for n, vector in enumerate(found.astype(np.float32)):
                copy.write_row((n, "{" + ",".join(map(str, vector.tolist())) + "}"))

    @property
    def values(self) -> str:
        """What a new row has behind its key ``g``, as a list of SQL expressions."""
        more = [_EMBEDDED.format(pool=_POOL)] if self.dimensions else []
        more += [_PREVIOUS] if self.edges else []
        return ", ".join([_VALUES, *more])

    def _insert(self, first: int, last: int) -> int:
        statement = f"insert into chunks select g, {self.values} from generate_series(%s::bigint, %s::bigint) g"
        return self.execute(statement.replace("g % ", "g %% "), first, last).rowcount

    def close(self) -> None:
        """Close the connection; the server stays."""
        self._connection.close()

    def execute(self, statement: str, *params: Any) -> psycopg.Cursor[tuple[Any, ...]]:
        """Execute a statement in the source's own connection."""
        return self._connection.execute(statement, params or None)

    def value(self, query: str, *params: Any) -> Any:
        """The first column of the first row."""
        row = self.execute(query, *params).fetchone()
        assert row is not None
        return row[0]

    # ------------------------------------------------------------------------------------------------------- slots

    def prepare_slot(self) -> None:
        """Make the publication and the slot that every run starts from."""
        self.execute(f"create publication {PUBLICATION} for table {TABLE}")
        self.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", SLOT)

    @contextmanager
    def copied_slot(self, name: str) -> Iterator[str]:
        """A copy of that slot: everything behind it can be read once more."""
        self.execute("select pg_copy_logical_replication_slot(%s, %s)", SLOT, name)
        try:
            yield name
        finally:
            self.drop_slot(name)

    def drop_slot(self, name: str) -> None:
        """Drop a slot, whoever reads it."""
        self.execute(
            "select pg_terminate_backend(active_pid, 10000) from pg_replication_slots"
            " where slot_name = %s and active_pid is not null",
            name,
        )
        self.execute("select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = %s", name)

    # ----------------------------------------------------------------------------------------------------- changes

    def fill(
        self, rows: int, per_transaction: int = PER_TRANSACTION, wrote: Callable[[int], None] = lambda rows: None
    ) -> Filled:
        """Insert rows behind those that are there; ``wrote`` hears how many are, after each transaction."""
        first = self.value("select coalesce(max(id) + 1, 0) from chunks")
        place = 0
        for start in range(first, first + rows, per_transaction):
            with self._connection.transaction():
                self._insert(start, min(start + per_transaction, first + rows) - 1)
                place = self._place()
            wrote(min(start + per_transaction - first, rows))
        return Filled(rows, place)

    def mix(self, changes: int) -> Filled:
        """Half updates and a tenth deletes at random keys, the rest inserts; in transactions of 1,000 changes."""
        highest = self.value("select max(id) from chunks")
        made = place = 0
        for start in range(0, changes, PER_TRANSACTION):
            count = min(PER_TRANSACTION, changes - start)
            updates, deletes = count // 2, count // 10
            inserts = count - updates - deletes
            with self._connection.transaction():
                made += self.execute(_UPDATE, highest, updates).rowcount
                made += self.execute(_DELETE, highest, deletes).rowcount
                made += self._insert(highest + 1 + start, highest + start + inserts)
                place = self._place()
        return Filled(made, place)

    def mark(self) -> int:
        """A place that a stream passes with one more transaction, written now."""
        with self._connection.transaction():
            self.execute("update chunks set score = score + 1 where id = (select max(id) from chunks)")
            return self._place()

    def _place(self) -> int:
        """Inside a transaction: behind all of its changes, before its commit record."""
        return int(self.value("select (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::int8"))

    def settle(self) -> None:
        """Do now what the server would otherwise do in the middle of a measurement."""
        self.execute("vacuum analyze chunks")
        self.execute("checkpoint")

    def digest(self) -> Digest:
        """What a copy must have."""
        row = self.execute(_SOURCE_DIGEST).fetchone()
        assert row is not None
        return Digest(int(row[0]), int(row[1]))


def digest_of_copy(path: Path) -> Digest:
    """What a DuckDB file has. Nobody may have it open for writing."""
    with duckdb.connect(str(path), read_only=True) as connection:
        row = connection.execute(_COPY_DIGEST).fetchone()
    assert row is not None
    return Digest(int(row[0]), int(row[1]))
