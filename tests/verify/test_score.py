"""The score: what makes it 1, and what takes how much away."""

from __future__ import annotations

from syncline.verify.report import Check, Report, TableReport
from syncline.verify.score import place_scores, rounded


def table(name: str = "public.a", **counts: object) -> TableReport:
    return TableReport("main", "copy", name, **{"rows": 1_000, **counts})  # type: ignore[arg-type]


def test_only_what_is_whole_has_a_score_of_one() -> None:
    assert Report([table()], 1.0).score == 1.0
    assert Report([table(in_flight=30)], 1.0).score == 1.0
    assert Report([table(rows=0)], 1.0).score == 1.0
    assert Report([], 1.0).score == 0.0
    for report in (table(missing=1), table(extra=1), table(parked=1), table(columns=("x",)), table(state="loading")):
        assert Report([table("public.b"), report], 1.0).score < 1.0


def test_a_share_of_rows_is_the_score_of_a_table() -> None:
    assert table(missing=100).score == 0.9
    assert table(rows=0, extra=5).score == 0.0
    assert table(rows=100, in_flight=50, different=25).score == 0.5
    assert table(rows=10, in_flight=10, missing=3).score == 0.0


def test_every_table_weighs_the_same_and_so_does_every_place() -> None:
    small = table("public.small", rows=2, different=2)
    assert Report([table(rows=1_000_000), small], 1.0).score == 0.5
    broken = Check("business_rules", "main", "", "", "r", "broken", 1)
    report = Report([table(rows=1_000_000), small], 1.0, [broken, Check("business_rules", "main", "", "", "s")])
    assert report.scores == {"target copy": 0.5, "source main": 0.5}


def test_types_of_checks_share_a_table() -> None:
    facts = [("t", "a", "data_hash", 1.0), ("t", "a", "row_count", 0.0), ("t", "b", "data_hash", 1.0)]
    assert place_scores(facts) == {"t": 0.75}


def test_nothing_is_rounded_up_to_one() -> None:
    report = Report([table(rows=10_000_000, missing=1)], 1.0)
    assert (report.to_dict()["score"], report.consistency_score) == (0.999999, 99.99)
    assert rounded(1.0) == 1.0
