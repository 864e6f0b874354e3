"""Fixtures of the stores' tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_MEMORY = Path("/dev/shm")


@pytest.fixture
def quick_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder whose disk is memory where there is such a one: what a crash of the machine would lose is not what these
    tests are about, and a store that syncs often waits for nothing else."""
    if not _MEMORY.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=_MEMORY, prefix="syncline-test-") as folder:
        yield Path(folder)
