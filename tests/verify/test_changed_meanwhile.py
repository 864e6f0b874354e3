"""Tables change in the middle of a verification: nothing is reported that is not so, and nothing passes unlooked at."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import pytest
from piped import Pipeline
from psycopg.conninfo import make_conninfo

from syncline.capture.postgres import PostgresTables, WalSource
from syncline.config import load_config
from syncline.errors import Gap
from syncline.pipeline import SyncService, housekeeping
from syncline.verify import Report, TableReport, compare, verify
from syncline.verify.report import KINDS

_ROWS = 12_000  # enough for digests to be worth it
_TABLES = (
    "create table items (id int primary key, name text); create table other (id int primary key);"
    f"insert into items select g, 'n' || g from generate_series(1, {_ROWS}) g; insert into other values (1)"
)
# Which reading of the source the table is changed before: its point is taken by then, and for the rows of buckets that
# differ, so are their digests.
_BEFORE = {"digests": "digested", "buckets": "chosen", "full": "rows"}


@dataclass
class Middle:
    """What happens before the next readings of table items, one thing before each."""

    acts: list[Callable[[], Any]] = field(default_factory=list)
    readings: int = 0


@pytest.fixture(params=_BEFORE)
def path(request: pytest.FixtureRequest) -> str:
    """How the rows of the source are looked at."""
    return str(request.param)


@pytest.fixture
def middle(path: str, monkeypatch: pytest.MonkeyPatch) -> Middle:
    found = Middle()
    name = _BEFORE[path]
    before = getattr(PostgresTables, name)

    def reading(source: PostgresTables, info: Any, *arguments: Any) -> Any:
        if info.name == "items" and (name != "rows" or arguments[1] == 0):  # a load reads rows of some version
            found.readings += 1
            if found.acts:
                found.acts.pop(0)()
        return before(source, info, *arguments)

    monkeypatch.setattr(PostgresTables, name, reading)
    monkeypatch.setattr(compare, "_AGAIN_S", 0.0)
    return found


def verified(pipeline: Pipeline, path: str) -> Report:
    return verify(pipeline.config, engine=SyncService, talk=lambda line: None, full=path == "full")


def damaged(pipeline: Pipeline, path: str) -> None:
    """Where the rows of single buckets are to be read, one has to differ."""
    if path == "buckets":
        pipeline.damage("update items set name = 'other' where id = 7000")


def items(report: Report) -> TableReport:
    (found,) = (t for t in report.tables if t.table == "public.items")
    return found


def counts(table: TableReport) -> dict[str, int]:
    return {kind: getattr(table, kind) for kind in KINDS if getattr(table, kind)}


@pytest.fixture
def owned(pipeline: Pipeline) -> Iterator[Pipeline]:
    """Captured by a role that owns its tables, and that policies hold for once they are forced on owners."""
    database = pipeline.database
    role = f"role_{database.name}"
    database.execute(
        f"{_TABLES}; create role {role} login replication; grant create on database {database.name} to {role};"
        f"alter table items owner to {role}; alter table other owner to {role}; grant all on schema public to {role}"
    )
    file = pipeline.path.with_name("syncline.yaml")
    file.write_text(file.read_text().replace(database.dsn, make_conninfo(database.dsn, user=role)))
    try:
        yield replace(pipeline, config=load_config(file))
    finally:
        database.execute(f"drop owned by {role} cascade; drop role {role}")


_HIDDEN = (
    "create policy seen on items using (id > 100); alter table items force row level security;"
    "alter table items enable row level security"
)


def test_a_table_that_is_put_under_row_security_meanwhile_is_not_compared_and_others_are(
    owned: Pipeline, middle: Middle, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An engine that sees it, too, forgets the table, and the next one reads it again: that would mend the damage.
    monkeypatch.setattr(housekeeping, "_REFRESH_S", float("inf"))
    assert verified(owned, path).differences == 0
    damaged(owned, path)
    middle.acts = [lambda: owned.database.execute(_HIDDEN)]

    report = verified(owned, path)

    assert middle.acts == []
    assert (items(report).state, items(report).compared, report.differences) == ("left out", False, 0)
    assert "Row security" in items(report).reason
    assert [(t.state, t.rows) for t in report.tables if t.table == "public.other"] == [("compared", 1)]
    assert report.score < 1
    owned.database.execute("alter table items no force row level security")
    assert counts(items(verified(owned, path))) == ({"different": 1} if path == "buckets" else {})


def test_a_role_that_row_security_does_not_hold_for_compares_every_row(
    pipeline: Pipeline, middle: Middle, path: str
) -> None:
    pipeline.database.execute(_TABLES)
    assert verified(pipeline, path).differences == 0
    pipeline.damage("delete from items where id in (7, 7000)")  # one of them the policy would hide
    middle.acts = [lambda: pipeline.database.execute(_HIDDEN)]

    report = verified(pipeline, path)

    assert (middle.acts, counts(items(report)), items(report).rows) == ([], {"missing": 2}, _ROWS)


@pytest.fixture
def published(pipeline: Pipeline, path: str) -> Pipeline:
    """A copy of the rows that its publication's filter lets through."""
    pipeline.database.execute(_TABLES)
    pipeline.database.execute("create publication syncline for table items where (id > 5), other")
    assert verified(pipeline, path).differences == 0
    return pipeline


