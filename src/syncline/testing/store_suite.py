"""The conformance suite of the Store contract: every store passes it, the in-memory reference first.

Subclass :class:`StoreConformance` and give it the fixture ``make_store``; each test asserts on the content that
``scan`` and ``fetch`` return. Works are built with :class:`Rows`.
"""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from syncline.change import Column, Cursor, Position, TableSchema, arrow_type
from syncline.errors import Misconfigured, Rejected
from syncline.stores import Folded, Store, TableWork, Work
from syncline.stores.memory import MemoryConfig, MemoryStore

__all__ = ["ITEM", "VALUES", "MakeStore", "Rows", "StoreConformance", "contents", "work"]

MakeStore = Callable[[str], Store]
"""Gives a new, unopened store object on the database of that name: the same name, the same data."""

ITEM = TableSchema(
    "public",
    "item",
    (
        Column("id", "int8", "bigint", key=True),
        Column("name", "text", "text"),
        Column("amount", "numeric(12,2)", "numeric(12,2)"),
    ),
)
PAIR = TableSchema(
    "shop",
    "pair",
    (
        Column("Region", "text", "text", key=True),
        Column("version", "int4", "integer"),
        Column("code", "uuid", "uuid", key=True),
        Column("note", "text", "text"),
    ),
)
VALUES = TableSchema(
    "public",
    "values",
    (
        Column("id", "int4", "integer", key=True),
        Column("bool", "bool", "boolean"),
        Column("int2", "int2", "smallint"),
        Column("int8", "int8", "bigint"),
        Column("float4", "float4", "real"),
        Column("float8", "float8", "double precision"),
        Column("numeric", "numeric(38,10)", "numeric(38,10)"),
        Column("bytes", "bytes", "bytea"),
        Column("uuid", "uuid", "uuid"),
        Column("date", "date", "date"),
        Column("time", "time", "time"),
        Column("timestamp", "timestamp", "timestamp"),
        Column("timestamptz", "timestamptz", "timestamp with time zone"),
        Column("json", "json", "jsonb"),
        Column("select", "text", "text"),
    ),
)

_I64, _I32 = 2**63 - 1, 2**31 - 1

# Three values of each type that has an order in PostgreSQL and so can be a key.
_KEYS: dict[str, tuple[Any, Any, Any]] = {
    "int2": (-1, 0, 2**15 - 1),
    "int4": (-1, 0, 2**31 - 1),
    "int8": (-(2**63), 0, 2**63 - 1),
    "float4": (-1.5, 0.0, float("inf")),
    "float8": (-1.5, 0.0, float("-inf")),
    "numeric(20,3)": (Decimal("-1.500"), Decimal("0.001"), Decimal("99999999999999999.999")),
    "bytes": (b"\x00", b"'\xff", b""),
    "uuid": (b"\0" * 16, uuid.UUID("00112233-4455-6677-8899-aabbccddeeff").bytes, b"\xff" * 16),
    "date": (-_I32, 0, _I32),
    "time": (0, 1, 86_400_000_000),
    "timestamp": (-_I64, 1, _I64),
    "timestamptz": (-_I64, 1, _I64),
    "json": ('{"a": 1}', "null", "[]"),
    "text": ("", "a'b", "Ä"),
}


def _array(values: Sequence[Any], column: Column, *, text: bool = False) -> pa.Array:
    """Temporal values are given as the integers that store them."""
    if text:
        return pa.array(values, pa.string())
    kind = arrow_type(column.type)
    if pa.types.is_temporal(kind):
        return pa.array(values, pa.int32() if kind == pa.date32() else pa.int64()).view(kind)
    return pa.array(values, kind)


