"""Checks beside the comparison, against real servers: what is planted is found, and what is as it should be holds."""

from __future__ import annotations

import hashlib
import itertools
import threading
from typing import Any

import pytest
from piped import Pipeline

from syncline import run_consistency_check
from syncline.config import Config, RuleConfig
from syncline.errors import Misconfigured
from syncline.pipeline import SyncService
from syncline.verify import Report, checks, compare

TABLES = (
    "create table customers (id int primary key, name text);"
    "create table orders (id int primary key, customer int references customers, price numeric(8,2), ratio float8);"
    "insert into customers select g, 'customer ' || g from generate_series(1, 20) g;"
    "insert into orders select g, 1 + g % 20, g, g / 7.0 from generate_series(1, 300) g"
)


@pytest.fixture
def filled(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    monkeypatch.setattr(compare, "_AGAIN_S", 0.0)
    monkeypatch.setattr(checks, "_AGAIN_S", 0.0)
    pipeline.database.execute(TABLES)
    assert pipeline.verify().score == 1.0
    return pipeline


def ruled(pipeline: Pipeline, **rules: dict[str, str]) -> Config:
    made = {name: RuleConfig.model_validate(rule) for name, rule in rules.items()}
    return pipeline.config.model_copy(update={"verify": pipeline.config.verify.model_copy(update={"rules": made})})


def check(config: Config, kind: str, *tables: str) -> Report:
    return run_consistency_check(tables, [kind], config=config, engine=SyncService, talk=lambda line: None)


def states(report: Report) -> dict[tuple[str, str], tuple[str, int]]:
    return {(c.place, c.name): (c.state, c.violations) for c in report.checks}


def test_counts_differ_where_rows_are_missing_and_only_there(filled: Pipeline) -> None:
    filled.damage("delete from orders where id in (5, 6)", "update customers set name = 'other' where id = 1")
    report = check(filled.config, "row_count")
    found = {c.table: (c.state, c.violations, dict(c.figures)) for c in report.checks}
    assert found == {
        "public.customers": ("holds", 0, {"source_rows": 20, "target_rows": 20}),
        "public.orders": ("broken", 2, {"source_rows": 300, "target_rows": 298}),
    }
    assert (report.tables, report.differences, report.broken, report.score) == ([], 0, 1, 0.5)


def test_counts_allow_for_what_is_on_its_way_and_for_filters(filled: Pipeline) -> None:
    text = filled.path.with_name("syncline.yaml").read_text()
    assert "tables" not in text
    target = filled.config.targets["main"].model_dump() | {"tables": {"orders": {"where": "price > 100"}}}
    settings = {k: v for k, v in target.items() if k != "store"} | {"path": str(filled.path) + ".2"}
    config = filled.config.model_copy(
        update={"targets": {"main": type(filled.config.targets["main"]).model_validate(settings)}}
    )
    (found,) = check(config, "row_count").checks
    assert (found.state, dict(found.figures)) == ("holds", {"source_rows": 200, "target_rows": 200})


@pytest.mark.parametrize("algorithm", ["xxh3", "sha256", "md5"])
def test_digests_of_both_sides_are_equal_until_something_differs(filled: Pipeline, algorithm: str) -> None:
    told = filled.config.verify.model_copy(update={"data_hash": algorithm})
    config = filled.config.model_copy(update={"verify": told})
    before = check(config, "data_hash", "orders").tables[0]
    assert before.digests["source"] == before.digests["target"]
    assert (before.digests["algorithm"], before.differences) == (algorithm, 0)
    filled.damage("update orders set ratio = nextafter(ratio, 1e9) where id = 7")
    after = check(config, "data_hash", "orders").tables[0]
    assert (after.digests["source"], after.different) == (before.digests["source"], 1)
    assert after.digests["target"] != before.digests["target"]


def test_rules_are_asked_at_the_source_and_at_a_target(filled: Pipeline) -> None:
    config = ruled(
        filled,
        cheap={"table": "orders", "query": "select id from orders where price > 298"},
        enough={"query": "select count(*) = 300 from orders"},
        named={"on": "main", "query": "select id from customers where name is null"},
        odd={"on": "main", "query": "select count(*) > 1000 from orders"},
    )
    report = check(config, "business_rules")
    assert states(report) == {
        ("source main", "cheap"): ("broken", 2),
        ("source main", "enough"): ("holds", 0),
        ("target main", "named"): ("holds", 0),
        ("target main", "odd"): ("broken", 1),
    }
    shown = {c["name"]: c.get("keys") for c in report.to_dict(show_keys=True)["checks"]}
    assert shown["cheap"] == ["299", "300"]
    assert "299" not in str({**report.to_dict(), "seconds": 0})
    assert states(check(config, "business_rules", "orders")) == {("source main", "cheap"): ("broken", 2)}


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"query": "select id from nothing"}, "nothing"),
        ({"query": "with gone as (delete from orders returning id) select id from gone"}, "WITH"),
        ({"query": "select 1; commit; begin read write; delete from orders; commit"}, "multiple commands"),
        ({"query": "select pg_sleep(600)"}, "longer than 1 s"),
        ({"query": "select name::int from customers"}, "InvalidTextRepresentation"),
        ({"query": "select null::bool"}, "NULL"),
        ({"on": "main", "query": "select id from nothing"}, "nothing"),
        ({"on": "main", "query": "delete from orders"}, "SELECT"),
        ({"on": "main", "query": "select name::int from customers"}, "Conversion Error"),
        ({"on": "main", "query": "select count(*) from range(10000000) a, range(10000000) b"}, "longer than 1 s"),
    ],
    ids=[
        "unknown",
        "writes",
        "commits",
        "slow",
        "value",
        "null",
        "unknown there",
        "writes there",
        "value there",
        "slow there",
    ],
)
def test_a_rule_that_cannot_be_asked_is_not_checked_and_says_why(
    filled: Pipeline, rule: dict[str, str], said: str
) -> None:
    config = ruled(filled, this=rule)
    told = config.verify.model_copy(update={"check_timeout_s": 1.0 if "longer" in said else 60.0})
    report = check(config.model_copy(update={"verify": told}), "business_rules")
    (found,) = report.checks
    assert found.state == "not checked"
    assert said in found.reason
    assert "customer 1" not in found.reason
    assert (report.not_checked, report.score) == (1, 0.0)
    assert filled.database.value("select count(*) from orders") == 300


