"""Fixtures of the reliability tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from reliability.harness import Nursery, Rig
from servers import Database


@pytest.fixture(scope="session")
def nursery_of_worker() -> Iterator[Nursery]:
    """This worker's process that runs engines."""
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def nursery(nursery_of_worker: Nursery) -> Iterator[Nursery]:
    """Runs engines that may be killed, one at a time: one that a failed test left is ended before the next test."""
    yield nursery_of_worker
    nursery_of_worker.clear()


@pytest.fixture
def rig(database: Database, tmp_path: Path) -> Rig:
    """A source, a log and one DuckDB target with default settings, made for quick tests."""
    return Rig(database, tmp_path)
