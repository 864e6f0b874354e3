"""Events of a stream with an engine: who gets what, what is parked, what is lost, and what kill -9 leaves."""

from __future__ import annotations

import random
from typing import Any

import pytest
from chunk_events import STREAM, Chunks

from servers import eventually
from syncline.capture.stream.reading import LOST_STREAM
from syncline.errors import Misconfigured
from syncline.pipeline import SyncService

GAPS = "select code, resolved_at is null from syncline.sync_alerts where code = 'SL-STREAM-LOST'"


def test_events_reach_the_targets_that_they_name_and_verification_knows_it(chunks: Chunks) -> None:
    chunks.publish("create", "a", content="for all", embeddings={"dense": [0.5, 1]}, metadata={"n": 1}, position=1)
    chunks.publish("create", "b", content="for one", position=2, targets=("one",))
    chunks.publish("create", "c", content="for the files", position=3, targets=("duckdb",))
    with chunks.engine():
        assert chunks.compare().differences == 0
        chunks.publish("create", "d", content="for PostgreSQL", targets=("postgres", "unheard of"))
        chunks.publish("update", "a", content="another", targets=("two",))
        chunks.publish("update", "a", position=7)
        chunks.publish("delete", "c", targets=("one",))
        report = chunks.compare()
        assert report.differences == 0
        assert {t.target: t.rows for t in report.tables} == {"one": 2, "two": 2, "copy": 2}
    assert chunks.rows("one") == [("a", "for all", 7), ("b", "for one", 2)]
    assert chunks.rows("two") == [("a", "another", 7), ("c", "for the files", 3)]
    assert chunks.rows("copy") == [("a", "for all", 7), ("d", "for PostgreSQL", None)]
    assert chunks.database.value("select dense::text || metadata::text from chunks where id = 'a'") == '{0.5,1}{"n": 1}'
    assert chunks.parked() == []


def test_a_row_that_a_target_has_and_no_event_told_it_is_a_difference(chunks: Chunks) -> None:
    chunks.publish("create", "a", content="for one", targets=("one",))
    with chunks.engine():
        assert chunks.compare().differences == 0
        chunks.database.execute("insert into chunks (id, content, _syncline_version) values ('a', 'for one', 1)")
        extra = {t.target: t.extra for t in chunks.compare().tables}
    assert extra == {"one": 0, "two": 0, "copy": 1}


def test_what_was_published_twice_is_told_once_and_what_is_no_event_is_parked_with_its_reason(chunks: Chunks) -> None:
    first = chunks.publish("create", "a", content="x", position=1)
    chunks.publish("update", "a", position=2)
    chunks.publish("create", "a", content="x", position=1, event_id=first)
    chunks.client.xadd(STREAM, {"event_id": "1", "type": "create", "chunk": "no JSON"})
    chunks.client.xadd(STREAM, {"event_id": "2", "type": "explode", "chunk": '{"id": "b"}'})
    chunks.client.xadd(STREAM, {"type": "create", "chunk": '{"id": "b"}'})
    chunks.client.xadd(STREAM, {b"\xff": b"\xfe"})
    chunks.client.xadd(STREAM, {"event_id": "3", "type": "create"})
    chunks.publish("create", "c", position="many")
    chunks.publish("update", "c", content="behind it")
    chunks.publish("create", "d", unheard_of=1)
    chunks.publish("update", "e", content="of nothing")
    chunks.publish("create", "f", content="to nobody", targets=("elsewhere",))
    chunks.publish("create", "g", content="fine", draft=True)
    with chunks.engine():
        assert chunks.compare().differences == 0
        assert chunks.rows("copy") == [("a", "x", 2), ("g", "fine", None)]
        assert [reason for _, reason in chunks.parked()] == [
            "chunk must be an object with an id",
            "type is none of CONTENT_CREATED, CONTENT_UPDATED, CONTENT_DELETED, RELATIONSHIP_CREATED, "
            "RELATIONSHIP_DELETED, USER_CREATED, USER_UPDATED, USER_DELETED",
            "it has no event_id, by which a repetition would be known",
            "it is not UTF-8",
            "an event needs a chunk",
            "column position takes integer, and the chunk has none",
            "an earlier event of its chunk is parked",
            "no column is for field unheard_of; name it in ignore if so be it",
            "it updates some fields of a chunk that nobody told of, or that was deleted",
            "its targets name none that follows the stream, neither by name nor by type",
        ]
        chunks.publish("create", "c", content="whole", position=5)
        chunks.publish("delete", "e")
        chunks.publish("update", "c", position=6)
        assert chunks.compare().differences == 0
        assert chunks.rows("copy") == [("a", "x", 2), ("c", "whole", 6), ("g", "fine", None)]
        assert len(chunks.parked()) == 7


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"type": "create", "chunk": '{"id": "a", "metadata": ' + "[" * 100_000 + "]" * 100_000 + "}"},
            "nested too deep",
        ),
        ({"type": "create", "chunk": '{"id": "a"}', "targets": "[" * 100_000}, "nested too deep"),
        ({"event_id": "3\0", "type": "\0", "chunk": '{"id": "b\0"}'}, "chunk must be an object"),
        ({"type": "ex\0plode", "chunk": '{"id": "a"}'}, "type is none of"),
        ({"type": "create", "chunk": '{"id": "a", "un\\u0000heard": 1}'}, "no column is for field un\ufffdheard"),
    ],
    ids=["deep", "deep targets", "NUL in all", "NUL in type", "NUL in a field"],
)
def test_an_event_that_nobody_could_read_or_park_as_it_is_stops_no_other(
    chunks: Chunks, fields: dict[str, str], reason: str
) -> None:
    chunks.client.xadd(STREAM, {"event_id": "1", **fields})
    chunks.publish("create", "b", content="goes on", position=1)
    with chunks.engine():
        assert chunks.compare().differences == 0
        assert chunks.rows("copy") == [("b", "goes on", 1)]
        ((code, said),) = chunks.parked()
        assert code == "SL-EVENT"
        assert reason in said


