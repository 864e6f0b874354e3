"""The schema of a table's batches, from the catalogue."""

from __future__ import annotations

from collections.abc import Sequence

from syncline.capture.identity import key_columns, usable_identity
from syncline.capture.tables import TableInfo
from syncline.change import Column, TableSchema
from syncline.errors import SCHEMA_DRIFT, Gap, Misconfigured
from syncline.pgvalues.pgtypes import logical_type

__all__ = ["table_schema"]


def table_schema(info: TableInfo, column_names: Sequence[str] | None = None) -> TableSchema:
    """The schema of batches of this table, with these columns in this order (as a RELATION message has them).

    Without names: all columns that pgoutput publishes unasked, which are those that are not generated.

    Raises:
        Gap: the catalogue no longer has one of the columns (``SL-SCHEMA-DRIFT``).
        Misconfigured: the columns don't hold the whole key.
    """
    if column_names is None:
        column_names = [c.name for c in info.columns if not c.generated]
    key = key_columns(info)
    absent = [c for c in key if c not in column_names]
    if absent or not key:
        raise Misconfigured(
            f"Table {info.qualified} is captured without its whole key ({', '.join(absent) or 'it has none'}).",
            remedy=usable_identity(info) or "Add these columns to the column list of the publication.",
        )
    return TableSchema(info.namespace, info.name, tuple(_column(info, name, name in key) for name in column_names))


def _column(info: TableInfo, name: str, key: bool) -> Column:
    found = info.column(name)
    if found is None:
        raise Gap(
            f"Column {name} of table {info.qualified} is in the stream, but no longer in the catalogue.",
            remedy="The table has to be read again, which on_gap: resync does by itself.",
            code=SCHEMA_DRIFT,
        )
    return Column(name, logical_type(found.base_type_oid, found.base_typmod), found.type_name, key)
