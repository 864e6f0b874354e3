"""Tables of a DuckDB copy that somebody altered by hand: what became of them is said, and hides nothing."""

from __future__ import annotations

import duckdb
import pytest
from piped import Pipeline

from servers import Database
from syncline.errors import Misconfigured
from syncline.pipeline import SyncService
from syncline.verify import compare
from syncline.verify.repair import repair

_ROWS = 12_000  # enough for digests


@pytest.fixture(params=[100, _ROWS])
def filled(
    pipeline: Pipeline, database: Database, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Pipeline:
    """A copy that is equal, read whole or compared by digests."""
    monkeypatch.setattr(compare, "_AGAIN_S", 0.0)
    monkeypatch.setattr(compare, "_SETTLE_S", 0.0)
    database.execute("create table t (id bigint primary key, price numeric(10,2), n int, x text)")
    database.execute(f"insert into t select g, g / 4.0, g, 'x' || g from generate_series(1, {request.param}) g")
    assert pipeline.verify().differences == 0
    return pipeline


@pytest.mark.parametrize(
    "damage",
    [
        "alter table t drop column x",
        "alter table t alter column x type blob",
        "alter table t alter column n type varchar",
        "alter table t alter column n type smallint",
        "alter table t alter column price type double",
    ],
)
def test_a_column_that_was_dropped_or_given_another_type_is_a_difference(filled: Pipeline, damage: str) -> None:
    filled.damage(damage)
    (report,) = filled.verify().tables
    column = damage.split()[5]
    assert (report.columns, report.missing, report.extra, report.different) == ((column,), 0, 0, 0)


def test_rows_are_compared_by_the_columns_that_are_left(filled: Pipeline) -> None:
    filled.damage("alter table t drop column x", "update t set n = 0 where id = 7", "delete from t where id = 8")
    (report,) = filled.verify().tables
    assert (report.columns, report.missing, report.extra, report.different) == (("x",), 1, 0, 1)


def test_a_value_that_only_a_wider_column_holds_is_not_rounded_to_the_one_of_the_source(filled: Pipeline) -> None:
    filled.damage(
        "alter table t alter column price type decimal(14,4)",
        "alter table t alter column n type hugeint",
    )
    assert filled.verify().differences == 0
    filled.damage(
        "update t set price = price + 0.0001 where id = 7", "update t set n = n + 9223372036854775808 where id = 8"
    )
    (report,) = filled.verify().tables
    assert (report.columns, report.missing, report.extra, report.different) == ((), 0, 0, 2)
    assert repair(filled.config, engine=SyncService).clean
    with duckdb.connect(str(filled.path), read_only=True) as copy:
        assert copy.execute("select id, price, n from t where id in (7, 8) order by id").fetchall() == [
            (7, pytest.approx(1.75), 7),
            (8, pytest.approx(2), 8),
        ]


def test_the_rows_of_a_table_that_was_dropped_are_missing(filled: Pipeline) -> None:
    filled.damage("drop table t")
    (report,) = filled.verify().tables
    assert (report.missing, report.rows) == (report.rows, report.missing)


@pytest.mark.parametrize(
    "damage", ["alter table t drop column _syncline_version", "alter table t alter column id type varchar"]
)
def test_what_can_not_be_read_is_said_with_what_to_do(filled: Pipeline, damage: str) -> None:
    filled.damage(damage)
    with pytest.raises(Misconfigured, match=r"lost its column (_syncline_version|id)") as caught:
        filled.verify()
    assert "resync" in caught.value.remedy


def test_tombstones_that_were_dropped_come_back_with_the_next_change(filled: Pipeline) -> None:
    filled.damage('drop table syncline."deleted public.t"')
    filled.database.execute("delete from t where id = 7")
    assert filled.verify().differences == 0
