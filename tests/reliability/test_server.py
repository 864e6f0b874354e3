"""The source's server stops, crashes, hangs up or ends sessions: nothing is lost, and it is never held up."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

from reliability.harness import Nursery, Rig, ended_with
from reliability.workload import SCHEMA, Workload
from servers import Database, eventually
from syncline.embedded import EmbeddedPostgres
from syncline.errors import Misconfigured, Unavailable
from syncline.pipeline import SyncService, housekeeping
from syncline.stores import Store
from syncline.testing.faulty import Fault, FaultyStore


@pytest.fixture
def own(pg_server: EmbeddedPostgres, tmp_path: Path) -> Rig:
    """A rig on a server that may be stopped."""
    pg_server.create_database("own")
    return Rig(Database(pg_server, "own"), tmp_path)


def write(rig: Rig, round_: int) -> None:
    rig.database.execute("insert into item (id, name) select g, 'x' from generate_series(%s::int, %s::int) g",
                         round_ * 1000, round_ * 1000 + 200)  # fmt: skip
    rig.database.execute("update item set name = %s where id %% 3 = 0", str(round_))
    rig.database.execute("delete from item where id % 11 = 0")


@pytest.mark.parametrize("mode", ["fast", "immediate", "kill"])
def test_a_server_that_stops_and_comes_back_loses_nothing_and_is_not_held_up(own: Rig, mode: str) -> None:
    own.database.execute(SCHEMA)
    server = own.database.server
    with own.running(until_loaded=False) as engine:
        for round_ in range(1, 4):
            write(own, round_)
            if round_ == 2:
                engine.settle()  # the second stop finds an idle stream, the others one in full flight
            began = time.monotonic()
            if mode == "kill":
                server.kill()
            else:
                server.stop("fast" if mode == "fast" else "immediate")
            assert time.monotonic() - began < 8, "the engine held up the server's shutdown"
            eventually(lambda: engine.state() == "retrying")
            server.restart()
            own.database.execute("insert into line values (%s, 1, 'back', null)", round_)
            engine.equal()
        eventually(lambda: "SL-SOURCE-AWAY" not in own.alerts())
    assert own.gaps(ever=True) == []


def test_a_fast_shutdown_is_not_held_up_by_a_target_that_hangs(own: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    own.database.execute(SCHEMA)
    hang = threading.Event()
    stores = faulty(monkeypatch)
    with own.running() as engine:
        stores["main"].faults.append(Fault(hang=hang))
        write(own, 1)
        eventually(lambda: stores["main"].struck)
        began = time.monotonic()
        own.database.server.stop("fast")
        assert time.monotonic() - began < 8
        own.database.server.restart()
        hang.set()
        write(own, 2)
        engine.equal()


def faulty(monkeypatch: pytest.MonkeyPatch) -> dict[str, FaultyStore]:
    """Have every store of an engine made faulty; the stores by target."""
    made: dict[str, FaultyStore] = {}
    original = SyncService._stores

    def stores(self: SyncService, source: str) -> dict[str, Store]:
        made.update({name: FaultyStore(store) for name, store in original(self, source).items()})
        return dict(made)

    monkeypatch.setattr(SyncService, "_stores", stores)
    monkeypatch.setattr(FaultyStore, "_db", property(lambda self: self.store._db), raising=False)
    return made


@pytest.mark.slow
def test_a_target_that_hangs_for_long_costs_the_source_nothing(own: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    own.database.execute("alter system set wal_sender_timeout = '6s'")
    own.database.execute("select pg_reload_conf()")
    own.database.execute(SCHEMA)
    hang = threading.Event()
    stores = faulty(monkeypatch)
    sending = "select active_pid from pg_replication_slots where slot_name = %s"
    with own.running() as engine:
        sender = own.database.execute(sending, own.slot)
        stores["main"].faults.append(Fault(hang=hang))
        write(own, 1)
        eventually(lambda: stores["main"].struck)
        until = time.monotonic() + 18  # three times the server's patience

        def answered() -> bool:
            write(own, int(time.monotonic() * 1000) % 1_000_000 + 10)
            assert own.database.execute(sending, own.slot) == sender
            assert engine.state() == "streaming"
            return time.monotonic() > until

        while not answered():
            pass
        goal = own.now()
        eventually(lambda: engine.source.log.status().place >= goal)
        hang.set()
        engine.equal()


@pytest.mark.parametrize("after", [False, True], ids=["before the write", "after it"])
def test_a_target_that_fails_again_and_again_gets_everything_once_it_works(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    rig.database.execute(SCHEMA)
    stores = faulty(monkeypatch)
    with rig.running() as engine, Workload(rig.database, 11) as workload:
        stores["main"].faults.extend([Fault(Unavailable("The store is away."), after=after)] * 30)
        eventually(lambda: stores["main"].struck == 30)
        with workload.quiet:
            engine.equal()
        eventually(lambda: "SL-TARGET-AWAY" not in rig.alerts())
    assert rig.gaps(ever=True) == []


def test_a_walsender_that_is_terminated_again_and_again_loses_nothing(rig: Rig) -> None:
    rig.database.execute(SCHEMA)
    with rig.running(until_loaded=False) as engine, Workload(rig.database, 12) as workload:
        for _ in range(6):
            goal = rig.now()
            eventually(lambda goal=goal: engine.source.log.status().place >= goal)
            eventually(
                lambda: rig.database.execute(
                    "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = %s"
                    " and active_pid is not null",
                    rig.slot,
                )
            )
        with workload.quiet:
            engine.equal()
    assert rig.gaps(ever=True) == []


def test_every_session_of_the_engine_terminated_at_once_loses_nothing(rig: Rig) -> None:
    rig.database.execute(SCHEMA)
    with rig.running(until_loaded=False) as engine, Workload(rig.database, 13) as workload:
        for _ in range(4):
            goal = rig.now()
            eventually(lambda goal=goal: engine.source.log.status().place >= goal)
            rig.database.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
                " and application_name like 'syncline%' and pid <> pg_backend_pid()"
            )
        with workload.quiet:
            engine.equal()
    assert rig.gaps(ever=True) == []


def test_a_second_engine_on_the_same_log_is_refused_and_the_first_goes_on(rig: Rig, nursery: Nursery) -> None:
    rig.database.execute(SCHEMA)
    with rig.running() as engine:
        assert nursery.run(rig) == 2
        assert (
            "SL-LOG-LOCKED" in (rig.folder / "engine.log").read_text()
            or "in use by process" in (rig.folder / "engine.log").read_text()
        )
        write(rig, 1)
        engine.equal()


def test_a_second_engine_on_the_same_slot_says_so_and_takes_nothing_away(rig: Rig, tmp_path: Path) -> None:
    rig.database.execute(SCHEMA)
    other = Rig(rig.database, tmp_path / "other") if (tmp_path / "other").mkdir() is None else rig
    with rig.running() as engine:
        with other.running(until_loaded=False) as second:
            eventually(lambda: second.state() == "retrying")
            message = second.service.status()["sources"]["main"]["message"]
            assert rig.slot in message
            assert "in use: syncline-capture at 127.0.0.1 reads from it" in message
            assert "stop it" in message
            assert rig.alerts() == []  # nobody who looks at the engine that works has anything to mend
            states = "select distinct state from syncline.sync_status where target = ''"
            eventually(lambda: rig.database.execute(states) == [("streaming",)])
            time.sleep(2 * housekeeping._EVERY_S)
            assert rig.database.execute(states) == [("streaming",)]
            write(rig, 1)
            engine.settle()
        write(rig, 2)
        engine.equal()


def test_a_second_engine_on_the_same_target_file_is_refused(rig: Rig, tmp_path: Path, nursery: Nursery) -> None:
    rig.database.execute(SCHEMA)
    (tmp_path / "other").mkdir()
    other = Rig(rig.database, tmp_path / "other", source={"slot": "another_slot", "publication": "another"})
    other.settings["targets"]["main"]["path"] = str(rig.target)
    other.write()
    child = nursery.start(rig)
    try:
        eventually(lambda: rig.target.exists() and "streaming" in (rig.folder / "engine.log").read_text())
        with other.running(until_loaded=False) as second:
            assert "open in process" in str(ended_with(Misconfigured, second))
    finally:
        assert child.terminate() == 0
    nursery.finish(rig)
    assert rig.difference() == ""


def test_a_kill_while_the_slot_waits_for_an_open_transaction_does_not_stand_in_its_own_way(
    rig: Rig, nursery: Nursery
) -> None:
    rig.database.execute(SCHEMA)
    with rig.database.connect(autocommit=False) as holder:
        holder.execute("insert into item (id) values (1)")
        for _ in range(2):
            child = nursery.start(rig)
            eventually(
                lambda: rig.database.execute("select 1 from pg_replication_slots where slot_name = %s", rig.slot)
            )
            assert child.kill() == -signal.SIGKILL
        child = nursery.start(rig, until=1)
        holder.commit()
    assert child.wait() == 0
    nursery.finish(rig)
    assert rig.difference() == ""


def test_a_server_without_a_free_slot_is_not_called_away(tmp_path: Path) -> None:
    with EmbeddedPostgres.start(tmp_path / "pg", settings={"max_replication_slots": "1"}) as server:
        server.create_database("own")
        rig = Rig(Database(server, "own"), tmp_path)
        rig.database.execute("create table t (id int primary key); insert into t values (1)")
        with rig.running(until_loaded=False) as engine:
            eventually(lambda: engine.state() == "retrying")
            assert engine.source.error is not None
            assert "has no room: all replication slots are in use" in str(engine.source.error)
            assert "raise max_replication_slots" in str(engine.source.error)