class Rows:
    """Builds a :class:`~syncline.stores.Folded` row by row. A row is the table's values, in the table's order."""

    def __init__(self, schema: TableSchema = ITEM, *, text: Sequence[str] = ()) -> None:
        self.schema = schema
        self.text = text
        self._upserts: list[tuple[Any, ...]] = []
        self._partials: list[tuple[Any, ...]] = []
        self._deletes: list[tuple[Any, ...]] = []

    def upsert(self, version: int, *values: Any) -> Rows:
        """Write a whole row."""
        self._upserts.append((*values, version))
        return self

    def partial(self, version: int, *values: Any, unchanged: Sequence[str], origin: tuple[Any, ...] = ()) -> Rows:
        """Write the columns not named ``unchanged``; the rest comes from the row at ``origin`` (default: itself)."""
        mask = bytearray(self.schema.mask_bytes)
        for i, column in enumerate(self.schema.columns):
            if column.name in unchanged:
                mask[i // 8] |= 1 << (i % 8)
        key = origin or tuple(values[i] for i in self.schema.key_positions)
        self._partials.append((*values, version, bytes(mask), key))
        return self

    def delete(self, version: int, *key: Any) -> Rows:
        """Delete a key."""
        self._deletes.append((*key, version))
        return self

    def folded(self) -> Folded:
        """What was collected."""
        return Folded(
            self._batch(self._upserts, self.schema.columns),
            self._partial_batch(),
            self._batch(self._deletes, self.schema.key),
        )

    def table(self, *, truncated: int | None = None) -> TableWork:
        """It as one table's part of a work."""
        return TableWork(self.schema, self.folded(), truncated)

    def _columns(self, rows: list[tuple[Any, ...]], columns: Sequence[Column]) -> list[pa.Array]:
        return [_array([r[i] for r in rows], c, text=c.name in self.text) for i, c in enumerate(columns)]

    def _batch(self, rows: list[tuple[Any, ...]], columns: Sequence[Column]) -> pa.RecordBatch | None:
        if not rows:
            return None
        arrays = [*self._columns(rows, columns), pa.array([r[len(columns)] for r in rows], pa.int64())]
        return pa.RecordBatch.from_arrays(arrays, names=[*(c.name for c in columns), "version"])

    def _partial_batch(self) -> pa.RecordBatch | None:
        if not self._partials:
            return None
        n = len(self.schema.columns)
        keys = self._columns([r[n + 2] for r in self._partials], self.schema.key)
        arrays = [
            *self._columns(self._partials, self.schema.columns),
            pa.array([r[n] for r in self._partials], pa.int64()),
            pa.array([r[n + 1] for r in self._partials], pa.binary()),
            pa.StructArray.from_arrays(keys, names=[c.name for c in self.schema.key]),
        ]
        names = [*(c.name for c in self.schema.columns), "version", "unchanged", "from_key"]
        return pa.RecordBatch.from_arrays(arrays, names=names)


_numbers = itertools.count(1)


def work(*tables: Rows | TableWork, source: str = "orders", n: int | None = None, truncated: int | None = None) -> Work:
    """A work of these tables, with a cursor behind every former one."""
    parts = tuple(t.table(truncated=truncated) if isinstance(t, Rows) else t for t in tables)
    return Work(parts, Cursor(source, Position("log", next(_numbers) if n is None else n)))


def contents(store: Store, schema: TableSchema = ITEM) -> dict[Any, tuple[Any, ...]]:
    """Key -> (other values..., version) of all rows that ``scan`` returns; fails on duplicate keys.

    Temporal values are the integers that store them. A key of one column is that value, else a tuple.
    """
    found: dict[Any, tuple[Any, ...]] = {}
    for batch in store.scan(schema):
        for key, row in _rows(schema, batch):
            assert key not in found, f"key {key} is stored twice"
            found[key] = row
    return found


def _rows(schema: TableSchema, batch: pa.RecordBatch | pa.Table) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    columns = []
    for array in batch.columns:
        array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
        if pa.types.is_temporal(array.type):
            array = array.view(pa.int32() if array.type == pa.date32() else pa.int64())
        columns.append(array.to_pylist())
    for values in zip(*columns, strict=True):
        key = tuple(values[i] for i in schema.key_positions)
        rest = tuple(v for i, v in enumerate(values) if i not in schema.key_positions)
        yield (key if len(key) > 1 else key[0]), rest


def _keys(schema: TableSchema, *keys: tuple[Any, ...]) -> pa.RecordBatch:
    arrays = [_array([k[i] for k in keys], c) for i, c in enumerate(schema.key)]
    return pa.RecordBatch.from_arrays(arrays, names=[c.name for c in schema.key])


class StoreConformance:
    """Give it a fixture ``make_store`` (:data:`MakeStore`) and, for stores that keep no types, override ``exact``."""

    exact = True

    @pytest.fixture
    def make_store(self) -> MakeStore:
        raise NotImplementedError("give the suite a make_store fixture")

    @pytest.fixture
    def store(self, make_store: MakeStore) -> Iterator[Store]:
        """An open store with the tables ITEM and PAIR."""
        store = make_store("suite")
        store.open("orders")
        store.migrate(ITEM)
        store.migrate(PAIR)
        yield store
        store.close()

    # ------------------------------------------------------------------------------------------ cursor

    def test_a_new_store_has_no_cursor(self, make_store: MakeStore) -> None:
        store = make_store("suite")
        assert store.open("orders") is None
        store.close()

    def test_cursor_and_rows_survive_closing(self, store: Store, make_store: MakeStore) -> None:
        cursor = Cursor("orders", Position("log", 7), 120, 110, 99, 3, "sys", 1000)
        store.apply(Work((Rows().upsert(100, 1, "one", None).table(),), cursor))
        store.close()
        again = make_store("suite")
        assert again.open("orders") == cursor
        again.migrate(ITEM)
        assert contents(again) == {1: ("one", None, 100)}
        again.close()

    def test_each_source_has_a_cursor_of_its_own(self, store: Store, make_store: MakeStore) -> None:
        other = make_store("suite")
        assert other.open("people") is None
        store.apply(work(n=4))
        other.apply(work(source="people", n=9))
        store.apply(work(n=5))
        third, fourth = make_store("suite"), make_store("suite")
        first, second = third.open("orders"), fourth.open("people")
        assert first is not None
        assert second is not None
        assert (first.position.n, second.position.n) == (5, 9)
        for each in (other, third, fourth):
            each.close()

    def test_a_work_without_rows_moves_the_cursor(self, store: Store, make_store: MakeStore) -> None:
        store.apply(work(n=3))
        store.close()
        again = make_store("suite")
        found = again.open("orders")
        again.close()
        assert found is not None
        assert found.position == Position("log", 3)

    def test_closing_twice_is_harmless(self, store: Store) -> None:
        store.close()
        store.close()

    # ------------------------------------------------------------------------------------------ rows and guard

    def test_upserts_and_deletes_of_several_tables_arrive(self, store: Store) -> None:
        one, two = uuid.UUID(int=1).bytes, uuid.UUID(int=2**127).bytes
        store.apply(
            work(
                Rows().upsert(100, 1, "one", Decimal("1.50")).upsert(100, 2, None, None),
                Rows(PAIR).upsert(100, "north", 7, one, "a").upsert(100, "south", None, two, 'quote"s'),
            )
        )
        store.apply(work(Rows().delete(101, 1), Rows(PAIR).upsert(101, "north", 8, one, "b")))
        assert contents(store) == {2: (None, None, 100)}
        assert contents(store, PAIR) == {("north", one): (8, "b", 101), ("south", two): (None, 'quote"s', 100)}

    def test_an_older_change_never_replaces_a_newer_one(self, store: Store) -> None:
        store.apply(work(Rows().upsert(200, 1, "new", None)))
        store.apply(work(Rows().upsert(150, 1, "old", None).upsert(150, 2, "two", None)))
        store.apply(work(Rows().delete(160, 1)))
        assert contents(store) == {1: ("new", None, 200), 2: ("two", None, 150)}

    def test_an_equal_version_replaces(self, store: Store) -> None:
        store.apply(work(Rows().upsert(200, 1, "first", None)))
        store.apply(work(Rows().upsert(200, 1, "second", None)))
        assert contents(store) == {1: ("second", None, 200)}

    def test_a_deleted_key_stays_deleted_for_older_changes(self, store: Store) -> None:
        store.apply(work(Rows().upsert(100, 1, "one", None)))
        store.apply(work(Rows().delete(200, 1).delete(200, 2)))
        store.apply(work(Rows().upsert(150, 1, "late", None).upsert(199, 2, "late", None).upsert(150, 3, "in", None)))
        assert contents(store) == {3: ("in", None, 150)}
        store.apply(work(Rows().upsert(201, 1, "back", None)))
        assert contents(store) == {1: ("back", None, 201), 3: ("in", None, 150)}

    @pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
    def test_every_order_of_insert_update_delete_insert_converges(self, store: Store, order: tuple[int, ...]) -> None:
        life = [
            Rows().upsert(100, 1, "insert", None),
            Rows().upsert(110, 1, "update", None),
            Rows().delete(120, 1),
            Rows().upsert(130, 1, "again", None),
        ]
        for i in (*order, *order[:2]):
            store.apply(work(life[i]))
        assert contents(store) == {1: ("again", None, 130)}
        for i in order:
            store.apply(work(Rows().delete(140, 1) if i == 3 else life[i]))
        assert contents(store) == {}

    def test_replaying_any_work_changes_nothing(self, store: Store) -> None:
        works = [
            work(Rows().upsert(100, 1, "one", Decimal(1)).upsert(100, 2, "two", Decimal(2)).upsert(100, 3, "x", None)),
            work(Rows().partial(110, 1, None, Decimal(9), unchanged=["name"]).delete(110, 3)),
            work(
                Rows()
                .partial(120, 2, None, Decimal(5), unchanged=["name"], origin=(1,))
                .partial(120, 1, None, Decimal(6), unchanged=["name"], origin=(2,))
            ),
            work(Rows().upsert(130, 4, "four", None), truncated=99),
            work(Rows().partial(140, 5, None, None, unchanged=["name", "amount"], origin=(4,)).delete(140, 4)),
        ]
        for i, each in enumerate(works):
            store.apply(each)
            after = contents(store)
            for again in works[: i + 1]:
                store.apply(again)
                assert contents(store) == after
        assert after == {
            1: ("two", Decimal("6.00"), 120),
            2: ("one", Decimal("5.00"), 120),
            5: ("four", None, 140),
        }

    # ------------------------------------------------------------------------------------------ partial rows

    def test_a_partial_keeps_what_it_does_not_carry(self, store: Store) -> None:
        store.apply(work(Rows().upsert(100, 1, "kept", Decimal(1)).upsert(100, 2, "lost", Decimal(2))))
        store.apply(
            work(
                Rows()
                .partial(110, 1, None, Decimal(10), unchanged=["name"])
                .partial(110, 2, None, None, unchanged=["amount"])
            )
        )
        assert contents(store) == {1: ("kept", Decimal("10.00"), 110), 2: (None, Decimal("2.00"), 110)}

    def test_a_partial_without_a_row_is_not_written(self, store: Store) -> None:
        store.apply(work(Rows().partial(110, 1, None, Decimal(1), unchanged=["name"]).upsert(110, 2, "two", None)))
        assert contents(store) == {2: ("two", None, 110)}

    def test_an_older_partial_is_superseded(self, store: Store) -> None:
        store.apply(work(Rows().upsert(200, 1, "new", Decimal(2)).delete(200, 2)))
        store.apply(
            work(
                Rows()
                .partial(150, 1, None, Decimal(1), unchanged=["name"])
                .partial(150, 2, None, Decimal(1), unchanged=["name"], origin=(1,))
            )
        )
        assert contents(store) == {1: ("new", Decimal("2.00"), 200)}

    def test_a_moved_row_takes_its_unchanged_columns_along(self, store: Store) -> None:
        store.apply(work(Rows().upsert(100, 1, "big", Decimal(1))))
        store.apply(work(Rows().partial(110, 9, None, Decimal(2), unchanged=["name"], origin=(1,)).delete(110, 1)))
        assert contents(store) == {9: ("big", Decimal("2.00"), 110)}
        store.apply(work(Rows().upsert(105, 1, "late", None)))
        assert contents(store) == {9: ("big", Decimal("2.00"), 110)}

    def test_swapped_and_rotated_keys_read_the_state_before_the_work(self, store: Store) -> None:
        store.apply(work(Rows().upsert(100, 1, "a", None).upsert(100, 2, "b", None).upsert(100, 3, "c", None)))
        swap = work(
            Rows()
            .partial(110, 1, None, Decimal(1), unchanged=["name"], origin=(2,))
            .partial(110, 2, None, Decimal(2), unchanged=["name"], origin=(3,))
            .partial(110, 3, None, Decimal(3), unchanged=["name"], origin=(1,))
        )
        expected = {
            1: ("b", Decimal("1.00"), 110),
            2: ("c", Decimal("2.00"), 110),
            3: ("a", Decimal("3.00"), 110),
        }
        for _ in range(2):  # once more: "applied, but the reply was lost"
            store.apply(swap)
            assert contents(store) == expected

    def test_a_part_of_a_transaction_moves_a_row_that_an_earlier_part_wrote(self, store: Store) -> None:
        store.apply(work(Rows().upsert(100, 1, "kept", None)))
        move = work(Rows().partial(100, 2, None, Decimal(2), unchanged=["name"], origin=(1,)).delete(100, 1))
        store.apply(move)
        store.apply(move)
        assert contents(store) == {2: ("kept", Decimal("2.00"), 100)}

    def test_partials_of_compound_keys_and_odd_names(self, store: Store) -> None:
        one, two = uuid.UUID(int=1).bytes, uuid.UUID(int=2).bytes
        store.apply(work(Rows(PAIR).upsert(100, "north", 7, one, "a")))
        partial = Rows(PAIR).partial(110, "north", 8, two, None, unchanged=["note"], origin=("north", one))
        store.apply(work(partial.delete(110, "north", one)))
        assert contents(store, PAIR) == {("north", two): (8, "a", 110)}

    @pytest.mark.parametrize("logical", sorted(_KEYS))
    def test_every_type_serves_as_a_key(self, store: Store, logical: str) -> None:
        schema = TableSchema(
            "public", "keyed", (Column("note", "text", "text"), Column("key", logical, logical, key=True))
        )
        a, b, c = _KEYS[logical]
        store.migrate(schema)
        store.apply(work(Rows(schema).upsert(100, "a", a).upsert(100, "b", b)))
        store.apply(work(Rows(schema).upsert(110, "A", a).delete(110, b)))
        store.apply(work(Rows(schema).upsert(105, "late", a).upsert(105, "late", b)))
        assert contents(store, schema) == {a: ("A", 110)}
        moved = Rows(schema).partial(120, None, c, unchanged=["note"], origin=(a,)).delete(120, a)
        store.apply(work(moved))
        store.apply(work(moved))
        assert contents(store, schema) == {c: ("A", 120)}
        assert dict(_rows(schema, store.fetch(schema, _keys(schema, (a,), (c,))))) == {c: ("A", 120)}

    # ------------------------------------------------------------------------------------------ truncation

    def test_a_truncation_removes_what_is_older_and_holds_off_late_rows(self, store: Store) -> None:
        store.apply(work(Rows().upsert(100, 1, "old", None).upsert(120, 2, "newer", None)))
        store.apply(work(Rows().upsert(110, 3, "behind it", None), truncated=110))
        assert contents(store) == {2: ("newer", None, 120), 3: ("behind it", None, 110)}
        store.apply(work(Rows().upsert(109, 4, "late", None).upsert(110, 5, "same commit", None)))
        store.apply(work(truncated_only(105)))
        store.apply(work(Rows().upsert(107, 4, "late", None)))
        assert contents(store) == {
            2: ("newer", None, 120),
            3: ("behind it", None, 110),
            5: ("same commit", None, 110),
        }

    def test_a_truncation_survives_closing(self, store: Store, make_store: MakeStore) -> None:
        store.apply(work(truncated_only(110)))
        store.close()
        again = make_store("suite")
        again.open("orders")
        again.migrate(ITEM)
        again.apply(work(Rows().upsert(109, 4, "late", None).upsert(111, 5, "in", None)))
        assert contents(again) == {5: ("in", None, 111)}
        again.close()

    # ------------------------------------------------------------------------------------------ tombstones

    def test_purged_tombstones_leave_a_horizon(self, store: Store, make_store: MakeStore) -> None:
        store.apply(work(Rows().upsert(100, 9, "there", None).delete(200, 1).delete(300, 2)))
        assert store.purge("people", 1000) == 0
        assert store.purge("orders", 250) == 1
        assert store.purge("orders", 250) == 0
        for _ in range(2):
            store.apply(
                work(Rows().upsert(150, 1, "dead", None).upsert(290, 2, "dead", None).upsert(120, 9, "moved on", None))
            )
            assert contents(store) == {9: ("moved on", None, 120)}
            store.close()
            store = make_store("suite")
            store.open("orders")
            store.migrate(ITEM)
        store.apply(work(Rows().upsert(250, 1, "back", None)))
        assert contents(store) == {1: ("back", None, 250), 9: ("moved on", None, 120)}
        store.close()

    # ------------------------------------------------------------------------------------------ migrate

    def test_migrating_again_keeps_everything(self, store: Store) -> None:
        store.apply(work(Rows().upsert(100, 1, "one", Decimal(1)).delete(100, 2)))
        assert store.migrate(ITEM) == ITEM
        store.apply(work(Rows().upsert(99, 2, "dead", None)))
        assert contents(store) == {1: ("one", Decimal("1.00"), 100)}

    def test_columns_come_and_go_and_change_their_type(self, store: Store, make_store: MakeStore) -> None:
        store.apply(work(Rows().upsert(100, 1, "one", Decimal(1))))
        wider = msgspec.structs.replace(
            ITEM,
            columns=(
                Column("added", "timestamptz", "timestamptz"),
                Column("id", "int8", "bigint", key=True),
                Column("amount", "text", "numeric"),
                Column("name", "text", "text"),
            ),
        )
        assert store.migrate(wider) == ITEM
        assert contents(store, wider) == {1: (None, None, "one", 100)}
        store.apply(work(Rows(wider).upsert(110, 5, 2, "1.5", "two").partial(110, 6, 1, "7", None, unchanged=["name"])))
        expected = {1: (6, "7", "one", 110), 2: (5, "1.5", "two", 110)}
        assert contents(store, wider) == expected
        narrow = msgspec.structs.replace(ITEM, columns=(wider.columns[1], wider.columns[3]))
        assert store.migrate(narrow) == wider
        store.close()
        again = make_store("suite")
        again.open("orders")
        again.migrate(narrow)
        assert contents(again, narrow) == {1: ("one", 110), 2: ("two", 110)}
        again.close()

    def test_a_table_that_is_new_here_had_no_schema_before(self, store: Store) -> None:
        assert store.migrate(VALUES) is None

    def test_a_table_that_was_never_migrated_is_refused(self, store: Store) -> None:
        with pytest.raises(Misconfigured):
            store.apply(work(Rows(VALUES).upsert(1, *[1, *[None] * 14])))
        assert contents(store) == {}

    # ------------------------------------------------------------------------------------------ values

    def test_every_type_comes_back_as_it_went_in(self, store: Store) -> None:
        store.migrate(VALUES)
        identity = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff").bytes
        rows = [
            (1, True, -(2**15), 2**63 - 1, 1.5, 5e-324, Decimal("1234567890123456789012345678.0123456789"),
             b"\x00\xff", identity, 19_000, 86_399_999_999, 10**15, -(10**15), '{"a": 12345678901234567890}', "Grüße"),
            (2, False, 2**15 - 1, -(2**63), float("inf"), float("-inf"), Decimal("-0.0000000001"),
             b"", b"\xff" * 16, _I32, 86_400_000_000, _I64, _I64, "null", ""),
            (3, None, 0, 0, -0.0, 1e308, Decimal(0), b"'", b"\0" * 16, -_I32, 0, -_I64, -_I64, '"x"', "a\nb'\"\\"),
            (4, *[None] * 14),
            (5, True, 1, 1, 1.0, 1.0, Decimal(1), b"x", identity, -719_892, 1, -62_198_755_200_000_000,
             253_402_300_800_000_000, "[]", "BC, year 10000"),
        ]  # fmt: skip
        batch = Rows(VALUES)
        for row in rows:
            batch.upsert(100, *row)
        store.apply(work(batch))
        assert contents(store, VALUES) == {row[0]: (*row[1:], 100) for row in rows}
        found = store.fetch(VALUES, _keys(VALUES, (2,), (4,), (77,)))
        assert dict(_rows(VALUES, found)) == {row[0]: (*row[1:], 100) for row in rows if row[0] in (2, 4)}

    def test_not_a_number_is_kept(self, store: Store) -> None:
        store.migrate(VALUES)
        store.apply(work(Rows(VALUES).upsert(1, 1, None, None, None, float("nan"), float("nan"), *[None] * 9)))
        row = contents(store, VALUES)[1]
        assert row[3] != row[3]
        assert row[4] != row[4]

    def test_text_with_an_exact_value_is_stored_as_that_value(self, store: Store) -> None:
        store.migrate(VALUES)
        text = ("numeric", "date", "time", "timestamp", "timestamptz")
        store.apply(
            work(
                Rows(VALUES, text=text)
                .upsert(100, *_texts(1, "-1.50", "2026-01-02", "24:00:00", "infinity", "2026-01-02 03:04:05.000006+00"))
                .upsert(100, *_texts(2, "7", "infinity", "00:00:00.5", "2026-01-02 03:04:05", "-infinity"))
            )
        )
        us = 1_767_323_045_000_000
        assert [r[5:6] + r[8:12] for r in contents(store, VALUES).values()] == [
            (Decimal("-1.5000000000"), 20_455, 86_400_000_000, _I64, us + 6),
            (Decimal("7.0000000000"), _I32, 500_000, us, -_I64),
        ]

    def test_values_that_cannot_be_held_are_rejected_and_nothing_is_written(self, store: Store) -> None:
        store.migrate(VALUES)
        store.apply(work(Rows().upsert(100, 1, "one", None), n=1))
        text = ("numeric", "timestamp")
        rows = (
            Rows(VALUES, text=text)
            .upsert(100, *_texts(1, "1.5", None, None, "2026-01-01 00:00:00", None))
            .upsert(100, *_texts(2, "NaN", None, None, None, None))
            .upsert(100, *_texts(3, "0.00000000005", None, None, None, None))
            .partial(100, *_texts(4, None, None, None, "294276-01-01 00:00:00", None), unchanged=["numeric"])
        )
        with pytest.raises(Rejected) as refused:
            store.apply(work(Rows().upsert(110, 1, "changed", None), rows, n=2))
        assert refused.value.table == "public.values"
        assert refused.value.rows == (1, 2, 3)
        assert contents(store) == {1: ("one", None, 100)}
        assert contents(store, VALUES) == {}
        store.apply(work(Rows(VALUES).upsert(110, 2, *[None] * 14)))
        assert list(contents(store, VALUES)) == [2]

    # ------------------------------------------------------------------------------------------ reading

    def test_fetch_returns_the_rows_of_the_keys_that_exist(self, store: Store) -> None:
        store.apply(work(Rows().upsert(100, 1, "one", None).upsert(100, 2, "two", None).delete(100, 3)))
        found = store.fetch(ITEM, _keys(ITEM, (2,), (3,), (4,)))
        assert found.schema.names == ["id", "name", "amount", "version"]
        assert dict(_rows(ITEM, found)) == {2: ("two", None, 100)}
        assert store.fetch(ITEM, _keys(ITEM, (9,))).num_rows == 0

    def test_scan_and_fetch_keep_the_types_of_the_contract(self, store: Store) -> None:
        store.migrate(VALUES)
        store.apply(work(Rows(VALUES).upsert(100, 1, *[None] * 14)))
        expected = [*(arrow_type(c.type) for c in VALUES.columns), pa.int64()]
        assert next(iter(store.scan(VALUES))).schema.types == expected
        assert store.fetch(VALUES, _keys(VALUES, (1,))).schema.types == expected

    def test_readers_in_other_threads_see_whole_works_only(self, store: Store) -> None:
        store.apply(work(Rows().upsert(1, 1, "1", None).upsert(1, 2, "1", None)))
        seen: list[list[tuple[Any, ...]]] = []
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                seen.append(sorted(contents(store).values()))

        reader = threading.Thread(target=read)
        reader.start()
        for version in range(2, 40):
            store.apply(work(Rows().upsert(version, 1, str(version), None).upsert(version, 2, str(version), None)))
        done.set()
        reader.join()
        assert seen
        assert all(len(rows) == 2 and rows[0] == rows[1] for rows in seen)

    def test_a_large_work_arrives_whole(self, store: Store) -> None:
        n = 30_000
        ids = pa.array(range(n), pa.int64())
        batch = pa.RecordBatch.from_arrays(
            [ids, ids.cast(pa.string()), pa.nulls(n, pa.decimal128(12, 2)), pa.array([100] * n, pa.int64())],
            names=["id", "name", "amount", "version"],
        )
        store.apply(Work((TableWork(ITEM, Folded(batch)),), Cursor("orders", Position("log", 1))))
        found = contents(store)
        assert len(found) == n
        assert found[n - 1] == (str(n - 1), None, 100)

    # ------------------------------------------------------------------------------------------ the model

    # Every example has a database of its own, and each subclass runs the test for its own store.
    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,
            HealthCheck.too_slow,
            HealthCheck.differing_executors,
        ],
    )
    @given(data=st.data())
    def test_random_works_leave_what_the_reference_holds(self, make_store: MakeStore, data: st.DataObject) -> None:
        store, model = make_store(f"model-{uuid.uuid4().hex}"), MemoryStore(MemoryConfig(), "model")
        steps = data.draw(st.lists(_random_steps, min_size=1, max_size=6))
        try:
            for each in (store, model):
                each.open("orders")
                each.migrate(ITEM)
            for step in steps:
                for each in (store, model):
                    if isinstance(step, Work):
                        each.apply(step)
                    else:
                        each.purge("orders", step)
                assert contents(store) == contents(model)
        finally:
            store.close()


