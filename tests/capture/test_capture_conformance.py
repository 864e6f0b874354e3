"""The capture contract, held by the reference in memory and by the WAL of a real server."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from servers import Database, eventually
from syncline.capture.source import SourceConfig
from syncline.capture.tables import matching_tables
from syncline.capture.wal import WalCapture
from syncline.testing.capture_suite import CaptureConformance, CapturePlace, MemoryPlace


class TestMemoryCapture(CaptureConformance):
    @pytest.fixture
    def place(self) -> CapturePlace:
        return MemoryPlace()


class WalPlace:
    """One table of a real server, with a publication and a slot."""

    def __init__(self, database: Database, *, binary: bool) -> None:
        self._database = database
        self._binary = binary
        self._slot = f"slot_{database.name}"
        database.execute("create table t (id bigint primary key, filler text); create publication p for table t")
        database.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", self._slot)

    def open(self, *, max_entry_rows: int = 10_000) -> WalCapture:
        self._idle()
        config = SourceConfig(
            dsn=self._database.dsn,  # type: ignore[arg-type]
            slot=self._slot,
            publication="p",
            binary=self._binary,
            heartbeat_s=0.1,
            max_entry_bytes=max(65_536, max_entry_rows * 100),
        )
        with self._database.connect() as connection:
            tables = matching_tables(connection, ["public.t"])
        return WalCapture(config, tables, base=0, incarnation=1, lost=self._lost)

    @staticmethod
    def _lost(table: str, error: Exception) -> None:
        raise AssertionError(f"{table} was lost: {error}")

    def _idle(self) -> None:
        """A walsender lets its slot go a moment after its connection is closed."""
        query = "select active_pid is null from pg_replication_slots where slot_name = %s"
        eventually(lambda: self._database.value(query, self._slot))

    def write(self, *keys: int) -> None:
        self._database.execute("insert into t select unnest(%s::bigint[]), repeat('x', 100)", list(keys))

    def begin(self, *keys: int) -> Callable[[], None]:
        connection = self._database.connect(autocommit=False)
        connection.execute("insert into t select unnest(%s::bigint[])", [list(keys)])

        def commit() -> None:
            connection.commit()
            connection.close()

        return commit

    def end(self) -> int:
        return int(self._database.value("select (pg_current_wal_insert_lsn() - '0/0')::int8"))

    def confirmed(self) -> int:
        query = "select (confirmed_flush_lsn - '0/0')::int8 from pg_replication_slots where slot_name = %s"
        return int(self._database.value(query, self._slot))

    def sever(self) -> None:
        self._database.execute(
            "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = %s", self._slot
        )


@pytest.fixture
def every_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is told often what is durable, and is as patient as ever."""
    monkeypatch.setattr("syncline.capture.wal._status_interval", lambda _: 1.0)


class TestWalCaptureInText(CaptureConformance):
    @pytest.fixture
    def place(self, database: Database, every_second: None) -> CapturePlace:
        return WalPlace(database, binary=False)


class TestWalCaptureInBinary(CaptureConformance):
    @pytest.fixture
    def place(self, database: Database, every_second: None) -> CapturePlace:
        return WalPlace(database, binary=True)
