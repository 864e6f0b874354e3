"""The DuckDB store: one file, fast bulk writes, readers through a door while it runs."""

from syncline.stores.duckdb.door import open_reader
from syncline.stores.duckdb.store import DuckDBConfig, DuckDBStore

__all__ = ["DuckDBConfig", "DuckDBStore", "open_reader"]
