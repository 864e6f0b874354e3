"""Changes that say what they rest on: written only where the row still is that, under locks (docs/both-ways.md).

PostgreSQL's own order is the one that counts, so a change that comes too late loses. Its writer gets the row as it is
here by the way that every change takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from syncline.stores import Folded, TableWork
from syncline.stores.postgres.server import Connection
from syncline.stores.postgres.sql import Statements
from syncline.stores.postgres.tables import TableState

__all__ = ["met"]


def met(connection: Connection, work: TableWork, state: TableState) -> tuple[TableWork, int]:
    """The work without the changes that may not be written, inside the caller's transaction, and how many of those met
    another edit; the rest of them want what is there already."""
    bases = None if work.bases is None else _of_rows(work, work.bases)
    if bases is None or not bases.num_rows:
        return work, 0
    texts, sql = bases.column(bases.num_columns - 1).to_pylist(), _Judging(Statements(state.target))
    connection.execute(sql.lock, [texts])
    judged = connection.execute(sql.judge, [texts]).fetchall()
    lost, overruled = {n - 1 for n, _ in judged}, sum(not agrees for _, agrees in judged)
    left = [n for n in range(len(texts)) if n not in lost]
    # A row that somebody inserts meanwhile can't be locked: what comes as new is put there only where there is nothing.
    late = connection.execute(sql.claim, [[texts[n] for n in left]]).fetchall() if left else []
    lost |= {left[n - 1] for (n,) in late}
    keys = bases.column(0).take(pa.array(sorted(lost), pa.int64()))
    return _without(work, keys), overruled + len(late)


def _of_rows(work: TableWork, bases: pa.RecordBatch) -> pa.RecordBatch:
    """Those of rows that are still to be written: what was parked says what it rests on too, and would be refused once
    more as it is put there."""
    found = [
        rows.column(at).cast(bases.column(0).type)
        for rows, at in ((work.rows.upserts, work.schema.key_positions[0]), (work.rows.deletes, 0))
        if rows is not None
    ]
    return bases.filter(pc.is_in(bases.column(0), value_set=pa.chunked_array(found, bases.column(0).type)))


def _without(work: TableWork, keys: pa.Array) -> TableWork:
    if not len(keys):
        return work
    upserts = _filtered(work.rows.upserts, work.schema.key_positions, keys)
    return replace(work, rows=Folded(upserts, work.rows.partials, _filtered(work.rows.deletes, (0,), keys)))


def _filtered(rows: pa.RecordBatch | None, key: Sequence[int], keys: pa.Array) -> pa.RecordBatch | None:
    if rows is None:
        return None
    (at,) = key  # who says what changes rest on has one key column
    return rows.filter(pc.invert(pc.is_in(rows.column(at), value_set=keys.cast(rows.column(at).type))))


class _Judging:
    """The statements of one table. ``o`` is the row that a change rests on, ``w`` the one that is wanted, ``t`` the one
    that is there; one that there is not has a NULL key."""

    def __init__(self, statements: Statements) -> None:
        self._table, self._columns, (self._key,) = statements.table, statements.columns, statements.keys
        rows = ", ".join(
            f"jsonb_populate_record(null::{self._table}, nullif(u.b::jsonb -> '{word}', 'null')) as {letter}"
            for word, letter in (("base", "o"), ("new", "w"))
        )
        self._given = f"(select u.n, {rows} from unnest($1::text[]) with ordinality as u(b, n)) as i"

    @property
    def _wanted(self) -> str:
        return f"coalesce((i.o).{self._key}, (i.w).{self._key})"

    def _is(self, row: str) -> str:
        """Whether the row that is there is this one."""
        there = ", ".join(f"t.{c}" for c in self._columns)
        given = ", ".join(f"(i.{row}).{c}" for c in self._columns)
        return f"(row({there}) is not distinct from row({given}))"

    @property
    def lock(self) -> str:
        return (
            f"select from {self._table} as t where t.{self._key} in (select {self._wanted} from {self._given})"
            f" order by t.{self._key} for no key update"
        )

    @property
    def judge(self) -> str:
        return (
            f"select i.n, {self._is('w')} from {self._given}"
            f" left join {self._table} as t on t.{self._key} = {self._wanted} where not {self._is('o')}"
        )

    @property
    def claim(self) -> str:
        columns, values = ", ".join(self._columns), ", ".join(f"(i.w).{c}" for c in self._columns)
        new = f"from {self._given} where (i.o).{self._key} is null and (i.w).{self._key} is not null"
        return (
            f"with claimed as (insert into {self._table} as t ({columns}) select {values} {new}"
            f" on conflict ({self._key}) do nothing returning t.{self._key} as key)"
            f" select i.n {new} and (i.w).{self._key} not in (select key from claimed)"
        )
