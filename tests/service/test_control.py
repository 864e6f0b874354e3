"""Pausing, resuming and asking for a resync: what is named must be there."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import NAMED, Command, Shell

from servers import Database

TWO_SOURCES = """\
sources:
  shop:
    dsn: ${DATABASE_URL}
    slot: cli_shop
    monitored_tables: public.items
  crm:
    dsn: ${DATABASE_URL}
    slot: cli_crm
    monitored_tables: public.people
targets:
  all:
    type: duckdb
    path: all.duckdb
  only_shop:
    type: duckdb
    path: shop.duckdb
    sources: [shop]
"""


@pytest.fixture
def shell(tmp_path: Path, database: Database) -> Shell:
    """`syncline` with a source of two tables."""
    database.execute("create table items (id int primary key); create table people (id int primary key)")
    shell = Shell(tmp_path, {"DATABASE_URL": database.dsn})
    shell.write(NAMED)
    return shell


UNKNOWN: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "a table nearly right": (("--table", "public.itmes"), ["There is no captured table public.itmes", "public.items?"]),
    "a table in the wrong case": (("--table", "public.Items"), ["no captured table public.Items", "public.items?"]),
    "a table without its schema": (("--table", "peple"), ["no captured table public.peple", "public.people?"]),
    "a table like no other": (("--table", "x.y"), ["no captured table x.y", "There are: public.items, public.people."]),
    "a source": (("--source", "mian"), ["There is no source mian", "Did you mean main?"]),
}


@pytest.mark.parametrize("case", UNKNOWN)
@pytest.mark.parametrize("name", ["pause", "resume", "resync"])
def test_a_name_that_nothing_has_is_refused_with_the_nearest(
    command: Command, database: Database, name: str, case: str
) -> None:
    assert command("migrate").returncode == 0
    options, parts = UNKNOWN[case]
    refused = command(name, *options)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert [part for part in parts if part not in refused.stderr] == [], refused.stderr
    assert database.value("select count(*) from syncline.sync_pauses") == 0
    assert database.value("select count(*) from syncline.sync_requests") == 0


def test_a_table_is_of_the_schema_public_unless_another_is_named(command: Command, database: Database) -> None:
    command("migrate")
    assert command("pause", "--table", "items").returncode == 0
    assert database.value("select table_name from syncline.sync_pauses") == "public.items"


def test_a_table_that_is_not_captured_can_t_be_paused(shell: Shell, command: Command) -> None:
    shell.write(NAMED.replace("  slot:", "  excluded_tables: public.people\n  slot:"))
    command("migrate")
    refused = command("pause", "--table", "public.people")
    assert refused.returncode == 2
    assert "There is no captured table public.people" in refused.stderr


def test_of_a_table_that_is_left_out_that_is_said(command: Command, database: Database) -> None:
    command("migrate")
    database.execute("create table keyless (x int)")
    for name in ("pause", "resync"):
        said = command(name, "--table", "keyless").stderr
        assert "Table public.keyless is left out until that is mended" in said
        assert "ADD PRIMARY KEY" in said
        assert "left out" not in command(name, "--table", "items").stderr


def test_a_paused_table_that_was_dropped_at_the_source_can_still_be_resumed(
    command: Command, database: Database
) -> None:
    command("migrate")
    assert command("pause", "--table", "public.items").returncode == 0
    database.execute("drop table items")
    assert command("pause", "--table", "public.items").returncode == 0
    assert "Resumed" in command("resume", "--table", "public.items").stderr
    assert database.value("select count(*) from syncline.sync_pauses") == 0
    assert command("resume", "--table", "public.items").returncode == 2


def test_a_table_is_looked_for_at_the_sources_that_are_meant(
    shell: Shell, command: Command, database: Database
) -> None:
    shell.write(TWO_SOURCES)
    command("migrate")
    assert command("pause", "--table", "public.people", "--source", "shop").returncode == 2
    assert command("pause", "--table", "public.people", "--target", "only_shop").returncode == 2
    assert command("pause", "--table", "public.people").returncode == 0
    assert command("pause", "--table", "public.items", "--target", "only_shop").returncode == 0
    assert command("resync", "--table", "people").returncode == 0
    assert database.execute("select source, tables::text from syncline.sync_requests") == [("crm", '["public.people"]')]


def test_a_target_that_does_not_follow_the_source_is_refused(shell: Shell, command: Command) -> None:
    shell.write(TWO_SOURCES)
    refused = command("pause", "--target", "only_shop", "--source", "crm")
    assert refused.returncode == 2
    assert "Target only_shop does not follow source crm. There are: shop." in " ".join(refused.stderr.split())


@pytest.mark.parametrize("name", ["pause", "resume", "resync"])
def test_a_source_that_is_away_can_t_be_asked_for_its_tables(shell: Shell, command: Command, name: str) -> None:
    control = shell.variables["DATABASE_URL"]
    shell.variables["DATABASE_URL"] = "postgresql://reader:hush@127.0.0.1:1/shop"
    shell.write(NAMED + f"control:\n  dsn: {control}\n")
    assert command("migrate").returncode == 0
    refused = command(name, "--table", "public.items")
    assert (refused.returncode, refused.stdout) == (3, "")
    assert "127.0.0.1:1/shop cannot be reached" in refused.stderr
    assert "source.dsn" in refused.stderr