def test_references_are_followed_at_the_source_and_within_the_copy(filled: Pipeline) -> None:
    assert states(check(filled.config, "referential_integrity")) == {
        ("source main", "orders_customer_fkey"): ("holds", 0),
        ("target main", "orders_customer_fkey"): ("holds", 0),
    }
    filled.damage("delete from customers where id = 3")
    filled.database.execute(
        "alter table orders drop constraint orders_customer_fkey;"
        "insert into orders values (999, 77, 1, 1), (998, null, 1, 1);"
        "alter table orders add constraint late foreign key (customer) references customers not valid"
    )
    report = check(filled.config, "referential_integrity")
    found = {c.place: c for c in report.checks}
    source, target = found["source main"], found["target main"]
    assert (source.state, source.violations, dict(source.figures)) == ("broken", 1, {"not_valid": 1})
    assert source.to_dict(show_keys=True)["keys"] == ["999"]
    assert (target.state, target.violations) == ("broken", 16)  # 15 of the customer that is gone, and that one


def write(pipeline: Pipeline, stop: threading.Event) -> None:
    """Insert, delete and move rows, customers before their orders and after them."""
    with pipeline.database.connect(autocommit=False) as connection:
        for n in itertools.count(1_000):
            if stop.is_set():
                return
            connection.execute("insert into customers values (%s, 'new')", [n])
            connection.execute("insert into orders values (%s, %s, 1, 1), (%s, %s, 1, 1)", [n, n, n + 1_000_000, n])
            connection.execute("delete from orders where id in (%s, %s)", [n - 900, n - 1])
            connection.execute(
                "delete from customers where id = %s and id not in (select customer from orders)", [n - 5]
            )
            connection.execute("update orders set id = id + 1000000 where id = %s", [n + 1_000_000])
            connection.commit()


def test_checks_of_a_running_pipeline_report_nothing_that_is_in_flight(filled: Pipeline) -> None:
    config = ruled(filled, whole={"on": "main", "query": "select id from orders where customer is null"})
    stop = threading.Event()
    with filled.running():
        thread = threading.Thread(target=write, args=(filled, stop))
        thread.start()
        try:
            kinds = ["row_count", "business_rules", "referential_integrity"]
            reports = [run_consistency_check(None, kinds, config=config) for _ in range(10)]
        finally:
            stop.set()
            thread.join()
        assert [c for report in reports for c in report.checks if c.state != "holds"] == []
        counted = [c.figures for report in reports for c in report.checks if c.kind == "row_count"]
        assert any(one["source_rows"] != one["target_rows"] for one in counted), "nothing was on its way"
        assert check(config, "row_count").score == 1.0


def test_an_unknown_check_and_a_rule_of_no_place_are_refused(filled: Pipeline) -> None:
    with pytest.raises(Misconfigured, match="There is no check row_counts"):
        check(filled.config, "row_counts")
    rules: Any = {"verify": {"rules": {"x": {"on": "elsewhere", "query": "select 1"}}}}
    with pytest.raises(ValueError, match="elsewhere"):
        Config.model_validate({"source": {"dsn": filled.database.dsn}} | rules)


def test_the_digest_of_no_rows_is_zero_and_of_one_row_its_hash() -> None:
    import pyarrow as pa

    from syncline.verify.checks.data_hash import digest

    batch = pa.record_batch({"id": pa.array([1, None]), "name": pa.array(["a", ""])})
    rows = [hashlib.sha256(row).digest() for row in (b"1:1,1:a", b"-,0:")]
    total = sum(int.from_bytes(row, "big") for row in rows) % (1 << 256)
    assert digest([batch], ["id", "name"], "sha256") == f"{total:064x}"
    assert digest([batch.slice(1), batch.slice(0, 1)], ["id", "name"], "sha256") == f"{total:064x}"
    assert digest([], ["id"], "xxh3") == "0" * 32
