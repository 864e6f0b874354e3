"""Digests of a table's buckets, computed by PostgreSQL under a snapshot, and the rows of some of the buckets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
from psycopg import sql

from syncline.capture import LoadProgress
from syncline.capture.settings import PostgresSettings
from syncline.capture.snapshot import TableReader
from syncline.capture.source import printed
from syncline.capture.tables import TableInfo
from syncline.change import Batch, TableSchema
from syncline.digests import Buckets, Chosen, digestible, digests
from syncline.pgvalues.digests import DigestColumn, chosen_rows, digest_query

__all__ = ["chosen_in", "digested"]

_TEXTS = (25, 1043)  # text and varchar are hashed as they are
_NOT_NUMBERS = (26, 28, 29)  # oid, xid, cid: they are numbers to us, and have no arithmetic
_ROWS = 40_000

# Sorting whole rows by bucket, which the planner takes to be as many as the rows, would write them to disk. So would
# groups that do not fit: PostgreSQL gives them this, times hash_mem_multiplier.
_IN_MEMORY = ("set local enable_sort = off", "set local work_mem = '32MB'")

# One row of a binary COPY of three int8s: how many, then length and value of each.
_DIGEST_ROW = np.dtype(
    [
        ("fields", ">i2"),
        *(
            (f"{name}{part}", kind)
            for name in ("bucket", "rows", "facts")
            for part, kind in (("_size", ">i4"), ("", ">i8"))
        ),
    ]
)


def digested(
    config: PostgresSettings, info: TableInfo, snapshot: str, buckets: Buckets
) -> tuple[TableSchema, pa.Table] | None:
    """The columns that are published, and the digests of their rows (:func:`syncline.digests.digests`); None if a
    column has no form to be hashed in.

    Raises:
        Rewritten: the table was truncated or rewritten meanwhile.
        Unavailable, Misconfigured: the source can't be read.
    """
    with _reading(config, info, snapshot) as reader:
        schema = reader.schema
        if not digestible(schema) or any(c.base_type_oid in _NOT_NUMBERS for c in reader.columns):
            return None
        found: list[bytes] = []
        for oid, name, _ in reader.leaves(info):
            query = digest_query(_leaf(reader, name), _columns(reader), buckets)
            found += _copied(reader, oid, query, *_IN_MEMORY)
    rows = np.frombuffer(b"".join(found), _DIGEST_ROW)
    return schema, digests(*(rows[name].astype(np.int64) for name in ("bucket", "rows", "facts")))


def chosen_in(
    config: PostgresSettings,
    info: TableInfo,
    snapshot: str,
    chosen: Chosen,
    stop: threading.Event,
    progress: Callable[[LoadProgress], None],
) -> Iterator[Batch]:
    """The rows of some buckets of one table, as of version 0; raises as :func:`digested`."""
    with _reading(config, info, snapshot) as reader:
        done = 0
        for oid, name, _ in reader.leaves(info):
            wanted = chosen_rows(_leaf(reader, name), _columns(reader), chosen)
            query = sql.SQL("select {} from {}").format(sql.SQL(reader.selected("t")), wanted)
            rows = _copied(reader, oid, query)
            for start in range(0, len(rows), _ROWS):
                yield reader.decoded(rows[start : start + _ROWS], 0, done)
                done += min(_ROWS, len(rows) - start)
                progress(LoadProgress(info.qualified, done, 0, 0))


@contextmanager
def _reading(config: PostgresSettings, info: TableInfo, snapshot: str) -> Iterator[TableReader]:
    reader = TableReader(config, info, snapshot)
    try:
        yield reader
    finally:
        reader.close()


def _copied(reader: TableReader, oid: int, query: sql.Composed, *settings: str) -> list[bytes]:
    """The rows as another thread gets them: libpq waits for the answer of a long query without hearing Ctrl-C."""
    statement = f"copy ({query.as_string(None)}) to stdout (format binary)"
    with ThreadPoolExecutor(1, thread_name_prefix="digest") as pool:
        running = pool.submit(reader.copied, oid, statement, settings)
        try:
            return running.result()
        except BaseException:
            if not running.done():
                reader.cancel()
            raise


def _leaf(reader: TableReader, name: str) -> sql.Composable:
    """The published rows of one leaf, whose columns no name of ours can hide."""
    return sql.SQL(f"(select * from only {name} where true{reader.filter}) as t")


def _columns(reader: TableReader) -> Sequence[DigestColumn]:
    named = [(c, s, sql.Identifier("t", c.name)) for c, s in zip(reader.columns, reader.schema.columns, strict=True)]
    return [DigestColumn(s.type, s.key, v, None if c.base_type_oid in _TEXTS else printed(v)) for c, s, v in named]
