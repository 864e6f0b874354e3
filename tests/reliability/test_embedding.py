"""Vectors that a function makes of text, from a real PostgreSQL into a real folder of Qdrant: what it is called with,
and what becomes of those it fails on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness import Rig

from servers import Database, eventually
from syncline.config import load_config
from syncline.errors import Unavailable
from syncline.pipeline import SyncService
from syncline.pipeline.plan import carry_out, make_plan
from syncline.stores.qdrant import open_reader
from syncline.stores.qdrant.points import Sparse
from syncline.stores.qdrant.process import ProcessPoints
from syncline.verify import verify

CALLS: list[list[str]] = []
AWAY = [False]


def embedder(texts: list[str]) -> list[list[float]]:
    """A unit vector that tells its text's length, so that Qdrant gives it back as it is."""
    CALLS.append(list(texts))
    return [[0.0, 1.0] if len(text) % 2 else [1.0, 0.0] for text in texts]


def other(texts: list[str]) -> list[list[float]]:
    CALLS.append(list(texts))
    return [[0.0, -1.0] for _ in texts]


def words(texts: list[str]) -> list[dict[str, list[Any]]]:
    CALLS.append(list(texts))
    return [{"indices": [len(text)], "values": [1.0]} for text in texts]


def choosy(texts: list[str]) -> list[list[float]]:
    """Fails on one text, drops another, and gives a third a vector of another size."""
    if "poison 5" in texts:
        raise ValueError("poison 5 is not to my liking")
    return [[1.0, 0.0, 0.0] if text == "long 7" else [1.0, 0.0] for text in texts if text != "dropped 6"]


def remote(texts: list[str]) -> list[list[float]]:
    if AWAY[0]:
        CALLS.append(list(texts))
        try:
            raise ConnectionRefusedError("nobody there")
        except OSError as error:  # as clients of services do it
            raise RuntimeError("the service can't be reached") from error
    return embedder(texts)


def telling(texts: list[str]) -> list[list[float]]:
    CALLS.append(list(texts))
    if AWAY[0]:
        raise Unavailable("The model is being loaded.")
    return [[1.0, 0.0] for _ in texts]


def broken(texts: list[str]) -> list[list[float]]:
    """While it is AWAY, a defect of its own, which has nothing to do with the texts."""
    if AWAY[0]:
        CALLS.append(list(texts))
        raise ValueError("defect")
    return choosy(texts)


def misfit(texts: list[str]) -> list[list[float]]:
    """While it is AWAY, a model of another size."""
    if AWAY[0]:
        CALLS.append(list(texts))
    return [[1.0, 0.0, 0.0] if AWAY[0] else [1.0, 0.0] for _ in texts]


@pytest.fixture
def rig(database: Database, tmp_path: Path) -> Rig:
    CALLS.clear()
    AWAY[0] = False
    database.execute("create table doc (id int primary key, title text, body text, views int)")
    database.execute("alter table doc alter body set storage external")
    database.execute("insert into doc select g, 't' || g, repeat('b', 3000 + g), 0 from generate_series(1, 10) g")
    rig = Rig(database, tmp_path)
    rig.settings["targets"]["main"] = {"type": "qdrant", "path": str(tmp_path / "points")}
    rig.write()
    return rig


def embed(rig: Rig, **vectors: dict[str, Any]) -> None:
    rig.settings["targets"]["main"]["tables"] = {"public.doc": {"collection": "docs", "vectors": vectors}}
    rig.write()


def by(function: Any, *text: str, **more: Any) -> dict[str, Any]:
    dense = {} if more.get("sparse") else {"size": 2}
    return {"embed": f"{__name__}:{function.__name__}", "text": list(text), **dense, **more}


def called() -> list[str]:
    """The texts that were embedded since the last look, in order."""
    texts = sorted(text for call in CALLS for text in call)
    CALLS.clear()
    return texts


def vectors(rig: Rig, name: str = "v") -> dict[int, Any]:
    """What Qdrant has, read through its own door."""
    with open_reader(rig.folder / "points") as reader:
        points = reader.points("docs", list(range(1, 50)), vectors=True)
    return {p.payload["id"]: p.vectors.get(name) for p in points}


