"""What becomes of a hash that an application edited, when changes come: anew, or back to where they began."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
import redis
from pydantic import SecretStr

from syncline.change import Column, Cursor, Position, TableSchema
from syncline.embedded import EmbeddedValkey
from syncline.shape import Hash, Keys
from syncline.stores import Folded, TableWork, Work
from syncline.stores.redis import RedisConfig, RedisStore

COLUMNS = (Column("id", "text", "text", key=True), Column("name", "text", "text"))
SCHEMA = TableSchema("public", "player", COLUMNS, Keys((Hash("player:{id}", ("name",)),)), "m")


class Hashed:
    """The hash of one row, written by the store and edited by hand."""

    def __init__(self, store: RedisStore, client: redis.Redis) -> None:
        self.store, self.client, self._n = store, client, 0

    def write(self, name: str | None, *, echo: bool = False, truncated: int | None = None) -> str | None:
        """Apply a change of the row (None: its deletion), perhaps behind a truncation; what the hash has then."""
        self._n += 1
        kinds = [("id", pa.string()), ("name", pa.string()), ("version", pa.int64())]
        if name is None:
            rows = Folded(deletes=pa.record_batch([["a"], [self._n]], pa.schema([kinds[0], kinds[2]])))
        else:
            rows = Folded(upserts=pa.record_batch([["a"], [name], [self._n]], pa.schema(kinds)))
        self.store.apply(Work((TableWork(SCHEMA, rows, truncated),), Cursor("main", Position("log", self._n)), echo))
        return self.name

    def edit(self, name: str) -> None:
        self.client.hset("player:a", "name", name)

    @property
    def name(self) -> Any:
        return self.client.hget("player:a", "name")


@pytest.fixture
def hashed(valkey: EmbeddedValkey) -> Iterator[Hashed]:
    store = RedisStore(RedisConfig(url=SecretStr(valkey.url()), both_ways=True, adopt=False), "cache")
    store.open("main")
    store.migrate(SCHEMA)
    with redis.Redis.from_url(valkey.url(), protocol=2, decode_responses=True) as client:
        yield Hashed(store, client)
    store.close()


def test_a_new_change_writes_over_an_edit_and_counts_it(hashed: Hashed) -> None:
    assert hashed.write("one") == "one"
    assert hashed.write("two") == "two"
    assert hashed.store.overruled == 0
    hashed.edit("mine")
    assert hashed.write("three") == "three"
    hashed.edit("mine")
    assert hashed.write(None) is None
    assert hashed.store.overruled == 2


def test_a_row_that_is_read_again_leaves_an_edit_that_rests_on_it(hashed: Hashed) -> None:
    hashed.write("one")
    hashed.edit("mine")
    assert hashed.write("one") == "mine"
    assert hashed.write("mine", echo=True) == "mine"
    hashed.client.delete("player:a")
    assert hashed.write("mine") is None
    assert hashed.write(None, echo=True) is None
    assert hashed.store.overruled == 0


@pytest.mark.parametrize("at_once", [10_000, 0])
def test_a_load_that_ends_leaves_an_edit_of_a_row_that_it_found(
    hashed: Hashed, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncline.stores.redis.applying._ATOMIC_ROWS", at_once)
    hashed.write("one")
    hashed.edit("mine")
    assert hashed.write("one", truncated=1) == "mine"
    hashed.client.delete("player:a")
    assert hashed.write("one", truncated=2) is None
    assert hashed.write(None, echo=True) is None
    hashed.write("two")
    hashed.edit("mine")
    assert hashed.write("three", truncated=5) == "three"
    assert hashed.store.overruled == 1


def test_a_load_that_ends_takes_away_a_row_that_it_did_not_find(hashed: Hashed) -> None:
    hashed.write("one")
    rows = Folded(upserts=pa.record_batch([["b"], ["b"], [2]], names=["id", "name", "version"]))
    hashed.store.apply(Work((TableWork(SCHEMA, rows, 1),), Cursor("main", Position("log", 2))))
    assert hashed.name is None
    assert hashed.client.hget("player:b", "name") == "b"


def test_a_hash_that_was_there_before_its_row_is_written_over(hashed: Hashed) -> None:
    hashed.edit("mine")
    assert hashed.write("one") == "one"
    assert hashed.store.overruled == 1


def test_what_both_sides_changed_to_the_same_is_no_conflict(hashed: Hashed) -> None:
    hashed.write("one")
    hashed.edit("two")
    assert hashed.write("two") == "two"
    assert hashed.store.overruled == 0


def test_what_comes_back_never_writes_over_an_edit_made_since(hashed: Hashed) -> None:
    hashed.write("one")
    hashed.edit("mine")
    hashed.edit("newer")
    assert hashed.write("mine", echo=True) == "newer"
    hashed.edit("mine")
    assert hashed.write("next") == "next", "the edit before the next change was the one that came back"
    assert hashed.store.overruled == 0


def test_what_comes_back_to_a_hash_that_was_set_back_meanwhile_leaves_it(hashed: Hashed) -> None:
    hashed.write("one")
    hashed.edit("mine")
    hashed.edit("one")
    assert hashed.write("mine", echo=True) == "one"


def test_an_edit_that_lost_here_and_won_there_comes_back(hashed: Hashed) -> None:
    hashed.write("one")
    hashed.edit("mine")
    assert hashed.write("two") == "two"
    assert hashed.write("one") == "one"
    assert hashed.write("mine", echo=True) == "mine"
    assert hashed.store.overruled == 1


def test_a_deletion_that_comes_back_leaves_a_hash_that_was_made_anew(hashed: Hashed) -> None:
    hashed.write("one")
    hashed.client.delete("player:a")
    hashed.edit("new")
    assert hashed.write(None, echo=True) == "new"
    assert hashed.write("two") == "two"
    assert hashed.store.overruled == 1


def test_a_table_that_was_only_a_copy_so_far_is_loaded_anew(hashed: Hashed, valkey: EmbeddedValkey) -> None:
    for both_ways, known in ((True, SCHEMA), (False, SCHEMA), (True, None), (True, SCHEMA)):
        store = RedisStore(RedisConfig(url=SecretStr(valkey.url()), both_ways=both_ways, adopt=False), "cache")
        store.open("main")
        assert store.migrate(SCHEMA) == known
        store.close()
