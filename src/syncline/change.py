"""What travels through Syncline: tables, batches of changes, entries and positions (their bytes: ``wire``).

Everything here is frozen and pure. Rows stay columnar: a :class:`Batch` is a ``pyarrow.RecordBatch`` whose first
columns are the table's, in the table's order, followed by the system columns (:data:`SYSTEM`), found by position so
that no column name of a user can collide with them.

Words (see docs/guarantees.md): a *version* is an int64 below 2**53, ``base + commit LSN``, comparable per key; an
*event id* is ``(incarnation, commit LSN, ordinal)``; a *position* is a place in the log; a *place* is the source's own
position (an LSN for WAL capture).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from syncline.shape import Shape

__all__ = [
    "BASES",
    "MAX_VERSION",
    "Batch",
    "Column",
    "Cursor",
    "Entry",
    "Item",
    "Loaded",
    "Marker",
    "Op",
    "Part",
    "Position",
    "TableSchema",
    "Truncate",
    "arrow_type",
    "make_batch",
    "without_negative_zeros",
]

# Redis Lua and Qdrant ranges compare as float64, which is exact below this.
MAX_VERSION = 2**53


class Op(IntEnum):
    """The operation of one change, as stored in the system column ``op``."""

    INSERT = 1
    UPDATE = 2
    DELETE = 3
    REKEY = 4  # an update that changed the key: ``old_key`` holds the former one


class Column(msgspec.Struct, frozen=True):
    """One column of a table.

    ``type`` is Syncline's logical type: ``bool int2 int4 int8 float4 float8 numeric(p,s) bytes uuid date time
    timestamp timestamptz json text``; whatever has no exact type of its own is ``text`` (PostgreSQL's own text
    output). Mappings make three more: ``vector`` (float32s), ``sparse`` (indices and values) and ``texts`` (a list).
    ``source_type`` is the source's name of the type, such as ``numeric(12,2)`` or ``mood``.
    """

    name: str
    type: str
    source_type: str
    key: bool = False


class TableSchema(msgspec.Struct, frozen=True, dict=True, omit_defaults=True):
    """A table as it was when a batch was captured. The key is at least one column, all of the replica identity.

    ``shape`` is what a mapping makes of it for one target: see :mod:`syncline.shape`. ``mapping`` is that mapping's
    fingerprint.
    """

    namespace: str
    name: str
    columns: tuple[Column, ...]
    shape: Shape | None = None
    mapping: str = ""

    @property
    def qualified(self) -> str:
        """``namespace.name``, the table's name everywhere in Syncline."""
        return f"{self.namespace}.{self.name}"

    @cached_property
    def key(self) -> tuple[Column, ...]:
        """The key columns, in the table's order."""
        return tuple(c for c in self.columns if c.key)

    @cached_property
    def key_positions(self) -> tuple[int, ...]:
        """Where the key columns stand among the columns."""
        return tuple(i for i, c in enumerate(self.columns) if c.key)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change when a name, a type, the order or the key changes."""
        return xxhash.xxh3_64_hexdigest(msgspec.json.encode(self))

    @cached_property
    def outline(self) -> str:
        """16 hex digits of names, types, key and mapping: what decides whether rows of one schema serve in another."""
        columns = [(c.name, c.type, c.key) for c in self.columns]
        mapped = (self.shape, self.mapping) if self.shape is not None or self.mapping else ()
        return xxhash.xxh3_64_hexdigest(msgspec.json.encode([*columns, *mapped]))

    @cached_property
    def mask_bytes(self) -> int:
        """Bytes of an ``unchanged`` mask: one bit a column, bit i of the mask is bit ``i % 8`` of byte ``i // 8``."""
        return (len(self.columns) + 7) // 8


_FIXED_TYPES: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int2": pa.int16(),
    "int4": pa.int32(),
    "int8": pa.int64(),
    "float4": pa.float32(),
    "float8": pa.float64(),
    "bytes": pa.binary(),
    "uuid": pa.binary(16),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", "UTC"),
    "json": pa.string(),
    "text": pa.string(),
    "texts": pa.list_(pa.string()),
    "vector": pa.list_(pa.float32()),
    "sparse": pa.struct([("indices", pa.list_(pa.uint32())), ("values", pa.list_(pa.float32()))]),
}


def arrow_type(logical: str) -> pa.DataType:
    """The Arrow type of a logical type. ``numeric(p,s)`` is ``decimal128(p, s)``.

    Two conventions where Arrow has no word: +-infinity of date, timestamp and timestamptz is the greatest integer of
    the storage type and its negative (DuckDB's own convention), and ``24:00:00`` is 86,400,000,000 microseconds.
    """
    if logical.startswith("numeric("):
        precision, scale = logical[8:-1].split(",")
        return pa.decimal128(int(precision), int(scale))
    return _FIXED_TYPES[logical]


