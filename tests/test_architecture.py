"""The tree keeps its shape: who may import whom, that stores stay behind their contract, and what modules promise."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import syncline

PACKAGE = Path(syncline.__file__).parent

# A module imports from layers above its own line, and from its own line; see docs on the architecture.
LAYERS = (
    {
        "bars",
        "bookkeeping",
        "change",
        "cursors",
        "digests",
        "dsn",
        "errors",
        "events",
        "finding",
        "interrupts",
        "logs",
        "masks",
        "nearest",
        "patterns",
        "scratch",
        "shape",
        "wire",
    }
    | {"writable"},
    {"mapping", "transform", "conflict", "embedded", "pgvalues"},
    {"capture", "log", "stores"},
    {"config"},
    {"apply", "verify", "monitor", "catalog"},
    {"pipeline", "periodic"},
    {"testing", "systems", "publisher"},
    {"bench"},
    {"service", "demo"},
    {"__main__"},
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
STRANGERS = {"capture", "log", "stores"}  # one layer, and yet they never import one another

# Where a store may be called by its name: the table of names itself, what talks to people, and what measures. In the
# table of sources databases are called as stores are.
SOURCE_TABLE = "capture"
MAY_NAME_STORES = {"stores", "service", "demo", "bench", "embedded", "testing", "systems"}
# What measures a store, tests one, or shows one to people, may open it itself.
MAY_IMPORT_STORES = {"stores", "demo", "bench", "testing"}
STORES = {"duckdb", "neo4j", "qdrant", "redis", "postgres"}


@dataclass(frozen=True)
class Module:
    """A module of the package: its dotted name below ``syncline`` ("" is ``syncline`` itself) and its tree."""

    name: str
    is_package: bool
    tree: ast.Module

    @property
    def room(self) -> str:
        return self.name.partition(".")[0]

    def imports(self) -> Iterator[str]:
        """Every module of ours that it imports, wherever in the file, as dotted names below ``syncline``."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (a.name.partition(".")[2] for a in node.names if a.name.partition(".")[0] == "syncline")
            elif isinstance(node, ast.ImportFrom):
                origin = self._origin(node)
                if origin.partition(".")[0] == "syncline":
                    below = origin.partition(".")[2]
                    # "from syncline import x" and "from syncline.stores import x" may name a module x.
                    yield from (f"{below}.{alias.name}".strip(".") for alias in node.names)

    def _origin(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        here = ["syncline", *self.name.split(".")] if self.name else ["syncline"]
        up = node.level - 1 if self.is_package else node.level
        return ".".join([*here[: len(here) - up], *([node.module] if node.module else [])])


def modules(package: Path) -> list[Module]:
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found.append(Module(name, is_package, ast.parse(path.read_text(), str(path))))
    return found


def wrong_directions(tree: list[Module]) -> list[str]:
    wrong = []
    for module in tree:
        if module.name == "":  # the package's own front may name anything
            continue
        if module.room not in LAYER:
            wrong.append(f"{module.name}: give {module.room} its place in LAYERS")
            continue
        for target in sorted(set(module.imports())):
            room = target.partition(".")[0]
            if room not in LAYER or room == module.room:
                continue  # names of the package itself, such as __version__
            if LAYER[room] > LAYER[module.room] or {room, module.room} <= STRANGERS:
                wrong.append(f"{module.name} imports {target}")
    return wrong


def leaked_stores(tree: list[Module]) -> list[str]:
    """Store modules imported by others, and store names that others branch on."""
    stores = {m.name.split(".")[1] for m in tree if m.name.startswith("stores.")}
    leaks = []
    for module in tree:
        if module.room not in MAY_IMPORT_STORES:
            leaks += [
                f"{module.name} imports {target}"
                for target in sorted(set(module.imports()))
                if target.split(".")[0] == "stores" and len(target.split(".")) > 1 and target.split(".")[1] in stores
            ]
        if module.room not in MAY_NAME_STORES and module.name != SOURCE_TABLE:
            leaks += [f"{module.name}:{line} branches on {name!r}" for line, name in branches(module, STORES | stores)]
    return leaks


def branches(module: Module, names: set[str]) -> list[tuple[int, str]]:
    """Lines of comparisons, match patterns and dictionary keys that hold one of ``names``."""
    found = []
    for node in ast.walk(module.tree):
        tested: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            tested = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            tested = [node.value]
        elif isinstance(node, ast.Dict):
            tested = [key for key in node.keys if key is not None]
        for expression in tested:
            for part in ast.walk(expression):
                if isinstance(part, ast.Constant) and part.value in names:
                    found.append((part.lineno, str(part.value)))
    return sorted(found)


def names_in_all(module: Module) -> list[str]:
    for node in module.tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                return list(ast.literal_eval(value))
    return []


OURS = modules(PACKAGE)


def test_imports_point_in_one_direction() -> None:
    assert wrong_directions(OURS) == []


def test_no_module_imports_a_store_or_branches_on_its_name() -> None:
    assert leaked_stores(OURS) == []


def test_every_module_says_what_it_is_for() -> None:
    assert [m.name for m in OURS if not ast.get_docstring(m.tree)] == []


@pytest.mark.parametrize("module", [m for m in OURS if names_in_all(m)], ids=lambda m: m.name or "syncline")
def test_every_name_in_all_exists(module: Module) -> None:
    names = names_in_all(module)
    loaded = importlib.import_module(f"syncline.{module.name}".rstrip("."))
    assert [name for name in names if not hasattr(loaded, name)] == []
    assert len(names) == len(set(names))


BAD_TREE = {
    "__init__.py": '"""Front."""\nfrom syncline.pipeline import x\n',
    "errors.py": '"""Errors."""\nfrom syncline import change, pipeline\n',
    "change.py": '"""Change."""\nfrom . import errors\n',
    "attic.py": '"""A room that nobody has placed."""\n',
    "pipeline.py": '"""Pipeline."""\nimport syncline.stores.duckdb\nfrom syncline.log import append\n',
    "capture/__init__.py": '"""Capture."""\nfrom ..errors import Gap\nfrom ..log import append\n',
    "log/__init__.py": '"""Log."""\n',
    "log/redis.py": '"""Redis."""\nfrom . import append\nfrom ..change import Entry\n',
    "stores/__init__.py": '"""Stores."""\nSTORES = {"duckdb": "syncline.stores.duckdb"}\n',
    "stores/duckdb.py": '"""DuckDB."""\nfrom syncline.config import Config\n',
    "apply/__init__.py": "def late():\n    from syncline.service import cli\n",
    "apply/worker.py": '"""Worker."""\nfrom syncline.stores import duckdb, Store\nkind = "duckdb"\nkind != "duckdb"\n',
    "verify/__init__.py": '"""Verify."""\nmatch 1:\n    case "neo4j" | "other": pass\nx = {"redis": 1}\n',
    "service/__init__.py": '"""Service."""\nif 1 == "duckdb": pass\n',
}


@pytest.fixture
def bad(tmp_path: Path) -> list[Module]:
    for name, text in BAD_TREE.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return modules(tmp_path)


def test_a_wrong_direction_is_found_wherever_it_hides(bad: list[Module]) -> None:
    assert wrong_directions(bad) == [
        "apply imports service.cli",
        "attic: give attic its place in LAYERS",
        "capture imports log.append",
        "errors imports pipeline",
        "stores.duckdb imports config.Config",
    ]


def test_a_leaked_store_is_found_in_imports_and_in_branches(bad: list[Module]) -> None:
    assert leaked_stores(bad) == [
        "apply.worker imports stores.duckdb",
        "apply.worker:4 branches on 'duckdb'",
        "pipeline imports stores.duckdb",
        "verify:3 branches on 'neo4j'",
        "verify:4 branches on 'redis'",
    ]
