"""Filters and transforms that users write: DuckDB's SQL over a batch, or a Python callable on a ``pyarrow.Table``.

Both see the source's columns under the source's names, and only whole rows. SQL runs in a DuckDB of its own, in memory,
that can reach no file and no network.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

import duckdb
import pyarrow as pa

from syncline.change import TableSchema, arrow_type
from syncline.errors import Misconfigured

__all__ = [
    "Failed",
    "Filter",
    "PythonTransform",
    "SqlTransform",
    "Transform",
    "empty_rows",
    "load_callable",
    "source_digest",
]

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*\Z")
_ROW = "_syncline_row"


class Failed(Exception):
    """The user's code failed on a batch; the message names the kind of error and no values (Guarantee 11)."""


class _Sql:
    """Runs a query over one Arrow table at a time. Any thread."""

    def __init__(self) -> None:
        settings: dict[str, Any] = {"threads": 1, "enable_external_access": False, "python_enable_replacements": False}
        self._connection = duckdb.connect(":memory:", config=settings)
        self._connection.execute("set TimeZone = 'UTC'")
        self._lock = threading.Lock()

    def run(self, query: str, batch: pa.Table) -> pa.Table:
        with self._lock:
            self._connection.register("batch", batch)
            try:
                return self._connection.sql(query).to_arrow_table()
            finally:
                self._connection.unregister("batch")

    def is_single(self, query: str) -> bool:
        """Whether the query is one statement, and not text that ends one and begins another."""
        with self._lock:
            return len(self._connection.extract_statements(query)) == 1

    def tree(self, query: str) -> Any:
        """The query's condition as DuckDB's parser sees it (DuckDB's manual, "SQL to and from JSON"); None where the
        query is not one that selects by a condition."""
        with self._lock:
            ((text,),) = self._connection.execute("select json_serialize_sql(?::varchar)", [query]).fetchall()
        (statement,) = json.loads(text)["statements"]
        return statement["node"].get("where_clause")


def _referred(node: Any, known: set[str]) -> set[str] | None:
    """Columns, in lower case, that a tree of DuckDB's parser refers to by their names; None if it also refers to some
    in other ways: all at once, by position, by pattern, through the row as a whole or through a query of its own."""
    if isinstance(node, list):
        parts = [_referred(inner, known) for inner in node]
    elif not isinstance(node, dict):
        return set()
    elif node.get("class") in ("STAR", "POSITIONAL_REFERENCE", "SUBQUERY", "LAMBDA"):
        return None
    elif node.get("class") == "COLUMN_REF":
        first, *_ = names = [name.lower() for name in node["column_names"]]
        if first == "batch" and len(names) > 1:
            first = names[1]
        return {first} if first in known else None
    else:
        parts = [_referred(inner, known) for inner in node.values()]
    return None if None in parts else set().union(*(part for part in parts if part is not None))


def empty_rows(source: TableSchema) -> pa.Table:
    """A table without rows that has the source's columns."""
    return pa.schema([(c.name, arrow_type(c.type)) for c in source.columns]).empty_table()


class Filter:
    """A condition that rows have to meet. NULL is not true. ``columns`` are those that it is computed from, or more.

    Raises:
        Misconfigured: it is no condition on this table.
    """

    def __init__(self, source: TableSchema, condition: str) -> None:
        self._sql = _Sql()
        self._query = f'select "{_ROW}" from batch where ({condition}\n) order by 1'
        what = f"The condition `where` of table {source.qualified}"
        remedy = "It is SQL of DuckDB over the table's columns."
        try:
            self.positions(empty_rows(source))
        except Failed as error:
            raise Misconfigured(f"{what} can't be used: {error.__cause__}.", remedy=remedy) from error
        tree = self._sql.tree(self._query) if self._sql.is_single(self._query) else None
        if tree is None:
            raise Misconfigured(f"{what} is more than one condition.", remedy=remedy)
        names = [c.name for c in source.columns]
        found = _referred(tree, {name.lower() for name in names})
        self.columns = {name for name in names if found is None or name.lower() in found}

    def positions(self, rows: pa.Table) -> pa.Array:
        """Numbers of the rows that meet it.

        Raises:
            Failed: it can't be computed for some row.
        """
        numbered = rows.append_column(_ROW, pa.array(range(rows.num_rows), pa.int64()))
        try:
            return self._sql.run(self._query, numbered).column(0).combine_chunks()
        except duckdb.Error as error:
            raise Failed(type(error).__name__) from error


class Transform(Protocol):
    """Turns whole rows into others, at most one a key: by SQL or by Python."""

    def rows(self, rows: pa.Table) -> pa.Table:
        """What becomes of the rows. Raises Failed if the user's code does."""


class SqlTransform:
    """``select ... from batch``."""

    def __init__(self, query: str) -> None:
        self._sql = _Sql()
        self._query = query

    def rows(self, rows: pa.Table) -> pa.Table:
        try:
            return self._sql.run(self._query, rows)
        except duckdb.Error as error:
            raise Failed(type(error).__name__) from error


class PythonTransform:
    """``module:function`` from a ``pyarrow.Table`` to a ``pyarrow.Table``."""

    def __init__(self, reference: str) -> None:
        self.function = load_callable(reference)

    def rows(self, rows: pa.Table) -> pa.Table:
        try:
            result = self.function(rows)
        except Exception as error:
            raise Failed(type(error).__name__) from error
        if not isinstance(result, pa.Table):
            raise Failed(f"it returned a {type(result).__name__}, not a pyarrow.Table")
        return result


def load_callable(reference: str) -> Callable[..., Any]:
    """The function that ``module:function`` names.

    Raises:
        Misconfigured: there is none.
    """
    module, _, name = reference.partition(":")
    if not _REFERENCE.fullmatch(reference):
        raise Misconfigured(f"{reference!r} does not name a function.", remedy="Write module:function.")
    try:
        found = getattr(import_module(module), name)
    except (Exception, SystemExit) as error:
        raise Misconfigured(
            f"The function {reference} can't be loaded: {type(error).__name__}: {error}.",
            remedy="Its module must be on Python's path (PYTHONPATH) and importable.",
        ) from error
    if not callable(found):
        raise Misconfigured(f"{reference} is no function.")
    return found


def source_digest(function: Callable[..., Any]) -> str:
    """A digest of a function's own text, so that a changed one changes the mapping's fingerprint."""
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        text = getattr(function, "__qualname__", "")
    return hashlib.sha256(text.encode()).hexdigest()[:16]
