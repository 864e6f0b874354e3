"""Where a DuckDB file is and what it is called: what stands in the way, known without opening it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from syncline.errors import Misconfigured
from syncline.finding import Finding
from syncline.writable import nearest_present, obstacle

__all__ = ["OWN_SCHEMA", "blocked", "clash", "offline", "unwritable"]

OWN_SCHEMA = "syncline"
_ELSEWHERE = "Correct the target's path, or move what is there away."


def clash(path: Path, schemas: Collection[str]) -> Misconfigured | None:
    """DuckDB names the database after the file, and can't tell it from a schema in it of the same name, whatever the
    case. ``public`` is called ``main`` there, which may have the same name."""
    database = path.name.partition(".")[0].lower()
    same = next((s for s in (OWN_SCHEMA, *schemas) if s.lower() == database and s not in ("public", "main")), None)
    if same is None:
        return None
    whose = "Syncline's own schema" if same == OWN_SCHEMA else f"schema {same}"
    return Misconfigured(
        f"The DuckDB file {path} can't be called that: {whose} in it has the same name.",
        remedy="Give the file another name (the target's path), such as copy.duckdb.",
    )


def blocked(path: Path) -> Iterator[Finding]:
    """Why the path can't be used at all; findings without a subject."""
    named = clash(path, ())
    if named is not None:
        yield Finding("SL-DUCKDB-FILE", "error", "", named.message, named.remedy)
    if os.path.isdir(path):
        yield Finding("SL-DUCKDB-FILE", "error", "", f"{path} is a folder, not a database file.", _ELSEWHERE)
        return
    yield from unwritable(path.parent, "path")
    if os.path.exists(path) and not os.access(path, os.R_OK | os.W_OK, effective_ids=True):
        remedy = "Give the user that runs Syncline the right to read and write it."
        yield Finding("SL-DUCKDB-WRITE", "error", "", f"{path} can't be read and written.", remedy)


def unwritable(folder: Path, setting: str) -> Iterator[Finding]:
    """The folder holds the file, its write-ahead log and the query door, and is created where it is missing."""
    reason = obstacle(folder)
    if reason is None:
        return
    remedy = f"Correct the target's {setting}."
    if os.path.isdir(nearest_present(folder)):
        remedy = f"Give the user that runs Syncline the right to write there, or set the target's {setting}."
    yield Finding("SL-DUCKDB-WRITE", "error", "", f"{reason}.", remedy)


def offline(path: Path, schemas: Collection[str], folders: Mapping[str, Path]) -> Iterator[Finding]:
    """What can be said of the path by its name and its folder, and of other ``folders`` by their setting, for `syncline
    check`. That a folder can't be made here is a warning: the configuration may be meant for another machine, or for
    another user."""
    path = path.expanduser().resolve()
    for found in blocked(path):
        yield _offline(found, path.parent)
    for setting, folder in folders.items():
        place = folder.expanduser().resolve()
        for found in unwritable(place, setting):
            yield _offline(found, place)
    named = clash(path, schemas) if clash(path, ()) is None else None
    if named is not None:
        yield Finding("SL-DUCKDB-FILE", "error", "", named.message, named.remedy)


def _offline(found: Finding, folder: Path) -> Finding:
    elsewhere = not os.path.exists(folder) and os.path.isdir(nearest_present(folder))
    return replace(found, severity="warning") if elsewhere and found.code == "SL-DUCKDB-WRITE" else found
