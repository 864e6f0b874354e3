"""A server's process, which ends with the process that started it.

A minder, a shell that waits for the end of a pipe, stops the server when its owner is gone, even by SIGKILL.
(``PR_SET_PDEATHSIG`` would do the same, but it fires when the *thread* that started the server ends.)
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from syncline.embedded.account import Account

__all__ = ["ServerProcess", "free_port", "wait_until"]

# Waits on its standard input, which ends when the owner does; $1 is the server's process id, $2 the time of its start
# (the 22nd field of /proc/*/stat), $3 the signals to send. The time is read again before each signal, so that a process
# id used anew is never hit; the name before it may hold anything, even brackets.
MINDER = """
born() {
  read -r stat < "/proc/$1/stat" || exit 0
  set -- ${stat##*) }
  born=${20}
}
read -r _
for sig in $3; do
  born "$1"
  [ "$born" = "$2" ] && kill -"$sig" "$1" || exit 0
  sleep 2
done
"""


class ServerProcess:
    """One running server. ``farewell`` are the signals that its minder sends, two seconds apart, when we are gone."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        folder: Path,
        log: Path,
        account: Account,
        environment: Mapping[str, str],
        farewell: Sequence[str],
    ) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,  # the terminal's Ctrl-C is for the owner, not for its server
                umask=0o077,
                **account.who,
            )
        self.pid = self._process.pid
        self._minder = subprocess.Popen(
            ["/bin/sh", "-c", MINDER, "minder", str(self.pid), _born(self.pid), " ".join(farewell)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def listens(self, port: int) -> bool:
        """Whether it is this process that listens on a port, and not another that was quicker to take it."""
        listening = {f"socket:[{inode}]" for inode in _listeners(port)}
        try:
            files = list(Path(f"/proc/{self.pid}/fd").iterdir())
        except OSError:
            return False
        return any(_link(file) in listening for file in files)

    def ends(self, sign: signal.Signals, timeout_s: float) -> bool:
        """Send it a signal unless it has ended, and wait: whether it ended in time."""
        if self.running:
            self._process.send_signal(sign)
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                return False
        self.release()
        return True

    def kill(self, timeout_s: float) -> None:
        """SIGKILL it and all of its children at once, as when the power fails (the disk cache survives)."""
        if self.running:
            # Stopped first, it can't start another child between the listing and the end.
            os.kill(self.pid, signal.SIGSTOP)
            family = [self.pid, *_children(self.pid)]
            for member in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member, signal.SIGKILL)
            self._process.wait()
            wait_until(lambda: not any(_alive(member) for member in family), timeout_s)
        self.release()

    def release(self) -> None:
        """End the minder: the server has ended."""
        self._minder.kill()
        self._minder.communicate()


def free_port() -> int:
    """A port of the loopback address that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(fact: Callable[[], bool], timeout_s: float) -> bool:
    """Whether ``fact`` comes true in time. The longer it takes, the less often it is looked at."""
    begin = time.monotonic()
    while not fact():
        waited = time.monotonic() - begin
        if waited > timeout_s:
            return False
        time.sleep(min(0.1, max(0.005, waited / 20)))
    return True


def _listeners(port: int) -> list[str]:
    """The inodes of the sockets that listen on a TCP port, by the second, fourth and tenth columns of /proc/net/tcp."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in _lines(Path("/proc/net", name))[1:]]
    return [words[9] for words in lines if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:  # closed in between
        return ""


def _children(pid: int) -> list[int]:
    """Direct children; no server here has others. Empty where there is no /proc."""
    processes = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return [child for child in processes if (fields := _stat(child)) and int(fields[1]) == pid]


def _stat(pid: int) -> list[str]:
    """State, parent and the rest of ``/proc/pid/stat``; the name before them may hold anything, even brackets."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _born(pid: int) -> str:
    """When a process of ours was started, in the system's ticks; a process id and this name one process for good."""
    fields = _stat(pid)
    return fields[19] if fields else "gone"


def _alive(pid: int) -> bool:
    fields = _stat(pid)
    return bool(fields) and fields[0] not in "ZX"
