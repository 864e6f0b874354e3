"""Walking through a table's companion hash, and reading the rows that it knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import pyarrow as pa

from syncline.stores.redis.config import Mode
from syncline.stores.redis.layout import Layout
from syncline.stores.redis.reading import Keyspace, Stored, as_rows, read

__all__ = ["companion", "rows_of"]

# A table of up to so many rows is read in one moment: the server does nothing else meanwhile, for about 10 us a row.
_ONE_LOOK = 10_000
_LOOKS = 50
_PAGE = 2_000


class _Server(Protocol):
    def call(self, *command: Any) -> Any: ...

    def run(self, script: str, *arguments: bytes) -> Any: ...


def companion(
    connection: _Server, keys: Keyspace, table: str, page: int
) -> Iterator[tuple[Sequence[bytes], Sequence[bytes]]]:
    """Ids and entries, page by page. What is there from beginning to end comes, what comes or goes meanwhile may."""
    place = b"0"
    while True:
        place, found = connection.call("HSCAN", keys.rows(table), place, "COUNT", page)
        if found:
            yield found[::2], found[1::2]
        if place == b"0":
            return


def rows_of(connection: _Server, keys: Keyspace, layout: Layout, mode: Mode | None = None) -> Iterator[pa.RecordBatch]:
    """All rows that are whole: in one moment if they are few, else page by page; ``mode`` as for ``read``."""
    name = layout.schema.qualified
    for _ in range(_LOOKS):
        if connection.call("HLEN", keys.rows(name)) > _ONE_LOOK:
            break
        stored = _one_look(connection, keys, layout, mode)
        if stored is not None:
            yield as_rows(layout, stored)
            return
    for ids, _ in companion(connection, keys, name, _PAGE):
        yield as_rows(layout, read(connection, keys, layout, pa.array(ids, pa.binary()), mode))


def _one_look(connection: _Server, keys: Keyspace, layout: Layout, mode: Mode | None) -> Stored | None:
    """All rows in one moment; None if a work came between the ids and the rows."""
    name = layout.schema.qualified
    before = int(connection.call("HGET", keys.table(name), "works") or 0)
    ids = connection.call("HKEYS", keys.rows(name))
    stored = read(connection, keys, layout, pa.array(ids, pa.binary()), mode)
    return stored if stored.works == before else None
