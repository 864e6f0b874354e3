"""The fixtures of the tests of verification."""

from __future__ import annotations

from pathlib import Path

import pytest
from piped import Pipeline

from servers import Database
from syncline.config import load_config


@pytest.fixture
def pipeline(database: Database, tmp_path: Path) -> Pipeline:
    file = tmp_path / "syncline.yaml"
    path = tmp_path / "copy.duckdb"
    file.write_text(
        f"source:\n  dsn: {database.dsn}\n"
        f"target:\n  type: duckdb\n  path: {path}\n  memory_limit: 512MB\n"
        f"log:\n  path: {tmp_path / 'log'}\n"
    )
    return Pipeline(database, load_config(file), path)