def filtered(pipeline: Pipeline, condition: str) -> Callable[[], Any]:
    return lambda: pipeline.database.execute(f"alter publication syncline set table items where ({condition}), other")


def test_a_row_filter_that_changes_meanwhile_is_kept_to_and_hides_no_difference(
    published: Pipeline, middle: Middle, path: str
) -> None:
    damaged(published, path)
    # The rows are read by another filter than those of the copy were, and once more when the copy has caught up.
    middle.acts = [filtered(published, "id > 2000"), filtered(published, "id <= 11000")]

    with published.running():
        report = verify(published.config, full=path == "full")
        # By digests all was equal to what the publication said then; and so it is once the copy was read again, if that
        # came before the second look: no bucket differs then whose rows would be read, or all rows are in flight.
        while middle.acts:
            assert (items(report).state, report.differences) == ("compared", 0)
            if path != "digests":
                middle.acts.pop(0)()
            report = verify(published.config, full=path == "full")

    assert (items(report).state, counts(items(report)), items(report).rows) == ("compared", {}, 11_000)


def test_rows_that_a_new_row_filter_leaves_out_and_the_copy_keeps_are_found(
    published: Pipeline, middle: Middle, path: str
) -> None:
    damaged(published, path)
    middle.acts = [filtered(published, "id > 2000")]
    verified(published, path)
    assert verified(published, path).differences == 0
    published.damage("insert into items select 7, name, _syncline_version from items where id = 3000")

    assert counts(items(verified(published, path))) == {"extra": 1}


_REWRITES = {
    "truncated and filled again": "truncate items; insert into items select g, 'new' from generate_series(1, 11000) g",
    "rewritten by an ALTER": "alter table items alter name type text using name || '!'",
    "rewritten as it is": "vacuum full items",
}


@pytest.mark.parametrize("what", _REWRITES)
def test_a_table_that_is_rewritten_meanwhile_is_read_again_and_compared(
    pipeline: Pipeline, middle: Middle, path: str, what: str
) -> None:
    pipeline.database.execute(_TABLES)
    assert verified(pipeline, path).differences == 0
    damaged(pipeline, path)
    middle.readings, middle.acts = 0, [lambda: pipeline.database.execute(_REWRITES[what])]

    report = verified(pipeline, path)

    # The damage stays where the rows do.
    left = {"different": 1} if path == "buckets" and what == "rewritten as it is" else {}
    assert (items(report).state, counts(items(report))) == ("compared", left)
    assert middle.readings >= (1 if path == "buckets" else 2)
    assert items(report).rows == pipeline.database.value("select count(*) from items")


def test_a_table_that_is_rewritten_at_every_attempt_is_said_not_to_be_compared(
    pipeline: Pipeline, middle: Middle, path: str
) -> None:
    pipeline.database.execute(_TABLES)
    assert verified(pipeline, path).differences == 0
    damaged(pipeline, path)
    middle.acts = [lambda: pipeline.database.execute("vacuum full items")] * 5

    with pytest.raises(Gap, match=r"public\.items was rewritten during each of 5 attempts"):
        verified(pipeline, path)

    assert middle.acts == []


