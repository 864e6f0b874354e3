from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from servers import Database, eventually
from syncline.catalog import ControlSchema, DeadLetter, Request, StatusRow
from syncline.errors import Misconfigured

LETTER = DeadLetter(
    source="shop",
    target="lake",
    table_name="public.person",
    key_hash=b"\x00\xff",
    incarnation=1,
    version=100,
    ordinal=0,
    operation="insert",
    code="SL-REJECTED",
    reason="it doesn't fit",
    payload=b"\x00\x01\xfe",
    partial=False,
)


@pytest.fixture
def control(database: Database) -> Iterator[ControlSchema]:
    with ControlSchema(database.dsn, "control") as control:
        control.migrate()
        yield control


def open_keys(control: ControlSchema, target: str = "lake") -> dict[str, set[bytes]]:
    return {table: set(hashes) for table, hashes in control.open_dead_letters(target).items()}


# --------------------------------------------------------------------------------------------------------- alerts


def test_an_alert_raised_again_counts_up_and_keeps_when_it_opened(control: ControlSchema) -> None:
    control.raise_alert("SL-GAP", "warning", "shop", "first", "do this")
    (first,) = control.alerts()
    control.raise_alert("SL-GAP", "error", "shop", "second", "do that")
    (second,) = control.alerts()
    assert (second["severity"], second["message"], second["remedy"]) == ("error", "second", "do that")
    assert second["occurrences"] == 2
    assert second["opened_at"] == first["opened_at"]
    assert second["last_seen_at"] > first["last_seen_at"]


def test_a_resolved_alert_opens_anew(control: ControlSchema) -> None:
    control.raise_alert("SL-GAP", "warning", "shop", "first")
    assert control.resolve_alert("SL-GAP", "shop")
    assert not control.resolve_alert("SL-GAP", "shop")
    assert control.alerts() == []
    control.raise_alert("SL-GAP", "warning", "shop", "second")
    assert [alert["message"] for alert in control.alerts()] == ["second"]
    assert [alert["message"] for alert in control.alerts(open_only=False)] == ["second", "first"]


def test_alerts_of_other_codes_and_subjects_stand_beside_each_other(control: ControlSchema) -> None:
    for code, subject in [("A", "x"), ("A", "y"), ("B", "x")]:
        control.raise_alert(code, "info", subject, "m")
    assert len(control.alerts()) == 3


def test_an_alert_unseen_for_too_long_is_no_longer_open_and_comes_back(control: ControlSchema) -> None:
    control.raise_alert("SL-LAG", "info", "shop", "m", expires_s=-1)
    assert control.alerts() == []
    control.raise_alert("SL-LAG", "info", "shop", "m", expires_s=60)
    assert len(control.alerts()) == 1
    control.raise_alert("SL-LAG", "info", "shop", "m")
    assert control.alerts()[0]["expires_at"] is None


def test_an_unknown_severity_is_refused(control: ControlSchema) -> None:
    with pytest.raises(Misconfigured, match="CheckViolation"):
        control.raise_alert("SL-X", "shrug", "shop", "m")


def test_texts_that_postgresql_cannot_hold_are_kept_readable(control: ControlSchema) -> None:
    control.raise_alert("SL-X", "info", "s\0", "half \ud800 and \0 nul")
    assert control.alerts()[0]["message"] == "half ? and \ufffd nul"
    assert control.resolve_alert("SL-X", "s\0")


