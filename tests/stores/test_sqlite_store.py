"""The store that docs/stores/adding.md adds passes the suite of its contract, and is what the page shows."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import pytest

from syncline.errors import Misconfigured
from syncline.shape import Rows as RowsShape
from syncline.stores import CopyReader
from syncline.testing.store_suite import ITEM, MakeStore, Rows, StoreConformance, contents, work

PLACE = Path(__file__).parents[2] / "docs" / "stores"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(PLACE))
    return import_module("sqlite_store")


@pytest.fixture
def make_store(module: Any, quick_folder: Path) -> MakeStore:
    return lambda name: module.SqliteStore(module.SqliteConfig(path=quick_folder / f"{name}.sqlite"), name)


class TestSqliteStore(StoreConformance):
    @pytest.fixture
    def make_store(self, make_store: MakeStore) -> MakeStore:
        return make_store


def test_the_page_shows_the_code_that_is_tested() -> None:
    """Each piece of Python on the page is a piece of the file, word for word."""
    page, code = (PLACE / "adding.md").read_text(), (PLACE / "sqlite_store.py").read_text()
    shown = re.findall(r"^```py\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(shown) > 3
    assert [piece for piece in shown if piece.strip("\n") not in code] == []


def test_a_reader_of_its_copy_tells_what_verification_asks(module: Any, make_store: MakeStore) -> None:
    store = make_store("one")
    store.open("orders")
    store.migrate(ITEM)
    store.apply(work(Rows().upsert(100, 1, "one", None).delete(110, 2).delete(90, 3), n=4, truncated=50))
    store.purge("orders", 95)
    reader: CopyReader = module.SqliteStore.reader(module.SqliteConfig(path=store._path))
    cursor = reader.cursor("orders")
    assert cursor is not None
    assert (cursor.position.n, reader.cursor("other")) == (4, None)
    assert (reader.recorded("public.item"), reader.recorded("public.other")) == (ITEM, None)
    assert (reader.held("orders"), reader.held("other")) == ([ITEM], [])
    assert reader.buried(ITEM, 100).to_pylist() == [{"id": 2, "version": 110}]
    assert reader.swept("public.item") == (50, 95)
    assert contents(reader) == {1: ("one", None, 100)}
    store.close()


def test_a_mapping_that_it_can_not_follow_and_a_file_that_is_none_of_its_own_are_refused(
    module: Any, make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store("one")
    store.open("orders")
    with pytest.raises(Misconfigured, match="soft_delete"):
        store.migrate(msgspec.structs.replace(ITEM, shape=RowsShape("public", "item", "gone_at")))
    store.close()
    config = module.SqliteConfig(path=tmp_path / "text.sqlite")
    with pytest.raises(Misconfigured, match="no file"):
        module.SqliteStore.reader(config).cursor("orders")
    config.path.write_text("not a database, but a text that is long enough to be looked at" * 20)
    with pytest.raises(Misconfigured, match="not a database"):
        module.SqliteStore(config, "one").open("orders")
