"""What differs between members and what was last told of them: staged in a DuckDB of its own, joined there, and read
as batches.

Everything is columns; what does not fit into the memory it is given goes through a file in a temporary folder. No
server is asked anything here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from syncline.capture.redis.settings import Group, MembersConfig, groups_of, schema_of
from syncline.capture.redis.told import NOTE, note_of, places_in
from syncline.capture.redis.values import parsed
from syncline.change import Batch, Op, TableSchema, arrow_type, make_batch

__all__ = ["Counts", "Difference", "in_file", "kind_of_column", "quoted"]

_KINDS = {
    "bool": "boolean",
    "int2": "smallint",
    "int4": "integer",
    "int8": "bigint",
    "float4": "float",
    "float8": "double",
    "text": "varchar",
    "date": "date",
    "timestamp": "timestamp",
    "timestamptz": "timestamptz",
}
_ROWS = 20_000


@dataclass(frozen=True, slots=True)
class Counts:
    """Members that were found, rows that were told, and what has to be told to make them the same."""

    members: int
    rows: int
    created: int
    updated: int
    deleted: int
    set_aside: int


class Difference:
    """Takes in members, and says what differs from the rows in the file ``told`` (None: from nothing). One thread;
    close it.

    :meth:`add` comes first, then :meth:`compare`. A member with a value that can't be read counts as there, and is
    neither told nor deleted.
    """

    def __init__(self, config: MembersConfig, told: Path | None) -> None:
        self._config = config
        self.schema: TableSchema = schema_of(config)
        self.groups = groups_of(config)
        # By position: a user's column may have any name, and DuckDB takes no notice of case.
        self._names = {c.name: f"c{n}" for n, c in enumerate(self.schema.columns)} | {
            self.schema.columns[0].name: "member"
        }
        self._folder = tempfile.TemporaryDirectory(prefix="syncline-diff-")
        self._db = duckdb.connect(":memory:", config=_settings(config, Path(self._folder.name)))
        self._db.execute("set TimeZone = 'UTC'")
        self._kinds = {self._names[c.name]: kind_of_column(c.type) for c in self.schema.columns}
        self._kinds |= {"seq": "bigint", "bad": "varchar"}
        self._pending: dict[str, list[pa.Table]] = {}
        self._seen = 0
        self._nameless = 0
        self._create()
        self._hold(told)

    @property
    def learned(self) -> bool:
        """Whether the state behind it is another one, though nothing may have to be told."""
        return False

    @property
    def _columns(self) -> list[str]:
        """Our names of the columns behind the key."""
        return list(self._names.values())[1:]

    def close(self) -> None:
        self._db.close()
        self._folder.cleanup()

    def _create(self) -> None:
        key, *rest = self.schema.columns
        member = f"member {kind_of_column(key.type)}"
        columns = {c.name: f"{self._names[c.name]} {kind_of_column(c.type)}" for c in rest}
        for n, group in enumerate(self.groups):
            mine = ", ".join(columns[name] for name in group.columns)
            self._db.execute(f"create table g{n} ({member}, seq bigint, bad varchar, {mine})")

    def _hold(self, told: Path | None) -> None:
        """``have`` are the rows that were told; a column that came since is null."""
        places: list[int | None] = [None] * len(self.schema.columns)
        source = "(select 1) where false"
        if told is not None:
            note = pq.read_metadata(told).metadata[NOTE.encode()].decode()
            places = places_in(note, self.schema)
            source = f"read_parquet({quoted(str(told))})"
        kinds = [kind_of_column(c.type) for c in self.schema.columns]
        columns = [
            f"{'null' if place is None else in_file(place)}::{kind} as {ours}"
            for place, kind, ours in zip(places, kinds, self._names.values(), strict=True)
        ]
        columns += self._beside(told)
        self._db.execute(f"create view told as select {', '.join(columns)} from {source}")
        self._db.execute("create view have as from told")

    def _beside(self, told: Path | None) -> list[str]:
        """What else a state knows of a row."""
        return []

    def look_at(self, members: Sequence[bytes]) -> None:
        """Compare these members only."""
        key = self.schema.columns[0]
        names, nameless = parsed(pa.array(members, pa.binary()), key.type, self._config.timezone)
        chosen = pa.table([names.filter(pa.array(~nameless))], names=["member"])
        self._db.register("chosen", chosen)
        self._db.execute("create table looked_at as select distinct member from chosen")
        self._db.unregister("chosen")
        self._db.execute("create or replace view have as from told semi join looked_at using (member)")

    # ---------------------------------------------------------------------------------------------------- taking in

    def add(self, group: Group, batch: pa.RecordBatch) -> None:
        """Values of a group, as :class:`~syncline.capture.redis.reading.KeyReader` gives them; later ones count."""
        if not batch.num_rows:
            return
        key, *rest = self.schema.columns
        kinds = {c.name: c.type for c in rest}
        members, nameless = parsed(batch.column(0), key.type, self._config.timezone)
        reasons = np.full(batch.num_rows, None, object)
        arrays = []
        for name, raw in zip(group.columns, batch.columns[1:], strict=True):
            values, bad = parsed(raw, kinds[name], self._config.timezone)
            reasons[bad] = f"column {name} holds no {kinds[name]}"
            arrays.append(values)
        seq = pa.array(np.arange(self._seen, self._seen + batch.num_rows))
        self._seen += batch.num_rows
        self._nameless += int(nameless.sum())
        names = ["member", "seq", "bad", *(self._names[name] for name in group.columns)]
        found = pa.table([members, seq, pa.array(reasons, pa.string()), *arrays], names=names)
        self._take(f"g{self.groups.index(group)}", found.filter(pa.array(~nameless)))

    def _take(self, table: str, rows: pa.Table) -> None:
        """Keep rows until there are enough of them: an insert costs as much as some thousand rows."""
        self._pending.setdefault(table, []).append(rows)
        if sum(some.num_rows for some in self._pending[table]) >= _ROWS:
            self._insert(table)

    def _insert(self, table: str) -> None:
        for rows in _alike(self._pending.pop(table, [])):
            self._db.register("incoming", rows)
            try:
                values = ", ".join(f"try_cast({name} as {self._kinds[name]})" for name in rows.column_names)
                self._db.execute(f"insert into {table} ({', '.join(rows.column_names)}) select {values} from incoming")
            finally:
                self._db.unregister("incoming")

    # ---------------------------------------------------------------------------------------------------- comparing

    def compare(self, unknown: Sequence[str] = ()) -> Counts:
        """Find what differs. Columns in ``unknown`` could not be read, or were not: an existing row keeps them.

        Raises:
            duckdb.Error: a disk is full.
        """
        for table in list(self._pending):
            self._insert(table)
        known = [self._names[c.name] for c in self.schema.columns[1:] if c.name not in unknown]
        self._db.execute("drop table if exists diff; drop table if exists found")
        self._db.execute(f"create table found as {self._found()}")
        different = " or ".join(f"f.{name} is distinct from h.{name}" for name in known) or "false"
        values = ", ".join(f"f.{name}" if name in known else _kept(name) for name in self._columns)
        new, gone, other = int(Op.INSERT), int(Op.DELETE), int(Op.UPDATE)
        self._db.execute(
            f"""create table diff as select coalesce(f.member, h.member) as member,
              case when h.member is null then {new} when f.member is null then {gone} else {other} end as op,
              {values} from found f full join have h on f.member = h.member
              where f.bad is null and (h.member is null or f.member is null or {different})"""
        )
        return self.counts()

    def _found(self) -> str:
        """One row a member: of what came twice, what came last."""
        parts, columns = [], {}
        for n, group in enumerate(self.groups):
            mine = [self._names[name] for name in group.columns]
            parts.append(f"select member, seq, bad, {n} as part, {', '.join(mine)} from g{n}")
            for name, ours in zip(group.columns, mine, strict=True):
                last = f"arg_max_null({ours}, seq) filter (part = {n})"
                columns[ours] = f"coalesce({last}, {self._default(name)}) as {ours}"
        chosen = ", ".join(columns[name] for name in self._columns)
        bad = ", ".join(f"arg_max_null(bad, seq) filter (part = {n})" for n in range(len(self.groups)))
        return f"""select member, coalesce({bad}, null) as bad, {chosen}
              from ({" union all by name ".join(parts)}) group by member"""

    def _default(self, name: str) -> str:
        column = self._config.columns[name]
        if column.default is None:
            return "null"
        text = str(column.default).replace("'", "''")
        return f"cast('{text}' as {kind_of_column(column.type)})"

    def counts(self) -> Counts:
        """What the differences are now."""
        by_op = dict(self._db.execute("select op, count(*) from diff group by op").fetchall())
        members, rows, bad = self._one(
            "select (select count(*) from found), (select count(*) from told),"
            " (select count(*) from found where bad is not null)"
        )
        created, updated, deleted = (by_op.get(int(op), 0) for op in (Op.INSERT, Op.UPDATE, Op.DELETE))
        return Counts(members + self._nameless, rows, created, updated, deleted, bad + self._nameless)

    def _one(self, query: str) -> tuple[Any, ...]:
        (row,) = self._db.execute(query).fetchall()
        return tuple(row)

    def set_aside(self) -> Iterator[tuple[str, str]]:
        """Members that can't be written, and why. What has no readable name is not among them."""
        yield from self._db.execute("select member::varchar, bad from found where bad is not null").fetchall()

    def members(self, op: Op) -> Iterator[list[bytes]]:
        """Members of one kind of difference as Redis has them, some at a time."""
        with self._db.cursor() as cursor:  # of its own: the caller takes in what it finds of them
            cursor.execute(f"select member::varchar from diff where op = {int(op)}")
            while rows := cursor.fetchmany(_ROWS):
                yield [name.encode() for (name,) in rows]

    def forget_deletes(self) -> None:
        """Leave out what would be deleted."""
        self._db.execute(f"delete from diff where op = {int(Op.DELETE)}")

    # ---------------------------------------------------------------------------------------------------- handing out

    def batches(self, version: int, commit_time: int, rows: int) -> Iterator[Batch]:
        """The differences as changes of the table, all of one version, so many in a batch."""
        query = f"select {', '.join(self._handed_out)} from diff order by op = {int(Op.DELETE)}"
        first = 0
        with self._db.cursor() as cursor:
            for found in cursor.sql(query).to_arrow_reader(rows):
                if found.num_rows:
                    yield self._changes(found, version, commit_time, first)
                first += found.num_rows

    @property
    def _handed_out(self) -> list[str]:
        return ["op", "member", *self._columns]

    def _changes(self, rows: pa.RecordBatch, version: int, commit_time: int, first: int) -> Batch:
        n = rows.num_rows
        columns = [a.cast(arrow_type(c.type)) for a, c in zip(rows.columns[1:], self.schema.columns, strict=True)]
        return make_batch(
            self.schema,
            columns,
            op=rows.column(0).cast(pa.int8()),
            version=pa.array(np.full(n, version)),
            ordinal=pa.array(np.arange(first, first + n)),
            commit_time=pa.array(np.full(n, commit_time)).cast(pa.timestamp("us", "UTC")),
            xid=pa.array(np.zeros(n, np.int64)),
        )

    def write(self, path: Path) -> None:
        """Write the rows as they are once the differences are told."""
        columns = f"member, {', '.join(self._columns)}"
        files = [f"{name} as {in_file(place)}" for place, name in enumerate(self._names.values())]
        self._db.execute(
            f"""copy (select {", ".join(files)} from (
                select {columns} from told anti join diff using (member)
                union all select {columns} from diff where op <> {int(Op.DELETE)}))
              to {quoted(str(path))} (format parquet, kv_metadata {{{NOTE}: {quoted(note_of(self.schema))}}})"""
        )


def in_file(place: int) -> str:
    """What a column is called in a file: a user's column may have any name."""
    return f"c{place}"


def quoted(text: str) -> str:
    """A literal."""
    return "'" + text.replace("'", "''") + "'"


def _kept(name: str) -> str:
    """A column that is not known now: what was told, of a member of whom something was."""
    return f"case when f.member is null then null when h.member is null then f.{name} else h.{name} end as {name}"


def _settings(config: MembersConfig, folder: Path) -> dict[str, Any]:
    return {
        "threads": 2,
        "memory_limit": f"{config.memory_mb}MB",
        "temp_directory": str(folder),
        "preserve_insertion_order": False,
        "python_enable_replacements": False,
    }


def _alike(tables: Sequence[pa.Table]) -> Iterator[pa.Table]:
    """Tables put together as far as they have the same types: a column with odd values comes as text."""
    by_types: dict[str, list[pa.Table]] = {}
    for table in tables:
        by_types.setdefault(str(table.schema.types), []).append(table)
    yield from (pa.concat_tables(some) for some in by_types.values())


def kind_of_column(logical: str) -> str:
    """DuckDB's name of a logical type."""
    return logical.replace("numeric", "decimal") if logical.startswith("numeric") else _KINDS[logical]