# The system columns, behind the table's own. ``unchanged`` and ``old_key`` are null-typed in batches that need none.
SYSTEM = ("op", "version", "ordinal", "commit_time", "xid", "unchanged", "old_key")
BASES = "bases"  # behind them, where a source says it


@dataclass(frozen=True, slots=True)
class Batch:
    """The changes of one table in one schema version, in commit order.

    ``rows`` holds the table's columns, then :data:`SYSTEM`:

    - ``op`` int8 (:class:`Op`); ``version`` int64; ``ordinal`` int64, the change's number in its transaction;
      ``commit_time`` timestamp[us, UTC]; ``xid`` int64, the 64-bit transaction id at the source, 0 if unknown;
    - ``unchanged`` binary or null: bit mask of columns the change does not carry (they are null here, and *not* NULL);
      null means that the row is whole;
    - ``old_key`` struct of the key columns, set on ``REKEY`` only.

    A delete carries its key columns only. A table column normally has ``arrow_type(column.type)``; where a value in
    this batch has no exact form in that type (numeric NaN, a year Arrow can't hold) the whole column is ``string`` with
    PostgreSQL's text, and the store decides value by value.
    """

    schema: TableSchema
    rows: pa.RecordBatch

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    def system(self, name: str) -> pa.Array:
        """A system column by name."""
        return self.rows.column(len(self.schema.columns) + SYSTEM.index(name))

    def ints(self, name: str) -> np.ndarray[Any, Any]:
        """An integer system column (or ``commit_time`` in microseconds) as numpy, without a copy."""
        array = self.system(name)
        if name == "commit_time":
            array = array.view(pa.int64())
        values: np.ndarray[Any, Any] = array.to_numpy()
        return values

    def from_version(self, version: int) -> Batch:
        """The changes at or above this version."""
        if not len(self) or int(self.ints("version").min()) >= version:
            return self
        return Batch(self.schema, self.rows.filter(pa.array(self.ints("version") >= version)))

    @property
    def bases(self) -> pa.Array | None:
        """What each change rests on, where its source says so (docs/both-ways.md): a JSON object with ``base`` and
        ``new``, both rows as objects of texts, or null for no row. It stands behind the system columns."""
        at = len(self.schema.columns) + len(SYSTEM)
        return self.rows.column(at) if self.rows.num_columns > at else None

    def with_bases(self, bases: pa.Array) -> Batch:
        """The same, saying what each change rests on."""
        return Batch(self.schema, self.rows.append_column(BASES, bases))

    def data(self) -> pa.RecordBatch:
        """The table's columns alone."""
        return self.rows.select(list(range(len(self.schema.columns))))

    @property
    def partial(self) -> bool:
        """Whether some row leaves columns unchanged."""
        return bool(self.system("unchanged").type != pa.null())

    @property
    def rekeys(self) -> bool:
        """Whether some row moves to another key."""
        return bool(self.system("old_key").type != pa.null())

    @property
    def nbytes(self) -> int:
        return int(self.rows.nbytes)


def make_batch(
    schema: TableSchema,
    columns: Sequence[pa.Array],
    *,
    op: pa.Array,
    version: pa.Array,
    ordinal: pa.Array,
    commit_time: pa.Array,
    xid: pa.Array,
    unchanged: pa.Array | None = None,
    old_key: pa.Array | None = None,
) -> Batch:
    """Put a batch together from the table's columns and the system columns (arrays of equal length)."""
    n = len(op)
    columns = without_negative_zeros(schema, columns)
    if old_key is not None and any(c.type in ("float4", "float8") for c in schema.key):
        of_key = without_negative_zeros(schema, old_key.flatten(), keys_alone=True)
        old_key = pa.StructArray.from_arrays(of_key, fields=list(old_key.type), mask=old_key.is_null())
    system = [
        op,
        version,
        ordinal,
        commit_time,
        xid,
        pa.nulls(n) if unchanged is None else unchanged,
        pa.nulls(n) if old_key is None else old_key,
    ]
    names = [c.name for c in schema.columns] + list(SYSTEM)
    return Batch(schema, pa.RecordBatch.from_arrays([*columns, *system], names=names))


