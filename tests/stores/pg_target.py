"""A PostgreSQL store on a database of the test's own, and plain looks at what it wrote there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from servers import Database
from syncline.change import Column, TableSchema
from syncline.shape import Rows as RowsShape
from syncline.stores.postgres import PostgresConfig, PostgresStore

__all__ = ["config_of", "mapped", "opened", "table_of"]


def config_of(database: Database, **settings: Any) -> PostgresConfig:
    return PostgresConfig.model_validate({"dsn": database.dsn, **settings})


@contextmanager
def opened(
    database: Database, *schemas: TableSchema, source: str = "orders", **settings: Any
) -> Iterator[PostgresStore]:
    """An open store with these tables."""
    store = PostgresStore(config_of(database, **settings), "target")
    try:
        store.open(source)
        for schema in schemas:
            store.migrate(schema)
        yield store
    finally:
        store.close()


def table_of(name: str, *columns: Column, namespace: str = "public") -> TableSchema:
    """A table with the key ``id`` and these columns."""
    return TableSchema(namespace, name, (Column("id", "int8", "bigint", key=True), *columns))


def mapped(schema: TableSchema, namespace: str, name: str, soft_delete: str = "") -> TableSchema:
    """The table, mapped to another place."""
    return TableSchema(schema.namespace, schema.name, schema.columns, RowsShape(namespace, name, soft_delete), "m1")