@pytest.mark.parametrize("full", [False, True])
def test_two_verifiers_at_once_are_both_clean_and_both_find_the_same(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, *, full: bool
) -> None:
    monkeypatch.setattr(compare, "_AGAIN_S", 0.0)
    pipeline.database.execute(_TABLES)
    assert pipeline.verify().differences == 0
    stop = threading.Event()

    def write() -> None:
        chosen = random.Random(1)
        with psycopg.connect(pipeline.database.dsn, autocommit=True) as connection:
            while not stop.is_set():
                key = chosen.randrange(101, _ROWS + 1)
                connection.execute("update items set name = name || '.' where id = %s", [key])

    def both() -> list[dict[str, int]]:
        """Of two that begin at the same moment."""
        begun = threading.Barrier(2)

        def one(_: int) -> dict[str, int]:
            begun.wait()
            report = verify(pipeline.config, full=full)
            assert [(t.table, t.state) for t in report.tables] == [
                (t, "compared") for t in ("public.items", "public.other")
            ]
            return counts(items(report)) | {"other": next(t for t in report.tables if t.rows == 1).differences}

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, range(2)))

    for damage, expected in (
        ([], {}),
        (
            [
                "delete from items where id in (1, 2)",
                "update items set name = 'other' where id in (3, 4, 5)",
                "insert into items select id + 90000, name, _syncline_version from items where id = 6",
            ],
            {"missing": 2, "extra": 1, "different": 3},
        ),
    ):
        pipeline.damage(*damage)
        stop.clear()
        with pipeline.running():
            writer = threading.Thread(target=write)
            writer.start()
            try:
                assert both() == [{**expected, "other": 0}] * 2
            finally:
                stop.set()
                writer.join()


@pytest.mark.parametrize(
    "alter",
    [
        "alter table other alter id type bigint",
        "alter table other rename column n to m",
        "alter table other drop column n; insert into other values (99)",
        "drop table other",
    ],
)
def test_a_table_that_is_altered_after_it_was_listed_is_looked_at_by_its_new_shape(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, alter: str
) -> None:
    """Before the point: nothing was rewritten behind it."""
    pipeline.database.execute(f"{_TABLES}; alter table other add n int")
    pipeline.database.execute("insert into other select g, g from generate_series(2, 50) g")
    assert pipeline.verify().differences == 0
    acts, before = [lambda: pipeline.database.execute(alter)], WalSource.point

    def point(source: WalSource, purpose: str, talk: Any) -> Any:
        if purpose == "verify" and acts:
            acts.pop()()
        return before(source, purpose, talk)

    monkeypatch.setattr(WalSource, "point", point)
    with pipeline.running():
        report = verify(pipeline.config, talk=lambda line: None)
    assert (report.differences, acts) == (0, [])
    states = {t.table: t.state for t in report.tables}
    assert states == {"public.items": "compared"} | ({} if "drop table" in alter else {"public.other": "compared"})


@pytest.mark.parametrize(
    ("act", "reason"), [(_HIDDEN, "Row security"), ("truncate items", "rewritten"), ("drop table items", "rewritten")]
)
def test_a_count_in_whose_middle_a_table_changes_is_not_checked_and_others_are(
    owned: Pipeline, monkeypatch: pytest.MonkeyPatch, act: str, reason: str
) -> None:
    assert owned.verify().differences == 0
    acts = [act]
    _before(monkeypatch, "counted", lambda: owned.database.execute(acts.pop()) if acts else None)

    found = verify(owned.config, engine=SyncService, talk=lambda line: None, checks=["row_count"])

    assert acts == []
    (items_of,) = (c for c in found.checks if c.table == "public.items")
    assert (items_of.state, reason in items_of.reason) == ("not checked", True)
    assert [c.state for c in found.checks if c.table == "public.other"] == ["holds"]


@pytest.mark.parametrize("act", [_HIDDEN, "truncate items"])
def test_digests_in_whose_middle_a_table_changes_are_not_printed_and_others_are(
    owned: Pipeline, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    owned.database.execute("delete from items where id > 100")  # so few are compared by their rows, too
    assert owned.verify().differences == 0
    acts = [act]
    readings: list[int] = []

    def before() -> None:
        readings.append(1)
        if len(readings) == 2:  # the first is the comparison's
            owned.database.execute(acts.pop())

    _before(monkeypatch, "rows", before)
    found = verify(owned.config, engine=SyncService, talk=lambda line: None, checks=["data_hash"])

    assert acts == []
    assert (items(found).state, items(found).digests) == ("compared", {})
    assert [bool(t.digests) for t in found.tables if t.table == "public.other"] == [True]


def _before(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], Any]) -> None:
    """Have this happen before each such reading of table items. An engine that sees it would look again."""
    reading = getattr(PostgresTables, name)

    def first(source: PostgresTables, info: Any, *arguments: Any) -> Any:
        if info.name == "items":
            act()
        return reading(source, info, *arguments)

    monkeypatch.setattr(PostgresTables, name, first)
    monkeypatch.setattr(housekeeping, "_REFRESH_S", float("inf"))
