"""What the command line does when its streams or its reader go away, or Ctrl-C comes at a bad time: never a traceback,
and never the code of a bug."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb
import pytest
from commands import Shell

from servers import eventually

_INTERRUPTIBLE = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
    "os.execv(sys.executable, [sys.executable, '-m', 'syncline', *sys.argv[1:]])"
)


def shell_line(shell: Shell, line: str) -> subprocess.CompletedProcess[str]:
    """What bash makes of a line, in which ``syncline`` is ours; a pipe ends as its first command does."""
    script = f'syncline() {{ "{sys.executable}" -m syncline "$@"; }}; {line}; exit ${{PIPESTATUS[0]}}'
    return subprocess.run(
        ["bash", "-c", script],
        cwd=shell.folder,
        env={**os.environ, **shell.variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@contextmanager
def interruptible(folder: Path, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A command to which Ctrl-C means something, also where the tests themselves were started in the background."""
    process = subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTIBLE, *arguments],
        cwd=folder,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def copy(shell: Shell) -> Shell:
    """A copy of more rows than a pipe holds."""
    shell.write()
    with duckdb.connect(str(shell.folder / "copy.duckdb")) as connection:
        connection.execute("create table items as select range as id, repeat('x', 100) as v from range(20000)")
    return shell


@pytest.mark.parametrize("line", ['query --csv "from items"', "config", "--help"])
def test_a_reader_that_leaves_early_ends_the_command_quietly(copy: Shell, line: str) -> None:
    ended = shell_line(copy, f"syncline {line} | {'head -1' if 'query' in line else 'exec true'}")
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.parametrize("line", ['query --csv "from items"', "config", "config --json", "migrate --sql"])
def test_an_output_that_can_t_be_written_is_named_and_ends_with_3(copy: Shell, line: str) -> None:
    ended = shell_line(copy, f"syncline {line} > /dev/full")
    assert ended.returncode == 3
    assert "The output can't be written: No space left on device." in ended.stderr
    assert "bug" not in ended.stderr


def test_closed_streams_are_no_error_and_their_numbers_are_given_to_no_file(copy: Shell) -> None:
    for line in ("config --json >&-", "check 2>&-", 'query "select 1" <&- >&- 2>&-'):
        ended = shell_line(copy, f"syncline {line}")
        assert (ended.returncode, ended.stderr) == (0, ""), line
    opened = (
        "import os, syncline.__main__ as command; command._fill_standard_streams(); print(os.open('/dev/null', 0) > 2)"
    )
    for closed, shown in (("<&-", ""), ("<&- 2>&-", "")):
        ended = shell_line(copy, f'"{sys.executable}" -c "{opened}" {closed}')
        assert (ended.stdout, ended.stderr) == ("True\n", shown)


def test_a_message_that_can_t_be_written_does_not_change_the_exit_code(shell: Shell) -> None:
    shell.write("- a list\n")
    for closed in ("2>/dev/full", "2>&-"):
        assert shell_line(shell, f"syncline check {closed}").returncode == 2


def test_ctrl_c_while_the_command_is_loaded_says_nothing(tmp_path: Path) -> None:
    """A package that is loaded stands still: the interrupt comes there for sure."""
    (tmp_path / "structlog.py").write_text("import pathlib, time; pathlib.Path('loading').touch(); time.sleep(60)\n")
    with interruptible(tmp_path, "check", PYTHONPATH=str(tmp_path)) as process:
        eventually((tmp_path / "loading").exists, 60)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == -signal.SIGINT


def open_files(pid: int) -> set[Path]:
    found = set()
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.add(one.readlink())
    return found


def seconds_of_work(pid: int) -> float:
    """Processor time that the process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_ctrl_c_while_a_query_works_ends_with_130(copy: Shell, form: tuple[str, ...]) -> None:
    slow = "select count(*) from items a, items b, items c where a.id + b.id > c.id"
    with interruptible(copy.folder, "query", slow, *form, **copy.variables) as process:
        eventually(lambda: copy.folder / "copy.duckdb" in open_files(process.pid), 60)
        begun = seconds_of_work(process.pid)
        eventually(lambda: seconds_of_work(process.pid) > begun + 2, 60)  # in the query, whatever comes before it
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert "Internal error" not in err
