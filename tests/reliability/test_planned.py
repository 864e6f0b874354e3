"""What comes, goes or changes in a configuration is shown as a plan, and the plan does just that: columns, templates,
whole targets. (Tables are in ``tests/service/test_plan.py``, embedders in ``test_embedding.py``.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis
from harness import Rig

from servers import Database
from syncline.config import load_config
from syncline.embedded import EmbeddedValkey
from syncline.pipeline import SyncService
from syncline.pipeline.plan import carry_out, make_plan
from syncline.verify import verify


@pytest.fixture
def rig(database: Database, tmp_path: Path) -> Rig:
    database.execute("create table t (id int primary key, a text, b text); create table beside (id int primary key)")
    database.execute(
        "insert into t select g, 'a' || g, 'b' || g from generate_series(1, 20) g; insert into beside values (1)"
    )
    return Rig(database, tmp_path, target={"door": True})


def planned(rig: Rig) -> list[tuple[str, str, str]]:
    return sorted((c.kind, c.target, c.table) for c in make_plan(load_config(rig.config)).changes)


def apply(rig: Rig) -> None:
    config = load_config(rig.config)
    carry_out(config, make_plan(config))
    assert planned(rig) == []
    assert verify(config, talk=lambda _: None, engine=SyncService).differences == 0


def test_a_column_that_goes_and_comes_again_reloads_its_table_alone(rig: Rig) -> None:
    rig.sync()
    target = rig.settings["targets"]["main"]
    target["tables"] = {"public.t": {"columns": ["a"]}, "public.beside": {}}
    rig.write()
    assert planned(rig) == [("reload", "main", "public.t")]
    apply(rig)
    with rig.open() as copy:
        assert [row[0] for row in copy.execute("describe t").fetchall()][:2] == ["id", "a"]
        assert "b" not in [row[0] for row in copy.execute("describe t").fetchall()]
    target["tables"]["public.t"] = {}
    rig.write()
    assert planned(rig) == [("reload", "main", "public.t")]
    apply(rig)
    assert rig.rows("select a, b from t where id = 7") == [("a7", "b7")]


def test_a_target_that_comes_is_loaded_alone_and_one_that_goes_is_left_as_it_is(rig: Rig, database: Database) -> None:
    rig.sync()
    second = {**rig.settings["targets"]["main"], "path": str(rig.folder / "second.duckdb")}
    rig.settings["targets"]["second"] = second
    rig.paths["second"] = rig.folder / "second.duckdb"
    rig.write()
    assert planned(rig) == [("load", "second", "public.beside"), ("load", "second", "public.t")]
    apply(rig)
    assert rig.rows("select count(*) from t", "second") == [(20,)]
    del rig.settings["targets"]["second"]
    rig.write()
    assert planned(rig) == []
    assert make_plan(load_config(rig.config)).former == ("second",)
    database.execute("delete from t where id > 10")
    apply(rig)
    assert rig.rows("select count(*) from t", "second") == [(20,)]
    assert rig.rows("select count(*) from t", "main") == [(10,)]


def test_another_template_reloads_its_table_and_leaves_no_key_of_the_former_one(
    rig: Rig, valkey: EmbeddedValkey
) -> None:
    def mapped(**table: Any) -> None:
        rig.settings["targets"] = {
            "main": {"type": "redis", "url": valkey.url(), "tables": {"public.t": table, "public.beside": {}}}
        }
        rig.write()

    mapped(hash="old:{id}", members=[{"key": "all", "member": "{id}", "score": "id"}])
    rig.sync()
    mapped(hash="new:{id}")
    assert planned(rig) == [("reload", "main", "public.t")]
    apply(rig)
    with redis.Redis.from_url(valkey.url()) as client:
        assert (client.exists("old:7"), client.exists("all"), client.hget("new:7", "a")) == (0, 0, b"a7")


def test_nothing_is_removed_from_a_place_that_another_setup_fills(rig: Rig, database: Database, tmp_path: Path) -> None:
    """Two setups that call their sources alike, on one target: what the other one holds is none of ours."""
    rig.sync()
    other = Rig(database, tmp_path / "other")
    other.settings["targets"]["main"] = {**rig.settings["targets"]["main"], "tables": {"public.beside": {}}}
    other.write()
    assert [kind for kind, *_ in planned(other)] == []
    assert make_plan(load_config(other.config)).changes == ()
    assert rig.rows("select count(*) from t") == [(20,)]
    rig.settings["targets"]["main"]["tables"] = {"public.beside": {}}
    rig.write()
    assert planned(rig) == [("remove", "main", "public.t")]
