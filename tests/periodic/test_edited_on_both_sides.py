"""What a run takes for an edit of Redis where Syncline writes the same hashes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis
from pydantic import SecretStr

from syncline.capture.redis.run import Files, Run
from syncline.capture.redis.settings import RedisSettings
from syncline.capture.runs import Wish
from syncline.change import Column, Cursor, Position, TableSchema
from syncline.embedded import EmbeddedValkey
from syncline.shape import Hash, Keys
from syncline.stores import Folded, TableWork, Work
from syncline.stores.redis import RedisConfig, RedisStore

SCHEMA = TableSchema(
    "public",
    "player",
    (Column("id", "text", "text", key=True), Column("score", "int8", "bigint")),
    Keys((Hash("player:{id}", ("score",)),)),
    "m",
)
KINDS = [("id", pa.string()), ("score", pa.int64()), ("version", pa.int64())]


class Edited:
    """Hashes that a store writes and applications edit, and what one run after the other tells of them."""

    def __init__(self, url: str, folder: Path, client: redis.Redis) -> None:
        self._settings = RedisSettings.model_validate(
            {
                "url": url,
                "table": "player",
                "member": "id",
                "columns": {"score": {"hash": "player:{member}", "type": "int8"}},
                "both_ways": "cache",
                "initial_load": False,
                "deletes": "gone",
                "delete_share": 1,
            }
        )
        config = RedisConfig(url=SecretStr(url), both_ways=True, adopt=False)
        place = config.edited_at("public.player", url)
        assert place is not None
        self._settings.meets(*place)
        self.store, self.client, self._folder, self._n = RedisStore(config, "cache"), client, folder, 0
        self.aside: dict[str, int] = {}
        self._told: Path | None = None
        self._scratch = folder / "scratch"
        self._scratch.mkdir()

    def write(self, key: str, score: int | None, *, echo: bool = False) -> None:
        self._n += 1
        if score is None:
            rows = Folded(deletes=pa.record_batch([[key], [self._n]], pa.schema([KINDS[0], KINDS[2]])))
        else:
            rows = Folded(upserts=pa.record_batch([[key], [score], [self._n]], pa.schema(KINDS)))
        self.store.apply(Work((TableWork(SCHEMA, rows),), Cursor("main", Position("log", self._n)), echo))

    def edit(self, key: str, score: int | None) -> None:
        if score is None:
            self.client.delete(f"player:{key}")
        else:
            self.client.hset(f"player:{key}", "score", score)

    def run(self) -> dict[str, tuple[int | None, int | None]]:
        """What a run tells: by key the score that the edit rests on, and that which it made (None: no row)."""
        told: dict[str, tuple[int | None, int | None]] = {}
        files = Files(self._told, self._scratch)
        with Run(self._settings, files, Wish("full"), ("full", None), threading.Event(), bool) as run:
            found = run.look()
            self.aside = dict(found.reasons)
            for batch in run.batches(1, 0) if found.differs else ():
                assert batch.bases is not None
                for key, text in zip(batch.rows.column(0).to_pylist(), batch.bases.to_pylist(), strict=True):
                    told[key] = tuple(_score(json.loads(text)[side]) for side in ("base", "new"))  # type: ignore[assignment]
            if found.moves:
                behind = self._folder / f"told-{self._n}-{len(list(self._folder.iterdir()))}"
                run.write(behind)
                self._told = behind
        return told


def _score(row: dict[str, Any] | None) -> int | None:
    return None if row is None else int(row["score"])


@pytest.fixture
def edited(valkey: EmbeddedValkey, tmp_path: Path) -> Iterator[Edited]:
    with redis.Redis.from_url(valkey.url(), protocol=2) as client:
        edited = Edited(valkey.url(), tmp_path, client)
        edited.store.open("main")
        edited.store.migrate(SCHEMA)
        yield edited
        edited.store.close()


def test_what_was_written_is_no_edit_and_an_edit_rests_on_it(edited: Edited) -> None:
    edited.write("a", 1)
    edited.write("b", 1)
    assert edited.run() == {}
    edited.edit("a", 2)
    edited.edit("b", None)
    edited.edit("c", 3)
    assert edited.run() == {"a": (1, 2), "b": (1, None), "c": (None, 3)}
    assert edited.run() == {}


def test_an_edit_before_any_run_saw_what_was_written_rests_on_that(edited: Edited) -> None:
    edited.write("a", 1)
    edited.run()
    edited.write("a", 2)
    edited.edit("a", 3)
    assert edited.run() == {"a": (2, 3)}


def test_an_edit_of_an_edit_that_is_under_way_rests_on_it(edited: Edited) -> None:
    edited.write("a", 1)
    edited.edit("a", 2)
    edited.run()
    edited.edit("a", 3)
    assert edited.run() == {"a": (2, 3)}
    edited.write("a", 2, echo=True)
    assert edited.run() == {"a": (2, 3)}, "the base is another one, so it is told on that"
    edited.write("a", 3, echo=True)
    assert edited.run() == {}


def test_an_edit_that_sets_back_what_was_told_once_is_told(edited: Edited) -> None:
    edited.write("a", 1)
    edited.edit("a", 2)
    edited.run()
    edited.write("a", 5)
    edited.edit("a", 2)
    assert edited.run() == {"a": (5, 2)}


def test_a_key_of_another_kind_is_set_aside_and_stops_no_other(edited: Edited) -> None:
    edited.write("a", 1)
    edited.write("b", 1)
    edited.run()
    edited.edit("a", None)
    edited.client.set("player:a", "x")
    edited.edit("b", 2)
    assert edited.run() == {"b": (1, 2)}
    assert edited.aside == {"its key is no hash": 1}


def test_a_row_that_came_and_went_between_two_runs_is_no_base(edited: Edited) -> None:
    edited.edit("a", 2)
    assert edited.run() == {"a": (None, 2)}
    edited.write("a", 2, echo=True)
    edited.write("a", None)
    edited.edit("a", 2)
    assert edited.run() == {"a": (None, 2)}
