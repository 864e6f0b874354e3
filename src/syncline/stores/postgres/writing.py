"""Writing one table's part of a work: complete, sweep, delete, put. Each step is one statement for the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syncline.change import Column, TableSchema
from syncline.stores import Folded, TableWork
from syncline.stores.postgres.server import Connection
from syncline.stores.postgres.sql import Guard, Incoming, Statements
from syncline.stores.postgres.tables import TableState
from syncline.stores.postgres.wire import Wire, array_of, is_text, sent_as

__all__ = ["TableWriter", "incoming_keys", "inexact_rows", "keys_of", "refused_positions", "subset"]

_VERSION, _INT8 = ("v", "int8"), Column("version", "int8", "bigint")


def incoming_keys(state: TableState, keys: pa.RecordBatch) -> tuple[Incoming, list[Wire]]:
    """Keys alone, with their version if they have one."""
    schema = state.target.schema
    n, names, wires = len(schema.key), [], []
    for k, (column, at) in enumerate(zip(schema.key, schema.key_positions, strict=True)):
        names.append((f"c{k}", sent_as(column, keys.column(k).type)))
        wires.append(array_of(keys.column(k), column, state.target.bases[at]))
    if keys.num_columns > n:
        names.append(_VERSION)
        wires.append(array_of(keys.column(n), _INT8, "int8"))
    return Incoming(tuple(names)), wires


def _incoming_rows(state: TableState, rows: pa.RecordBatch) -> tuple[Incoming, list[Wire]]:
    columns, n = state.target.schema.columns, len(state.target.schema.columns)
    names = [(f"c{i}", sent_as(c, rows.column(i).type)) for i, c in enumerate(columns)]
    wires = [array_of(rows.column(i), c, state.target.bases[i]) for i, c in enumerate(columns)]
    return Incoming((*names, _VERSION)), [*wires, array_of(rows.column(n), _INT8, "int8")]


def _incoming_partials(state: TableState, rows: pa.RecordBatch) -> tuple[Incoming, list[Wire], bool]:
    """Partial rows; and whether some of them come from another key's row."""
    schema, n = state.target.schema, len(state.target.schema.columns)
    given, wires = _incoming_rows(state, rows)
    origins = rows.column(n + 2).flatten()
    at = schema.key_positions
    names = [(f"f{k}", sent_as(c, a.type)) for k, (c, a) in enumerate(zip(schema.key, origins, strict=True))]
    wires += [array_of(a, schema.columns[i], state.target.bases[i]) for i, a in zip(at, origins, strict=True)]
    wires.append(array_of(rows.column(n + 1), Column("mask", "bytes", "bytea"), "bytea"))
    moves = not all(a.equals(rows.column(i)) for i, a in zip(at, origins, strict=True))
    return Incoming((*given.columns, *names, ("m", "bytea"))), wires, moves


def inexact_rows(schema: TableSchema, rows: Folded) -> list[int]:
    """Positions (upserts, then partials) of decimals with more places than their column: PostgreSQL would round them
    without a word. Everything else that does not fit it refuses by itself."""
    bad: list[int] = []
    offset = 0
    for batch in (rows.upserts, rows.partials):
        if batch is None:
            continue
        found = np.zeros(batch.num_rows, np.bool_)
        for values, column in zip(batch.columns, schema.columns, strict=False):
            if column.type.startswith("numeric(") and is_text(column, values.type):
                scale = column.type[:-1].partition(",")[2]
                longer = pc.match_substring_regex(values, rf"\.\d{{{scale}}}\d*[1-9]|[eE]")
                found |= longer.fill_null(False).to_numpy(zero_copy_only=False)
        bad += (np.flatnonzero(found) + offset).tolist()
        offset += batch.num_rows
    return bad


