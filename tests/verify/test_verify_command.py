"""`syncline verify` as a process: what it prints and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys

from piped import Pipeline


def command(pipeline: Pipeline, *options: str) -> subprocess.CompletedProcess[str]:
    file = pipeline.path.with_name("syncline.yaml")
    arguments = [sys.executable, "-m", "syncline", "-c", str(file), "verify", *options]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)


def test_equal_copies_end_with_0_and_differences_with_4(pipeline: Pipeline) -> None:
    pipeline.database.execute("create table items (id int primary key, name text)")
    pipeline.database.execute("insert into items values (41, 'one'), (42, 'two'), (43, 'three')")
    equal = command(pipeline)
    assert (equal.returncode, equal.stdout.splitlines()[0]) == (0, "main -> main  public.items  3 rows  equal")
    assert "no engine runs" in equal.stderr

    pipeline.damage("update items set name = 'other' where id = 42")
    different = command(pipeline, "--json")
    report = json.loads(different.stdout)
    (table,) = report["tables"]
    del report["seconds"], table["through"]  # which may hold any digits
    assert (different.returncode, table["different"], table["rows"]) == (4, 1, 3)
    assert "42" not in json.dumps(report)
    assert "other" not in different.stdout + different.stderr

    named = command(pipeline, "public.items", "--show-keys")
    assert named.returncode == 4
    assert "different: 42" in named.stdout


def test_an_unknown_table_is_a_usage_error(pipeline: Pipeline) -> None:
    pipeline.database.execute("create table items (id int primary key)")
    refused = command(pipeline, "public.nothing")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "public.nothing" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_options_of_which_one_would_be_passed_over_are_refused(pipeline: Pipeline) -> None:
    pipeline.database.execute("create table items (id int primary key)")
    for options in (
        ("--repair", "--checks", "row_count"),
        ("--repair", "--full"),
        ("items", "--key", "1", "--repair"),
        ("items", "--key", "1", "--show-keys"),
        ("--repair", "--force", "--max-share", "0.5"),
    ):
        refused = command(pipeline, *options)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "don't go together" in refused.stderr
    assert "No check is named" in command(pipeline, "--checks", "row_count,").stderr


def test_a_table_that_cannot_be_captured_is_said_to_be_left_out_and_hinders_no_other(pipeline: Pipeline) -> None:
    pipeline.database.execute("create table items (id int primary key); create table keyless (v text)")
    pipeline.database.execute("insert into items values (1); insert into keyless values ('a')")
    told = command(pipeline)
    assert (
        "public.keyless: It can't be captured: it has no primary key"
        in command(pipeline, "keyless", "--key", "1").stderr
    )
    items, keyless, total = told.stdout.splitlines()
    assert (told.returncode, items) == (0, "main -> main  public.items  1 rows  equal")
    assert keyless.startswith("main -> main  public.keyless (left out)  not compared. It can't be captured")
    assert total.startswith("0 difference(s), 1 table(s) not compared")
    (table,) = json.loads(command(pipeline, "public.keyless", "--json").stdout)["tables"]
    assert (table["state"], table["rows"]) == ("left out", 0)
    assert "no primary key" in table["reason"]


def test_a_target_is_compared_though_another_can_not_be_opened(pipeline: Pipeline) -> None:
    pipeline.database.execute("create table items (id int primary key); insert into items values (1)")
    file = pipeline.path.with_name("syncline.yaml")
    text = file.read_text().replace("target:\n  type", "targets:\n a:\n  type")
    file.write_text(text.replace("log:", f" b:\n  type: duckdb\n  path: {pipeline.path}.d/x.duckdb\nlog:"))
    pipeline.path.with_name(pipeline.path.name + ".d").write_text("a file where a folder should be")
    told = command(pipeline, "--target", "a")
    assert (told.returncode, told.stdout.splitlines()[0]) == (0, "main -> a  public.items  1 rows  equal")


def test_checks_are_chosen_by_name_and_one_that_is_broken_or_cannot_be_made_ends_with_4(pipeline: Pipeline) -> None:
    pipeline.database.execute(
        "create table items (id int primary key, name text); insert into items values (41, 'one')"
    )
    with pipeline.path.with_name("syncline.yaml").open("a") as file:
        file.write("verify:\n  rules:\n    named: {table: items, query: select id from items where name is null}\n")
    held = command(pipeline, "--checks", "row_count,business_rules")
    assert (held.returncode, held.stdout.splitlines()) == (
        0,
        [
            "main  public.items  business_rules named  holds",
            "main -> main  public.items  row_count  holds (1 at the source, 1 at the target)",
            held.stdout.splitlines()[2],
        ],
    )
    assert held.stdout.endswith("Score 100 %. Report 1.\n")

    pipeline.database.execute("insert into items values (4711, null)")
    broken = command(pipeline, "--checks", "business_rules")
    assert (broken.returncode, "broken: 1" in broken.stdout, "4711" in broken.stdout) == (4, True, False)
    shown = command(pipeline, "items", "--show-keys")
    assert (shown.returncode, "    violating: 4711" in shown.stdout.splitlines()) == (4, True)
    pipeline.database.execute("alter table items rename name to title")
    unmade = command(pipeline, "--checks", "business_rules")
    assert (unmade.returncode, "named  not checked. PostgreSQL at" in unmade.stdout) == (4, True)
    assert command(pipeline, "--checks", "row_counts").returncode == 2
    nothing = command(pipeline, "--checks", "referential_integrity")
    assert (nothing.returncode, nothing.stdout.splitlines()[0][:23]) == (4, "Nothing was looked at: ")
