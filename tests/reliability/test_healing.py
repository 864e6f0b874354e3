"""Guarantee 6 and correctness rule 6: what completes nothing at the target is read again at the source."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import LiteralString, cast

import pytest

from reliability.harness import Engine, Rig
from servers import Database, eventually
from syncline.capture import heal
from syncline.catalog.repository import ControlSchema
from syncline.embedded import EmbeddedPostgres

BIG = "(select string_agg(md5((g * 1000 + h)::text), '') from generate_series(1, 200) h)"


def holed_copy(rig: Rig) -> Rig:
    """A copy that lacks row 2, of a table whose ``doc`` no update below touches."""
    rig.database.execute(
        "create table item (id int primary key, n int, doc text); alter table item alter doc set storage external;"
        f"insert into item select g, 0, {BIG} from generate_series(1, 3) g"
    )
    rig.sync()
    with rig.open() as copy:
        copy.execute("delete from item where id = 2")
    return rig


@pytest.fixture
def holed(rig: Rig) -> Rig:
    return holed_copy(rig)


@pytest.mark.parametrize(
    ("changes", "healed"),
    [
        (["update item set n = 1"], 1),
        (["update item set id = 20 where id = 2"], 1),
        (["update item set n = 1", "update item set n = 2, doc = 'later' where id = 2"], 0),
        (["update item set n = 1", "delete from item where id = 2"], 0),
    ],
    ids=["changed", "moved", "changed and then written whole", "changed and then deleted"],
)
def test_a_partial_change_of_a_row_that_the_copy_lacks_is_completed_at_the_source(
    holed: Rig, changes: list[str], healed: int
) -> None:
    for statement in changes:
        holed.database.execute(statement)
    control = ControlSchema(holed.database.dsn)
    control.pause(target="main")  # until the log has all of them, so that they come in one step
    with holed.running(until_loaded=False) as engine:
        captured(holed, engine)
        control.resume(target="main")
        engine.equal()
        assert engine.targets()["main"]["healed"] == healed
    control.close()
    assert holed.letters() == []


# ------------------------------------------------------------- committed in the WAL, and not yet visible to a SELECT


@pytest.fixture
def awaiting(pg_server: EmbeddedPostgres, tmp_path: Path) -> Iterator[Rig]:
    """A rig whose source has a synchronous standby that isn't there. Only sessions that ask for it wait for it."""
    pg_server.create_database("awaiting")
    rig = Rig(Database(pg_server, "awaiting"), tmp_path)
    rig.database.execute("alter system set synchronous_commit = 'local'")
    standby(rig, "nobody")
    yield rig
    standby(rig, "")


def standby(rig: Rig, name: str) -> None:
    rig.database.execute(f"alter system set synchronous_standby_names = '{name}'")
    rig.database.execute("select pg_reload_conf()")
    eventually(lambda: rig.database.value("show synchronous_standby_names") == name)


@contextmanager
def committing(rig: Rig, statement: str) -> Iterator[None]:
    """The statement's transaction is committed in the WAL, and waits for the standby until the block is left."""

    def commit() -> None:
        with rig.database.connect(application_name="committing") as connection:
            connection.execute("set synchronous_commit = on")
            connection.execute(cast(LiteralString, statement))

    waits = "select 1 from pg_stat_activity where application_name = 'committing' and wait_event = 'SyncRep'"
    thread = threading.Thread(target=commit)
    thread.start()
    try:
        eventually(lambda: rig.database.execute(waits))
        yield
        assert rig.database.execute(waits), "it did not wait that long"
    finally:
        standby(rig, "")
        thread.join()


def captured(rig: Rig, engine: Engine) -> None:
    """Wait until all that is in the WAL by now is in the log."""
    goal = rig.now()
    eventually(lambda: engine.source.log.status().place >= goal)


def test_a_row_is_healed_only_once_the_change_that_it_completes_is_visible(awaiting: Rig) -> None:
    rig = holed_copy(awaiting)
    with rig.running() as engine:
        with committing(rig, "update item set n = 1 where id = 2"):
            captured(rig, engine)
            eventually(lambda: looks_for_it(rig))
            assert rig.database.value("select n from item where id = 2") == 0, "a SELECT sees it already"
            assert engine.query("select id from item order by id") == [(1,), (3,)]
            assert engine.targets()["main"]["healed"] == 0
        engine.equal()
        assert engine.targets()["main"]["healed"] == 1
        assert engine.query("select n from item where id = 2") == [(1,)]


def looks_for_it(rig: Rig) -> bool:
    """Whether a session of the engine has asked for the visibility of a transaction."""
    query = "select 1 from pg_stat_activity where application_name = 'syncline-heal' and backend_xmin is null"
    return bool(rig.database.execute(query))


def test_a_change_that_stays_invisible_raises_an_alert_and_is_healed_once_it_is_visible_after_all(
    awaiting: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = holed_copy(awaiting)
    monkeypatch.setattr(heal, "_VISIBLE_WITHIN_S", 0.2)
    query = "select message, remedy from syncline.sync_alerts where code = 'SL-TARGET-AWAY' and resolved_at is null"
    with rig.running() as engine:
        with committing(rig, "update item set n = 1 where id = 2"):
            captured(rig, engine)
            ((message, remedy),) = eventually(lambda: rig.database.execute(query))
            assert "public.item can't be healed yet" in message
            assert "synchronous standby" in remedy
            assert engine.query("select id from item order by id") == [(1,), (3,)]
            assert engine.service.errors() == [], "what waits for the source must not end the target"
        engine.equal()
        assert engine.query("select n from item where id = 2") == [(1,)]
        eventually(lambda: rig.database.execute(query) == [])
    assert rig.letters() == []
    assert rig.gaps(ever=True) == []
