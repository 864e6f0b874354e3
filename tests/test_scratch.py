"""Temporary folders: gone behind their block, and, of a process that was killed, with the next one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from syncline.scratch import scratch_folder

_KILLED = """
import os, pathlib, signal, sys
from syncline.scratch import scratch_folder
with scratch_folder("work-", pathlib.Path(sys.argv[1])) as folder:
    (folder / "half").write_text("of something")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(parent: Path) -> list[str]:
    return sorted(entry.name for entry in parent.iterdir())


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_somebody_holds_is_not(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], timeout=60, check=False)
    assert (killed.returncode, len(names(tmp_path))) == (-9, 1)
    with scratch_folder("work-", tmp_path) as first:
        assert names(tmp_path) == [first.name]
        (first / "mine").write_text("held")
        with scratch_folder("work-", tmp_path) as second:
            assert names(tmp_path) == sorted([first.name, second.name])
        assert (first / "mine").read_text() == "held"
    assert names(tmp_path) == []


def test_what_only_looks_like_one_is_left_alone(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "of somebody").write_text("else")
    (tmp_path / "work-link").symlink_to(kept)
    (tmp_path / "work-file").write_text("no folder")
    with scratch_folder("work-", tmp_path) as folder:
        assert names(tmp_path) == sorted(["kept", "work-file", "work-link", folder.name])
    assert (kept / "of somebody").read_text() == "else"