def without_negative_zeros(
    schema: TableSchema, columns: Sequence[pa.Array], *, keys_alone: bool = False
) -> Sequence[pa.Array]:
    """The columns (of the whole table, or of its key) with 0 for -0 in floats of the key: to PostgreSQL they are one
    key, and to most stores two."""
    floats = [c.key and c.type in ("float4", "float8") for c in (schema.key if keys_alone else schema.columns)]
    if not any(floats):
        return columns
    return [
        pc.add(column, pa.scalar(0.0, column.type)) if float_key and pa.types.is_floating(column.type) else column
        for column, float_key in zip(columns, floats, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Truncate:
    """Every row of the table with a version at or below ``version`` is gone.

    The source's TRUNCATE, and the end of a (re)load, which sweeps out what the load did not find: rows read under a
    consistent point S carry S - 1, and the load ends with ``Truncate(S - 2)``.
    """

    schema: TableSchema
    version: int


class Loaded(msgspec.Struct, frozen=True):
    """A table whose existing rows are at a target: what it was when they were read.

    ``shape`` is the source's catalogue in short: once it differs, rows may have changed without a row event.
    ``since``: every change with a version below it is superseded by what was read. ``columns`` is the
    :attr:`TableSchema.outline` of the rows at the source, ``mapping`` the digest of what the target makes of them
    (correctness rule 21; '' where they stay what they are).
    """

    shape: str
    since: int = 0
    columns: str = ""
    mapping: str = ""


@dataclass(frozen=True, slots=True)
class Marker:
    """Progress without data, or a note for one reader of the log.

    ``kind`` is ``progress``; or, with ``table``:

    - ``reading``: the table will be read again; no change behind it may rest on what was stored before it;
    - ``load_started`` and ``loaded``, around the rows of a load, both with what the table is ``known`` as by it;
    - ``reshaped``: the table is ``known`` by another shape now, and its rows are as they were;
    - ``gap``: changes of the table behind it could not be captured, so it waits for a load;
    - ``left``: nobody wants changes of the table behind it; should it come back, it is loaded;
    - ``repair``: the rows in the entry stand for what differed at the target, so what would hinder them goes first;
    - ``backup``: a target that can sets a copy of the table aside before what follows, labelled ``known.since``, and
      keeps as many as ``known.shape`` says.
    """

    kind: str
    table: str = ""
    known: Loaded | None = None


Item = Batch | Truncate | Marker


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a transaction too large for one entry. Readers see none until the ``last`` is durable."""

    index: int
    last: bool


@dataclass(frozen=True)
class Entry:
    """What the log stores: whole source transactions (or one part of a large one) as items, in order.

    - ``place``: the source's place behind this entry (end LSN of its last commit). For a part that is not the last,
      and for entries of a load, 0: they move nothing.
    - ``through``: every change with a version below this is in this entry or before it (``base + place``); 0 where
      ``place`` is.
    - ``incarnation``: the source incarnation (correctness rule 1), part of every event id.
    - ``commit_time``: of the last transaction, microseconds since 1970; 0 for markers.
    - ``targets``: names of the targets it is for; None means all.
    - ``origin``: who wrote it where it was captured, '' for the applications there: a PostgreSQL replication origin by
      its name, or the source of an application's event (correctness rule 28). One entry has one origin.
    """

    items: tuple[Item, ...]
    place: int = 0
    through: int = 0
    incarnation: int = 1
    commit_time: int = 0
    targets: tuple[str, ...] | None = None
    part: Part | None = None
    origin: str = ""

    @cached_property
    def rows(self) -> int:
        return sum(len(i) for i in self.items if isinstance(i, Batch))

    @property
    def nbytes(self) -> int:
        return sum(i.nbytes for i in self.items if isinstance(i, Batch)) + 256

    @property
    def max_version(self) -> int:
        """The greatest version of any change in it, 0 without one."""
        best = 0
        for item in self.items:
            if isinstance(item, Batch) and len(item):
                best = max(best, int(item.ints("version").max()))
            elif isinstance(item, Truncate):
                best = max(best, item.version)
        return best

    @property
    def of_load(self) -> bool:
        """Whether it belongs to a load (or is a note): it moves nothing."""
        return not self.place and self.part is None

    @property
    def boundary(self) -> bool:
        """Whether a commit boundary lies behind it (Guarantee 2)."""
        return self.part is None or self.part.last


class Position(msgspec.Struct, frozen=True, order=True):
    """A place in the log: behind entry ``n`` of the log ``log`` (a uuid). ``n`` = 0 is the beginning."""

    log: str
    n: int


class Cursor(msgspec.Struct, frozen=True):
    """How far one target has durably applied one source; it lives in the target (Guarantee 3).

    ``through`` as in :class:`Entry`; ``version`` is the greatest version ever applied; ``place`` the source's place;
    ``loaded`` maps the tables whose existing rows are all here to what they were; the rest identifies the source
    incarnation, so that a new log can choose a base above every version ever written (correctness rule 1).

    ``amid``: what the copy holds only a part of, '' where it is at a boundary of the source's transactions: of a
    ``transaction`` beyond the stated size, or of a ``step`` that takes several works (the position is then the former).
    """

    source: str
    position: Position
    through: int = 0
    version: int = 0
    place: int = 0
    incarnation: int = 1
    system_identifier: str = ""
    base: int = 0
    loaded: dict[str, Loaded] = msgspec.field(default_factory=dict)
    format: int = 1
    amid: Literal["", "transaction", "step"] = ""
