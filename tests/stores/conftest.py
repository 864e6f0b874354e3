"""Fixtures of the stores' tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_MEMORY = Path("/dev/shm")

# Tests that take long on a graph server, and the servers on which `make test` runs them: another could only say the
# same again. On the others they run in `make soak`.
_LONG = {
    "test_every_order_of_insert_update_delete_insert_converges": ("neo4j-2026",),
    "test_random_works_leave_what_the_reference_holds": ("neo4j-2026",),
    "test_readers_in_other_threads_see_whole_works_only": ("neo4j-2026",),
    "test_a_large_work_arrives_whole": ("neo4j-2026",),
    "test_a_large_truncation_is_applied_in_several_transactions": ("neo4j-2026",),
    "test_long_keys_and_lists_with_null_are_refused_and_large_and_odd_texts_are_not": ("neo4j-2026",),
    "test_every_type_serves_as_a_key": ("bolt", "neo4j-2026"),
    "test_sixteen_writers_that_lock_one_another_out_all_arrive": ("neo4j-5", "neo4j-2026"),
    "test_sixteen_writers_of_one_source_leave_the_newest_of_everything": ("neo4j-5", "neo4j-2026"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the long tests to `make soak` where they are not for every day."""
    for item in items:
        if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
            continue
        kind = item.callspec.params.get("graph")
        if kind and kind not in _LONG.get(item.originalname, (kind,)):
            item.add_marker(pytest.mark.soak)


@pytest.fixture
def quick_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder whose disk is memory where there is such a one: what a crash of the machine would lose is not what these
    tests are about, and a store that syncs often waits for nothing else."""
    if not _MEMORY.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=_MEMORY, prefix="syncline-test-") as folder:
        yield Path(folder)