def change_vectors(rig: Rig, changes: dict[int, dict[str, Any]]) -> None:
    """Change vectors by hand, with the shard's own means; None takes one away."""
    points = ProcessPoints.acquire(rig.folder / "points")
    try:
        found = points.retrieve("docs", list(changes), vectors=True)
        made = [{**p.vectors, **changes[p.payload["id"]]} for p in found]
        there = [{name: vector for name, vector in vectors.items() if vector is not None} for vectors in made]
        points.put("docs", [p._replace(vectors=v) for p, v in zip(found, there, strict=True)])
        points.sync(["docs"])
    finally:
        points.close()


def differences(rig: Rig) -> int:
    return verify(load_config(rig.config), talk=lambda _: None, engine=SyncService).differences


def test_only_rows_whose_text_changed_are_embedded_and_in_batches(rig: Rig, database: Database) -> None:
    embed(rig, v=by(embedder, "title", batch=4))
    with rig.running() as engine:
        assert [len(call) for call in CALLS] == [4, 4, 2]
        assert called() == sorted(f"t{g}" for g in range(1, 11))
        before = vectors(rig)
        assert (before[3], before[10]) == ([1.0, 0.0], [0.0, 1.0])

        database.execute("update doc set views = views + 1")  # body is unchanged TOAST, and comes as a partial row
        database.execute("update doc set body = 'short' where id < 4")  # whole rows
        database.execute("update doc set title = title where id = 5")
        engine.settle()
        assert called() == []
        assert vectors(rig) == before

        database.execute("update doc set title = 'new' where id = 3; delete from doc where id = 4")
        database.execute("insert into doc values (11, 'eleven', 'b', 0), (12, null, 'b', 0)")
        database.execute("update doc set id = 30 where id = 6")  # its text goes with it
        database.execute("update doc set title = null where id = 7")
        engine.settle()
        found = vectors(rig)
        assert called() in (["eleven", "new"], ["eleven", "new", "t6"])
        assert (found[3], found[7], found[12], found[30]) == ([0.0, 1.0], None, None, before[6])
        assert not {4, 6} & set(found)
    assert differences(rig) == 0
    assert called() == []  # neither does verification


def test_a_text_that_comes_back_within_one_step_gets_its_own_vector_again(rig: Rig, database: Database) -> None:
    """One column comes in two forms, so the step is written in two parts, and the second rests on the first."""
    database.execute("alter table doc add price numeric(8,2); update doc set body = null, title = 'odd' where id = 5")
    embed(rig, v=by(remote, "title"))
    with rig.running() as engine:
        AWAY[0] = True  # so that both come into one step, behind the one that waits
        for statement in (
            "insert into doc values (11, 'eleven', 'b', 0)",
            "update doc set title = 'even' where id = 5",
            "update doc set title = 'odd' where id = 5; update doc set price = 'NaN' where id = 9",
        ):
            end = engine.source.log.status().end
            database.execute(statement)
            eventually(lambda end=end: engine.source.log.status().end > end)  # type: ignore[misc]
        AWAY[0] = False
        engine.settle()
        assert vectors(rig)[5] == [0.0, 1.0]
    assert [table for table, _ in rig.letters()] == ["public.doc"]
    assert differences(rig) == 0


def test_a_table_that_is_read_again_is_not_embedded_again(rig: Rig) -> None:
    embed(rig, v=by(embedder, "title", "body"))
    with rig.running() as engine:
        assert len(called()) == 10
        engine.service.resync()
        engine.settle()
        eventually(lambda: engine.state() == "streaming")
        assert called() == []
    assert differences(rig) == 0


