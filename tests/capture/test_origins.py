"""Whose change it was: the replication origin of a transaction is told in its entry (correctness rule 28)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from servers import Database
from syncline.capture.source import SourceConfig
from syncline.capture.tables import matching_tables
from syncline.capture.wal import WalCapture
from syncline.change import Batch, Entry

ORIGINS = ("one", "other")


@pytest.fixture
def names(database: Database) -> Iterator[dict[str, str]]:
    """Origins belong to the whole server: their names tell the database, and they go with the test."""
    names = {origin: f"{database.name}:{origin}" for origin in ORIGINS}
    for name in names.values():
        database.execute("select pg_replication_origin_create(%s)", name)
    yield names
    for name in names.values():
        database.execute("select pg_replication_origin_drop(%s)", name)


def _write(database: Database, origin: str, *transactions: tuple[int, ...]) -> None:
    with database.connect() as connection:
        if origin:
            connection.execute("select pg_replication_origin_session_setup(%s)", [origin])
        for keys in transactions:
            connection.execute("insert into t select unnest(%s::bigint[])", [list(keys)])
        if origin:
            connection.execute("select pg_replication_origin_session_reset()")


def _keys(entry: Entry) -> list[int]:
    return [key for item in entry.items if isinstance(item, Batch) for key in item.rows.column(0).to_pylist()]


def test_each_entry_says_who_wrote_it_and_transactions_of_two_never_share_one(
    database: Database, names: dict[str, str]
) -> None:
    database.execute("create table t (id bigint primary key); create publication p for table t")
    slot = f"slot_{database.name}"
    database.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", slot)
    _write(database, "", (1,), (2,))
    _write(database, names["one"], (3,), (4, 5))
    _write(database, names["other"], (6,))
    _write(database, "", (7,))
    config = SourceConfig(dsn=database.dsn, slot=slot, publication="p", heartbeat_s=0.1)  # type: ignore[arg-type]
    with database.connect() as connection:
        tables = matching_tables(connection, ["public.t"])
    capture = WalCapture(config, tables, base=0, incarnation=1, lost=lambda table, _: pytest.fail(f"{table} was lost"))
    found: list[tuple[str, int]] = []
    try:
        for entry in capture.entries(0):
            found += [(entry.origin, key) for key in _keys(entry)]
            if len(found) == 7:
                break
    finally:
        capture.close()
    one, other = names["one"], names["other"]
    assert found == [("", 1), ("", 2), (one, 3), (one, 4), (one, 5), (other, 6), ("", 7)]
