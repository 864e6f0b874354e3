"""The conformance suite of the Store contract: every store passes it, the in-memory reference first.

Subclass :class:`StoreConformance` and give it the fixture ``make_store``; each test asserts on the content that
``scan`` and ``fetch`` return. Works are built with :class:`Rows`.
"""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from syncline.change import Column, Cursor, Position, TableSchema, arrow_type
from syncline.errors import Misconfigured, Rejected
from syncline.stores import Folded, Forgetting, Store, TableWork, Work
from syncline.stores.memory import MemoryConfig, MemoryStore
from syncline.testing.store_works import (
    I32,
    I64,
    ITEM,
    KEYS,
    PAIR,
    VALUES,
    Rows,
    contents,
    key_batch,
    random_steps,
    rows_of,
    texts,
    truncated_only,
    work,
)

__all__ = ["ITEM", "PAIR", "VALUES", "MakeStore", "Rows", "StoreConformance", "contents", "work"]

MakeStore = Callable[[str], Store]
"""Gives a new, unopened store object on the database of that name: the same name, the same data."""


class StoreConformance:
    """Give it a fixture ``make_store`` (:data:`MakeStore`). ``refused``: which rows of the test of values that can't be
    held the store refuses: a NaN, a decimal with too many places, a time beyond 64 bits of microseconds since 1970."""

    refused: tuple[int, ...] = (1, 2, 3)

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

    def test_versions_that_no_change_had_are_forgotten_and_nothing_else_is(self, store: Store) -> None:
        if not isinstance(store, Forgetting):
            pytest.skip("the store forgets no versions")
        store.apply(work(Rows().upsert(100, 1, "one", None).upsert(900, 2, "late", None).upsert(901, 4, "far", None)))
        store.apply(work(Rows().delete(900, 3).delete(100, 5)))
        for _ in range(2):
            store.forget(ITEM, key_batch(ITEM, (1,), (2,), (3,), (5,), (6,)), 500)
            store.forget(PAIR, key_batch(PAIR, ("none", bytes(16))), 500)
        store.apply(work(Rows().upsert(99, 1, "old", None).upsert(200, 2, "new", None).upsert(200, 3, "back", None)))
        store.apply(work(Rows().upsert(200, 4, "no", None).upsert(99, 5, "old", None)))
        found = contents(store)
        assert found == {1: ("one", None, 100), 2: ("new", None, 200), 3: ("back", None, 200), 4: ("far", None, 901)}
        store.forget(ITEM, key_batch(ITEM, (4,)), 500)
        store.apply(work(Rows().delete(300, 4)))
        assert contents(store).keys() == {1, 2, 3}

    def test_a_truncation_and_a_horizon_that_no_change_had_are_forgotten(self, store: Store) -> None:
        if not isinstance(store, Forgetting):
            pytest.skip("the store forgets no versions")
        store.apply(work(Rows().upsert(100, 1, "one", None)))
        store.apply(work(truncated_only(900)))
        store.purge("orders", 901)
        store.forget(ITEM, key_batch(ITEM, (2,)), 1000)
        store.apply(work(Rows().upsert(200, 2, "superseded", None)))
        assert contents(store) == {}
        store.forget(ITEM, key_batch(ITEM, (2,)), 500)
        store.apply(work(Rows().upsert(200, 2, "back", None)))
        assert contents(store) == {2: ("back", None, 200)}

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

    @pytest.mark.parametrize("logical", sorted(KEYS))
    def test_every_type_serves_as_a_key(self, store: Store, logical: str) -> None:
        schema = TableSchema(
            "public", "keyed", (Column("note", "text", "text"), Column("key", logical, logical, key=True))
        )
        a, b, c = KEYS[logical]
        store.migrate(schema)
        store.apply(work(Rows(schema).upsert(100, "a", a).upsert(100, "b", b)))
        store.apply(work(Rows(schema).upsert(110, "A", a).delete(110, b)))
        store.apply(work(Rows(schema).upsert(105, "late", a).upsert(105, "late", b)))
        assert contents(store, schema) == {a: ("A", 110)}
        moved = Rows(schema).partial(120, None, c, unchanged=["note"], origin=(a,)).delete(120, a)
        store.apply(work(moved))
        store.apply(work(moved))
        assert contents(store, schema) == {c: ("A", 120)}
        assert dict(rows_of(schema, store.fetch(schema, key_batch(schema, (a,), (c,))))) == {c: ("A", 120)}

    def test_columns_and_keys_may_be_called_like_ours(self, store: Store) -> None:
        names = ("unchanged", "from_key", "n", "v", "i", "op", "source", "horizon")
        schema = TableSchema(
            "public",
            "named",
            (Column("version", "int8", "bigint", key=True), *(Column(name, "text", "text") for name in names)),
        )
        store.migrate(schema)
        store.apply(work(Rows(schema).upsert(100, 1, *names).upsert(100, 2, *names).upsert(100, 3, *names)))
        moved = Rows(schema).partial(110, 9, None, *names[1:], unchanged=["unchanged"], origin=(1,)).delete(110, 1)
        store.apply(work(moved.delete(110, 2)))
        store.apply(work(Rows(schema).upsert(105, 2, *names).partial(120, 3, *names[:-1], None, unchanged=["horizon"])))
        assert contents(store, schema) == {3: (*names, 120), 9: (*names, 110)}

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
             b"", b"\xff" * 16, I32, 86_400_000_000, I64, I64, "null", ""),
            (3, None, 0, 0, -0.0, 1e308, Decimal(0), b"'", b"\0" * 16, -I32, 0, -I64, -I64, '"x"', "a\nb'\"\\"),
            (4, *[None] * 14),
            (5, True, 1, 1, 1.0, 1.0, Decimal(1), b"x", identity, -719_892, 1, -62_198_755_200_000_000,
             253_402_300_800_000_000, "[]", "BC, year 10000"),
        ]  # fmt: skip
        batch = Rows(VALUES)
        for row in rows:
            batch.upsert(100, *row)
        store.apply(work(batch))
        assert contents(store, VALUES) == {row[0]: (*row[1:], 100) for row in rows}
        found = store.fetch(VALUES, key_batch(VALUES, (2,), (4,), (77,)))
        assert dict(rows_of(VALUES, found)) == {row[0]: (*row[1:], 100) for row in rows if row[0] in (2, 4)}

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
                .upsert(100, *texts(1, "-1.50", "2026-01-02", "24:00:00", "infinity", "2026-01-02 03:04:05.000006+00"))
                .upsert(100, *texts(2, "7", "infinity", "00:00:00.5", "2026-01-02 03:04:05", "-infinity"))
            )
        )
        us = 1_767_323_045_000_000
        found = contents(store, VALUES)  # in the store's order, which need not be that of the keys
        assert [found[key][5:6] + found[key][8:12] for key in (1, 2)] == [
            (Decimal("-1.5000000000"), 20_455, 86_400_000_000, I64, us + 6),
            (Decimal("7.0000000000"), I32, 500_000, us, -I64),
        ]

    def test_values_that_cannot_be_held_are_rejected_and_nothing_is_written(self, store: Store) -> None:
        store.migrate(VALUES)
        store.apply(work(Rows().upsert(100, 1, "one", None), n=1))
        text = ("numeric", "timestamp")
        rows = (
            Rows(VALUES, text=text)
            .upsert(100, *texts(1, "1.5", None, None, "2026-01-01 00:00:00", None))
            .upsert(100, *texts(2, "NaN", None, None, None, None))
            .upsert(100, *texts(3, "0.00000000005", None, None, None, None))
            .partial(100, *texts(4, None, None, None, "294276-01-01 00:00:00", None), unchanged=["numeric"])
        )
        with pytest.raises(Rejected) as refused:
            store.apply(work(Rows().upsert(110, 1, "changed", None), rows, n=2))
        assert refused.value.table == "public.values"
        assert refused.value.rows == self.refused
        assert contents(store) == {1: ("one", None, 100)}
        assert contents(store, VALUES) == {}
        store.apply(work(Rows(VALUES).upsert(110, 2, *[None] * 14)))
        assert list(contents(store, VALUES)) == [2]

    # ------------------------------------------------------------------------------------------ reading

    def test_fetch_returns_the_rows_of_the_keys_that_exist(self, store: Store) -> None:
        store.apply(work(Rows().upsert(100, 1, "one", None).upsert(100, 2, "two", None).delete(100, 3)))
        found = store.fetch(ITEM, key_batch(ITEM, (2,), (3,), (4,)))
        assert found.schema.names == ["id", "name", "amount", "version"]
        assert dict(rows_of(ITEM, found)) == {2: ("two", None, 100)}
        assert store.fetch(ITEM, key_batch(ITEM, (9,))).num_rows == 0

    def test_scan_and_fetch_keep_the_types_of_the_contract(self, store: Store) -> None:
        store.migrate(VALUES)
        store.apply(work(Rows(VALUES).upsert(100, 1, *[None] * 14)))
        expected = [*(arrow_type(c.type) for c in VALUES.columns), pa.int64()]
        assert next(iter(store.scan(VALUES))).schema.types == expected
        assert store.fetch(VALUES, key_batch(VALUES, (1,))).schema.types == expected

    def test_readers_in_other_threads_see_whole_works_only(self, store: Store) -> None:
        """Whole rows that never go back, in any store; of a store that declares transactions, whole works."""
        store.apply(work(Rows().upsert(1, 1, "1", None).upsert(1, 2, "1", None)))
        seen: list[dict[Any, tuple[Any, ...]]] = []
        begun, done = threading.Event(), threading.Event()

        def read() -> None:
            while not done.is_set():
                seen.append(contents(store))
                begun.set()

        reader = threading.Thread(target=read)
        reader.start()
        try:
            assert begun.wait(30)
            for version in range(2, 40):
                store.apply(work(Rows().upsert(version, 1, str(version), None).upsert(version, 2, str(version), None)))
        finally:
            done.set()
            reader.join()
        assert all(set(rows) == {1, 2} for rows in seen)
        assert all(name == str(version) for rows in seen for name, _, version in rows.values())
        for key in (1, 2):
            versions = [rows[key][2] for rows in seen]
            assert versions == sorted(versions)
        if store.limits.transactional:
            assert all(rows[1] == rows[2] for rows in seen)

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
        steps = data.draw(st.lists(random_steps, min_size=1, max_size=6))
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
