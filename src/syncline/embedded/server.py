"""What the embedded servers have in common: a folder, a port, and how they start, stop, die and come back."""

from __future__ import annotations

import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from syncline.embedded.account import Account, environment
from syncline.embedded.process import ServerProcess, free_port, wait_until
from syncline.errors import Misconfigured, SynclineError, Unavailable

__all__ = ["EmbeddedServer"]

STOP_TIMEOUT_S = 30.0


class EmbeddedServer(ABC):
    """One server of our own, in one data folder. Leaving its context stops it.

    ``port``, ``data_dir`` and ``log`` (the server's log file) never change, whatever is restarted. A kind of server
    says in class variables what it is called, how long it may take, what its log says when its port was taken in
    between, and by which signals it is ended when its owner is gone.
    """

    name: ClassVar[str]
    port_taken: ClassVar[str]
    start_timeout_s: ClassVar[float] = 60.0
    farewell: ClassVar[Sequence[str]] = ("TERM", "TERM", "TERM", "TERM", "TERM", "KILL")

    def __init__(self, data_dir: Path, account: Account) -> None:
        self.data_dir = data_dir
        self.log = data_dir / "server.log"
        self.port = free_port()
        self.account = account
        self._process: ServerProcess | None = None

    @property
    def running(self) -> bool:
        """Whether the server's process lives."""
        return self._process is not None and self._process.running

    @property
    def pid(self) -> int:
        """The process id of the server."""
        if self._process is None or not self._process.running:
            raise Unavailable(f"The server in {self.data_dir} is not running.", remedy="Call restart().")
        return self._process.pid

    def stop(self) -> None:
        """Stop it in order, after 30 seconds by force. Stopping a server that isn't running does nothing."""
        self._end(signal.SIGTERM, signal.SIGKILL)

    def kill(self) -> None:
        """SIGKILL the server and all of its children at once, as when the power fails (the disk cache survives)."""
        _ = self.pid  # a server that isn't running can't be killed
        if self._process is not None:
            self._process.kill(STOP_TIMEOUT_S)
            self._process = None

    def restart(self) -> None:
        """Stop it if it runs, and start it again on the same port and data.

        Raises:
            Unavailable: It doesn't come up in time.
            Misconfigured: It refuses its settings.
        """
        self.stop()
        self._launch(fresh_ports=0)

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
        self.stop()

    @abstractmethod
    def _command(self) -> Sequence[str | Path]:
        """The program and its arguments, for the port of now; it is started in the data folder."""

    @abstractmethod
    def _ready(self) -> bool:
        """Whether it answers a query, asked when it listens on its port."""

    def _environment(self) -> Mapping[str, str]:
        return environment()

    def _launch(self, fresh_ports: int) -> None:
        """Start the process and wait until it takes work; when its port is gone, take another or wait."""
        deadline = time.monotonic() + self.start_timeout_s
        while True:
            begin = self.log.stat().st_size if self.log.exists() else 0
            self._process = ServerProcess(
                self._command(),
                folder=self.data_dir,
                log=self.log,
                account=self.account,
                environment=self._environment(),
                farewell=self.farewell,
            )
            try:
                up = self._comes_up(deadline)
            except BaseException:  # Ctrl-C while it starts, or a driver's surprise: nobody else knows this process
                self._process.kill(STOP_TIMEOUT_S)
                raise
            if up:
                return
            news = self._log_since(begin)
            self._end(signal.SIGKILL)
            if self.port_taken not in news or time.monotonic() > deadline:
                raise self._failed(news, late=time.monotonic() > deadline)
            if fresh_ports > 0:
                fresh_ports -= 1
                self.port = free_port()
            else:
                time.sleep(0.2)

    def _comes_up(self, deadline: float) -> bool:
        """Whether the server gets ready before it ends or the time is over."""
        wait_until(lambda: not self.running or self._takes_work(), deadline - time.monotonic())
        return self._takes_work()

    def _takes_work(self) -> bool:
        process = self._process
        return process is not None and process.running and process.listens(self.port) and self._ready()

    def _end(self, *signals: signal.Signals) -> None:
        """End it by the first of these signals that it obeys."""
        if self._process is None:
            return
        for sign in signals:
            if self._process.ends(sign, STOP_TIMEOUT_S):
                break
        self._process = None

    def _failed(self, news: str, *, late: bool) -> SynclineError:
        tail = "\n".join(news.splitlines()[-15:])
        if late:
            return Unavailable(f"{self.name} in {self.data_dir} was not ready in {self.start_timeout_s:.0f} s:\n{tail}")
        return Misconfigured(f"{self.name} in {self.data_dir} refused to start:\n{tail}")

    def _log_since(self, begin: int) -> str:
        with self.log.open("rb") as file:
            file.seek(begin)
            return file.read().decode(errors="replace")
