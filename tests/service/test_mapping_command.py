"""`syncline mapping show` says what a table becomes before anything is written."""

from __future__ import annotations

import json

import pytest
from commands import MINIMAL, Command, Shell

from servers import Database

MAPPED = (
    MINIMAL
    + """\
  tables:
    public.item:
      columns: {name: title}
      where: name <> ''
"""
)


@pytest.fixture
def shop(shell: Shell, database: Database) -> Shell:
    database.execute("create table item (id int primary key, name text, secret text)")
    database.execute("create table other (id int primary key)")
    shell.variables["DATABASE_URL"] = database.dsn
    shell.write(MAPPED)
    return shell


def test_columns_and_statements_of_a_table_are_shown(shop: Shell, command: Command) -> None:
    shown = command("mapping", "show", "public.item")
    assert shown.returncode == 0
    assert "title" in shown.stdout
    assert "secret" not in shown.stdout
    assert 'insert into "main"."item" ("id", "title"' in shown.stdout


def test_json_names_each_target(shop: Shell, command: Command) -> None:
    told = json.loads(command("mapping", "show", "item", "--json").stdout)
    assert told["table"] == "public.item"
    assert [c["name"] for c in told["targets"]["main"]["columns"]] == ["id", "title"]


EVERY = """\
source:
  dsn: ${DATABASE_URL}
targets:
  tables: {type: duckdb, path: copy.duckdb}
  rows: {type: postgres, dsn: "postgresql://nobody@127.0.0.1:1/copy"}
  cache: {type: redis, url: "redis://127.0.0.1:1"}
  points: {type: qdrant, path: points, tables: {item: {vectors: {v: {column: dense, size: 2}}}}}
  graph:
    type: neo4j
    uri: bolt://127.0.0.1:1
    tables:
      item: {node: Item, labels: [Thing], exclude: [dense]}
      other:
      link: {relationship: LEADS_TO, from: {table: item}, to: {table: other}}
log: {path: log}
"""


def test_every_store_shows_what_a_row_becomes_there(shop: Shell, command: Command, database: Database) -> None:
    database.execute("alter table item add dense real[], add other_id int references other")
    database.execute(
        "create table link (item_id int references item, other_id int references other, note text,"
        " primary key (item_id, other_id))"
    )
    shop.write(EVERY)
    shown = json.loads(command("mapping", "show", "item", "--json").stdout)["targets"]
    assert list(shown) == ["tables", "rows", "cache", "points", "graph"]
    said = {target: "\n".join(of["statements"]) for target, of in shown.items()}
    assert 'insert into "main"."item"' in said["tables"]
    assert "on conflict" in said["rows"]
    assert "HSET public.item:{id}" in said["cache"]
    assert '"vector": {"v": "{dense}"}' in said["points"]
    assert '"vectors": {"v": {"size": 2, "distance": "Cosine"}}' in said["points"]
    assert "MERGE (n:`Item` {`id`: $id[i]}) SET n.`name` = $name[i]" in said["graph"]
    assert "MATCH (m:`Other` {`id`: $other_id[i]}) CREATE (n)-[e:`OTHER`]->(m)" in said["graph"]
    assert {len(of["statements"]) > 0 for of in shown.values()} == {True}
    link = command("mapping", "show", "link", "--target", "graph").stdout
    assert "CREATE (a)-[e:`LEADS_TO`]->(b) SET e.`note` = $note[i], e._syncline_key = $key[i]" in link.replace(
        "\n", " "
    )


WRONG = """\
source:
  dsn: ${DATABASE_URL}
targets:
  points:
    type: qdrant
    path: points
    tables:
      item: {collection: c, vectors: {v: {column: name, size: 2}}}
      other: {collection: c}
      itme: {}
      link: {collection: c}
  nothing: {type: duckdb, path: copy.duckdb, tables: {"shop.*": {}}}
log: {path: log}
"""


def test_doctor_holds_the_mapping_against_the_tables_that_are_there(
    shop: Shell, command: Command, database: Database
) -> None:
    database.execute("create table link (id int primary key)")
    shop.write(WRONG)
    told = command("doctor")
    assert told.returncode == 2
    for said in (
        "Column name of table public.item is a text and holds no vector",
        "Tables public.link and public.other share collection c",
        "No table that is captured is called public.itme",
        "Did you mean public.item?",
        "It takes none of the captured tables",
    ):
        assert said in " ".join(told.stdout.split()), told.stdout


def test_a_table_that_a_target_does_not_take_is_said_to_be_none_of_its(shop: Shell, command: Command) -> None:
    shown = command("mapping", "show", "other")
    assert (shown.returncode, shown.stdout) == (0, "")
    assert "does not take table public.other" in shown.stderr


def test_unknown_names_and_settings_that_do_not_fit_are_refused(shop: Shell, command: Command) -> None:
    unknown = command("mapping", "show", "itme")
    assert unknown.returncode == 2
    assert "public.item" in unknown.stderr
    shop.write(MAPPED.replace("name: title", "nane: title"))
    wrong = command("mapping", "show", "item")
    assert wrong.returncode == 2
    assert "no column nane" in wrong.stderr


def test_a_table_without_a_key_is_left_out_and_hinders_no_other(
    shop: Shell, command: Command, database: Database
) -> None:
    database.execute("create table keyless (v text)")
    assert command("mapping", "show", "item").returncode == 0
    refused = command("mapping", "show", "keyless")
    assert refused.returncode == 2
    assert "left out" in refused.stderr
    assert "ADD PRIMARY KEY" in refused.stderr
