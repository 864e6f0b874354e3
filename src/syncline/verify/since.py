"""Which rows changed since some time, as the log has it: what an incremental comparison looks at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

import pyarrow as pa

from syncline.capture.schema import table_schema
from syncline.capture.tables import TableInfo
from syncline.change import Batch, Entry, TableSchema, Truncate, arrow_type
from syncline.config import LogConfig
from syncline.log.history import history
from syncline.verify.part import OfKeys, distinct, fits

__all__ = ["changed_since"]

_MOST = 200_000  # keys of a table; with more it is compared as a whole
_HEAP = 500_000  # keys that are gathered before those that came twice are left out
# Behind these a table's rows were read, or may have changed without an event: each of them counts.
_WHOLE = frozenset({"load_started", "loaded", "reshaped", "reading", "gap"})


def changed_since(
    log: LogConfig, source: str, tables: Sequence[TableInfo], since: datetime
) -> dict[str, OfKeys | None]:
    """The keys of each table that changed at or after ``since``, by its qualified name; None where all of it has to be
    looked at: it was truncated or loaded since, has another key by now, or too much of it changed.

    Raises:
        Misconfigured: the log does not go back that far.
        Unavailable: the log can't be read.
    """
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
        fields = pa.schema([(c.name, arrow_type(c.type)) for c in self._schema.key])
        batches = pa.concat_tables([fields.empty_table(), *gathered]).combine_chunks().to_batches()
        return distinct(batches[0] if batches else pa.RecordBatch.from_pylist([], fields))
