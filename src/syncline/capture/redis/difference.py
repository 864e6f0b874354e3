"""What differs between members and what was last told of them: staged in a DuckDB of its own, joined there, and read
as batches.

Everything is columns; what does not fit into the memory it is given goes through files in a folder for that. Members
are joined some at a time, parted by a hash, since a join of all of them would take far more. No server is asked
anything here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from syncline.capture.redis.settings import Group, MembersConfig, groups_of, schema_of
from syncline.capture.redis.staged import PART, Staged
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
# Taken in at once: a parse and a query cost as much as some thousand rows.
_ROWS, _MOST_ROWS, _MOST_BYTES = 20_000, 100_000, 8 << 20
_PARTS = 32
_HAVE = "held"  # the table of rows that were told, where what was read is
_BITS = 60
_JOINED, _JOINED_BYTES = 400_000, 16 << 20  # values and rows that are joined at once, about


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
    close it. Files go into the folder ``scratch``.

    :meth:`add` comes first, then :meth:`compare`; what is added behind it counts by :meth:`compare_again`. A member
    with a value that can't be read counts as there, and is neither told nor deleted.
    """

    def __init__(self, config: MembersConfig, told: Path | None, scratch: Path) -> None:
        self._config = config
        self.schema: TableSchema = schema_of(config)
        self.groups = groups_of(config)
        # By position: a user's column may have any name, and DuckDB takes no notice of case.
        self._names = {c.name: f"c{n}" for n, c in enumerate(self.schema.columns)} | {
            self.schema.columns[0].name: "member"
        }
        self._db = duckdb.connect(":memory:", config=_settings(config, scratch))
        self._db.execute("set TimeZone = 'UTC'")
        self._kinds = {self._names[c.name]: kind_of_column(c.type) for c in self.schema.columns}
        self._kinds |= {"seq": "bigint", "bad": "varchar"}
        self._pending: dict[Group, list[pa.RecordBatch]] = {}
        self._seen = self._members = self._rows = 0
        self._unknown: Sequence[str] = ()
        self._is_told_staged = False
        self._nameless: set[bytes] = set()
        self._staged = Staged(scratch, max(_PARTS, self._hold(told)))
        self._create()

    @property
    def learned(self) -> bool:
        """Whether the state behind it is another one, though nothing may have to be told."""
        return False

    @property
    def _columns(self) -> list[str]:
        """Our names of the columns behind the key."""
        return list(self._names.values())[1:]

    def close(self) -> None:
        self._staged.close()
        self._db.close()
        pa.default_memory_pool().release_unused()  # it would keep what it had at most, for hours until the next run

    def _create(self) -> None:
        key, *rest = self.schema.columns
        member = f"member {kind_of_column(key.type)}"
        columns = [f"{self._names[c.name]} {kind_of_column(c.type)}" for c in rest]
        self._db.execute(f"create table aside ({member}, bad varchar)")
        self._db.execute(f"create table diff ({member}, op tinyint, {', '.join(columns)})")

    def _hold(self, told: Path | None) -> int:
        """``have`` are the rows that were told; a column that came since is null. In how many parts they are joined."""
        places: list[int | None] = [None] * len(self.schema.columns)
        source, parts = "(select 1) where false", 1
        if told is not None:
            read = pq.read_metadata(told)
            places = places_in(read.metadata[NOTE.encode()].decode(), self.schema)
            self._rows = read.num_rows
            held = sum(read.row_group(n).total_byte_size for n in range(read.num_row_groups))
            parts += max(self._rows * (1 + len(self.groups)) // _JOINED, held // _JOINED_BYTES)
            source = f"read_parquet({quoted(str(told))})"
        kinds = [kind_of_column(c.type) for c in self.schema.columns]
        columns = [
            f"{'null' if place is None else in_file(place)}::{kind} as {ours}"
            for place, kind, ours in zip(places, kinds, self._names.values(), strict=True)
        ]
        columns += self._beside(told)
        self._db.execute(f"create view told as select {', '.join(columns)} from {source}")
        self._db.execute("create view have as from told")
        return parts

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
        waiting = self._pending.setdefault(group, [])
        waiting.append(batch)
        enough = _ROWS if self._staged.parts == 1 else _MOST_ROWS
        if sum(some.num_rows for some in waiting) >= enough or sum(some.nbytes for some in waiting) >= _MOST_BYTES:
            self._take(group)

    def _take(self, group: Group) -> None:
        """Take in what waits of a group."""
        whole = pa.Table.from_batches(self._pending.pop(group)).combine_chunks()
        for batch in whole.to_batches():  # one, below 2 GB
            self._stage(group, self._read(group, batch))

    def _read(self, group: Group, batch: pa.RecordBatch) -> pa.Table:
        """The values as what they are, with their order, and why a member is set aside."""
        types = {c.name: c.type for c in self.schema.columns}
        members, nameless = parsed(batch.column(0), self.schema.columns[0].type, self._config.timezone)
        reasons = pa.nulls(batch.num_rows, pa.string())
        arrays = []
        for name, raw in zip(group.columns, batch.columns[1:], strict=True):
            values, bad = parsed(raw, types[name], self._config.timezone)
            if bad.any():
                reasons = pc.if_else(pa.array(bad), f"column {name} holds no {types[name]}", reasons)
            arrays.append(values)
        seq = pa.array(np.arange(self._seen, self._seen + batch.num_rows))
        self._seen += batch.num_rows
        if nameless.any():
            self._nameless.update(batch.column(0).filter(pa.array(nameless)).to_pylist())
        names = ["member", "seq", "bad", *(self._names[name] for name in group.columns)]
        found = pa.table([members, seq, reasons, *arrays], names=names)
        return found.filter(pa.array(~nameless)) if nameless.any() else found

    def _stage(self, group: Group, rows: pa.Table) -> None:
        values = ", ".join(f"try_cast({name} as {self._kinds[name]}) as {name}" for name in rows.column_names)
        self._db.register("incoming", rows)
        try:
            query = f"select *, ({self._part_of})::smallint as {PART} from (select {values} from incoming)"
            self._staged.add(self._table(group), self._db.sql(query).to_arrow_table())
        finally:
            self._db.unregister("incoming")

    @property
    def _part_of(self) -> str:
        return f"hash(member) % {self._staged.most_parts}"

    def _table(self, group: Group) -> str:
        return f"g{self.groups.index(group)}"

    # ---------------------------------------------------------------------------------------------------- comparing

    def compare(self, unknown: Sequence[str] = ()) -> Counts:
        """Find what differs. Columns in ``unknown`` could not be read, or were not: an existing row keeps them.

        Raises:
            duckdb.Error, OSError: a disk is full.
        """
        self._stage_told()
        self._take_all()
        self._unknown, self._members = unknown, 0
        self._db.execute("delete from diff; delete from aside")
        for part in range(self._staged.parts):
            self._join(part)
        return self.counts()

    def compare_again(self) -> Counts:
        """As :meth:`compare` did, after some of the members that differ were looked at again: only they are."""
        self._take_all()
        fresh = [f"select member from {name}" for name in self._register(None)]
        self._db.execute(f"create or replace table again as select distinct member from ({' union all '.join(fresh)})")
        (known,) = self._one(f"select count(*) from diff semi join again using (member) where op <> {int(Op.DELETE)}")
        self._members -= known  # they are counted anew
        self._db.execute("delete from diff where member in (select member from again)")
        for part in range(self._staged.parts) if known else [None]:  # of those that seemed gone there is nothing else
            self._join(part, "semi join again using (member)")
        return self.counts()

    def _take_all(self) -> None:
        for group in list(self._pending):
            self._take(group)
        self._staged.settle()

    def _stage_told(self) -> None:
        """The rows that were told, parted as what was read is; once."""
        if not self._is_told_staged:
            reader = self._db.sql(f"select *, {self._part_of} as {PART} from have").to_arrow_reader(_MOST_ROWS)
            for rows in reader:
                self._staged.add(_HAVE, pa.Table.from_batches([rows]))
            self._is_told_staged = True

    def _register(self, part: int | None) -> list[str]:
        """Let the names of the groups' tables stand for their rows in a part, or for those that came since the
        comparison; the names."""
        for group in self.groups:
            found = self._staged.of(self._table(group), part)
            self._db.register(self._table(group), self._nothing(group) if found is None else found)
        return [self._table(group) for group in self.groups]

    def _join(self, part: int | None, which: str = "") -> None:
        """Add the differences of some members of a part, and those of them that are set aside."""
        self._register(part)
        self._find(which)
        have = f"select * from have {which}"
        if part is not None and (held := self._staged.of(_HAVE, part)) is not None:
            self._db.register(_HAVE, held)
            have = f"select * from {_HAVE} {which}"
        known = [self._names[c.name] for c in self.schema.columns[1:] if c.name not in self._unknown]
        different = " or ".join(f"f.{name} is distinct from h.{name}" for name in known) or "false"
        values = ", ".join(f"f.{name}" if name in known else _kept(name) for name in self._columns)
        new, gone, other = int(Op.INSERT), int(Op.DELETE), int(Op.UPDATE)
        self._members += self._one("select count(*) from found")[0]
        self._db.execute("insert into aside select member, bad from found where bad is not null")
        self._db.execute(
            f"""insert into diff select coalesce(f.member, h.member) as member,
              case when h.member is null then {new} when f.member is null then {gone} else {other} end as op,
              {values} from found f full join ({have}) h on f.member = h.member
              where f.bad is null and (h.member is null or f.member is null or {different})"""
        )

    def _find(self, which: str) -> None:
        """Make the table ``found``: one row a member, of the values of all groups; of what came twice, what came last.
        Most often nothing did, and to choose costs ten times as much."""
        for last in (False, True) if len(self.groups) < _BITS else (True,):
            self._db.execute(f"create or replace table found as {self._found(which, last=last)}")
            if last or not self._one("select bool_or(twice) from found")[0]:
                return

    def _found(self, which: str, *, last: bool) -> str:
        parts, columns = [], {}
        for n, group in enumerate(self.groups):
            mine = [self._names[name] for name in group.columns]
            parts.append(f"select member, seq, bad, {n} as part, {', '.join(mine)} from {self._table(group)} {which}")
            for name, ours in zip(group.columns, mine, strict=True):
                chosen = f"arg_max_null({ours}, seq) filter (part = {n})" if last else f"any_value({ours})"
                columns[ours] = f"coalesce({chosen}, {self._default(name)}) as {ours}"
        bad = ", ".join(f"arg_max_null(bad, seq) filter (part = {n})" for n in range(len(parts)))
        twice = "false" if last else "count(*) <> bit_count(bit_or(1::bigint << part))"
        chosen = ", ".join(columns[name] for name in self._columns)
        return f"""select member, {f"coalesce({bad}, null)" if last else "any_value(bad)"} as bad, {chosen},
              {twice} as twice from ({" union all by name ".join(parts)}) group by member"""

    def _nothing(self, group: Group) -> pa.Table:
        """No values of a group."""
        types = {c.name: c.type for c in self.schema.columns}
        columns = [(self._names[name], arrow_type(types[name])) for name in group.columns]
        key = ("member", arrow_type(self.schema.columns[0].type))
        return pa.schema([key, ("seq", pa.int64()), ("bad", pa.string()), *columns]).empty_table()

    def _default(self, name: str) -> str:
        column = self._config.columns[name]
        if column.default is None:
            return "null"
        text = str(column.default).replace("'", "''")
        return f"cast('{text}' as {kind_of_column(column.type)})"

    def counts(self) -> Counts:
        """What the differences are now."""
        by_op = dict(self._db.execute("select op, count(*) from diff group by op").fetchall())
        (bad,) = self._one("select count(*) from aside")
        created, updated, deleted = (by_op.get(int(op), 0) for op in (Op.INSERT, Op.UPDATE, Op.DELETE))
        nameless = len(self._nameless)
        return Counts(self._members + nameless, self._rows, created, updated, deleted, bad + nameless)

    def _one(self, query: str) -> tuple[Any, ...]:
        (row,) = self._db.execute(query).fetchall()
        return tuple(row)

    def set_aside(self) -> Iterator[tuple[str, str]]:
        """Members that can't be written, and why. What has no readable name is not among them."""
        yield from self._db.execute("select member::varchar, bad from aside").fetchall()

    @property
    def nameless(self) -> list[bytes]:
        """Members whose name is no value of the key column, as Redis has them."""
        return sorted(self._nameless)

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
        note = quoted(note_of(self.schema))
        files = [f"{name} as {in_file(place)}" for place, name in enumerate(self._names.values())]
        self._db.execute(
            f"""copy (select {", ".join(files)} from (
                select {columns} from told anti join diff using (member)
                union all select {columns} from diff where op <> {int(Op.DELETE)}))
              to {quoted(str(path))} (format parquet, row_group_size {_ROWS}, kv_metadata {{{NOTE}: {note}}})"""
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


def kind_of_column(logical: str) -> str:
    """DuckDB's name of a logical type."""
    return logical.replace("numeric", "decimal") if logical.startswith("numeric") else _KINDS[logical]
