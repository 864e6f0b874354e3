"""Whom a server runs as, what it may enter and what it sees.

PostgreSQL refuses to run as root, so under root it runs as an unprivileged account; neither the permissions of the
folders above its data nor those of the environment are loosened for that.
"""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from syncline.errors import Misconfigured

__all__ = ["Account", "environment", "give", "may_enter", "may_run", "ourselves", "unprivileged"]


class _Who(TypedDict, total=False):
    """The arguments of ``subprocess`` that say whom to run as."""

    user: int
    group: int
    extra_groups: list[str | int]


@dataclass(frozen=True, slots=True)
class Account:
    """Whom a server runs as: another account than ours where ``drop``, otherwise ourselves."""

    uid: int
    gid: int
    drop: bool

    @property
    def who(self) -> _Who:
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.drop else {}


def ourselves() -> Account:
    """The account of this process."""
    return Account(os.geteuid(), os.getegid(), drop=False)


def unprivileged() -> Account:
    """For a server that refuses to run as root: ``nobody`` under root, otherwise ourselves."""
    if os.geteuid() != 0:
        return ourselves()
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return Account(65534, 65534, drop=True)
    return Account(entry.pw_uid, entry.pw_gid, drop=True)


def may_enter(folder: Path, account: Account) -> bool:
    """Whether ``account`` can pass through a folder and everything above it."""
    return not account.drop or all(_permits(place, account, 0o1) for place in (folder, *folder.parents))


def may_run(program: Path, account: Account) -> bool:
    """Whether ``account`` can reach a program and run it."""
    return may_enter(program.parent, account) and _permits(program, account, 0o5)


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
    return {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC"}
