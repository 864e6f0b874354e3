"""A shell in a folder of the test's own."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from commands import Command, Shell

from syncline.service import cli


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """`syncline` with DATABASE_URL naming a server that is not there."""
    return Shell(tmp_path, {"DATABASE_URL": "postgresql://reader:hush@127.0.0.1:1/shop"})


@pytest.fixture
def command(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], logs_restored: None
) -> Command:
    """`syncline` in this process, which is quicker than one of its own: same streams, same exit code."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(shell.folder)
        for name, value in shell.variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def logs_restored() -> Iterator[None]:
    """What a command sets up for its logs ends with the test."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()
