"""The command line as its users meet it: a process, its two streams, its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

Command = Callable[..., subprocess.CompletedProcess[str]]

MINIMAL = """\
source:
  dsn: ${DATABASE_URL}
target:
  type: duckdb
  path: copy.duckdb
"""
# With a slot of its own, for a server that several tests share.
NAMED = """\
source:
  dsn: ${DATABASE_URL}
  slot: cli
  publication: cli
target:
  type: duckdb
  path: copy.duckdb
"""


@dataclass(frozen=True)
class Shell:
    """Runs `syncline` in a folder of its own."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    def write(self, text: str = MINIMAL, name: str = "syncline.yaml") -> None:
        (self.folder / name).write_text(text)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A running command."""
        return subprocess.Popen(
            [sys.executable, "-m", "syncline", *arguments],
            cwd=self.folder,
            env={**{k: v for k, v in os.environ.items() if k != "DATABASE_URL"}, **self.variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command that has ended; none may show a traceback unless it was asked for."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        assert "--debug" in arguments or "Traceback" not in err, err
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)