@dataclass
class TableWriter:
    """The steps of one table, inside the caller's transaction. ``lift``: some unique value moves from row to row, so
    the rows that give one up leave the table first. ``acting``: foreign keys act. ``aside``: keys, with versions, of
    rows that are out of the way; only for a trial."""

    connection: Connection
    work: TableWork
    state: TableState
    lift: bool = False
    acting: bool = False
    aside: Sequence[pa.RecordBatch] = ()
    _waiting: list[tuple[str, list[Wire]]] = field(default_factory=list)
    _kept: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._statements = Statements(self.state.target)
        rows, swept = self.work.rows, self.work.truncated
        lowest, buried = _span(self.work.schema, rows)
        truncated = max(self.state.truncated, -1 if swept is None else swept)
        # Guarantee 5, without asking where the answer can only be yes: no tombstone, truncation or horizon is newer
        # than the oldest incoming change. (What a row itself says is looked at by the write, at no cost.)
        self._guard: Guard | None = None
        if lowest < max(truncated, self.state.horizon, self.state.buried):
            self._guard = Guard(truncated, self.state.horizon, -1 if swept is None else swept)
        self.behind = replace(self.state, truncated=truncated, buried=max(self.state.buried, buried))

    def look(self) -> None:
        """Complete the partial rows while everything is as it was before the work.

        They are written at once if nothing else of the work can come in between; else they are kept until then.
        """
        batch = self.work.rows.partials
        if batch is None or not batch.num_rows:
            return
        given, wires, moves = _incoming_partials(self.state, batch)
        relation = self._statements.completed(given, self._guard, moves=moves)
        if moves or self.work.truncated is not None or self.state.target.unique or self.lift:
            relation, wires = self._keep(relation, wires), []
        if moves:
            self.connection.execute(self._statements.record_moves(relation))
        self._waiting.append((relation, wires))

    def sweep(self) -> None:
        """Truncate. Rows that this very work writes stay, to be written in place: a load must not take along what is
        not ours in the rows that it finds again, or what refers to them."""
        if self.work.truncated is None:
            return
        keys = self._written_behind(self.work.truncated)
        spared, wires = incoming_keys(self.state, keys) if keys is not None else (None, [])
        # Behind a large update the planner takes the rows for few, and would go through all keys for each of them.
        self.connection.execute("set local enable_nestloop = off")
        self.connection.execute(self._statements.sweep(self.work.truncated, spared=spared), wires or None)
        self.connection.execute("set local enable_nestloop to default")

    def _written_behind(self, version: int) -> pa.RecordBatch | None:
        """Keys of whole rows that are newer."""
        rows, schema = self.work.rows.upserts, self.state.target.schema
        if rows is None or not rows.num_rows:
            return None
        newer = rows.filter(pc.greater(rows.column(len(schema.columns)), version))
        return newer.select(list(schema.key_positions)) if newer.num_rows else None

    def delete(self) -> None:
        """Remove keys, and leave tombstones."""
        for batch in (*self.aside, self.work.rows.deletes):
            if batch is not None and batch.num_rows:
                given, wires = incoming_keys(self.state, batch)
                self.connection.execute(self._statements.delete(given, self.behind.truncated), wires)

    def put(self) -> None:
        """Write the partial rows and the whole ones."""
        batch = self.work.rows.upserts
        if batch is not None and batch.num_rows:
            given, wires = _incoming_rows(self.state, batch)
            relation = self._statements.whole(given, self._guard)
            if self.lift:
                relation, wires = self._keep(relation, wires), []
            self._waiting.append((relation, wires))
        if self.lift and self.state.target.unique:
            self._exchange([relation for relation, _ in self._waiting])
        for relation, wires in self._waiting:
            self.connection.execute(self._statements.put(relation), wires or None)

    def record(self) -> None:
        """Note what the next work needs to know, and let go of what was kept."""
        own, state, behind = self.state.target.own, self.state, self.behind
        if (behind.truncated, behind.buried) != (state.truncated, state.buried):
            self.connection.execute(
                f"update {own}.tables set truncated = $1, buried = $2 where name = $3",
                [behind.truncated, behind.buried, state.target.schema.qualified],
            )
        if self._kept:
            self.connection.execute(f"drop table {', '.join(self._kept)}")

    def _keep(self, relation: str, wires: list[Wire]) -> str:
        name = f"pg_temp.syncline_{self.state.target.number}_{len(self._kept)}"
        self.connection.execute(self._statements.keep(name, relation), wires or None)
        self._kept.append(name)
        return name

    def _exchange(self, relations: Sequence[str]) -> None:
        """All rows that give up a unique value leave before one comes back with another."""
        pairs = [(r, self._keep(self._statements.movers(r, acting=self.acting), [])) for r in relations]
        for _, movers in pairs:
            self.connection.execute(self._statements.lift(movers))
        for relation, movers in pairs:
            self.connection.execute(self._statements.settle(relation, movers))


def _span(schema: TableSchema, rows: Folded) -> tuple[int, int]:
    """The smallest version of all, and the greatest of a delete."""
    lowest, buried = 2**63 - 1, 0
    n, deletes = len(schema.columns), rows.deletes
    for batch, place in ((rows.upserts, n), (rows.partials, n), (deletes, len(schema.key))):
        if batch is not None and batch.num_rows:  # by position: a column of the table may have any name
            lowest = min(lowest, pc.min(batch.column(place)).as_py())
    if deletes is not None and deletes.num_rows:
        buried = pc.max(deletes.column(len(schema.key))).as_py()
    return lowest, buried


# ------------------------------------------------------------------------------------------------------------ blame


def refused_positions(positions: Sequence[int], refuses: Callable[[Sequence[int]], bool]) -> list[int]:
    """Those of the positions that are refused, found by halving."""
    if not positions or not refuses(positions):
        return []
    if len(positions) == 1:
        return list(positions)
    middle = len(positions) // 2
    return refused_positions(positions[:middle], refuses) + refused_positions(positions[middle:], refuses)


def keys_of(work: TableWork) -> list[pa.RecordBatch]:
    """The keys, with versions, of the stored rows that the work changes."""
    schema, rows, found = work.schema, work.rows, []
    n = len(schema.columns)
    if rows.upserts is not None:
        found.append(rows.upserts.select([*schema.key_positions, n]))
    if rows.partials is not None:
        columns = [*rows.partials.column(n + 2).flatten(), rows.partials.column(n)]
        found.append(pa.RecordBatch.from_arrays(columns, names=[*(c.name for c in schema.key), "version"]))
    return found if rows.deletes is None else [*found, rows.deletes]


def subset(work: TableWork, positions: Sequence[int]) -> TableWork:
    """The work with these positions alone."""
    chosen, parts, offset = np.asarray(positions, dtype=np.int64), [], 0
    for batch in (work.rows.upserts, work.rows.partials, work.rows.deletes):
        count = 0 if batch is None else batch.num_rows
        mine = chosen[(chosen >= offset) & (chosen < offset + count)] - offset
        parts.append(batch.take(pa.array(mine)) if batch is not None and len(mine) else None)
        offset += count
    return TableWork(work.schema, Folded(*parts), work.truncated)
