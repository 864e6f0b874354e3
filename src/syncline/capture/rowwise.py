"""The row-wise decoder: one message, one value after the other, in plain Python.

It is the reference that tests hold the columnar decoder against, the cheaper way for a handful of rows, and the arbiter
of a batch in which the columnar one met something odd: it names the message and the byte that are wrong, or decodes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from syncline.capture.messages import Relation, Run, damaged
from syncline.change import Batch, Column, Op, TableSchema, arrow_type, make_batch
from syncline.errors import Damaged
from syncline.pgvalues.pgtypes import binary_exact
from syncline.pgvalues.values import Inexact, from_binary, from_text, text_of_binary

__all__ = ["decode", "decode_copy"]

# One value of a tuple: its kind byte and its bytes.
Value = tuple[str, bytes]
Row = list[Value]


class _Wrong(Exception):
    """What is wrong with the message at hand, and at which byte."""


class _Message:
    """A cursor over the bytes of one message."""

    def __init__(self, payload: bytes) -> None:
        self.payload, self.place = bytes(payload), 0

    def take(self, size: int, what: str) -> bytes:
        found = self.payload[self.place : self.place + size]
        if len(found) < size:
            raise _Wrong(f"ends inside {what}, {self.place} bytes from its beginning")
        self.place += size
        return found

    def number(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "big")

    def tag(self, known: str, what: str) -> str:
        found = self.take(1, f"the {what}").decode("latin-1")
        if found not in known:
            raise _Wrong(f"has an unknown {what} at byte {self.place - 1}")
        return found

    def count(self, columns: int) -> None:
        at = self.place
        found = self.number(2, "the number of columns")
        if found != columns:
            raise _Wrong(f"has {found} columns at byte {at}, the table has {columns}")

    def tuple(self, columns: int) -> Row:
        self.count(columns)
        row = []
        for _ in range(columns):
            kind = self.tag("nutb", "kind of value")
            row.append((kind, self.take(self.number(4, "a length"), "a value") if kind in "tb" else b""))
        return row

    def finish(self) -> None:
        if self.place != len(self.payload):
            raise _Wrong(f"has {len(self.payload) - self.place} bytes too many from byte {self.place}")


@dataclass
class _Change:
    """One row message: its old tuple (with its tag) where it has one, and its new one."""

    op: Op
    new: Row
    old: Row | None = None
    old_tag: str = ""
    unchanged: int = 0  # bit mask


def _read(payload: bytes, relation: Relation) -> _Change:
    m, columns = _Message(payload), len(relation.columns)
    tag = m.tag("IUD", "tag")
    if m.number(4, "the relation") != relation.oid:
        raise _Wrong("is of another relation at byte 1")
    kind = m.tag({"I": "N", "U": "NKO", "D": "KO"}[tag], "kind of tuple")
    change = _Change({"I": Op.INSERT, "U": Op.UPDATE, "D": Op.DELETE}[tag], m.tuple(columns))
    if tag == "U" and kind != "N":
        m.tag("N", "kind of tuple")
        change.old, change.old_tag, change.new = change.new, kind, m.tuple(columns)
    m.finish()
    return change


def _complete(change: _Change, schema: TableSchema, relation: Relation) -> None:
    """Fill what the new tuple doesn't carry from the old one, and check the key."""
    strict = relation.replica_identity in "di"
    for i, column in enumerate(schema.columns):
        if change.old and change.new[i][0] == "u" and (change.old_tag == "O" or column.key):
            change.new[i] = change.old[i]
        if not column.key:
            if change.op != Op.DELETE and change.new[i][0] == "u":
                change.unchanged |= 1 << i
            continue
        for row, known in ((change.new, change.op == Op.DELETE or relation.columns[i].key), (change.old, True)):
            if row and (row[i][0] == "u" or (row[i][0] == "n" and strict and known)):
                raise _Wrong(f"lacks key column {column.name}")


@dataclass
class _Values:
    """The values of one column, old keys included, and whether all of them have an exact form."""

    column: Column
    oid: int
    typmod: int
    exact: bool = True
    found: list[Any] = field(default_factory=list)
    texts: list[str | None] = field(default_factory=list)

    def add(self, value: Value) -> None:
        kind, raw = value
        if kind in "nu":
            self.found.append(None)
            self.texts.append(None)
            return
        binary = kind == "b"
        if binary and not binary_exact(self.oid, self.typmod):
            raise _Wrong(f"has a binary value in column {self.column.name}, whose type has no known layout")
        logical = self.column.type
        try:
            self.found.append(from_binary(self.oid, logical, raw) if binary else from_text(logical, raw.decode()))
        except Inexact:
            self.exact = False
            self.found.append(None)
        except ValueError:
            raise _Wrong(f"has a value in column {self.column.name} that is not a {logical}") from None
        inexact_types = logical.startswith(("numeric", "timestamp"))
        text = text_of_binary(logical, raw) if binary and inexact_types else "" if binary else raw.decode()
        self.texts.append(text)

    def array(self) -> pa.Array:
        if not self.exact:
            return pa.array(self.texts, pa.string())
        arrow = arrow_type(self.column.type)
        storage = {"date": pa.int32(), "time": pa.int64(), "timestamp": pa.int64(), "timestamptz": pa.int64()}
        return pa.array(self.found, storage.get(self.column.type, arrow)).view(arrow)


