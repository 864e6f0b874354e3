"""Which tables a target takes: pauses, gaps and loads, in the order in which they come by."""

from __future__ import annotations

from syncline.change import Loaded, Marker
from syncline.pipeline.board import Board

TABLE = "public.t"


def test_a_table_is_wanted_until_it_is_held_and_again_once_it_has_caught_up() -> None:
    board = Board()
    assert board.wanted(TABLE)
    board.hold(TABLE, 7)
    assert not board.wanted(TABLE)
    assert board.held() == {TABLE: 7}
    board.resume(TABLE)
    assert board.resumed() == [(TABLE, 7)]
    assert board.held() == {TABLE: 7}, "it holds the log back until it has caught up"
    board.caught_up(TABLE)
    assert board.held() == {}
    assert board.resumed() == []
    assert board.wanted(TABLE)


def test_a_table_that_is_held_again_keeps_the_first_position_only_while_it_is_held() -> None:
    board = Board()
    board.hold(TABLE, 7)
    board.hold(TABLE, 9)
    assert board.held() == {TABLE: 7}


def test_a_gap_lasts_from_its_marker_to_the_start_of_a_load() -> None:
    board = Board()
    board.passing(Marker("gap", TABLE))
    assert not board.wanted(TABLE)
    assert board.wanted("public.other")
    assert board.gaps == {TABLE}
    board.passing(Marker("load_started", TABLE, Loaded("shape", 50)))
    assert board.wanted(TABLE)
    assert board.gaps == frozenset()


def test_changes_older_than_a_load_are_superseded_from_its_start_on() -> None:
    board = Board()
    board.begin({TABLE: Loaded("shape", 30)})
    assert board.since(TABLE) == 30
    assert board.since("public.other") == 0
    board.passing(Marker("load_started", TABLE, Loaded("shape", 50)))
    assert board.since(TABLE) == 50


def test_a_paused_target_says_so() -> None:
    board = Board()
    board.pause_target(True)
    assert board.paused()
    board.pause_target(False)
    assert not board.paused()
