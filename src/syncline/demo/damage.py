"""Damage that is done to the copies by hand, in front of the user: verification finds it, and a repair mends it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

from syncline.config import Config
from syncline.verify import Report
from syncline.verify.report import KINDS

__all__ = ["Damage", "Hands", "is_just"]


class Hands:
    """Writes to the copies with each store's own means, past Syncline, while no engine has them open."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def graph(self, statement: LiteralString) -> None:
        """Execute Cypher in the graph."""
        import neo4j

        store = self._store("neo4j")
        password = store.password.get_secret_value() if store.password else ""
        with neo4j.GraphDatabase.driver(store.uri, auth=(store.user, password)) as driver:
            driver.execute_query(statement, database_=store.database)

    def rows(self, statement: str) -> None:
        """Execute SQL in the DuckDB file."""
        import duckdb

        with duckdb.connect(str(self._store("duckdb").path)) as connection:
            connection.execute(statement)

    def table(self, statement: LiteralString) -> None:
        """Execute SQL in the PostgreSQL copy."""
        import psycopg

        with psycopg.connect(self._store("postgres").dsn.get_secret_value()) as connection:
            connection.execute(statement)

    def remove_point(self, collection: str) -> None:
        """Delete some point that is a row from the folder of an embedded Qdrant."""
        from syncline.stores.qdrant.edge import EdgePoints
        from syncline.stores.qdrant.points import Which

        points = EdgePoints.acquire(self._store("qdrant").path, patience_s=10)
        try:
            found, _ = points.page(collection, Which(buried=False), None, vectors=False, payload=False)
            points.delete(collection, [found[0].id])
            points.sync([collection])
        finally:
            points.close()

    def _store(self, kind: str) -> Any:
        return next(target.store for target in self._config.targets.values() if target.type == kind)


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is done to a ``target``. ``words`` say what, ``kind`` of what kind the one difference is that
    it makes, in which ``table``."""

    words: str
    target: str
    table: str
    kind: str
    do: Callable[[Hands], None]


def is_just(report: Report, damage: Sequence[Damage]) -> bool:
    """Whether a verification found what was done, and nothing beside."""
    found = Counter({(t.target, t.table, kind): getattr(t, kind) for t in report.tables for kind in KINDS})
    return +found == Counter((d.target, d.table, d.kind) for d in damage) and not report.not_compared