def truncated_only(version: int) -> TableWork:
    """A truncation without rows."""
    return TableWork(ITEM, Folded(), version)


def _texts(
    key: int, numeric: str | None, date: str | None, time: str | None, stamp: str | None, zoned: str | None
) -> list[Any]:
    values: list[Any] = [None] * len(VALUES.columns)
    names = [c.name for c in VALUES.columns]
    given = {"id": key, "numeric": numeric, "date": date, "time": time, "timestamp": stamp, "timestamptz": zoned}
    for name, value in given.items():
        values[names.index(name)] = value
    return values


@st.composite
def _works(draw: st.DrawFn) -> Work:
    """Any work the contract allows: unique keys, any versions, partials from any key."""
    rows = Rows()
    keys = draw(st.lists(st.integers(1, 5), unique=True, max_size=5))
    for key in keys:
        version = draw(st.integers(1, 12))
        kind = draw(st.sampled_from(["upsert", "upsert", "delete", "partial", "move"]))
        name, amount = draw(st.sampled_from([None, "a", "b"])), draw(st.sampled_from([None, Decimal("1.00")]))
        if kind == "upsert":
            rows.upsert(version, key, name, amount)
        elif kind == "delete":
            rows.delete(version, key)
        else:
            unchanged = draw(st.sampled_from([["name"], ["amount"], ["name", "amount"]]))
            origin = (draw(st.integers(1, 5)),) if kind == "move" else (key,)
            rows.partial(version, key, name, amount, unchanged=unchanged, origin=origin)
    return work(rows, truncated=draw(st.none() | st.integers(1, 12)))


_random_steps: st.SearchStrategy[Work | int] = st.one_of(_works(), _works(), _works(), st.integers(1, 10))
