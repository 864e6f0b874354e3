"""What applications changed in rows that Syncline writes too: compared with what each row rests on, never with what was
told alone (docs/both-ways.md, docs/decisions/0024).

The target keeps beside each row what it last wrote and under which version; of a row that is gone there is when it
went. Where that is another one than when the row was last looked at, the row rests on what was written;
else on what was told of it. A row that is what it rests on is no change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from syncline.capture.redis.difference import Counts, Difference, in_file, kind_of_column, quoted
from syncline.capture.redis.told import AWAY, NOTE, note_of
from syncline.capture.redis.values import OTHER_KIND, parsed
from syncline.change import Batch, Op

__all__ = ["Meeting"]

_SEEN = "seen"


class _Base(msgspec.Struct):
    """What the target keeps of a row: its version as text, and the fields of its hash."""

    v: str
    h: dict[str, str]


_decoder = msgspec.json.Decoder(_Base)


class Meeting(Difference):
    """A :class:`~syncline.capture.redis.difference.Difference` of rows that are edited on both sides. Its states know
    under which version each row was seen written, and rows that were deleted here and not yet there."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def learned(self) -> bool:
        """Whether some row is not what the former state says; not one that stays though it is gone."""
        there = f"(there and (seen is distinct from hseen or {self._differ('c', 'h')}))"
        (found,) = self._one(f"select count(*) from judged where {self._settled} and (there <> held or {there})")
        return bool(found)

    @property
    def _settled(self) -> str:
        """Whether the state behind it has the row as it was found."""
        return "bad is null and (there or not based or member in (select member from diff))"

    def _differ(self, one: str, other: str) -> str:
        pairs = [f"{one}{n} is distinct from {other}{n}" for n in self._numbers]
        return f"({' or '.join(pairs)})"

    @property
    def _numbers(self) -> range:
        return range(1, len(self.schema.columns))

    def _create(self) -> None:
        kinds = {"there": "boolean", "written": "boolean", "odd": "boolean", _SEEN: "varchar"}
        kinds |= {f"b{n}": kind_of_column(self.schema.columns[n].type) for n in self._numbers}
        kinds |= {f"t{n}": "varchar" for n in self._numbers}
        self._kinds |= kinds
        own = ", ".join(f"{name} {self._kinds[name]}" for name in ["member", "seq", "bad", *self._columns, *kinds])
        super()._create()
        self._db.execute(f"create table looks ({own})")

    def _beside(self, told: Path | None) -> list[str]:
        known = told is not None and _SEEN in pq.read_schema(told).names
        return [_SEEN, AWAY] if known else [f"null::varchar as {_SEEN}", f"false as {AWAY}"]

    def look(self, found: pa.RecordBatch) -> None:
        """Take in members as :meth:`~syncline.capture.redis.reading.KeyReader.meet` gives them; later ones count."""
        if not found.num_rows:
            return
        key, *rest = self.schema.columns
        (group,) = self.groups
        members, nameless = parsed(found.column(0), key.type, self._config.timezone)
        kept = [None if base is None else _decoder.decode(base) for base in found.column(2).to_pylist()]
        reasons, odd = np.full(found.num_rows, None, object), np.zeros(found.num_rows, np.bool_)
        # A row without a value is a hash without a field, which Redis does not have.
        empty = pa.array([base is not None and not base.h for base in kept], pa.bool_())
        there = pc.or_(found.column(1), empty)
        arrays: dict[str, Any] = {"member": members, "there": there}
        went = [gone.decode() for gone in found.column(3).to_pylist()]
        seen = [f"gone {gone}" if base is None else base.v for base, gone in zip(kept, went, strict=True)]
        arrays[_SEEN] = pa.array(seen, pa.string())
        arrays["written"] = pa.array([base is not None for base in kept], pa.bool_())
        for n, column in enumerate(rest, 1):
            at = group.columns.index(column.name)
            raw = pa.array([None if b is None else _field(b, group.fields[at]) for b in kept], pa.binary())
            arrays[f"t{n}"] = raw.cast(pa.string())
            for letter, texts in (("c", found.column(4 + at)), ("b", raw)):
                values, bad = parsed(texts, column.type, self._config.timezone)
                arrays[f"{letter}{n}"] = values
                if letter == "c":
                    bad |= _beyond(values)
                    reasons[bad] = f"column {column.name} holds no {column.type}"
                    reasons[_equal(texts, OTHER_KIND)] = "its key is no hash"
                else:
                    odd |= bad
        arrays["seq"] = pa.array(np.arange(self._seen, self._seen + found.num_rows))
        arrays["bad"], arrays["odd"] = pa.array(reasons, pa.string()), pa.array(odd)
        self._seen += found.num_rows
        self._nameless.update(found.column(0).filter(pc.and_(pa.array(nameless), there)).to_pylist())
        self._insert(pa.table(arrays).filter(pa.array(~nameless)))

    def _insert(self, rows: pa.Table) -> None:
        values = ", ".join(f"try_cast({name} as {self._kinds[name]}) as {name}" for name in rows.column_names)
        self._db.register("incoming", rows)
        try:
            self._db.execute(f"insert into looks by name select {values} from incoming")
        finally:
            self._db.unregister("incoming")

    # ---------------------------------------------------------------------------------------------------- comparing

    def compare(self, unknown: Sequence[str] = ()) -> Counts:
        """Find what applications changed. Raises as that of any difference."""
        key = self.schema.columns[0].name
        defaults = {n: self._default(column.name) for n, column in enumerate(self.schema.columns) if n}
        own = [f"case when l.there then coalesce(l.c{n}, {defaults[n]}) end as c{n}" for n in self._numbers]
        had = [f"h.c{n} as h{n}" for n in self._numbers]
        anew = "l.seen is distinct from h.seen"
        base = [f"case when {anew} then coalesce(l.b{n}, {defaults[n]}) else h.c{n} end as o{n}" for n in self._numbers]
        # As it was written: PostgreSQL has values that can't be read here (infinity), and has to know its row again.
        base += [
            f"case when {anew} then coalesce(l.t{n}, {defaults[n]}::varchar) else h.c{n}::varchar end as t{n}"
            for n in self._numbers
        ]
        for table in ("judged", "diff"):
            self._db.execute(f"drop table if exists {table}")
        self._db.execute(
            f"""create table judged as select coalesce(l.member, h.member) as member, coalesce(l.there, false) as there,
              l.bad, l.seen, h.seen as hseen, not coalesce(h.away, true) as held,
              coalesce(l.written, false) as written, coalesce(l.odd, false) and {anew} as odd,
              case when {anew} then coalesce(l.written, false) else not coalesce(h.away, true) end as based,
              {", ".join([*own, *had, *base])}
              from (select * from looks qualify row_number() over (partition by member order by seq desc) = 1) l
              full join have h on l.member = h.member"""
        )
        (self._members,) = self._one("select count(*) from judged where there")
        self._db.execute("delete from aside")
        self._db.execute("insert into aside select member, bad from judged where there and bad is not null")
        objects = {letter: self._object(key, letter) for letter in "tc"}
        self._db.execute(
            f"""create table diff as select member, case when not there then {int(Op.DELETE)}
                when based then {int(Op.UPDATE)} else {int(Op.INSERT)} end as op, {", ".join(self._columns)},
                json_object('base', case when based then {objects["t"]} end,
                            'new', case when there then {objects["c"]} end)::varchar as bases
              from judged where bad is null and (there <> based or (there and (odd or {self._differ("c", "o")})))"""
        )
        return self.counts()

    def compare_again(self) -> Counts:
        return self.compare()

    def counts(self) -> Counts:
        """As that of any difference; a row that was written here is one that may be deleted, told or not yet."""
        (rows,) = self._one("select count(*) from judged where based")
        return replace(super().counts(), rows=rows)

    def _object(self, key: str, letter: str) -> str:
        """A row as an object of texts."""
        pairs = [f"{quoted(key)}, member::varchar"]
        pairs += [f"{quoted(self.schema.columns[n].name)}, {letter}{n}::varchar" for n in self._numbers]
        return f"json_object({', '.join(pairs)})"

    # ---------------------------------------------------------------------------------------------------- handing out

    @property
    def _handed_out(self) -> list[str]:
        return [*super()._handed_out, "bases"]

    def _changes(self, rows: pa.RecordBatch, version: int, commit_time: int, first: int) -> Batch:
        bases = rows.column(rows.num_columns - 1).cast(pa.string())
        plain = rows.select(list(range(rows.num_columns - 1)))
        return super()._changes(plain, version, commit_time, first).with_bases(bases)

    def write(self, path: Path) -> None:
        """Write the rows as they are, each with the version under which it was seen written."""
        files = [*(f"{name} as {in_file(n)}" for n, name in enumerate(self._names.values())), _SEEN, AWAY]
        columns = ", ".join([*self._names.values(), _SEEN])
        settled = f"select {columns}, not there from judged where {self._settled} and (there or written)"
        former = f"select {columns}, {AWAY} from told anti join (select member from judged where {self._settled})"
        note = f"{{{NOTE}: {quoted(note_of(self.schema))}}}"
        self._db.execute(
            f"""copy (select {", ".join(files)} from (
                {former} using (member) union all {settled}))
              to {quoted(str(path))} (format parquet, kv_metadata {note})"""
        )


def _field(base: _Base, name: str) -> bytes | None:
    value = base.h.get(name)
    return None if value is None else value.encode()


def _beyond(values: pa.Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which are of years that come back as a text that can't be read here: each run would tell them once more."""
    if not pa.types.is_temporal(values.type):
        return np.zeros(len(values), np.bool_)
    year = pc.fill_null(pc.year(values), 1)
    return pc.or_(pc.less(year, 1), pc.greater(year, 9999)).to_numpy(zero_copy_only=False)


def _equal(values: pa.Array, wanted: bytes) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return pc.fill_null(pc.equal(values, pa.scalar(wanted, pa.binary())), False).to_numpy(zero_copy_only=False)
