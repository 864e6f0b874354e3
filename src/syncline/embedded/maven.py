"""Servers from Maven Central, by the ``mvn`` that the machine has, with the repositories that it is set up for.

Maven checks every file that it loads against the repository's checksum; ``--strict-checksums`` makes a wrong one an
error instead of a warning.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from syncline.embedded.kept import locked, servers_folder
from syncline.errors import Misconfigured, Unavailable

__all__ = ["copy_artifact", "copy_runtime"]

PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"
TIMEOUT_S = 900
# An address of a repository may hold a password.
_SECRETS = re.compile(r"//[^/@\s]+@")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def copy_artifact(artifact: str, folder: Path) -> None:
    """Copy one file (``group:name:version:type``) into ``folder``.

    Raises:
        Misconfigured: There is no Maven.
        Unavailable: Maven could not get it.
    """
    _run(artifact, f"{PLUGIN}:copy", f"-Dartifact={artifact}", f"-DoutputDirectory={folder}")


def copy_runtime(pom: Path, folder: Path) -> None:
    """Copy the jars that the project ``pom`` needs at run time into ``folder``.

    Raises:
        Misconfigured: There is no Maven.
        Unavailable: Maven could not get them.
    """
    options = ("-DincludeScope=runtime", f"-DoutputDirectory={folder}")
    _run(pom.stem, "-f", str(pom), f"{PLUGIN}:copy-dependencies", *options)


def _run(what: str, *arguments: str) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise Misconfigured(f"Maven is needed to fetch {what}, and there is no mvn.", remedy="apt-get install maven")
    command = [maven, "--quiet", "--batch-mode", "--strict-checksums", *arguments]
    # Maven keeps what it loads in a folder of the user's, which two of it may not fill at once.
    with locked(servers_folder() / "maven.lock"):
        done = _output(what, command)
    if done.returncode != 0:
        raise Unavailable(f"Maven could not fetch {what}: {_reason(done.stdout)}", remedy="Try again: make servers")


def _output(what: str, command: list[str]) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"Maven did not fetch {what} in {TIMEOUT_S} s.", remedy="Try again: make servers") from error


def _reason(output: bytes) -> str:
    lines = _COLOURS.sub("", output.decode(errors="replace")).splitlines()
    said = next((line for line in lines if "ERROR" in line), lines[-1] if lines else "it said nothing")
    return _SECRETS.sub("//", said)[:500]