@pytest.mark.parametrize("change", ["model", "function", "text"])
def test_another_model_function_or_text_is_planned_and_embeds_all_rows_of_its_table_anew(
    rig: Rig, database: Database, change: str
) -> None:
    database.execute("create table beside (id int primary key); insert into beside values (1)")
    tables = {"public.beside": {}}
    embed(rig, v=by(embedder, "title", model="m1"))
    rig.settings["targets"]["main"]["tables"] |= tables
    rig.write()
    rig.sync()
    assert len(called()) == 10
    new = {
        "model": by(embedder, "title", model="m2"),
        "function": by(other, "title", model="m1"),
        "text": by(embedder, "title", "body", model="m1"),
    }
    embed(rig, v=new[change])
    rig.settings["targets"]["main"]["tables"] |= tables
    rig.write()
    config = load_config(rig.config)
    plan = make_plan(config)
    assert [(c.kind, c.table) for c in plan.changes] == [("reload", "public.doc")]
    carry_out(config, plan)
    assert len(called()) == 10
    assert [c.kind for c in make_plan(config).changes] == []
    if change == "function":
        assert set(map(tuple, vectors(rig).values())) == {(0.0, -1.0)}
    assert differences(rig) == 0
    assert called() == []


def test_a_vector_that_is_added_is_planned_and_leaves_the_other_alone_and_one_that_is_removed_is_gone(
    rig: Rig,
) -> None:
    embed(rig, v=by(embedder, "title"))
    rig.sync()
    assert len(called()) == 10
    embed(rig, v=by(embedder, "title"), w=by(words, "body", sparse=True))
    config = load_config(rig.config)
    assert [(c.kind, c.table) for c in make_plan(config).changes] == [("reload", "public.doc")]
    carry_out(config, make_plan(config))
    assert called() == sorted("b" * (3000 + g) for g in range(1, 11))
    assert vectors(rig, "w")[3].indices == [3003]
    assert vectors(rig, "v")[3] == [1.0, 0.0]
    embed(rig, w=by(words, "body", sparse=True))
    carry_out(load_config(rig.config), make_plan(load_config(rig.config)))
    assert called() == []
    assert set(vectors(rig, "v").values()) == {None}
    assert vectors(rig, "w")[3].indices == [3003]
    assert differences(rig) == 0


def test_texts_that_an_embedder_fails_on_are_parked_alone_with_a_reason_that_does_not_tell_them(
    rig: Rig, database: Database
) -> None:
    database.execute("update doc set title = 'poison 5' where id = 5; update doc set title = 'dropped 6' where id = 6")
    embed(rig, v=by(choosy, "title"))
    with rig.running() as engine:
        database.execute("update doc set title = 'long 7' where id = 7")
        database.execute("insert into doc values (11, 'poison 5', 'b', 0), (12, 'fine', 'b', 0)")
        engine.settle()
        reasons = sorted(reason for _, reason in rig.letters())
        assert reasons == sorted(
            [
                "the embedder of v fails (ValueError); the embedder of v gives 0 vectors for 1 texts",
                "the embedder of v fails (ValueError); the embedder of v gives 0 vectors for 1 texts",
                "vector v does not have 2 dimensions",
                "the embedder of v fails (ValueError)",
            ]
        )
        assert set(vectors(rig)) == {1, 2, 3, 4, 7, 8, 9, 10, 12}
        database.execute("update doc set title = 'better', body = 'whole rows' where id in (5, 6, 7, 11)")
        engine.settle()
        assert rig.letters() == []
    assert differences(rig) == 0


@pytest.mark.parametrize("function", [remote, telling])
def test_an_embedder_that_is_away_makes_its_target_wait_and_parks_nothing(
    rig: Rig, database: Database, function: Any
) -> None:
    embed(rig, v=by(function, "title"))
    with rig.running() as engine:
        AWAY[0] = True
        CALLS.clear()
        database.execute("insert into doc values (11, 'eleven', 'b', 0)")
        eventually(lambda: len(CALLS) > 2)
        eventually(lambda: rig.alerts() == ["SL-TARGET-AWAY"])
        AWAY[0] = False
        engine.settle()
        assert vectors(rig)[11] == [1.0, 0.0]  # "eleven" has six letters
        assert rig.letters() == []
    assert differences(rig) == 0