def _differs(a: Any, b: Any) -> bool:
    return bool(a != b and not (a != a and b != b))  # NaN is the same key as NaN


def decode(
    schema: TableSchema, relation: Relation, payloads: Sequence[bytes], runs: Sequence[Run], *, binary: bool = False
) -> Batch:
    """As :func:`syncline.capture.pgoutput.decode`, one value at a time."""
    changes: list[_Change] = []
    columns = [_Values(c, r.type_oid, r.typmod) for c, r in zip(schema.columns, relation.columns, strict=True)]
    olds = [_Values(v.column, v.oid, v.typmod) for v in columns]
    forms: list[set[str]] = [set() for _ in columns]

    def change(payload: bytes) -> None:
        found = _read(payload, relation)
        for form, kinds in zip(forms, zip(found.new, found.old or found.new, strict=True), strict=True):
            form.update(kind for kind, _ in kinds if kind in "tb")
            if len(form) > 1 or ("b" in form and not binary):
                raise _Wrong("has a value in a format that was not asked for")
        _complete(found, schema, relation)
        for i, values in enumerate(columns):
            values.add(("n", b"") if found.op == Op.DELETE and not values.column.key else found.new[i])
            if values.column.key:
                olds[i].add(found.old[i] if found.old else ("n", b""))
        changes.append(found)

    _each(payloads, relation.qualified, change)
    return _batch(schema, changes, columns, olds, runs)


def _each(payloads: Sequence[bytes], table: str, decode_one: Callable[[bytes], None]) -> None:
    for i, payload in enumerate(payloads):
        try:
            decode_one(payload)
        except _Wrong as wrong:
            raise _error(i, table, str(wrong)) from None


def _error(i: int, table: str, what: str) -> Damaged:
    return damaged(f"Row message {i} of the batch of table {table} {what}")


def _batch(
    schema: TableSchema, changes: list[_Change], columns: list[_Values], olds: list[_Values], runs: Sequence[Run]
) -> Batch:
    keys = [i for i, c in enumerate(schema.columns) if c.key]
    for i in keys:  # one type for a key, wherever it stands
        columns[i].exact = olds[i].exact = columns[i].exact and olds[i].exact
    old_keys: list[bool] = []
    for row, change in enumerate(changes):
        moved = change.old is not None and any(
            _differs(*(v.found[row] if v.exact else v.texts[row] for v in (columns[i], olds[i]))) for i in keys
        )
        change.op = Op.REKEY if moved else change.op
        old_keys.append(moved)
    old_key = None
    if any(old_keys):
        old_key = pa.StructArray.from_arrays(
            [_keep(olds[i].array(), old_keys) for i in keys],
            names=[schema.columns[i].name for i in keys],
            mask=pa.array([not moved for moved in old_keys]),
        )
    masks = [c.unchanged.to_bytes(schema.mask_bytes, "little") if c.unchanged else None for c in changes]
    system = [(r.version, r.first_ordinal + i, r.commit_time, r.xid) for r in runs for i in range(r.count)]
    version, ordinal, commit_time, xid = (pa.array([s[i] for s in system], pa.int64()) for i in range(4))
    return make_batch(
        schema,
        [values.array() for values in columns],
        op=pa.array([int(c.op) for c in changes], pa.int8()),
        version=version,
        ordinal=ordinal,
        commit_time=commit_time.view(pa.timestamp("us", "UTC")),
        xid=xid,
        unchanged=pa.array(masks, pa.binary()) if any(masks) else None,
        old_key=old_key,
    )


def _keep(array: pa.Array, keep: list[bool]) -> pa.Array:
    """The array with null where ``keep`` is false."""
    return array.take(pa.array([i if k else None for i, k in enumerate(keep)], pa.int64()))


def decode_copy(
    schema: TableSchema,
    oids: Sequence[tuple[int, int]],
    payloads: Sequence[bytes],
    binary_flags: Sequence[bool],
    run: Run,
) -> Batch:
    """As :func:`syncline.capture.pgoutput.decode_copy`, one value at a time."""
    columns = [_Values(c, oid, typmod) for c, (oid, typmod) in zip(schema.columns, oids, strict=True)]

    def row(payload: bytes) -> None:
        m = _Message(payload)
        m.count(len(columns))
        for values, binary in zip(columns, binary_flags, strict=True):
            length = m.number(4, "a length")
            null = length == 0xFFFFFFFF
            values.add(("n", b"") if null else ("b" if binary else "t", m.take(length, "a value")))
        m.finish()

    _each(payloads, schema.qualified, row)
    changes: list[_Change] = [_Change(Op.INSERT, []) for _ in payloads]
    return _batch(schema, changes, columns, columns, [run])
