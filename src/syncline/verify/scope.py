"""Which rows a comparison is about, where these are not all: those that changed since some time, as the log has it, or
those with keys that somebody named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from syncline.capture.schema import table_schema
from syncline.capture.tables import TableInfo
from syncline.change import Batch, Entry, TableSchema, Truncate, arrow_type
from syncline.config import LogConfig
from syncline.errors import Misconfigured
from syncline.log.history import history
from syncline.verify.keys import key_of
from syncline.verify.part import OfKeys, distinct, fits

__all__ = ["EVERYTHING", "Scope"]

_MOST = 200_000  # keys of a table; with more it is compared as a whole
_HEAP = 500_000  # keys that are gathered before those that came twice are left out
# Behind these a table's rows were read, or may have changed without an event: each of them counts.
_WHOLE = frozenset({"load_started", "loaded", "reshaped", "reading", "gap"})


@dataclass(frozen=True, slots=True)
class Scope:
    """Rows that changed at or after ``since``, a time with its zone, or rows with these ``ids``: keys as people write
    them, several columns joined by ", ". Without either all rows."""

    since: datetime | None = None
    ids: frozenset[str] | None = None

    @property
    def everything(self) -> bool:
        """Whether no row is left out."""
        return self.since is None and self.ids is None

    def keys(self, log: LogConfig, source: str, tables: Sequence[TableInfo]) -> Mapping[str, OfKeys | None]:
        """The keys to look at of each table, by its qualified name; None where all of it has to be looked at: with
        ``since`` because it was truncated or loaded, has another key by now, or too much of it changed.

        Raises:
            Misconfigured: the log does not go back that far, or an id is none of its table's type.
            Unavailable: the log can't be read.
        """
        if self.ids is not None:
            return _named(tables, self.ids)
        return _changed_since(log, source, tables, self.since) if self.since is not None else {}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; of named keys only how many."""
        found: dict[str, Any] = {"since": self.since.astimezone(UTC).isoformat()} if self.since is not None else {}
        return found | ({"ids": len(self.ids)} if self.ids is not None else {})


EVERYTHING = Scope()


def _named(tables: Sequence[TableInfo], ids: frozenset[str]) -> dict[str, OfKeys | None]:
    """The keys in each table. Of several tables each may know some of the ids; one that none knows is refused."""
    found: dict[str, OfKeys | None] = {}
    unknown: dict[str, Misconfigured] = {}
    known: set[str] = set()
    for info in tables:
        schema = table_schema(info)
        keys = []
        for one in sorted(ids):
            try:
                keys.append(pa.Table.from_batches([key_of(schema, one.split(", ") if len(schema.key) > 1 else [one])]))
                known.add(one)
            except Misconfigured as error:
                unknown[one] = error
        batch = distinct(_one_batch(keys, _key_fields(schema)))
        found[info.qualified] = OfKeys(batch, batch.num_rows, alone=True)
    for one in sorted(unknown.keys() - known):
        raise unknown[one]
    return found


def _changed_since(
    log: LogConfig, source: str, tables: Sequence[TableInfo], since: datetime
) -> dict[str, OfKeys | None]:
    found = {info.qualified: _Changed(table_schema(info)) for info in tables}
    for entry in history(log, source, since):
        for name, keys in _touched(entry):
            if name in found:
                found[name].add(keys)
    return {name: one.keys() for name, one in found.items()}


def _touched(entry: Entry) -> Iterator[tuple[str, pa.Table | None]]:
    """Names of tables with the keys that an entry changes; None: any of them."""
    for item in entry.items:
        if isinstance(item, Batch):
            for keys in _keys_of(item):
                yield item.schema.qualified, keys
        elif isinstance(item, Truncate):
            yield item.schema.qualified, None
        elif item.kind in _WHOLE:
            yield item.table, None


def _keys_of(batch: Batch) -> Iterator[pa.Table]:
    """The keys of a batch's rows, and those that rows had before."""
    names = [c.name for c in batch.schema.key]
    yield pa.table([batch.rows.column(i) for i in batch.schema.key_positions], names=names)
    if batch.rekeys:
        old = batch.system("old_key")
        yield pa.table(old.filter(old.is_valid()).flatten(), names=names)


class _Changed:
    """The keys of one table, gathered."""

    def __init__(self, schema: TableSchema) -> None:
        self._schema = schema
        self._names = [c.name for c in schema.key]
        self._gathered: list[pa.Table] | None = []

    def add(self, keys: pa.Table | None) -> None:
        if keys is None or not fits(keys, self._schema):
            self._gathered = None
        if self._gathered is None or keys is None:
            return
        self._gathered.append(keys.rename_columns(self._names))
        if sum(t.num_rows for t in self._gathered) > _HEAP:
            once = self._once(self._gathered)
            self._gathered = [pa.Table.from_batches([once])] if once.num_rows <= _MOST else None

    def keys(self) -> OfKeys | None:
        if self._gathered is None:
            return None
        once = self._once(self._gathered)
        return OfKeys(once, once.num_rows) if once.num_rows <= _MOST else None

    def _once(self, gathered: Sequence[pa.Table]) -> pa.RecordBatch:
        return distinct(_one_batch(gathered, _key_fields(self._schema)))


def _key_fields(schema: TableSchema) -> pa.Schema:
    return pa.schema([(c.name, arrow_type(c.type)) for c in schema.key])


def _one_batch(tables: Sequence[pa.Table], fields: pa.Schema) -> pa.RecordBatch:
    batches = pa.concat_tables([fields.empty_table(), *tables]).combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], fields)
