"""Steps are cut at commit boundaries: what a target writes at once holds whole transactions (Guarantee 4)."""

from __future__ import annotations

import pytest

from syncline.apply.steps import Read, Size, Step, steps, whole
from syncline.change import Marker, Part, Position
from syncline.testing.examples import example_entry


class Everything:
    """A scope that takes all tables."""

    def wanted(self, table: str) -> bool:
        return True

    def since(self, table: str) -> int:
        return 0

    def passing(self, marker: Marker) -> bool:
        """Nothing is noted, all is recorded."""
        return True


def reads(*parts: Part | None) -> list[Read]:
    """Entries of the stream, three rows each, one behind the other."""
    return [
        (Position("log", n), example_entry(first=10 * n, version=100 + n, part=part, place=100 + n))
        for n, part in enumerate(parts, 1)
    ]


def cut(found: list[Read], max_rows: int, load_rows: int = 1) -> list[Step]:
    return list(steps(found, "main", Everything(), Size(max_rows, 1 << 30), Size(load_rows, 1 << 30)))


MIXED = reads(None, Part(0, last=False), Part(1, last=False), Part(2, last=True), None)


@pytest.mark.parametrize(("max_rows", "ends"), [(1, [1, 4, 5]), (4, [4, 5]), (13, [5]), (1000, [5])])
def test_a_step_that_is_full_goes_on_to_the_end_of_its_transaction(max_rows: int, ends: list[int]) -> None:
    assert [step.position.n for step in cut(MIXED, max_rows)] == ends


def test_no_change_is_left_out_or_taken_twice() -> None:
    assert sum(step.rows for step in cut(MIXED, 1)) == sum(entry.rows for _, entry in MIXED)


@pytest.mark.parametrize(("taken", "kept"), [(1, 1), (2, 1), (3, 1), (4, 4), (5, 5)])
def test_what_is_read_is_kept_up_to_its_last_commit_boundary(taken: int, kept: int) -> None:
    assert whole(MIXED[:taken]) == MIXED[:kept]


def test_parts_alone_have_no_boundary_to_stop_at() -> None:
    assert whole(MIXED[1:3]) == []


def of_load(n: int) -> Read:
    return Position("log", n), example_entry(first=10 * n, version=90, place=0)


def test_what_a_load_appends_between_two_parts_is_no_boundary() -> None:
    """Guarantee 4: else a load beside the stream would have half a transaction applied."""
    first, second = MIXED[1], MIXED[2]
    assert whole([first, of_load(3), second]) == []
    assert [step.position.n for step in cut([first, of_load(3), MIXED[3]], 1)] == [4]
    assert whole([of_load(2)], inside=True) == []


def test_a_step_that_ends_inside_a_transaction_says_so() -> None:
    assert [step.inside for step in cut(MIXED[:3], 1)] == [False, True]
    assert [step.inside for step in cut(MIXED, 1)] == [False, False, False]
    behind = list(steps([of_load(3)], "main", Everything(), Size(1, 1), Size(1, 1), inside=True))
    assert [step.inside for step in behind] == [True]


def test_a_whole_transaction_ends_what_was_never_finished() -> None:
    """Of a transaction whose last parts never come: a target that begins anew at the end of a log."""
    assert whole(reads(None), inside=True) == reads(None)


def test_steps_of_loads_alone_have_a_size_of_their_own() -> None:
    load = [of_load(n) for n in range(1, 7)]
    assert [step.position.n for step in cut(load, 1, load_rows=9)] == [3, 6]
    assert [step.position.n for step in cut([*load[:2], *reads(None, None, None)[2:]], 1, load_rows=9)] == [3]
