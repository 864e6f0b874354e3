"""The copies as their users see them: each asked through its own client, while the engine writes to it."""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, LiteralString, Self, cast

from syncline.config import Config

if TYPE_CHECKING:
    import neo4j
    import psycopg
    import redis

    from syncline.stores.duckdb.door import Reader as Tables
    from syncline.stores.qdrant.reader import Reader as Points

__all__ = ["Copies"]


class Copies:
    """Opens each copy when it is first asked. A context manager; of use once the engine has made the copies."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._open = ExitStack()

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """What DuckDB answers."""
        return cast(list[dict[str, Any]], self._duckdb.query(sql).to_pylist())

    def table(self, statement: LiteralString) -> list[dict[str, Any]]:
        """What PostgreSQL answers."""
        return self._postgres.execute(statement).fetchall()

    def exported(self, table: str) -> Path:
        """The Parquet files of a table: the folder of the newest export. The first one is waited for, as long as a few
        of them take."""
        parquet = self._store("duckdb").parquet
        folder = Path(parquet.folder) / "current" / table
        deadline = time.monotonic() + 5 * parquet.every_s
        while not any(folder.glob("*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.1)
        return folder

    def graph(self, statement: LiteralString, **parameters: Any) -> list[dict[str, Any]]:
        """What the graph answers."""
        with self._neo4j.session(database=self._store("neo4j").database) as session:
            return [record.data() for record in session.run(statement, parameters)]

    def nearest(self, collection: str, vector: list[float], *, using: str, limit: int) -> list[dict[str, Any]]:
        """The payloads of the nearest points, each with its ``score``."""
        hits = self._qdrant.search(collection, vector, using=using, limit=limit)
        return [{**hit.payload, "score": hit.score} for hit in hits]

    def key(self, name: str) -> str | None:
        """What a string of Redis says, None without one."""
        return cast("str | None", self._redis.get(name))

    @cached_property
    def _duckdb(self) -> Tables:
        from syncline.stores.duckdb import open_reader

        return self._open.enter_context(open_reader(self._store("duckdb").path))

    @cached_property
    def _postgres(self) -> psycopg.Connection[dict[str, Any]]:
        import psycopg
        from psycopg.rows import dict_row

        dsn = self._store("postgres").dsn.get_secret_value()
        return self._open.enter_context(psycopg.connect(dsn, autocommit=True, row_factory=dict_row))

    @cached_property
    def _neo4j(self) -> neo4j.Driver:
        import neo4j

        store = self._store("neo4j")
        password = store.password.get_secret_value() if store.password else ""
        return self._open.enter_context(neo4j.GraphDatabase.driver(store.uri, auth=(store.user, password)))

    @cached_property
    def _redis(self) -> redis.Redis:
        import redis

        client = redis.Redis.from_url(self._store("redis").url.get_secret_value(), decode_responses=True)
        return self._open.enter_context(client)

    @cached_property
    def _qdrant(self) -> Points:
        from syncline.stores.qdrant import open_reader

        return self._open.enter_context(open_reader(self._store("qdrant").path))

    def _store(self, kind: str) -> Any:
        """The settings of the target of this type: a store's own class."""
        return next(target.store for target in self._config.targets.values() if target.type == kind)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
