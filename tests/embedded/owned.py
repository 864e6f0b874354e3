"""What the tests of the embedded servers share: an owner that may be killed, and what is left of a server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from syncline.embedded.server import STOP_TIMEOUT_S

# How long a server and its keeper may take to go: asked to end, it is killed when its time is over, and may take as
# long again to be gone.
LEAVING_S = 2 * STOP_TIMEOUT_S + 30

TESTS = Path(__file__).parents[1]

PROGRAM = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from shared_server import KINDS
from syncline.embedded import EmbeddedValkey
server = {**KINDS, "valkey": EmbeddedValkey.start}[sys.argv[2]](Path(sys.argv[3]))
print(server.pid, flush=True)
time.sleep(600)
"""


@contextmanager
def owner(kind: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that starts a server of a kind, and the server's process id; it is told to end at the end."""
    command = [sys.executable, "-c", PROGRAM, str(TESTS), kind, folder]
    with subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the owner could not start its server"
        yield process, int(line)
        process.terminate()


def gone(pid: int) -> bool:
    """Whether a process has ended. It may end between any two looks at it, so the second one says so, too."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def using(folder: Path) -> list[int]:
    """The processes that work in a folder or name it in their command line."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "cwd"]):
        words = [*(process.info["cmdline"] or ()), process.info["cwd"] or ""]
        if any(str(folder) in word for word in words) and not gone(process.info["pid"]):
            found.append(process.info["pid"])
    return found
