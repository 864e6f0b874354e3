"""What `doctor` hears of a Qdrant target before an engine opens it; nothing is changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from syncline.stores.qdrant import QdrantConfig, QdrantStore
from syncline.stores.qdrant.edge import EdgePoints


def seen(**settings: object) -> list[tuple[str, str]]:
    return [(f.code, f.severity) for f in QdrantStore.check(QdrantConfig.model_validate(settings))]


def test_a_folder_that_is_not_there_yet_is_fine_and_not_created(quick_folder: Path) -> None:
    assert seen(path=quick_folder / "sub" / "points") == [("SL-QDRANT", "ok")]
    assert list(quick_folder.iterdir()) == []


def test_a_folder_of_ours_is_fine_whether_or_not_an_engine_has_it(quick_folder: Path) -> None:
    store = QdrantStore(QdrantConfig(path=quick_folder), "check")
    store.open("orders")
    assert seen(path=quick_folder) == [("SL-QDRANT-OPEN", "info")]
    store.close()
    assert seen(path=quick_folder) == [("SL-QDRANT", "ok")]


def test_a_folder_that_is_none_or_that_somebody_else_has_is_named(
    quick_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = quick_folder / "file"
    file.write_text("")
    assert seen(path=file / "points") == [("SL-QDRANT-FOLDER", "error")]
    holder = EdgePoints.acquire(quick_folder / "points")
    monkeypatch.setattr(EdgePoints, "_open", {})  # as another process sees it
    assert seen(path=quick_folder / "points") == [("SL-QDRANT-LOCKED", "error")]
    assert seen(path=quick_folder / "points", door=False) == [("SL-QDRANT-LOCKED", "warning")]
    monkeypatch.undo()
    holder.close()


def test_a_server_that_is_not_there_and_a_key_in_the_clear_are_named() -> None:
    found = seen(url="http://127.0.0.1:1", api_key="s3cret", timeout_s=1)
    assert found == [("SL-QDRANT-PLAIN", "warning"), ("SL-UNAVAILABLE", "error")]


@pytest.mark.parametrize("settings", [{}, {"url": "http://q", "path": "x"}])
def test_a_target_is_either_a_server_or_a_folder(settings: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="either url"):
        QdrantConfig.model_validate(settings)