def test_what_is_parked_is_not_settled_by_a_whole_chunk_for_others(chunks: Chunks) -> None:
    chunks.publish("create", "a", content="x", position=1)
    chunks.publish("update", "a", position="many", targets=("copy",))
    chunks.publish("create", "a", content="for one", position=2, targets=("one",))
    chunks.publish("update", "a", content="behind it")
    with chunks.engine():
        assert chunks.compare().differences == 0
        assert chunks.rows("copy") == [("a", "x", 1)]
        assert [code for code, _ in chunks.parked()] == ["SL-EVENT", "SL-PARKED-KEY"]
        chunks.publish("create", "a", content="whole", position=3, targets=("copy",))
        assert chunks.compare().differences == 0
        assert len(chunks.parked()) == 2, "one and two have not got what waits behind it"
        chunks.publish("delete", "a", targets=("duckdb",))
        chunks.publish("update", "a", position=4, targets=("copy",))
        assert chunks.compare().differences == 0
        assert chunks.parked() == []
    assert chunks.rows("copy") == [("a", "whole", 4)]
    assert chunks.rows("one") == chunks.rows("two") == []


def test_the_group_shows_what_is_durable_and_trims_what_nobody_else_reads(chunks: Chunks) -> None:
    for n in range(50):
        chunks.publish("create", f"c{n}", position=n)
    with chunks.engine():
        (group,) = eventually(lambda: [g for g in chunks.client.xinfo_groups(STREAM) if g["entries-read"] == 50])
        assert (group["name"], group["lag"], group["pending"]) == (b"sync-workers", 0, 0)
        assert chunks.client.xlen(STREAM) == 50
    chunks.client.xgroup_create(STREAM, "others", 0)
    with chunks.engine(trim=True):
        chunks.publish("create", "more")
        eventually(lambda: chunks.client.xinfo_groups(STREAM)[1]["entries-read"] == 51)
        assert chunks.client.xlen(STREAM) == 51
        chunks.client.xgroup_destroy(STREAM, "others")
        chunks.publish("create", "yet more")
        eventually(lambda: chunks.client.xlen(STREAM) == 0)
        assert chunks.compare(trim=True).differences == 0
    with chunks.engine():
        chunks.publish("update", "c3", content="known without the stream")
        assert chunks.compare().differences == 0
    assert chunks.rows("one")[4:5] + [r for r in chunks.rows("one") if r[1]] == [
        ("c12", None, 12),
        ("c3", "known without the stream", 3),
    ]


def _trim(client: Any) -> None:
    client.xtrim(STREAM, maxlen=1, approximate=False)


def _delete_one(client: Any) -> None:
    client.xdel(STREAM, client.xrevrange(STREAM, count=2)[1][0])


def _lose(client: Any) -> None:
    client.delete(STREAM)


def _lose_the_last(client: Any) -> None:
    """As a server does that comes back from an older copy, before the next event is published."""
    entries = client.xrange(STREAM)
    client.delete(STREAM)
    for ident, fields in entries[:2]:
        client.xadd(STREAM, fields, id=ident)
    client.xadd(STREAM, entries[-1][1])


