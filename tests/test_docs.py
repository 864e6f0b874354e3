"""The documents hold: links and names lead somewhere, snippets run, tables equal the code."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import duckdb
import psycopg
import pytest
import yaml
from typer.testing import CliRunner

import settings_page
import syncline
from servers import eventually
from syncline.bench.cli import app as bench
from syncline.capture import SOURCES
from syncline.config import load_config
from syncline.config.environment import DOCUMENTED
from syncline.config.tree import source_settings, store_settings
from syncline.embedded import EmbeddedPostgres
from syncline.pipeline import SyncService
from syncline.service.cli import app
from syncline.service.doctor import findings
from syncline.stores import STORES
from syncline.verify import verify

ROOT = Path(__file__).parents[1]
PACKAGE = Path(syncline.__file__).parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
GROUPS = {"mapping", "outbox", "periodic", "triggers"}  # commands with commands below them
GUARANTEES = ROOT / "docs" / "guarantees.md"


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def snippets(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        there = page if not path else (page.parent / path).resolve()
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


# ------------------------------------------------------------------------------------------------------- guarantees


def defined(path: Path, name: str) -> bool:
    """Whether a module defines ``name`` or ``Class.name`` (also as a test of a shipped suite)."""
    scope: list[ast.stmt] = ast.parse(path.read_text()).body
    for part in name.split("."):
        kinds = ast.FunctionDef | ast.ClassDef
        found = next((n for n in scope if isinstance(n, kinds) and n.name == part), None)
        if found is None:
            return False
        scope = found.body
    return True


def test_what_the_guarantees_cite_exists() -> None:
    places = re.findall(r"`([\w/]+\.py):([\w.]+)`", GUARANTEES.read_text())
    assert len(places) > 20
    assert [f"{path}:{symbol}" for path, symbol in places if not defined(ROOT / path, symbol)] == []


def test_the_tests_that_the_guarantees_cite_exist() -> None:
    cited = re.findall(r"`([\w/]+\.py)::(\w+)`", GUARANTEES.read_text())
    assert len(cited) > 20
    missing = [f"{path}::{test}" for path, test in cited if f"def {test}(" not in (ROOT / path).read_text()]
    assert missing == []


def test_every_guarantee_is_numbered_kept_tested_and_cited_where_it_is_kept() -> None:
    sections = re.split(r"^## ", GUARANTEES.read_text(), flags=re.MULTILINE)[1:]
    assert [int(s.partition(".")[0]) for s in sections] == list(range(1, 12))
    assert [s[:40] for s in sections if "Kept in" not in s or "Test" not in s or "::" not in s] == []
    uncited = []
    for section in sections:
        number = section.partition(".")[0]
        places = {ROOT / path for path in re.findall(r"`([\w/]+\.py):\w", section)}
        uncited += [name(p) for p in places if not re.search(rf"Guarantees? (\d+ and )?{number}\b", p.read_text())]
    assert uncited == []


# ------------------------------------------------------------------------------------- configuration, codes and names


def test_the_page_of_settings_equals_the_models() -> None:
    page = settings_page.page()
    assert settings_page.written(page) == page, "run tests/settings_page.py"


def codes(text: str) -> set[str]:
    return set(re.findall(r"\bSL-[A-Z]+(?:-[A-Z]+)*", text))


def test_every_code_is_explained_and_no_other() -> None:
    used = {c for p in PACKAGE.rglob("*.py") for c in codes(p.read_text())}
    assert codes((ROOT / "docs" / "operations.md").read_text()) == used


def test_every_accepted_variable_is_listed_with_its_setting() -> None:
    rows = re.findall(r"^\| (`[A-Z0-9`, _]+`) \| (.*) \|$", (ROOT / "docs" / "names.md").read_text(), re.MULTILINE)
    listed = {variable: setting for names, setting in rows for variable in re.findall(r"`(\w+)`", names)}
    for variable, place in DOCUMENTED.items():
        assert ".".join(str(part) for part in place) in listed.pop(variable)
    for kind in STORES:
        for variable, setting in getattr(store_settings(kind), "environment_names", {}).items():
            assert f"`{setting}`" in listed.pop(variable)
    parts = {part for kind in SOURCES for part in source_settings(kind).address_parts}
    assert set(listed) == parts


# --------------------------------------------------------------------------------------------------------- snippets


def configurations() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for number, snippet in enumerate(snippets(page, "yaml")):
            yield f"{name(page)}-{number}", snippet


@pytest.mark.parametrize("snippet", [pytest.param(text, id=title) for title, text in configurations()])
def test_configurations_in_the_documents_are_valid(snippet: str, tmp_path: Path) -> None:
    file = tmp_path / "syncline.yaml"
    document = yaml.safe_load(snippet)
    if "source" not in document and "sources" not in document:
        snippet += "source:\n  dsn: ${DATABASE_URL}\n"
    file.write_text(snippet)
    environment = dict.fromkeys(
        ("DATABASE_URL", "SHOP_URL", "CRM_URL", "COPY_URL", "NEO4J_PASSWORD"), "postgresql://localhost/shop"
    ) | {"REDIS_URL": "redis://localhost"}
    assert load_config(file, variables_from=environment).targets


def test_the_quick_start_is_short_and_the_same_everywhere() -> None:
    text = (ROOT / "examples" / "quickstart" / "syncline.yaml").read_text()
    assert len(text.splitlines()) < 15
    assert text in snippets(ROOT / "README.md", "yaml")
    assert all(len(s.splitlines()) < 15 for s in snippets(ROOT / "docs" / "tutorial.md", "yaml"))


def commands() -> set[str]:
    """Every ``syncline COMMAND`` that the documents show."""
    shown = [line for page in PAGES for s in snippets(page, "console") for line in s.splitlines()]
    shown += [c for page in PAGES for c in re.findall(r"`(syncline [^`]+)`", page.read_text())]
    return {m[1] for line in shown if (m := re.search(r"\bsyncline ([a-z]+)", line))}


@pytest.mark.parametrize("command", sorted(commands()))
def test_commands_in_the_documents_exist(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0, result.output


def test_options_in_the_documents_exist() -> None:
    unknown = []
    for page in PAGES:
        lines = [line for s in snippets(page, "console") for line in s.splitlines()]
        lines += re.findall(r"`(syncline [^`]+)`", page.read_text())
        for line in lines:
            found = re.search(r"\bsyncline ([a-z]+)(.*)", line.partition("#")[0])
            if not found:
                continue
            whose, command = (bench, found[2].split()[0]) if found[1] == "bench" and found[2] else (app, found[1])
            below = [word for word in found[2].split()[:1] if found[1] in GROUPS and word.isalpha()]
            asked = [command, *below, "--help"]
            output = CliRunner().invoke(whose, asked, env={"COLUMNS": "200", "TERM": "dumb"}).output
            options = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
            unknown += [
                f"{name(page)}: {line}"
                for option in re.findall(r"(?<![\w-])--[a-z-]+", found[2].partition('"')[0])
                if option not in output + options
            ]
    assert unknown == []


def test_python_in_the_documents_parses_and_imports_what_exists() -> None:
    imports = [
        (node.module, alias.name)
        for page in PAGES
        for snippet in snippets(page, "python")
        for node in ast.walk(ast.parse(snippet))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert len(imports) >= 3
    assert [(m, n) for m, n in imports if m is None or not hasattr(importlib.import_module(m), n)] == []


def test_the_tutorial_leads_to_a_verified_copy(
    pg_server: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its SQL, its role with no more rights than it says, and its configuration, against a real server."""
    page = ROOT / "docs" / "tutorial.md"
    level, rights, goodbye = snippets(page, "sql")
    (configuration,) = snippets(page, "yaml")
    pg_server.create_database("shop")
    with psycopg.connect(pg_server.dsn("shop"), autocommit=True) as connection:
        connection.execute(level)
        connection.execute(
            "create table orders (id int primary key, status text); insert into orders values (1, 'new')"
        )
        for statement in rights.split(";\n"):
            connection.execute(statement)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", pg_server.dsn("shop").replace("postgres@", "syncline@"))
    (tmp_path / "syncline.yaml").write_text(configuration)
    config = load_config()
    (missing,) = [f for f in findings(config) if f.severity == "error"]
    statement = missing.remedy.removeprefix("As the owner of the tables: ")
    assert statement.startswith("CREATE PUBLICATION")
    with psycopg.connect(pg_server.dsn("shop"), autocommit=True) as connection:
        connection.execute(statement.encode())
    assert [f for f in findings(config) if f.severity == "error"] == []
    service = SyncService(config, talk=lambda line: None)
    service.start()
    try:
        eventually(lambda: service.status()["sources"]["main"]["state"] == "streaming", 60)
        with psycopg.connect(pg_server.dsn("shop"), autocommit=True) as connection:
            connection.execute(
                "insert into orders values (2, 'paid'); update orders set status = 'shipped' where id = 1"
            )
        report = verify(config)
    finally:
        service.stop()
    assert (report.differences, report.tables[0].rows) == (0, 2)
    with duckdb.connect("shop.duckdb", read_only=True) as copy:
        assert copy.execute("select id, status from orders order by id").fetchall() == [(1, "shipped"), (2, "paid")]
    with psycopg.connect(pg_server.dsn("shop"), autocommit=True) as connection:
        read = "select count(*) from pg_replication_slots where active_pid is not null"
        eventually(lambda: connection.execute(read).fetchone() == (0,))  # the server has seen that the engine is gone
        for statement in goodbye.split(";\n"):
            connection.execute(statement)
        assert connection.execute("select count(*) from pg_replication_slots").fetchone() == (0,)