def test_alerts_raised_by_many_threads_are_one(control: ControlSchema) -> None:
    threads = [threading.Thread(target=control.raise_alert, args=("SL-X", "info", "shop", f"m{i}")) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [alert["occurrences"] for alert in control.alerts()] == [12]


# --------------------------------------------------------------------------------------------------- dead letters


def test_a_parked_change_keeps_every_byte(control: ControlSchema, database: Database) -> None:
    assert control.park([LETTER]) == 1
    names = "source, target, table_name, key_hash, incarnation, version, ordinal, operation, code, reason, payload"
    ((*values, partial, state),) = database.execute(f"select {names}, partial, state from control.sync_dead_letters")
    assert DeadLetter(*values, partial) == LETTER
    assert state == "parked"


def test_parking_the_same_event_again_changes_nothing(control: ControlSchema) -> None:
    others = [replace(LETTER, ordinal=1), replace(LETTER, key_hash=b"k"), replace(LETTER, target="graph")]
    assert control.park([LETTER, *others]) == 4
    assert control.park([LETTER, *others, replace(LETTER, incarnation=2)]) == 1
    assert control.dead_letter_counts() == {("shop", "lake"): 4, ("shop", "graph"): 1}


def test_parking_nothing_asks_nothing_of_the_server() -> None:
    with ControlSchema("host=127.0.0.1 port=1") as control:
        assert control.park([]) == 0
        assert control.supersede("lake", "public.person", [], 1) == 0
        control.write_status([])


def test_open_dead_letters_are_keys_by_table(control: ControlSchema) -> None:
    control.park([replace(LETTER, key_hash=b"a", version=7), replace(LETTER, key_hash=b"b", version=5)])
    control.park([replace(LETTER, key_hash=b"a", version=9), replace(LETTER, table_name="public.pet", version=3)])
    assert control.open_dead_letters("lake") == {
        "public.person": frozenset({b"a", b"b"}),
        "public.pet": frozenset({LETTER.key_hash}),
    }
    assert control.open_dead_letters("graph") == {}


def test_a_later_full_row_supersedes_only_older_letters_of_its_key(control: ControlSchema) -> None:
    control.park([replace(LETTER, key_hash=key, version=version) for key in (b"a", b"b") for version in (5, 8)])
    assert control.supersede("lake", "public.person", [b"a"], 5) == 1
    assert control.supersede("lake", "public.person", [b"a"], 5) == 0
    assert control.open_dead_letters("lake")["public.person"] == frozenset({b"a", b"b"})
    assert control.supersede("lake", "public.person", [b"a", b"b"], 8) == 3
    assert open_keys(control) == {}


def test_superseding_leaves_other_targets_and_tables_alone(control: ControlSchema) -> None:
    control.park([LETTER, replace(LETTER, target="graph"), replace(LETTER, table_name="public.pet", ordinal=1)])
    control.supersede("lake", "public.person", [LETTER.key_hash], 1000)
    assert open_keys(control) == {"public.pet": {LETTER.key_hash}}
    assert open_keys(control, "graph") == {"public.person": {LETTER.key_hash}}


# --------------------------------------------------------------------------------------------------------- pauses


def test_a_pause_is_kept_once_and_ends_with_resume(control: ControlSchema) -> None:
    control.pause("shop", "lake", "public.person", requested_by="anna")
    control.pause("shop", "lake", "public.person", requested_by="bert")
    (pause,) = control.pauses()
    assert (pause.source, pause.target, pause.table_name) == ("shop", "lake", "public.person")
    assert (pause.requested_by, pause.held_after, pause.resumed_at) == ("anna", None, None)
    assert control.resume("shop", "lake", "public.person") == 1
    assert control.pauses() == []


def test_resume_ends_what_its_names_choose_and_nothing_else(control: ControlSchema) -> None:
    for table in ("public.a", "public.b"):
        control.pause("shop", "lake", table)
    control.pause("shop", "graph")
    assert control.resume(target="graph", table="public.a") == 0
    assert control.resume(table="public.a") == 1
    assert [(p.target, p.table_name) for p in control.pauses()] == [("lake", "public.b"), ("graph", "")]
    assert control.resume() == 2


def test_the_first_position_held_stays_until_the_log_is_another(control: ControlSchema) -> None:
    control.pause("shop", "lake", "public.a")
    assert control.hold("shop", "lake", "public.a", "log-1", 7) == 7
    assert control.hold("shop", "lake", "public.a", "log-1", 9) == 7
    assert [(p.log, p.held_after) for p in control.pauses()] == [("log-1", 7)]
    assert control.hold("shop", "lake", "public.a", "log-2", 1) == 1
    assert [(p.log, p.held_after) for p in control.pauses()] == [("log-2", 1)]


def test_a_position_is_held_only_under_a_pause(control: ControlSchema) -> None:
    assert control.hold("shop", "lake", "public.a", "log", 7) is None
    control.pause("shop", "graph")
    control.pause("shop", "lake", "public.b")
    assert control.hold("shop", "lake", "public.a", "log", 7) is None
    control.pause(table="public.a")
    assert control.hold("shop", "lake", "public.a", "log", 7) == 7


def test_positions_come_before_the_wider_pauses_that_they_are_held_under(control: ControlSchema) -> None:
    control.pause(table="public.a")
    control.pause("shop")
    control.hold("shop", "lake", "public.a", "log", 7)
    assert [(p.source, p.target, p.table_name, p.held_after) for p in control.pauses()] == [
        ("shop", "lake", "public.a", 7),
        ("shop", "", "", None),
        ("", "", "public.a", None),
    ]
    assert control.resume(table="public.a") == 2
    assert [p.resumed_at is None for p in control.pauses()] == [False, True]


def test_a_wider_pause_takes_back_a_resume_that_is_catching_up(control: ControlSchema) -> None:
    control.pause("shop", "lake", "public.a")
    control.hold("shop", "lake", "public.a", "log", 7)
    control.resume()
    control.pause("shop")
    assert [(p.held_after, p.resumed_at) for p in control.pauses()] == [(7, None), (None, None)]


def test_a_resume_at_the_same_time_as_a_hold_leaves_no_pause_behind(control: ControlSchema, database: Database) -> None:
    control.pause(table="public.a")
    with database.connect(autocommit=False) as holding:
        holding.execute("select from control.sync_pauses for share")
        resuming = threading.Thread(target=control.resume)
        resuming.start()
        waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        eventually(lambda: database.value(waits) == 1)
        holding.execute(
            "insert into control.sync_pauses (source, target, table_name, log, held_after)"
            " values ('shop', 'lake', 'public.a', 'log', 7)"
        )
        holding.commit()
        resuming.join(20)
    (pause,) = control.pauses()
    assert (pause.held_after, pause.resumed_at is not None) == (7, True)


def test_a_held_pause_survives_its_resume_until_it_is_released(control: ControlSchema) -> None:
    control.pause("shop", "lake")
    control.hold("shop", "lake", "", "log", 7)
    control.release("shop", "lake", "")
    assert control.pauses()[0].resumed_at is None
    assert control.resume() == 1
    assert control.resume() == 0
    (catching_up,) = control.pauses()
    assert catching_up.held_after == 7
    assert catching_up.resumed_at is not None
    control.pause("shop", "lake")
    assert control.pauses()[0].resumed_at is None
    control.resume("shop")
    control.release("shop", "lake", "")
    assert control.pauses() == []


# ----------------------------------------------------------------------------------------------------------- gaps


def test_a_gap_found_again_is_widened(control: ControlSchema) -> None:
    first = control.open_gap("shop", "SL-GAP-SLOT", "slot lost", from_place=10)
    again = control.open_gap("shop", "SL-GAP-SLOT", "slot recreated", from_place=20, to_place=30)
    assert first == again
    (gap,) = control.gaps()
    assert (gap["reason"], gap["from_place"], gap["to_place"]) == ("slot recreated", 10, 30)


def test_gaps_are_resolved_by_name_and_code(control: ControlSchema) -> None:
    control.open_gap("shop", "A", "r")
    control.open_gap("shop", "B", "r")
    control.open_gap("shop", "A", "r", table="public.a")
    assert control.resolve_gap("shop", code="A") == 1
    assert control.resolve_gap("shop") == 1
    assert [(gap["code"], gap["table_name"]) for gap in control.gaps()] == [("A", "public.a")]
    assert len(control.gaps(open_only=False)) == 3
    assert control.resolve_gap("shop", table="public.a") == 1
    assert control.open_gap("shop", "A", "again") not in [gap["id"] for gap in control.gaps(open_only=False)[1:]]


# --------------------------------------------------------------------------------------------------------- status


def test_status_rows_are_replaced_by_source_target_and_table(control: ControlSchema) -> None:
    row = StatusRow("shop", "lake", "public.a", "running", "log", 5, 6, 7, 8, 9.5, 10, 11.5, "fine")
    control.write_status([row, replace(row, table_name="public.b")])
    control.write_status([replace(row, state="paused", n=2**62, rows_per_s=None, message="nul \0")])
    first, second = control.statuses()
    assert first.pop("updated_at") > second.pop("updated_at")
    assert 0 <= first.pop("age_s") < second.pop("age_s") < 60
    assert StatusRow(**first) == replace(row, state="paused", n=2**62, rows_per_s=None, message="nul \ufffd")
    assert StatusRow(**second) == replace(row, table_name="public.b")


def test_a_rate_that_is_no_number_is_unknown(control: ControlSchema) -> None:
    control.write_status([StatusRow("shop", rows_per_s=float("nan"), lag_s=float("inf"))])
    (row,) = control.statuses()
    assert (row["rows_per_s"], row["lag_s"]) == (None, None)


# ------------------------------------------------------------------------------------------------------- requests


def test_a_request_is_given_to_one_taker_and_again_only_after_a_restart(control: ControlSchema) -> None:
    first = control.request_resync("shop", ["public.a", 'odd."x"'])
    second = control.request_resync("shop")
    control.request_resync("other", target="copy")
    asked = [Request(first, "resync", "shop", ("public.a", 'odd."x"')), Request(second, "resync", "shop", None)]
    assert control.take_requests("shop") == asked
    assert control.take_requests("shop") == []
    assert control.take_requests("shop", again=True) == asked
    control.finish_request(first, "read 3 rows again")
    assert control.take_requests("shop", again=True) == asked[1:]
    assert [r.target for r in control.take_requests("other")] == ["copy"]


# ------------------------------------------------------------------------------------------------------ the server


def test_calls_work_again_after_the_server_closed_every_connection(control: ControlSchema, database: Database) -> None:
    control.raise_alert("SL-X", "info", "shop", "before")
    database.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where datname = current_database() and pid <> pg_backend_pid()"
    )
    control.raise_alert("SL-X", "info", "shop", "after")
    assert [alert["message"] for alert in control.alerts()] == ["after"]


def test_a_closed_control_schema_connects_again_when_it_is_used(control: ControlSchema) -> None:
    control.close()
    control.close()
    assert control.alerts() == []