@pytest.mark.parametrize(
    "damage", [_trim, _delete_one, _lose, _lose_the_last], ids=["trimmed", "deleted", "lost", "older"]
)
def test_entries_that_went_before_they_were_read_are_a_gap_with_an_alert(chunks: Chunks, damage: Any) -> None:
    for n in range(3):
        chunks.publish("create", f"a{n}", position=n)
    with chunks.engine():
        assert chunks.compare().differences == 0
    for n in range(3):
        chunks.publish("create", f"b{n}", position=n)
    damage(chunks.client)
    service = SyncService(chunks.configure())
    service.start()
    try:
        eventually(lambda: service.status()["sources"]["main"]["state"] == "gap", 60)
        assert chunks.database.execute(GAPS) == [(LOST_STREAM, True)]
        chunks.publish("create", "after", position=1)
        service.resync()
        eventually(lambda: service.status()["sources"]["main"]["state"] == "streaming", 60)
        assert chunks.compare().differences == 0
        kept = [ident for ident, _, _ in chunks.rows("copy")]
        assert {"a0", "a1", "a2", "after"} <= set(kept)
        assert "b1" not in kept
        eventually(lambda: chunks.database.execute(GAPS) == [(LOST_STREAM, False)])
    finally:
        service.stop()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_engine_that_is_killed_again_and_again_loses_nothing_and_doubles_nothing(chunks: Chunks) -> None:
    chunks.configure()
    some = random.Random(5)
    expected: dict[str, dict[str, tuple[str, int]]] = {"one": {}, "two": {}, "copy": {}}

    def publish() -> None:
        began = chunks.source.number()
        for _ in range(60):
            ident, position = f"c{some.randrange(40)}", some.randrange(1000)
            targets = some.choice([(), ("one",), ("two", "copy"), ("duckdb",)])
            names = {"one", "two"} if targets == ("duckdb",) else set(targets or expected)
            deleted = some.random() < 0.2
            for name in names:
                expected[name].pop(ident, None)
                expected[name] |= {} if deleted else {ident: (ident, position)}
            once = chunks.publish("delete" if deleted else "create", ident, position=position, targets=targets)
            if some.random() < 0.1 and not deleted:
                chunks.publish("create", ident, position=position, targets=targets, event_id=once)
        eventually(lambda: chunks.source.number() > began, 60)

    with chunks.killed_engines() as run_until:
        for _ in range(20):
            run_until(publish)
    with chunks.engine():
        assert chunks.compare().differences == 0
        assert chunks.source.number() - 1 == chunks.client.xlen(STREAM)
    for name, rows in expected.items():
        assert [(ident, position) for ident, _, position in chunks.rows(name)] == sorted(rows.values())
    assert chunks.parked() == []


def test_a_server_that_goes_away_is_waited_for(chunks: Chunks) -> None:
    with chunks.engine() as service:
        chunks.publish("create", "a", position=1)
        assert chunks.compare().differences == 0
        chunks.client.client_kill_filter(_type="normal", skipme=True)
        chunks.publish("create", "b", position=2)
        eventually(lambda: len(chunks.rows("copy")) == 2, 60)
        assert service.errors() == []


def test_a_log_that_is_lost_is_begun_anew_from_what_was_told(chunks: Chunks) -> None:
    chunks.publish("create", "a", content="kept", position=1, targets=("one", "copy"))
    with chunks.engine(trim=True):
        assert chunks.compare(trim=True).differences == 0
        eventually(lambda: chunks.client.xlen(STREAM) == 0)
    with chunks.engine() as service:
        service.resync()
        eventually(lambda: service.status()["sources"]["main"]["state"] == "streaming", 60)
        chunks.publish("update", "a", position=2)
        chunks.publish("create", "b", position=3)
        assert chunks.compare().differences == 0
    assert chunks.rows("copy") == [("a", "kept", 1), ("b", None, 3)]
    assert [reason[:24] for _, reason in chunks.parked()] == ["it updates some fields o"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"columns": {"id": {}}}, "leave it out"),
        ({"columns": {"a": {"type": "point"}}}, "numeric(p,s) or one of"),
        ({"url": "localhost"}, "must begin with redis://"),
    ],
)
def test_settings_that_can_not_be_are_refused_with_the_reason(chunks: Chunks, changed: Any, said: str) -> None:
    with pytest.raises(Misconfigured, match=said.replace("(", r"\(").replace(")", r"\)")):
        chunks.configure(**changed)


def test_a_key_that_is_no_stream_and_a_server_that_evicts_are_found_beforehand(chunks: Chunks) -> None:
    chunks.client.set(STREAM, "x")
    (found,) = chunks.source.preflight()
    assert (found.severity, found.code) == ("error", "SL-REDIS-KIND")
    chunks.client.delete(STREAM)
    chunks.client.config_set("maxmemory", "100mb")
    chunks.client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        found = [(f.code, f.severity) for f in chunks.source.preflight()]
        assert found == [("SL-STREAM", "info"), ("SL-STREAM-EVICTION", "warning")]
        chunks.client.xadd(STREAM, {"a": "b"})
        assert chunks.source.preflight()[0].severity == "ok"
    finally:
        chunks.client.config_set("maxmemory", "0")
        chunks.client.config_set("maxmemory-policy", "noeviction")


def test_a_user_who_may_not_read_is_told_of_the_page_of_this_capture(chunks: Chunks) -> None:
    chunks.client.acl_setuser("nobody", enabled=True, nopass=True, commands=["+auth", "+ping"], reset=True)
    try:
        url = chunks.settings["url"].replace("redis://", "redis://nobody:x@")
        (found,) = chunks.configure(url=url).source("main").preflight()
    finally:
        chunks.client.acl_deluser("nobody")
    assert (found.code, found.severity) == ("SL-REDIS-RIGHTS", "error")
    assert "docs/captures/stream.md" in found.remedy
