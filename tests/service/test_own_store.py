"""A store that is not part of the package, through the front door: named in the file, run, verified."""

from __future__ import annotations

import json
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from commands import Command, Shell

from servers import Database, eventually

PLACE = Path(__file__).parents[2] / "docs" / "stores"
OWN = """\
source:
  dsn: ${DATABASE_URL}
  slot: own
  publication: own
target:
  type: sqlite_store:SqliteStore
  path: shop.sqlite
"""


@pytest.fixture
def shell(tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> Shell:
    database.execute("create table items (id int primary key, name text, price numeric(8,2), body text)")
    database.execute("alter table items alter body set storage external")
    database.execute("insert into items select g, 'n' || g, g, repeat('x', 4000) from generate_series(1, 500) g")
    monkeypatch.syspath_prepend(str(PLACE))
    shell = Shell(tmp_path, {"DATABASE_URL": database.dsn, "PYTHONPATH": str(PLACE)})
    shell.write(OWN)
    return shell


def there(shell: Shell) -> int:
    """Rows in the file."""
    path = shell.folder / "shop.sqlite"
    if not path.exists():
        return 0
    with closing(sqlite3.connect(path)) as connection:
        try:
            return int(connection.execute("select count(*) from syncline_rows where body is not null").fetchone()[0])
        except sqlite3.OperationalError:
            return 0


@pytest.mark.slow
def test_a_store_that_the_file_names_by_its_class_is_run_and_verified(
    shell: Shell, command: Command, database: Database
) -> None:
    assert command("check").returncode == 0
    process = shell.start("run")
    try:
        eventually(lambda: there(shell) == 500, 60)
        database.execute("update items set name = 'new' where id <= 50; delete from items where id > 490")
        database.execute("update items set id = id + 1000 where id between 60 and 70")
        database.execute("insert into items values (2000, 'last', null, null)")
        eventually(lambda: there(shell) == 491, 60)
        assert "public.items  491 rows  equal" in command("verify").stdout
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate(timeout=30)
    with closing(sqlite3.connect(shell.folder / "shop.sqlite")) as copy, copy:
        copy.execute("delete from syncline_rows where key = x'9101'")  # that of id 1
    told = command("verify", "--json")
    (table,) = json.loads(told.stdout)["tables"]
    assert (told.returncode, table["missing"], table["rows"]) == (4, 1, 491)
    # Its reader has nothing but what it must: rows are counted and found by reading them.
    counted = command("verify", "--checks", "row_count")
    assert (counted.returncode, "491 at the source, 490 at the target" in counted.stdout) == (4, True)
    assert [command("verify", "items", "--key", key).returncode for key in ("1", "2")] == [4, 0]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("sqlite_store:Nothing", "The store sqlite_store:Nothing can't be loaded: AttributeError"),
        ("no_such_module:Store", "No module named 'no_such_module'"),
        ("sqlite_store:SqliteConfig", "sqlite_store:SqliteConfig is no store: it has no config_class, form, limits"),
        ("sqlite_store.SqliteStore", "A store of your own is module:Class."),
    ],
)
def test_a_class_that_is_no_store_is_refused_with_what_it_lacks(
    shell: Shell, command: Command, kind: str, told: str
) -> None:
    shell.write(OWN.replace("sqlite_store:SqliteStore", kind))
    refused = command("check")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert told in " ".join(refused.stderr.split())


def test_a_wrong_setting_of_such_a_store_is_told_with_its_line_and_the_nearest_right_one(
    shell: Shell, command: Command
) -> None:
    shell.write(OWN.replace("path:", "paht:"))
    refused = command("check")
    assert refused.returncode == 2
    assert "syncline.yaml:7: target.paht is not a setting. Did you mean path?" in " ".join(refused.stderr.split())
