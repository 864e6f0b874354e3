"""What is kept at a target beside the rows may have been changed by anybody: one message, whatever stands there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from servers import Database
from syncline.bookkeeping import bookkept
from syncline.change import Cursor, TableSchema
from syncline.errors import Misconfigured


@given(st.one_of(st.text(), st.binary(), st.integers(), st.none()), st.sampled_from([Cursor, TableSchema]))
def test_whatever_stands_there_is_read_or_refused(body: object, kind: type) -> None:
    try:
        found = bookkept(body, kind)  # type: ignore[arg-type]
    except Misconfigured as error:
        found = error
    assert isinstance(found, kind) or found.code == "SL-TARGET-BOOKS"


@pytest.mark.parametrize("broken", ["cursors", "tables"])
def test_a_copy_whose_books_were_changed_by_hand_is_told_by_both_commands(
    database: Database, tmp_path: Path, broken: str
) -> None:
    database.execute("create table items (id int primary key); insert into items values (1)")
    file, path = tmp_path / "syncline.yaml", tmp_path / "copy.duckdb"
    settings = {"source": {"dsn": database.dsn}, "target": {"type": "duckdb", "path": str(path)}}
    file.write_text(yaml.safe_dump(settings | {"log": {"path": str(tmp_path / "log")}}))

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-m", "syncline", "-c", str(file), *words]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)

    assert command("verify").returncode == 0
    with duckdb.connect(str(path)) as connection:
        connection.execute(f"update syncline.{broken} set body = '{{\"odd\": 1}}'")
    for words in (("verify",), ("run",)):
        told = command(*words)
        assert told.returncode == 2, told.stderr
        assert "can't be read as a" in told.stderr
        assert "Traceback" not in told.stderr
