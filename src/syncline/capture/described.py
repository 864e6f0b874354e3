"""Tables that no catalogue describes, described as one would: by the names of PostgreSQL's types; and their rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import xxhash

from syncline.capture.tables import CatalogColumn, TableInfo
from syncline.change import Batch, Op, TableSchema, make_batch

__all__ = ["TYPE_OIDS", "described", "inserted"]

# PostgreSQL's own numbers of the types, by which all tables are described.
TYPE_OIDS = {
    "boolean": 16,
    "bytea": 17,
    "bigint": 20,
    "smallint": 21,
    "integer": 23,
    "text": 25,
    "json": 114,
    "real": 700,
    "double precision": 701,
    "integer[]": 1007,
    "text[]": 1009,
    "bigint[]": 1016,
    "real[]": 1021,
    "double precision[]": 1022,
    "date": 1082,
    "time without time zone": 1083,
    "timestamp without time zone": 1114,
    "timestamp with time zone": 1184,
    "uuid": 2950,
    "jsonb": 3802,
}
_NUMERIC = 1700


def described(namespace: str, name: str, key: str, columns: Sequence[tuple[str, str]]) -> TableInfo:
    """The table with these columns (name and type), one of which is its key."""
    qualified = f"{namespace}.{name}"
    return TableInfo(
        oid=xxhash.xxh32_intdigest(qualified.encode()),
        namespace=namespace,
        name=name,
        sql_name=".".join('"' + part.replace('"', '""') + '"' for part in (namespace, name)),
        relkind="r",
        persistence="p",
        replica_identity="d",
        primary_key=(key,),
        identity_columns=(key,),
        usable_index=None,
        columns=tuple(_column(*column, key, place) for place, column in enumerate(columns, 1)),
        partition_leaves=(),
        has_children=False,
        row_security=False,
        estimated_rows=0,
        heap_bytes=0,
        size_bytes=0,
    )


def _column(name: str, type_name: str, key: str, place: int) -> CatalogColumn:
    oid, typmod = TYPE_OIDS.get(type_name, _NUMERIC), -1
    if oid == _NUMERIC:
        precision, scale = type_name.removeprefix("numeric(").rstrip(")").split(",")
        typmod = ((int(precision) << 16) | int(scale)) + 4
    return CatalogColumn(
        name=name,
        attnum=place,
        type_oid=oid,
        typmod=typmod,
        type_name=type_name,
        base_type_oid=oid,
        base_typmod=typmod,
        not_null=name == key,
        generated="",
        has_missing_value=False,
        storage="p",
    )


def inserted(schema: TableSchema, columns: Sequence[pa.Array], version: int, first: int) -> Batch:
    """Rows of such a table as inserts of one version, the ``first`` of them with this ordinal."""
    n = len(columns[0])
    return make_batch(
        schema,
        columns,
        op=pa.array(np.full(n, int(Op.INSERT), np.int8)),
        version=pa.array(np.full(n, version)),
        ordinal=pa.array(np.arange(first, first + n)),
        commit_time=pa.array(np.zeros(n, np.int64)).cast(pa.timestamp("us", "UTC")),
        xid=pa.array(np.zeros(n, np.int64)),
    )
