"""Fixtures of the reliability tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from reliability.harness import Nursery, Rig
from servers import Database


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Runs engines that may be killed."""
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def rig(database: Database, tmp_path: Path) -> Rig:
    """A source, a log and one DuckDB target with default settings, made for quick tests."""
    return Rig(database, tmp_path)
