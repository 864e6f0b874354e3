"""Several sources in one process: each has a log, a slot and a fate of its own, also where they share a file."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reliability.engine import arrived
from reliability.harness import Engine, Nursery, Rig, difference
from reliability.workload import SCHEMA, Workload
from servers import TEMPLATE, Database, eventually, fresh_database
from syncline.embedded import EmbeddedPostgres


class Pair(Rig):
    """Sources ``shop`` and ``crm``, two databases of one server (so that an LSN is one of both). The same tables in
    schemas of different names are copied into one file, or into one each."""

    def __init__(self, shop: Database, crm: Database, folder: Path, *, shared: bool) -> None:
        super().__init__(shop, folder, targets=("copy",) if shared else ("shop_copy", "crm_copy"))
        self.databases = {"shop": shop, "crm": crm}
        one = self.settings.pop("source")
        self.settings["sources"] = {
            name: {**one, "dsn": of.dsn, "slot": f"slot_{of.name}", "monitored_tables": [f"{name}.*"]}
            for name, of in self.databases.items()
        }
        self.settings["control"] = {"dsn": shop.dsn}
        if not shared:
            for name in self.databases:
                self.settings["targets"][f"{name}_copy"]["sources"] = [name]
        self.write()
        for name, of in self.databases.items():
            of.execute(f"create schema {name}; alter database {of.name} set search_path = {name}")
            of.execute(SCHEMA)

    def file_of(self, source: str) -> str:
        """The target that copies this source."""
        return f"{source}_copy" if len(self.paths) > 1 else "copy"

    def slot_of(self, source: str) -> str:
        return f"slot_{self.databases[source].name}"

    def difference(self, engine: Engine | None = None) -> str:
        for source, of in self.databases.items():
            if engine is None:
                with self.open(self.file_of(source)) as copy:
                    found = difference(of, copy)
            else:
                store: Any = engine.service.sources[source].targets[self.file_of(source)].store
                with store._db.session() as copy:
                    found = difference(of, copy)
            if found:
                return f"source {source}: {found}"
        return ""

    def applied(self, goal: int) -> bool:
        """Whether an engine in whatever process says that both sources' changes up to ``goal`` are at their targets."""
        table = self.database.value("select to_regclass('syncline.sync_status') is not null")
        query = "select count(*) from syncline.sync_status where target <> '' and place >= %s"
        return bool(table and self.database.value(query, goal) == 2)


@pytest.fixture(params=[False, True], ids=["a file each", "one file"])
def pair(
    request: pytest.FixtureRequest, postgres: EmbeddedPostgres, database: Database, tmp_path: Path
) -> Iterator[Pair]:
    with fresh_database(postgres, TEMPLATE) as crm:
        yield Pair(database, crm, tmp_path, shared=request.param)


def sender(pair: Pair, source: str) -> int | None:
    """The process that streams to a source's capture, if one does."""
    query = "select active_pid from pg_replication_slots where slot_name = %s"
    found = pair.database.execute(query, pair.slot_of(source))
    return found[0][0] if found else None


def test_two_sources_end_equal_after_a_kill_and_a_walsender_terminated_under_load(pair: Pair, nursery: Nursery) -> None:
    nursery.finish(pair)
    with Workload(pair.databases["shop"], 21) as shop, Workload(pair.databases["crm"], 22) as crm:
        child = nursery.start(pair)
        goal = pair.now()
        eventually(lambda: pair.applied(goal))
        assert child.kill() == -signal.SIGKILL
        child = nursery.start(pair)
        goal = pair.now()
        eventually(lambda: pair.applied(goal))
        ended = sender(pair, "crm")
        others = sender(pair, "shop")
        assert ended is not None
        pair.database.execute("select pg_terminate_backend(%s)", ended)
        eventually(lambda: sender(pair, "crm") not in (None, ended))
        assert sender(pair, "shop") == others, "the other source's stream was ended too"
        goal = pair.now()
        eventually(lambda: pair.applied(goal))
        assert child.terminate() == 0
        with shop.quiet, crm.quiet:
            nursery.finish(pair)
            assert pair.difference() == ""
        assert min(shop.transactions, crm.transactions) > 20
    assert pair.gaps(ever=True) == []


def test_a_source_whose_slot_was_dropped_does_not_stop_the_other_and_a_resync_of_it_leaves_the_other_alone(
    pair: Pair, nursery: Nursery
) -> None:
    fill = "insert into item (id, name) select g, 'first' from generate_series(1, 50) g"
    for of in pair.databases.values():
        of.execute(fill)
    nursery.finish(pair)
    assert pair.difference() == ""
    eventually(lambda: sender(pair, "crm") is None)
    pair.database.execute("select pg_drop_replication_slot(%s)", pair.slot_of("crm"))
    for of in pair.databases.values():
        of.execute("delete from item where id <= 10; update item set name = 'second' where id > 40")
    with pair.running(until_loaded=False) as engine:
        sources = engine.service.sources
        goal = pair.now()
        eventually(lambda: sources["crm"].state == "gap")
        eventually(lambda: place(engine, "shop", pair) >= goal)
        assert engine.service.wait(0.1) is None, "the other source still runs"
        open_gaps = pair.database.execute("select source, code from syncline.sync_gaps where resolved_at is null")
        assert open_gaps == [("crm", "SL-GAP")]
        rows = engine.service.status()["sources"]["shop"]["targets"][pair.file_of("shop")]["rows_applied"]
        engine.service.resync("crm")
        eventually(lambda: arrived(engine.service, goal))
        assert pair.difference(engine) == ""
        eventually(lambda: pair.gaps() == [])
        assert engine.service.status()["sources"]["shop"]["targets"][pair.file_of("shop")]["rows_applied"] == rows


def place(engine: Engine, source: str, pair: Pair) -> int:
    target = engine.service.status()["sources"][source]["targets"][pair.file_of(source)]
    return int(target.get("place", 0))