@pytest.mark.parametrize("function", [broken, misfit])
def test_an_embedder_that_has_a_vector_for_no_text_makes_its_target_wait_and_parks_nothing(
    rig: Rig, database: Database, function: Any
) -> None:
    embed(rig, v=by(function, "title"))
    AWAY[0] = True  # nothing of the first load gets a vector
    with rig.running(until_loaded=False) as engine:
        eventually(lambda: rig.alerts() == ["SL-TARGET-AWAY"])
        (told,) = database.execute("select message, remedy from syncline.sync_alerts where resolved_at is null")
        assert told[0].startswith("The embedder of vector v of table public.doc has a vector for no text: ")
        assert f"{function.__name__}" in told[1]
        AWAY[0] = False
        engine.settle()
        AWAY[0] = True  # a single text, of which the function would have to be innocent
        CALLS.clear()
        database.execute("insert into doc values (11, 'eleven', 'b', 0)")
        eventually(lambda: len(CALLS) > 2)
        eventually(lambda: rig.alerts() == ["SL-TARGET-AWAY"])
        AWAY[0] = False
        engine.settle()
        assert vectors(rig)[11] == [1.0, 0.0]
        assert rig.letters() == []
        eventually(lambda: rig.alerts() == [])
    assert differences(rig) == 0


def test_a_single_bad_text_is_parked_beside_an_embedder_that_works(rig: Rig, database: Database) -> None:
    embed(rig, v=by(broken, "title"))
    with rig.running() as engine:
        database.execute("insert into doc values (11, 'poison 5', 'b', 0)")
        engine.settle()
        assert [reason for _, reason in rig.letters()] == ["the embedder of v fails (ValueError)"]
        assert set(vectors(rig)) == set(range(1, 11))


def test_vectors_of_columns_are_compared_as_they_were_before_qdrant_scaled_and_sorted_them(
    rig: Rig, database: Database
) -> None:
    database.execute("alter table doc add dense real[], add sparse jsonb")
    database.execute('update doc set dense = array[id, 0.5], sparse = \'{"indices": [7, 2], "values": [1, 0.25]}\'')
    embed(rig, d={"column": "dense", "size": 2, "distance": "cosine"}, s={"column": "sparse", "sparse": True})
    with rig.running() as engine:
        engine.settle()
    assert differences(rig) == 0
    change_vectors(
        rig, {1: {"d": [0.6, 0.8]}, 2: {"d": None}, 3: {"s": Sparse([2, 7], [0.25, 0.5])}, 4: {"d": [9.0, 0.5]}}
    )
    assert differences(rig) == 4


def test_a_vector_that_was_taken_from_its_text_is_missed_and_made_again(rig: Rig, database: Database) -> None:
    embed(rig, v=by(embedder, "title"))
    with rig.running() as engine:
        engine.settle()
    assert differences(rig) == 0
    change_vectors(rig, {3: {"v": None}})
    assert differences(rig) == 1
    called()
    with rig.running() as engine:
        database.execute("update doc set views = 1, body = 'b' where id in (3, 4)")
        engine.settle()
    assert called() == ["t3"]
    assert differences(rig) == 0


def test_a_row_that_was_healed_and_can_not_be_mapped_is_parked(rig: Rig, database: Database) -> None:
    database.execute(
        "alter table doc add lang text, add dense real[]; alter table doc alter dense set storage external"
    )
    database.execute("update doc set lang = 'en', dense = '{1,2}'")
    nested = (
        "(select array_agg(array[1.0, 2.0]) from generate_series(1, 900))"  # no vector, and too large to be sent again
    )
    database.execute(f"update doc set lang = 'de', dense = {nested} where id = 1")
    embed(rig, v={"column": "dense", "size": 2})
    rig.settings["targets"]["main"]["tables"]["public.doc"]["where"] = "lang = 'en'"
    rig.write()
    with rig.running() as engine:
        engine.settle()
        database.execute("update doc set lang = 'en' where id = 1; update doc set views = 1 where id = 2")
        engine.settle()
    assert [table for table, _ in rig.letters()] == ["public.doc"]
    assert differences(rig) == 0
