"""The fixtures that all test modules share: one PostgreSQL per worker, one database per test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from servers import SETTINGS, TEMPLATE, Database, fresh_database
from syncline.embedded import EmbeddedPostgres

# How long an example takes says how busy the machine is.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """This worker's server. Tests that stop, kill or reconfigure a server use ``pg_server`` instead."""
    with EmbeddedPostgres.start(tmp_path_factory.mktemp("postgres") / "data", settings=SETTINGS) as server:
        server.create_database(TEMPLATE)
        yield server


@pytest.fixture
def database(postgres: EmbeddedPostgres) -> Iterator[Database]:
    """A fresh, empty database."""
    with fresh_database(postgres, TEMPLATE) as fresh:
        yield fresh


@pytest.fixture
def pg_server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server of this test's own, to stop, kill and restart at will."""
    server = EmbeddedPostgres.start(tmp_path / "postgres", settings=SETTINGS)
    try:
        yield server
    finally:
        server.stop("immediate")
