"""Checks and single records at the targets that are not DuckDB, on real servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from servers import TEMPLATE, Database, fresh_database
from stores.graphs import GraphDatabase, graph
from syncline import run_consistency_check
from syncline.config import Config, RuleConfig
from syncline.embedded import EmbeddedPostgres, EmbeddedValkey
from syncline.pipeline import SyncService
from syncline.verify import Report
from syncline.verify import record as looking
from syncline.verify.record import record
from syncline.verify.report import CHECKS

__all__ = ["graph"]

TABLES = (
    "create table customers (id int primary key, name text);"
    "create table orders (id int primary key, customer int references customers, price numeric(8,2));"
    "create table likes (customer int references customers, thing int references orders, since date,"
    " primary key (customer, thing));"
    "insert into customers select g, 'customer ' || g from generate_series(1, 20) g;"
    "insert into orders select g, 1 + g % 20, g from generate_series(1, 60) g;"
    "insert into likes select g, g, '2026-01-01' from generate_series(1, 20) g"
)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncline.verify.checks._AGAIN_S", 0.0)
    monkeypatch.setattr("syncline.verify.compare._AGAIN_S", 0.0)
    monkeypatch.setattr(looking, "_SETTLE_S", 0.0)


def config_of(source: Database, folder: Path, target: dict[str, Any], **rules: dict[str, str]) -> Config:
    source.execute(TABLES)
    return Config.model_validate(
        {
            "source": {"dsn": source.dsn},
            "target": target,
            "log": {"path": str(folder / "log")},
            "verify": {"rules": rules},
        }
    )


def check(config: Config) -> Report:
    """All checks, with an engine of one's own that brings the target up to date first."""
    return run_consistency_check(None, CHECKS, config=config, engine=SyncService, talk=lambda line: None)


def counts(report: Report, kind: str) -> dict[str, tuple[str, int]]:
    """State and violations of the target's checks of a type."""
    return {c.name or c.table: (c.state, c.violations) for c in report.checks
            if c.target and c.kind == kind}  # fmt: skip


def fine(report: Report) -> bool:
    digests = [(t.digests["source"], t.digests["target"]) for t in report.tables]
    return report.score == 1.0 and len(digests) == 3 and all(one == other for one, other in digests)


def test_postgres_counts_is_asked_and_follows_references(
    database: Database, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    with fresh_database(postgres, TEMPLATE) as target:
        rules = {
            "named": {"on": "main", "query": "select id from customers where name is null or name = 'x%'"},
            "some": {"on": "main", "query": "select count(*) > 0 from orders"},
            "writes": {"on": "main", "query": "select id from orders where nextval('s') > 0"},
            "commits": {"on": "main", "query": "select 1; commit; begin read write; delete from customers; commit"},
        }
        target.execute("create sequence s")
        config = config_of(database, tmp_path, {"type": "postgres", "dsn": target.dsn}, **rules)
        first = check(config)
        assert counts(first, "business_rules") == {
            "named": ("holds", 0),
            "some": ("holds", 0),
            "writes": ("not checked", 0),
            "commits": ("not checked", 0),
        }
        assert target.value("select is_called from s") is False
        config = config.model_copy(update={"verify": config.verify.model_copy(update={"rules": {}})})
        assert fine(check(config))
        target.execute("delete from customers where id = 2; update orders set price = 0 where id = 5")
        report = check(config)
        assert counts(report, "row_count")["public.customers"] == ("broken", 1)
        assert counts(report, "referential_integrity") == {
            "orders_customer_fkey": ("broken", 3),
            "likes_customer_fkey": ("broken", 1),
            "likes_thing_fkey": ("holds", 0),
        }
        assert record(config, "public.customers", ["2"])[1].state == "absent"
        assert record(config, "public.orders", ["5"])[1].differs == ("price",)
        assert record(config, "public.likes", ["thing=7", "customer=7"])[1].equal


def test_a_graph_counts_is_asked_in_cypher_and_tells_what_waits_at_a_stub(
    database: Database, graph: GraphDatabase, tmp_path: Path
) -> None:
    at = graph.config
    password = at.password.get_secret_value() if at.password else None
    target = {
        "type": "neo4j", "uri": at.uri, "user": at.user, "password": password, "database": at.database,
        "tables": {
            "public.customers": {"node": "Customer"},
            "public.orders": {"node": "Order", "references": {"customer": "OF"}},
            "public.likes": {"relationship": "LIKES", "from": {"table": "public.customers"},
                             "to": {"table": "public.orders"}},
        },
    }  # fmt: skip
    rules = {
        "named": {"on": "main", "query": "MATCH (c:Customer) WHERE c.name IS NULL RETURN c.id"},
        "alone": {"on": "main", "query": "MATCH (o:Order) WHERE NOT (o)-[:OF]->() RETURN o.id"},
    }
    config = config_of(database, tmp_path, target, **rules)
    assert fine(check(config))
    # A customer whose node goes by hand takes its relationships along; those of one that never came wait at a stub.
    graph.query("MATCH (c:Customer {id: 2}) DETACH DELETE c")
    database.execute(
        "alter table orders drop constraint orders_customer_fkey; insert into orders values (99, 77, 1);"
        "alter table orders add constraint orders_customer_fkey foreign key (customer) references customers not valid;"
        "alter table likes drop constraint likes_thing_fkey; insert into likes values (1, 999);"
        "alter table likes add constraint likes_thing_fkey foreign key (thing) references orders not valid"
    )
    report = check(config)
    assert counts(report, "business_rules") == {"named": ("holds", 0), "alone": ("broken", 4)}
    assert counts(report, "referential_integrity") == {
        "orders_customer_fkey": ("broken", 1),
        "likes_thing_fkey": ("broken", 1),
        "likes_customer_fkey": ("holds", 0),
    }
    assert counts(report, "row_count")["public.customers"] == ("broken", 1)
    assert record(config, "public.orders", ["21"])[1].differs == ("customer",)
    assert record(config, "public.likes", ["5", "5"])[1].equal
    assert record(config, "public.likes", ["2", "2"])[1].state == "absent"
    writes = RuleConfig(on="main", query="MATCH (o:Order) SET o.price = 0 RETURN o.id")
    told = config.verify.model_copy(update={"rules": {"writes": writes}})
    refused = config.model_copy(update={"verify": told})
    written = run_consistency_check(None, ["business_rules"], config=refused, engine=SyncService, talk=lambda _: None)
    assert written.score < 1.0
    assert graph.query("MATCH (o:Order) WHERE o.price = 0 RETURN o.id") == []


@pytest.mark.parametrize("kind", ["redis", "qdrant"])
def test_a_target_without_queries_says_so_and_is_counted_all_the_same(
    database: Database, valkey: EmbeddedValkey, tmp_path: Path, kind: str
) -> None:
    places: dict[str, dict[str, Any]] = {
        "redis": {"type": "redis", "url": valkey.url()},
        "qdrant": {"type": "qdrant", "path": str(tmp_path / "points")},
    }
    config = config_of(database, tmp_path, places[kind], some={"on": "main", "query": "anything"})
    report = check(config)
    assert set(counts(report, "row_count").values()) == {("holds", 0)}
    assert {c.state for c in report.checks if c.target and c.kind != "row_count"} == {"not checked"}
    assert all(f"type {kind} can't be asked" in c.reason for c in report.checks if c.state == "not checked")
    assert all(t.digests["source"] == t.digests["target"] for t in report.tables)
    assert all(one.equal and one.state == "there" for one in record(config, "public.likes", ["5", "5"]))
    assert [one.state for one in record(config, "public.orders", ["500"])] == ["absent", "absent"]
